"""What NNabla keeps under this name."""

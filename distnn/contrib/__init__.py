"""Names under which old NNabla scripts find things."""

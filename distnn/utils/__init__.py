"""Tools around training, under the names of `nnabla.utils`."""

"""Parametric functions `PF.*`: functions with parameters, which the first call creates."""

from .connection import affine, convolution, deconvolution
from .normalization import batch_normalization
from .scope import parametric_function_api

__all__ = [
    "affine",
    "batch_normalization",
    "convolution",
    "deconvolution",
    "parametric_function_api",
]

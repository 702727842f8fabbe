"""Parametric functions `PF.*`: functions with parameters, which the first call creates."""

from .connection import affine, convolution, deconvolution, embed
from .normalization import (
    batch_normalization,
    fused_batch_normalization,
    group_normalization,
    instance_normalization,
    layer_normalization,
    sync_batch_normalization,
)
from .scope import parametric_function_api

__all__ = [
    "affine",
    "batch_normalization",
    "convolution",
    "deconvolution",
    "embed",
    "fused_batch_normalization",
    "group_normalization",
    "instance_normalization",
    "layer_normalization",
    "parametric_function_api",
    "sync_batch_normalization",
]

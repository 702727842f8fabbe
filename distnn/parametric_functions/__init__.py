"""Parametric functions `PF.*`: functions with parameters, which the first call creates."""

from ..parameter import get_parameter_or_create
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
from .weights import (
    binary_connect_affine,
    binary_connect_convolution,
    binary_weight_affine,
    binary_weight_convolution,
    depthwise_convolution,
    prelu,
    spectral_norm,
    weight_normalization,
)

__all__ = [
    "affine",
    "batch_normalization",
    "binary_connect_affine",
    "binary_connect_convolution",
    "binary_weight_affine",
    "binary_weight_convolution",
    "convolution",
    "deconvolution",
    "depthwise_convolution",
    "embed",
    "fused_batch_normalization",
    "get_parameter_or_create",
    "group_normalization",
    "instance_normalization",
    "layer_normalization",
    "parametric_function_api",
    "prelu",
    "spectral_norm",
    "sync_batch_normalization",
    "weight_normalization",
]

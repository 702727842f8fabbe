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
from .recurrent import LSTMCell, gru, lstm, lstm_cell, rnn
from .scope import parametric_function_api
from .transformer import (
    multi_head_attention,
    transformer,
    transformer_decode,
    transformer_encode,
)
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
    "LSTMCell",
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
    "gru",
    "instance_normalization",
    "layer_normalization",
    "lstm",
    "lstm_cell",
    "multi_head_attention",
    "parametric_function_api",
    "prelu",
    "rnn",
    "spectral_norm",
    "sync_batch_normalization",
    "transformer",
    "transformer_decode",
    "transformer_encode",
    "weight_normalization",
]

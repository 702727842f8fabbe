"""Functions `F.*`: they record on Variables and compute at once on NdArrays."""

from .activation import (
    celu,
    crelu,
    elu,
    gelu,
    hard_sigmoid,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    mish,
    prelu,
    relu,
    relu6,
    selu,
    sigmoid,
    softplus,
    softsign,
    swish,
    tanh,
    tanh_shrink,
)
from .affine import affine, batch_matmul
from .arithmetic import (
    add2,
    add_n,
    add_scalar,
    div2,
    equal,
    equal_scalar,
    greater,
    greater_equal,
    greater_equal_scalar,
    greater_scalar,
    identity,
    isinf,
    isnan,
    less,
    less_equal,
    less_equal_scalar,
    less_scalar,
    logical_and,
    logical_and_scalar,
    logical_not,
    logical_or,
    logical_or_scalar,
    logical_xor,
    logical_xor_scalar,
    maximum2,
    maximum_scalar,
    minimum2,
    minimum_scalar,
    mul2,
    mul_n,
    mul_scalar,
    not_equal,
    not_equal_scalar,
    pow2,
    pow_scalar,
    r_div_scalar,
    r_pow_scalar,
    r_sub_scalar,
    reset_inf,
    reset_nan,
    sub2,
    where,
)
from .attention import multi_head_attention
from .batch_normalization import batch_normalization
from .convolution import convolution, deconvolution
from .creation import arange, assign, constant, linspace, sink, unlink
from .depthwise_convolution import depthwise_convolution
from .dropout import dropout
from .fused_batch_normalization import fused_batch_normalization
from .gru import gru
from .image_augmentation import image_augmentation
from .indexing import embed, gather, one_hot, top_n_error
from .interpolation import interpolate
from .layer_normalization import (
    group_normalization,
    instance_normalization,
    layer_normalization,
    tensor_normalization,
)
from .linear_algebra import (
    batch_det,
    batch_inv,
    batch_logdet,
    dot,
    eye_like,
    matrix_diag,
    matrix_diag_part,
    trilu,
)
from .loss import (
    absolute_error,
    binary_cross_entropy,
    binary_error,
    categorical_cross_entropy,
    epsilon_insensitive_loss,
    huber_loss,
    kl_multinomial,
    sigmoid_cross_entropy,
    squared_error,
)
from .lstm import lstm
from .mathematics import (
    abs,
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atanh,
    ceil,
    cos,
    cosh,
    exp,
    floor,
    log,
    sign,
    sin,
    sinh,
    sqrt,
    tan,
)
from .norm import (
    clip_by_norm,
    clip_by_value,
    norm,
    norm_normalization,
    spectral_norm,
    weight_normalization,
)
from .padding import pad
from .places import gather_nd, scatter_nd, sort, top_k_data
from .pooling import average_pooling, global_average_pooling, max_pooling, sum_pooling
from .quantization import (
    binary_connect_affine,
    binary_connect_convolution,
    binary_sigmoid,
    binary_tanh,
    binary_weight_affine,
    binary_weight_convolution,
    fixed_point_quantize,
    pow2_quantize,
    round,
)
from .random_numbers import rand, randint, randn
from .random_samples import random_crop, random_flip, random_shift
from .rearranging import flip, shift, tile, unpooling
from .reduction import max, mean, min, prod, sum
from .rnn import rnn
from .scan import cumprod, cumsum
from .shaping import broadcast, concatenate, reshape, slice, split, stack, transpose
from .softmax import log_softmax, softmax, softmax_cross_entropy
from .sync_batch_normalization import sync_batch_normalization
from .warping import affine_grid, warp_by_grid

__all__ = [name for name in dir() if not name.startswith("_")]

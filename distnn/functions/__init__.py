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
    add_scalar,
    div2,
    equal,
    equal_scalar,
    greater,
    greater_equal,
    greater_equal_scalar,
    greater_scalar,
    identity,
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
    mul_scalar,
    not_equal,
    not_equal_scalar,
    pow2,
    pow_scalar,
    r_div_scalar,
    r_pow_scalar,
    r_sub_scalar,
    sub2,
    where,
)
from .batch_normalization import batch_normalization
from .convolution import convolution, deconvolution
from .creation import assign, constant, sink
from .dropout import dropout
from .fused_batch_normalization import fused_batch_normalization
from .indexing import embed, gather, one_hot, top_n_error
from .layer_normalization import (
    group_normalization,
    instance_normalization,
    layer_normalization,
    tensor_normalization,
)
from .loss import (
    absolute_error,
    binary_cross_entropy,
    huber_loss,
    sigmoid_cross_entropy,
    squared_error,
)
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
from .padding import pad
from .pooling import average_pooling, global_average_pooling, max_pooling, sum_pooling
from .reduction import max, mean, min, prod, sum
from .shaping import broadcast, concatenate, reshape, slice, split, stack, transpose
from .softmax import log_softmax, softmax, softmax_cross_entropy
from .sync_batch_normalization import sync_batch_normalization

__all__ = [name for name in dir() if not name.startswith("_")]

"""Bad input: which error a function raises, and what its message says.

A message begins with the function in brackets, names the argument and both values, and says what
mends it. Shapes and arguments are checked when the function is called, labels and indices when it
computes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.errors import ArgumentError, DtypeError, LabelError, ShapeError


class Row(NamedTuple):
    name: str
    call: Callable[[], Any]
    error: type[Exception]
    message: str  # a regular expression for what follows "[name] "


def v(*shape: int) -> nn.Variable:
    return nn.Variable(shape)


def n(values: Any) -> nn.Variable:
    return nn.Variable.from_numpy_array(np.array(values))


def row(name: str, error: type[Exception], message: str, *inputs: Any, **arguments: Any) -> Row:
    function = getattr(F, name)
    return Row(name, lambda: function(*inputs, **arguments), error, message)


X = v(2, 3)
IMAGES = v(2, 4, 6, 6)
STATISTICS = [v(1, 3, 1, 1)] * 4
TWO_ARRAYS = [
    "add2", "sub2", "mul2", "div2", "pow2", "maximum2", "minimum2",
    "greater", "greater_equal", "less", "less_equal", "equal", "not_equal",
    "logical_and", "logical_or", "logical_xor",
    "squared_error", "absolute_error", "huber_loss",
]  # fmt: skip
WITH_TARGET = ["sigmoid_cross_entropy", "binary_cross_entropy"]
WITH_SCALAR = [
    "add_scalar", "mul_scalar", "pow_scalar", "r_sub_scalar", "r_div_scalar", "r_pow_scalar",
    "maximum_scalar", "minimum_scalar",
    *(f"{name}_scalar" for name in TWO_ARRAYS[7:16]),
]  # fmt: skip
OPERANDS = [
    ("leaky_relu", "alpha"), ("elu", "alpha"), ("selu", "scale"), ("selu", "alpha"),
    ("celu", "alpha"), ("softplus", "beta"), ("sign", "alpha"),
]  # fmt: skip
ONE_ARRAY = [
    "relu", "leaky_relu", "relu6", "elu", "selu", "celu", "crelu", "sigmoid", "log_sigmoid", "tanh",
    "tanh_shrink", "softplus", "softsign", "swish", "mish", "gelu", "hard_sigmoid", "hard_tanh",
    "exp", "log", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan", "asinh",
    "acosh", "atanh", "abs", "sign", "floor", "ceil", "identity", "dropout", "softmax",
    "log_softmax", "sum", "mean", "prod", "max", "min", "global_average_pooling", "split",
    "add_scalar", "mul_scalar", "pow_scalar", "maximum_scalar", "minimum_scalar", "r_sub_scalar",
    "r_div_scalar", "r_pow_scalar", "round", "binary_tanh", "binary_sigmoid", "flip", "unlink",
    "cumsum", "cumprod", "sort", "batch_inv", "batch_det", "batch_logdet", "matrix_diag",
    "matrix_diag_part", "trilu", "eye_like", "fixed_point_quantize", "pow2_quantize", "isnan",
    "isinf", "reset_nan", "reset_inf",
]  # fmt: skip
REDUCTIONS = ["sum", "mean", "prod", "max", "min"]
POOLING = ["average_pooling", "sum_pooling", "max_pooling"]
CONVOLUTIONS = ["convolution", "deconvolution"]
RECURRENT = ["rnn", "lstm", "gru"]
STEPS = v(5, 2, 3)
STATES = {"rnn": [v(1, 1, 2, 4)], "lstm": [v(1, 1, 2, 4)] * 2, "gru": [v(1, 1, 2, 4)]}
GATES = {"rnn": (), "lstm": (4,), "gru": (3,)}
ATTENTION = [v(3, 2, 6), v(4, 2, 6), v(4, 2, 6), 3, *[v(6, 6)] * 4]
WITH_AXIS = ["crelu", "celu", "softmax", "log_softmax", "split", "concatenate", "stack"]

# fmt: off
ROWS = [
    # -- something that is no array -----------------------------------------------------------
    *(row(name, DtypeError, r"(input )?x0? is ndarray; pass a Variable", np.ones((2, 3)))
      for name in ONE_ARRAY),
    *(row(name, DtypeError, r"(input )?x is list; pass a Variable", [1.0, 2.0])
      for name in ("relu", "softmax", "sum", "dropout", "crelu", "global_average_pooling")),
    *(row(name, DtypeError, r"input x1 is float; pass a Variable", X, 2.0) for name in TWO_ARRAYS),
    *(row(name, DtypeError, r"input target is ndarray; pass", X, np.ones((2, 3)))
      for name in WITH_TARGET),
    *(row(name, ArgumentError, r"x1 is None; pass a Variable", X, None) for name in TWO_ARRAYS),
    row("relu", ArgumentError, r"x is None; pass a Variable", None),
    row("logical_not", DtypeError, r"input x0 is ndarray; pass a Variable", np.ones(2)),
    row("where", DtypeError, r"condition is ndarray; pass", np.ones(2), X, X),
    row("where", DtypeError, r"x_true is float; pass", X, 1.0, X),
    row("where", DtypeError, r"input x_false is float; pass", X, X, 1.0),
    row("prelu", DtypeError, r"x0 is list; pass", [1.0], v()),
    row("prelu", DtypeError, r"x1 is float; pass", X, 0.25),
    row("affine", DtypeError, r"x is ndarray; pass", np.ones((2, 3)), v(3, 4)),
    row("affine", DtypeError, r"weight is NoneType; pass", X, None),
    row("affine", DtypeError, r"bias is ndarray; pass", X, v(3, 4), np.ones(4)),
    row("batch_matmul", DtypeError, r"input b is ndarray; pass", v(1, 2, 3), np.ones((1, 3, 2))),
    *(row(name, DtypeError, r"x is ndarray; pass", np.ones((2, 4, 6, 6)), v(4, 4, 3, 3))
      for name in CONVOLUTIONS),
    *(row(name, DtypeError, r"weight is NoneType; pass", IMAGES, None) for name in CONVOLUTIONS),
    *(row(name, DtypeError, r"bias is ndarray; pass", IMAGES, v(4, 4, 3, 3), np.ones(4))
      for name in CONVOLUTIONS),
    *(row(name, DtypeError, r"input x is ndarray; pass", np.ones((2, 6)),
          (2,)) for name in POOLING),
    row("batch_normalization", DtypeError, r"x is ndarray; pass", np.ones((2, 3, 4, 4)),
        *STATISTICS),
    *(row("batch_normalization", DtypeError, r"mean is NoneType; pass a Variable",
          v(2, 3, 4, 4), None, None, None, v(1, 3, 1, 1), batch_stat=batch_stat)
      for batch_stat in (True, False)),
    *(row("batch_normalization", DtypeError, r"input beta is float; pass a Variable",
          v(2, 3, 4, 4), 0.0, *STATISTICS[1:], batch_stat=batch_stat)
      for batch_stat in (True, False)),
    row("embed", DtypeError, r"w is ndarray; pass", n([1]), np.ones((3, 2))),
    row("embed", DtypeError, r"input x0 is list; pass", [1], v(3, 2)),
    row("gather", DtypeError, r"Indices is list; pass", X, [0, 1]),
    row("gather", DtypeError, r"x is ndarray; pass", np.ones((2, 3)), n([0])),
    row("one_hot", DtypeError, r"input x is ndarray; pass", np.array([[1]]), (3,)),
    row("top_n_error", DtypeError, r"x is ndarray; pass", np.ones((2, 3)), n([[0], [0]])),
    row("softmax_cross_entropy", DtypeError, r"input target is ndarray; pass", X,
        np.array([[0], [0]])),
    *(row(name, DtypeError, r"x is ndarray; pass", np.ones((2, 3)), (1, 0))
      for name in ("transpose", "reshape", "broadcast", "pad")),
    row("slice", DtypeError, r"x is ndarray; pass", np.ones(3), (0,), (2,), (1,)),
    *(row(name, DtypeError, rf"x\[0\] is list; pass the arrays one by one: F.{name}\(\*arrays\)",
          [X, X])
      for name in ("concatenate", "stack", "sink")),
    *(row(name, DtypeError, r"x\[1\] is ndarray; pass", X, np.ones((2, 3)))
      for name in ("concatenate", "stack", "sink")),
    *(row(name, ArgumentError, r"got no inputs; pass one or more")
      for name in ("concatenate", "stack", "sink")),
    row("assign", DtypeError, r"input src is float; pass", X, 1.0),
    row("sink", DtypeError, r"one_input_grad=False needs gradients; pass Variables",
        nn.NdArray((2,)), one_input_grad=False),
    # -- numbers ------------------------------------------------------------------------------
    *(row(name, DtypeError, r"val is 'a'; pass a number", X, "a") for name in WITH_SCALAR),
    *(row(name, DtypeError, r"val is Variable; pass a number", X, X) for name in WITH_SCALAR),
    *(row(name, DtypeError, rf"{operand} is None; pass a number", X, **{operand: None})
      for name, operand in OPERANDS),
    row("huber_loss", DtypeError, r"delta is 'a'; pass a number", X, X, delta="a"),
    row("constant", DtypeError, r"val is 'a'; pass a number", "a", (2,)),
    row("dropout", DtypeError, r"p is 'a'; pass a number", X, "a"),
    *(row("dropout", ArgumentError, rf"p is {p}; pass a probability from 0 up to", X, p)
      for p in (1.0, -0.1, float("nan"))),
    row("dropout", DtypeError, r"seed is 0.5; pass a whole number", X, 0.5, seed=0.5),
    row("rand", ArgumentError, r"low is 2.0 and high 1.0; low must not be above high", 2, 1),
    row("rand", ShapeError, r"shape.*-1", shape=(-1,)),
    row("randn", ArgumentError, r"sigma is -1.0; pass 0 or more", 0, -1),
    row("randint", ArgumentError, r"low is 3 and high 3; pass low below high", 3, 3),
    row("randint", DtypeError, r"high is 1.5; pass a whole number", 0, 1.5),
    row("arange", ArgumentError, r"step is 0; pass another number", 0, 1, 0),
    row("linspace", ArgumentError, r"num is -1; pass 0 or more", 0, 1, -1),
    *(row(name, ArgumentError, r"p is 0.5; pass a finite number of 1 or more", X, 0.5)
      for name in ("norm", "norm_normalization")),
    row("clip_by_norm", ArgumentError, r"clip_norm is 0; pass a number above 0", X, 0),
    row("spectral_norm", ArgumentError, r"itr is 0 and eps 1e-12; itr has to be 1 or more", X,
        v(2), itr=0),
    row("top_k_data", ArgumentError, r"k is 4 but a sample of x \(2, 3\) from axis 1 on has 3 "
        r"elements; pass 1 to 3", X, 4),
    row("tile", ArgumentError, r"reps is \(2, 0\); pass numbers of 1 or more", X, (2, 0)),
    row("unpooling", ArgumentError, r"kernel is \(0,\); pass numbers of 1 or more", X, (0,)),
    row("interpolate", DtypeError, r"scale is 2; pass a number for each spatial axis", IMAGES, 2),
    row("interpolate", ArgumentError, r"scale is None and output_size is None; give one", IMAGES),
    row("interpolate", ArgumentError, r"mode is 'cubic'; use one of", IMAGES, (2, 2), mode="cubic"),
    row("interpolate", ArgumentError, r"align_corners and half_pixel are both True", IMAGES, (2, 2),
        align_corners=True, half_pixel=True),
    *(row(name, ArgumentError, r"border_mode is 'wrap'; use one of", X, (1,), border_mode="wrap")
      for name in ("shift", "random_shift")),
    row("image_augmentation", ArgumentError, r"min_scale is 0; pass a number above 0", IMAGES,
        min_scale=0),
    row("scatter_nd", ArgumentError, r"shape is None and out is NoneType; give one of them", v(3),
        v(2, 3)),
    # -- shapes that do not fit each other -----------------------------------------------------
    *(row(name, ShapeError, rf"shapes do not broadcast: \w+ \(2, 3\), \w+ {re.escape(str(s))}; "
          "give all as many axes, each of the same length or of length 1", X, v(*s))
      for name in (*TWO_ARRAYS, *WITH_TARGET) for s in ((3,), (2, 4))),
    row("where", ShapeError, r"shapes do not broadcast: condition \(2, 4\), x_true \(2, 3\)",
        v(2, 4), X, X),
    row("where", ShapeError, r"shapes do not broadcast: .*x_false \(3,\)", X, X, v(3)),
    row("where", ShapeError, r"shapes do not broadcast: condition \(2, 3, 1\)", v(2, 3, 1), X, X),
    row("norm", ShapeError, r"axis is 2 but the array has 2 axes", X, axis=2),
    row("weight_normalization", ShapeError, r"g has shape \(3,\) but axis 0 of w \(2, 3\) needs "
        r"\(2,\)", X, v(3)),
    row("spectral_norm", ShapeError, r"u has shape \(3,\) but axis 0 of w \(2, 3\) needs \(2,\)", X,
        v(3)),
    row("gather", ShapeError, r"batch_dims is 1 and axis 1 but x has shape \(2, 3\) and Indices "
        r"\(3, 2\)", X, v(3, 2), 1, 1),
    row("gather_nd", ShapeError, r"indices has shape \(3, 4\) but data has 2 axes", X, v(3, 4)),
    row("scatter_nd", ShapeError, r"data has shape \(4,\) but indices \(2, 3\) and a result of "
        r"\(5, 5\) need \(3,\)", v(4), v(2, 3), (5, 5)),
    row("tile", DtypeError, r"reps is \(1.5,\); pass a sequence of whole numbers", X, 1.5),
    row("unpooling", ShapeError, r"kernel is \(1, 2, 3\) but x has shape \(2, 3\)", X, (1, 2, 3)),
    row("shift", ShapeError, r"shifts is \(1, 1, 1\) but x \(2, 3\) has 2 axes", X, (1, 1, 1)),
    row("random_shift", ShapeError, r"shifts is \(1, 1\); .*at most 1 \(base_axis is 1\)", X,
        (1, 1)),
    row("random_crop", ShapeError, r"shape is \(4,\); pass lengths within those of .*\(2, 3\)", X,
        (4,)),
    row("random_flip", ShapeError, r"axes is \(0,\) and base_axis 1", X, (0,)),
    row("interpolate", ShapeError, r"scale is \(2, 2, 2, 2, 2\) but x has shape \(2, 4, 6, 6\)",
        IMAGES, (2,) * 5),
    row("interpolate", ShapeError, r"x has shape .* and the result's spatial axes are \(0, 3\)",
        IMAGES, (0.1, 0.5)),
    row("image_augmentation", ShapeError, r"shape is \(3, 5, 5\) but x has shape \(2, 4, 6, 6\)",
        IMAGES, (3, 5, 5)),
    row("image_augmentation", ShapeError, r"pad is \(1,\); pass two numbers", IMAGES, pad=(1,)),
    row("depthwise_convolution", ShapeError, r"weight has shape \(3, 3, 3\) but x \(2, 4, 6, 6\) "
        r"with multiplier 1 needs \(4, \*kernel\)", IMAGES, v(3, 3, 3)),
    row("binary_connect_affine", ShapeError,
        r"binary_weight has shape \(3, 4\) but weight \(3, 5\)", X, v(3, 5), v(3, 4)),
    row("binary_weight_affine", ShapeError,
        r"alpha has shape \(3,\) but weight \(3, 5\) needs 5", X, v(3, 5), v(3, 5), v(3)),
    row("categorical_cross_entropy", ShapeError,
        r"target has shape \(2,\) but x \(2, 3\) with axis 1 needs \(2, 1\)", X, v(2)),
    row("kl_multinomial", ShapeError, r"p has shape \(2, 3\) but q \(2, 4\); pass equal", X,
        v(2, 4)),
    row("prelu", ShapeError, r"x1 has shape \(2,\) but x0 \(2, 3\) with base_axis 1 needs \(3,\)",
        X, v(2)),
    row("affine", ShapeError, r"weight has 4 rows but x \(2, 3\) has 3 elements .*pass a weight of "
        r"shape \(3, outputs\)", X, v(4, 5)),
    row("affine", ShapeError, r"weight has 0 rows but x \(2, 3\)", X, v()),
    row("affine", ShapeError, r"bias has shape \(4,\) but weight \(3, 5\) needs \(5,\)",
        X, v(3, 5), v(4)),
    row("batch_matmul", ShapeError, r"a \(2, 3\) and b \(1, 3, 2\) need as many axes", X,
        v(1, 3, 2)),
    row("batch_matmul", ShapeError, r"a \(3,\) and b \(3,\) need as many axes .*two or more", v(3),
        v(3)),
    row("batch_matmul", ShapeError, r"a \(5, 2, 3\) and b \(5, 4, 3\) with .*3 columns meet 4 rows",
        v(5, 2, 3), v(5, 4, 3)),
    row("batch_matmul", ShapeError, r"a .* with transpose_a=True, .*2 columns meet 3 rows",
        v(5, 2, 3), v(5, 3, 4), transpose_a=True),
    row("batch_matmul", ShapeError,
        r"a \(5, 2, 3\) and b \(4, 3, 2\) .*must be equal or of length 1",
        v(5, 2, 3), v(4, 3, 2)),
    row("convolution", ShapeError, r"weight expects 3 input channels but x has 4; pass a weight of "
        r"shape \(5, 4, 3, 3\), or group=", IMAGES, v(5, 3, 3, 3)),
    row("convolution", ShapeError, r"weight expects 3 input channels but x has 6; pass a weight of "
        r"shape \(5, 3, 3, 6\)", v(2, 4, 4, 6), v(5, 3, 3, 3), channel_last=True),
    row("convolution", ShapeError, r"group is 3 but x \(2, 4, 6, 6\) has 4 channels and weight .* "
        r"gives 6; it must divide both", IMAGES, v(6, 4, 3, 3), group=3),
    row("convolution", ShapeError, r"group is 2 but .* gives 3; it must divide both", IMAGES,
        v(3, 2, 3, 3), group=2),
    row("convolution", ShapeError, r"bias has shape \(4,\) but weight \(5, 4, 3, 3\) needs \(5,\)",
        IMAGES, v(5, 4, 3, 3), v(4)),
    row("convolution", ShapeError, r"the kernel \(7, 3\) with pad \(0, 0\) and dilation \(1, 1\) "
        r"does not fit into x's \(6, 6\); pad x", IMAGES, v(5, 4, 7, 3)),
    row("convolution", ShapeError, r"the kernel \(3, 3\) .*dilation \(3, 1\) does not fit", IMAGES,
        v(5, 4, 3, 3), dilation=(3, 1)),
    row("convolution", ShapeError, r"the kernel \(0, 3\) .*does not fit", IMAGES, v(5, 4, 0, 3)),
    row("deconvolution", ShapeError, r"weight expects 3 input channels but x has 4; pass a weight "
        r"of shape \(4, 5, 3, 3\)", IMAGES, v(3, 5, 3, 3)),
    row("deconvolution", ShapeError, r"group is 3 but x \(2, 4, 6, 6\) has 4 channels", IMAGES,
        v(4, 5, 3, 3), group=3),
    row("deconvolution", ShapeError, r"bias has shape \(5,\) but weight .*group 2 needs \(10,\)",
        IMAGES, v(4, 5, 3, 3), v(5), group=2),
    row("deconvolution", ShapeError, r"the kernel \(3, 3\) with pad \(4, 0\) leaves an output of "
        r"\(0, 8\); use less pad", IMAGES, v(4, 5, 3, 3), pad=(4, 0)),
    *(row(name, ShapeError, r"weight has shape \(4, 4\); it needs two axes for channels", v(2, 4),
          v(4, 4))
      for name in CONVOLUTIONS),
    *(row(name, ShapeError,
          r"x has shape \(4, 6, 6\); with base_axis 1 and weight \(4, 4, 3, 3\) it "
          "needs 1 batch axes, channels and 2 spatial axes", v(4, 6, 6), v(4, 4, 3, 3))
      for name in CONVOLUTIONS),
    *(row("batch_normalization", ShapeError, rf"{name} has shape \(3,\) but x \(2, 3, 4, 4\) with "
          r"axes \[1\] needs \(1, 3, 1, 1\)", v(2, 3, 4, 4),
          *(v(3) if i == k else v(1, 3, 1, 1) for i in range(4)), batch_stat=batch_stat)
      for k, name in enumerate(("beta", "gamma", "mean", "variance"))
      for batch_stat in (True, False)),
    row("batch_normalization", ShapeError,
        r"x has shape \(0, 3, 4, 4\): an empty batch has no mean; "
        "use batch_stat=False", v(0, 3, 4, 4), *STATISTICS),
    *(row("layer_normalization", ShapeError, rf"{name} has shape {shape} but x \(2, 3, 4\); "
          r"pass one of 3 axes, each of x's length or of length 1", v(2, 3, 4),
          *(parameter if i == k else None for i in range(2)))
      for k, name in enumerate(("beta", "gamma"))
      for shape, parameter in ((r"\(3,\)", v(3)), (r"\(1, 2, 4\)", v(1, 2, 4)))),
    row("layer_normalization", ShapeError, r"x has shape \(2, 0\): an axis without elements has no "
        "mean", v(2, 0), None, None),
    row("layer_normalization", ShapeError, r"x has no axes; pass an array", v(), None, None),
    row("layer_normalization", DtypeError, r"x is ndarray; pass", np.ones((2, 3)), None, None),
    row("layer_normalization", ShapeError, r"batch_axis is 2 but the array has 2 axes", X, None,
        None, batch_axis=2),
    row("layer_normalization", ArgumentError, r"eps is -1.0; pass 0 or more", X, None, None,
        eps=-1),
    row("tensor_normalization", ShapeError, r"axes \[1, 1\] names an axis twice", X, [1, 1]),
    row("tensor_normalization", ArgumentError, r"eps is nan; pass 0 or more", X, 0,
        eps=float("nan")),
    *(row(f"{kind}_normalization", ShapeError, r"channel_axis 1 is one of batch_axis \[0, 1\]; "
          "pass axes that differ", v(2, 4, 6), None, None, batch_axis=[0, 1], **options)
      for kind, options in (("instance", {}), ("group", {"num_groups": 2}))),
    row("instance_normalization", ShapeError, r"channel_axis is 3 but the array has 3 axes",
        v(2, 4, 6), None, None, channel_axis=3),
    *(row("group_normalization", ShapeError, rf"num_groups is {groups} but x \(2, 4, 6\) has 4 "
          "channels; pass a number that divides them", v(2, 4, 6), None, None, groups)
      for groups in (3, 0)),
    row("group_normalization", DtypeError, r"num_groups is 2.0; pass a whole number", v(2, 4, 6),
        None, None, 2.0),
    *(row("group_normalization", ShapeError, rf"{name} has shape \(1, 2, 1\) but x \(2, 4, 6\) "
          r"with channel_axis 1 needs \(1, 4, 1\)", v(2, 4, 6),
          *(v(1, 2, 1) if i == k else None for i in range(2)), 2)
      for k, name in enumerate(("beta", "gamma"))),
    row("one_hot", ShapeError, r"x has shape \(4, 1\); its last axis needs length 2", v(4, 1),
        (3, 4)),
    row("one_hot", ShapeError, r"x has shape \(\); its last axis needs length 1", v(), (3,)),
    row("embed", ShapeError, r"w has shape \(\); pass a table", n([0]), v()),
    *(row(name, ShapeError, r"target has shape \(4,\) but x \(4, 5\) with axis 1 needs \(4, 1\)",
          v(4, 5), n([0, 1, 2, 3]))
      for name in ("softmax_cross_entropy", "top_n_error")),
    row("softmax_cross_entropy", ShapeError, r"target has shape \(2, 1\) but x \(2, 5, 3, 3\) with "
        r"axis 1 needs \(2, 1, 3, 3\)", v(2, 5, 3, 3), n([[0], [1]]), axis=1),
    # -- sequences -----------------------------------------------------------------------------
    *(row(name, ShapeError, rf"x has shape {re.escape(str(shape))}; pass \(T, B, I\): one or more",
          v(*shape), *STATES[name], v(1, *GATES[name], 4, 7))
      for name in RECURRENT for shape in ((0, 2, 3), (2, 3))),
    *(row(name, ShapeError, r"h has shape \(1, 2, 4\) but x \(5, 2, 3\), num_layers 1 and "
          r"bidirectional=False need \(1, 1, 2, 4\)", STEPS, v(1, 2, 4), *STATES[name][1:],
          v(1, *GATES[name], 4, 7)) for name in RECURRENT),
    *(row(name, ShapeError, r"h has shape \(1, 1, 2, 4\) but x \(5, 2, 3\), num_layers 2 and "
          r"bidirectional=True need \(2, 2, 2, 4\)", STEPS, *STATES[name],
          v(1, *GATES[name], 4, 7), num_layers=2, bidirectional=True) for name in RECURRENT),
    row("lstm", ShapeError, r"c has shape \(1, 1, 2, 5\) but x .* need \(1, 1, 2, 4\)", STEPS,
        v(1, 1, 2, 4), v(1, 1, 2, 5), v(1, 4, 4, 7)),
    row("lstm", DtypeError, r"c is NoneType; pass a Variable", STEPS, v(1, 1, 2, 4), None,
        v(1, 4, 4, 7)),
    *(row(name, ShapeError, r"weight_l0 has shape \(1, 2, 4, 7\) but x \(5, 2, 3\), h "
          r"\(1, 1, 2, 4\), .* need \(1, .*4, 7\)", STEPS, *STATES[name], v(1, 2, 4, 7))
      for name in RECURRENT),
    *(row(name, DtypeError, r"weight is NoneType; pass a Variable", STEPS,
          *[v(2, 1, 2, 4) for _ in STATES[name]], v(1, *GATES[name], 4, 7), num_layers=2)
      for name in RECURRENT),
    *(row(name, ShapeError, r"weight has shape \(2, 1, .*4, 8\) but .* need \(1, 1, .*4, 8\)",
          STEPS, *[v(2, 1, 2, 4) for _ in STATES[name]], v(1, *GATES[name], 4, 7),
          v(2, 1, *GATES[name], 4, 8), num_layers=2) for name in RECURRENT),
    *(row(name, ArgumentError, r"weight \(1, 1, 4, 8\) is for the layers after the first but "
          "num_layers is 1; pass None", STEPS, *STATES[name], v(1, *GATES[name], 4, 7),
          v(1, 1, 4, 8)) for name in RECURRENT),
    *(row(name, ShapeError, r"bias has shape \(4,\) but .* need \(1, 1, .*4\)", STEPS,
          *STATES[name], v(1, *GATES[name], 4, 7), bias=v(4)) for name in RECURRENT),
    *(row(name, ArgumentError, r"num_layers is 0; pass 1 or more", STEPS, *STATES[name],
          v(1, *GATES[name], 4, 7), num_layers=0) for name in RECURRENT),
    *(row(name, ArgumentError, r"dropout is 1.0; pass a probability", STEPS, *STATES[name],
          v(1, *GATES[name], 4, 7), dropout=1.0) for name in RECURRENT),
    row("rnn", ArgumentError, r"nonlinearity is 'cosine'; pass one of \('tanh', 'relu'\)", STEPS,
        v(1, 1, 2, 4), v(1, 4, 7), nonlinearity="cosine"),
    row("multi_head_attention", ShapeError, r"query has shape \(2, 3\); pass \(length, batch, ", X,
        *ATTENTION[1:]),
    row("multi_head_attention", ShapeError, r"value has shape \(3, 2, 6\) but .* need \(4, 2, ",
        *ATTENTION[:2], v(3, 2, 6), *ATTENTION[3:]),
    row("multi_head_attention", ShapeError, r"key has shape \(4, 3, 6\) but query \(3, 2, 6\)",
        ATTENTION[0], v(4, 3, 6), *ATTENTION[2:]),
    row("multi_head_attention", ArgumentError, r"num_heads is 4 but q_weight \(6, 6\) has 6 ",
        *ATTENTION[:3], 4, *ATTENTION[4:]),
    row("multi_head_attention", ShapeError, r"k_weight has shape \(6, 3\) but q_weight \(6, 6\)",
        *ATTENTION[:5], v(6, 3), *ATTENTION[6:]),
    row("multi_head_attention", ShapeError, r"additive_mask has shape \(4, 3\) .*need \(3, 4\)",
        *ATTENTION, additive_mask=v(4, 3)),
    row("multi_head_attention", ShapeError, r"key_padding_mask has shape \(4, 2\) .*need \(2,",
        *ATTENTION, key_padding_mask=v(4, 2)),
    row("multi_head_attention", ArgumentError, r"only one of attn_bias_k and attn_bias_v is given",
        *ATTENTION, attn_bias_k=v(6)),
    row("multi_head_attention", ShapeError, r"attn_bias_v has shape \(5,\); pass \(6,\)",
        *ATTENTION, attn_bias_k=v(6), attn_bias_v=v(5)),
    row("multi_head_attention", ArgumentError, r"dropout is -1.0; pass a probability", *ATTENTION,
        dropout=-1),
    row("reshape", ShapeError, r"shape \(4, 2\) has 8 elements but the array has 6", X, (4, 2)),
    row("reshape", ShapeError, r"shape \(4, -1\)", X, (4, -1)),
    row("reshape", ShapeError, r"shape \(-1, -1\) has a negative length", X, (-1, -1)),
    row("reshape", ShapeError, r"shape is 6; pass a sequence of ints", X, 6),
    row("broadcast", ShapeError,
        r"x \(2, 3\) does not broadcast to \(2, 4\); it needs as many axes",
        X, (2, 4)),
    row("broadcast", ShapeError, r"x \(2, 3\) does not broadcast to \(1, 2, 3\)", X, (1, 2, 3)),
    row("broadcast", ShapeError, r"shape is 3; pass a sequence of ints", v(1), 3),
    row("constant", ShapeError, r"shape is 3; pass a sequence of ints", 1, 3),
    row("constant", ShapeError, r"shape \(2, -1\) has a negative length", 1, (2, -1)),
    row("one_hot", ShapeError, r"shape is 3; pass a sequence of ints", v(4, 1), 3),
    row("concatenate", ShapeError, r"x has shapes \[\(2, 3\), \(3, 3\)\]; only axis 1 may differ",
        X, v(3, 3)),
    row("concatenate", ShapeError, r"x has shapes \[\(2, 3\), \(2,\)\]; only axis 1", X, v(2)),
    row("stack", ShapeError, r"x has shapes \[\(2, 3\), \(3, 2\)\]; they must be equal", X, v(3,
        2)),
    row("assign", ShapeError, r"src has shape \(3,\) but dst \(2, 3\)", X, v(3)),
    # -- axes ---------------------------------------------------------------------------------
    *(row(name, ShapeError, r"axis is 3 but the array has 2 axes; pass -2 to 1", X, axis=3)
      for name in (*WITH_AXIS[:-1], *REDUCTIONS)),
    *(row(name, ShapeError, r"axis is -4 but the array has \d axes; pass", X, axis=-4)
      for name in (*WITH_AXIS, *REDUCTIONS)),
    *(row(name, DtypeError, r"axis is 0.5; pass a whole number", X, axis=0.5)
      for name in (*WITH_AXIS, *REDUCTIONS)),
    row("stack", ShapeError, r"axis is 3 but the array has 3 axes; pass -3 to 2", X, axis=3),
    *(row(name, ShapeError, r"axis \[1, -1\] names an axis twice", X, axis=(1, -1))
      for name in REDUCTIONS),
    *(row(name, DtypeError, r"axis is 'x'; pass a whole number", X,
          axis="x") for name in REDUCTIONS),
    *(row(name, ShapeError, r"axis is -1 but the array has 0 axes; it needs one or more", v())
      for name in ("softmax", "log_softmax")),
    *(row(name, ShapeError,
          rf"x has shape \(0, 3\) and axis is \(0,\): an empty axis has no {name}; "
          "pass one element", v(0, 3), axis=0)
      for name in ("mean", "max", "min")),
    row("global_average_pooling", ShapeError, r"x has shape \(3,\); pass \(N, C, \*S\)", v(3)),
    row("global_average_pooling", ShapeError, r"x has shape \(2, 3, 0, 4\); pass .*one element or",
        v(2, 3, 0, 4)),
    row("prelu", ShapeError, r"base_axis is 2 but the array has 2 axes", X, v(3), base_axis=2),
    row("affine", ShapeError, r"base_axis is 3 but x is \(2, 3\); pass 0 to 2", X, v(3, 4),
        base_axis=3),
    row("affine", ShapeError, r"base_axis is -1 but x is \(2, 3\); pass 0 to 2", X, v(3, 4),
        base_axis=-1),
    row("affine", DtypeError, r"base_axis is 1.0; pass a whole number", X, v(3, 4), base_axis=1.0),
    *(row(name, ShapeError, r"x has shape .*with base_axis -1", IMAGES, v(4, 4, 3, 3), base_axis=-1)
      for name in CONVOLUTIONS),
    *(row(name, DtypeError, r"base_axis is 1.0; pass a whole number", IMAGES, v(4, 4, 3, 3),
          base_axis=1.0)
      for name in CONVOLUTIONS),
    row("batch_normalization", ShapeError, r"axes is 4 but the array has 4 axes; pass -4 to 3",
        v(2, 3, 4, 4), *STATISTICS, axes=[4]),
    row("batch_normalization", ShapeError, r"axes \[1, 1\] names an axis twice", v(2, 3, 4, 4),
        *STATISTICS, axes=[1, 1]),
    row("batch_normalization", ArgumentError, r"axes is empty; pass the channel axis",
        v(2, 3, 4, 4), *STATISTICS, axes=[]),
    row("fused_batch_normalization", ArgumentError, r"nonlinearity is 'tanh'; pass 'relu'",
        v(2, 3, 4, 4), *STATISTICS, nonlinearity="tanh"),
    *(row("fused_batch_normalization", ShapeError,
          r"z has shape \(2, 3, 4, 1\) but x \(2, 3, 4, 4\)", v(2, 3, 4, 4), *STATISTICS,
          v(2, 3, 4, 1), batch_stat=batch_stat)
      for batch_stat in (True, False)),
    row("fused_batch_normalization", DtypeError, r"z is ndarray; pass", v(2, 3, 4, 4), *STATISTICS,
        np.ones((2, 3, 4, 4))),
    *(row(name, ShapeError, r"axis is 2 but the array has 2 axes", v(4, 5), n([[0]] * 4), axis=2)
      for name in ("softmax_cross_entropy", "top_n_error")),
    row("gather", ShapeError, r"axis is 2 but the array has 2 axes; pass -2 to 1", X, n([0]),
        axis=2),
    row("gather", ShapeError, r"axis is 0 but the array has 0 axes", v(), n([0])),
    row("transpose", ShapeError, r"axes is \(1, 0\) but x \(2, 3, 4\) has 3 axes; name each once",
        v(2, 3, 4), (1, 0)),
    row("transpose", ShapeError, r"axes is \(0, 0\) but x \(2, 3\) has 2 axes", X, (0, 0)),
    row("transpose", ShapeError, r"axes is 2 but the array has 2 axes", X, (0, 2)),
    row("transpose", DtypeError, r"axes is 1; pass a sequence of whole numbers", X, 1),
    row("split", ShapeError, r"axis is 0 but the array has 0 axes", v()),
    # -- windows ------------------------------------------------------------------------------
    *(row(name, DtypeError, r"kernel is 2; pass a sequence of whole numbers", IMAGES, 2)
      for name in POOLING),
    *(row(name, ArgumentError, r"kernel is \(2, 0\); pass 1 or more for each spatial axis", IMAGES,
          (2, 0))
      for name in POOLING),
    *(row(name, ArgumentError, r"kernel is \(\); pass 1 or more", IMAGES, ()) for name in POOLING),
    *(row(name, ShapeError,
          r"x has shape \(2, 3\) but the kernel \(2, 2\) needs 2 spatial axes and "
          "channels", X, (2, 2), channel_last=True)
      for name in POOLING),
    *(row(name, ShapeError, r"x has shape \(3,\) but the kernel \(2, 2\) needs 2 spatial axes",
          v(3), (2, 2))
      for name in POOLING),
    *(row(name, ShapeError, r"the kernel \(7, 2\) with pad \(0, 0\) does not fit into x "
          r"\(2, 4, 6, 6\); pad x", IMAGES, (7, 2))
      for name in POOLING),
    *(row(name, ShapeError, r"stride is \(1,\); it needs one number for each of the 2 spatial axes",
          IMAGES, (2, 2), stride=(1,))
      for name in POOLING),
    *(row(name, ArgumentError, r"stride is \(1, 0\); the least possible is 1", IMAGES, (2, 2),
          stride=(1, 0))
      for name in POOLING),
    *(row(name, ArgumentError, r"pad \(2, 0\) must be smaller than the kernel \(2, 2\)", IMAGES,
          (2, 2), pad=(2, 0))
      for name in POOLING),
    *(row(name, ArgumentError, r"pad is \(-1, 0\); the least possible is 0", IMAGES, (2, 2),
          pad=(-1, 0))
      for name in POOLING),
    row("max_pooling", ShapeError,
        r"with ignore_border=False the last window of axis 1 of x \(2, 3\) "
        "lies in the pad of 1 alone; use ignore_border=True", X, (2,), pad=(1,),
        ignore_border=False),
    row("average_pooling", ShapeError, r"with ignore_border=False the last window of axis 1", X,
        (2,),
        pad=(1,), ignore_border=False, including_pad=False),
    *(row(name, ShapeError, rf"{argument} is \(1,\); it needs one number for each of the 2 spatial "
          "axes", IMAGES, v(4, 4, 3, 3), **{argument: (1,)})
      for name in CONVOLUTIONS for argument in ("pad", "stride", "dilation")),
    *(row(name, ArgumentError, rf"{argument} is \(1, {least - 1}\); the least possible is {least}",
          IMAGES, v(4, 4, 3, 3), **{argument: (1, least - 1)})
      for name in CONVOLUTIONS for argument, least in (("pad", 0), ("stride", 1), ("dilation", 1))),
    *(row(name, DtypeError, r"stride is \(1.5, 1\); pass a sequence of whole numbers", IMAGES,
          v(4, 4, 3, 3), stride=(1.5, 1))
      for name in CONVOLUTIONS),
    *(row(name, ArgumentError, r"group is 0; pass 1 or more", IMAGES, v(4, 4, 3, 3), group=0)
      for name in CONVOLUTIONS),
    *(row(name, DtypeError, r"group is 1.5; pass a whole number", IMAGES, v(4, 4, 3, 3), group=1.5)
      for name in CONVOLUTIONS),
    row("deconvolution", ArgumentError, r"output_padding \(1, 0\) must be smaller than stride "
        r"\(1, 1\)", IMAGES, v(4, 5, 3, 3), output_padding=(1, 0)),
    row("deconvolution", ShapeError, r"output_padding is \(1,\); it needs one number", IMAGES,
        v(4, 5, 3, 3), stride=(2, 2), output_padding=(1,)),
    row("pad", ShapeError, r"pad_width is \(1, 1, 1\); pass two numbers .* of x \(2, 3\)", X,
        (1, 1, 1)),
    row("pad", ShapeError, r"pad_width is \(1, 1, 1, 1, 1, 1\); pass two numbers", X, (1,) * 6),
    row("pad", ShapeError, r"pad_width is \(1, -1\); pass two numbers of 0 or more", X, (1, -1)),
    row("pad", DtypeError, r"pad_width is 1; pass a sequence of whole numbers", X, 1),
    row("pad", DtypeError, r"pad_width is \(0.5, 1\); pass a sequence", X, (0.5, 1)),
    row("pad", ArgumentError, r"mode is 'mirror'; use one of \['constant', 'reflect', 'repeat'\]",
        X,
        (1, 1), mode="mirror"),
    row("pad", DtypeError, r"constant_value is None; pass a number", X, (1, 1),
        constant_value=None),
    *(row("pad", ShapeError, rf"axis 1 of x \(2, 0\) is empty: nothing to {mode}; use mode=",
          v(2, 0), (1, 1), mode=mode)
      for mode in ("reflect", "repeat")),
    row("slice", ShapeError, r"start \(0, 0, 0\), .* need one number for each axis of x \(2, 3\)",
        X,
        (0, 0, 0), (1, 1, 1), (1, 1, 1)),
    row("slice", ShapeError, r"start \(0,\), stop \(1, 1\) and step None need", X, (0,), (1, 1)),
    row("slice", ArgumentError, r"step is \(1, 0\); pass 1 instead of 0", X, (0, 0), (1, 1), (1,
        0)),
    row("slice", DtypeError, r"start is 1; pass a sequence of whole numbers", X, 1),
    row("slice", DtypeError, r"stop is 0.5; pass a whole number", X, (0, 0), (1, 0.5)),
    # -- other arguments ----------------------------------------------------------------------
    *(row("batch_normalization", ArgumentError, rf"decay_rate is {rate}; pass 0 to 1",
          v(2, 3, 4, 4), *STATISTICS, decay_rate=rate)
      for rate in (-0.1, 1.5, float("nan"))),
    row("batch_normalization", DtypeError, r"decay_rate is None; pass a number", v(2, 3, 4, 4),
        *STATISTICS, decay_rate=None),
    row("batch_normalization", ArgumentError, r"eps is -1.0; pass 0 or more", v(2, 3, 4, 4),
        *STATISTICS, eps=-1),
    row("batch_normalization", ArgumentError, r"output_stat=True returns batch statistics, .*pass "
        "one of the two", v(2, 3, 4, 4), *STATISTICS, batch_stat=False, output_stat=True),
    row("sync_batch_normalization", ArgumentError, r"comm is NoneType; pass a communicator",
        v(2, 3, 4, 4), *STATISTICS, None),
    row("sync_batch_normalization", ArgumentError, r"eps is -1.0; pass 0 or more", v(2, 3, 4, 4),
        *STATISTICS, None, eps=-1),
    row("top_n_error", ArgumentError, r"n is 0; pass 1 or more", v(4, 5), n([[0]] * 4), n=0),
    row("top_n_error", DtypeError, r"n is 1.5; pass a whole number", v(4, 5), n([[0]] * 4), n=1.5),
    *(row(name, ArgumentError, r"outputs has 2 arrays but the function has 1", X, outputs=[X, X])
      for name in ("relu", "softmax", "sum")),
    row("dot", DtypeError, r"a is ndarray; pass a Variable", np.ones(2), v(2)),
    row("dot", ShapeError, r"a \(2, 3\) and b \(2, 3\): a's last axis and b's second last", X, X),
    *(row(name, ShapeError, r"x has shape \(2, 3\); pass square matrices", X)
      for name in ("batch_inv", "batch_det", "batch_logdet", "matrix_diag_part")),
    *(row(name, ShapeError, r"x has shape \(2,\); pass matrices \(..., N, M\)", v(2))
      for name in ("trilu", "eye_like")),
    *(row(name, ArgumentError, r"got no inputs; pass one or more") for name in ("add_n", "mul_n")),
    row("affine_grid", ShapeError, r"theta has shape \(5, 2, 3\) and size is \(2, 3, 4\); pass "
        r"\(B, 2, 3\) for \(H, W\)", v(5, 2, 3), (2, 3, 4)),
    row("warp_by_grid", ShapeError, r"x has shape \(2, 4, 6, 6\) and grid \(3, 5, 2\); pass",
        IMAGES, v(3, 5, 2)),
    row("warp_by_grid", ArgumentError, r"mode is 'cubic'; use one of", IMAGES, v(2, 5, 2), "cubic"),
    row("warp_by_grid", ArgumentError, r"padding_mode is 'wrap'; use one of", IMAGES, v(2, 5, 2),
        padding_mode="wrap"),
    row("fixed_point_quantize", ArgumentError,
        r"n is 1, sign True and delta 0.0625; a number needs", X, n=1),
    row("pow2_quantize", ArgumentError, r"n is 2, sign True and with_zero True; a number needs", X,
        n=2),
    row("epsilon_insensitive_loss", DtypeError, r"epsilon is 'a'; pass a number", X, X, "a"),
    row("binary_error", ShapeError, r"shapes do not broadcast: x \(2, 3\), target \(3,\)", X, v(3)),
    row("clip_by_value", DtypeError, r"x is ndarray; pass a Variable", np.ones(2), 0, 1),
    *(row(name, ShapeError, r"binary_weight has shape \(4, 4, 1, 1\) but weight \(5, 4, 3, 3\)",
          IMAGES, v(5, 4, 3, 3), v(4, 4, 1, 1), *alpha)
      for name, alpha in (("binary_connect_convolution", ()),
                          ("binary_weight_convolution", (v(5),)))),
    # -- labels and indices -------------------------------------------------------------------
    *(row(name, LabelError, r"index 5 is out of range \(1 of 2 are\); the axis has 3 elements", *a)
      for name, a in (("gather_nd", (v(2, 3), n([[0, 1], [0, 5]]))),
                      ("scatter_nd", (v(2), n([[0, 1], [0, 5]]), (2, 3))),
                      ("gather", (X, n([[0], [5]]), 1, 1)),
                      ("categorical_cross_entropy", (X, n([[0], [5]]))))),
    *(row(name, LabelError, r"target holds 5 \(1 of 2 labels are out of range\); with 5 classes "
          "labels are 0 to 4, or -1 to ignore", v(2, 5), n([[0], [5]]))
      for name in ("softmax_cross_entropy", "top_n_error")),
    *(row(name, LabelError, r"target holds -2 \(2 of 2", v(2, 5), n([[-2], [-2]]))
      for name in ("softmax_cross_entropy", "top_n_error")),
    *(row(name, LabelError, r"target holds 0.5; labels and indices are whole numbers", v(2, 5),
          n([[0], [0.5]]))
      for name in ("softmax_cross_entropy", "top_n_error")),
    *(row(name, LabelError, r"target holds nan; labels and indices are whole numbers", v(2, 5),
          n([[0], [np.nan]]))
      for name in ("softmax_cross_entropy", "top_n_error")),
    row("embed", LabelError, r"index 4 is out of range \(1 of 3 are\); the axis has 4 elements, so "
        "indices are -4 to 3", n([0, 4, 1]), v(4, 2)),
    row("embed", LabelError, r"index -5 is out of range", n([-5]), v(4, 2)),
    row("embed", LabelError, r"x0 holds 1.5; labels and indices are whole numbers", n([1.5]),
        v(4, 2)),
    row("embed", LabelError, r"index 0 is out of range", n([0]), v(0, 2)),
    row("gather", LabelError, r"index 3 is out of range \(1 of 2 are\); the axis has 3 elements",
        X, n([0, 3]), axis=1),
    row("gather", LabelError, r"index holds 0.5; labels and indices are whole", X, n([0.5])),
    row("one_hot", LabelError, r"index 3 is out of range", n([[0], [3]]), (3,)),
    row("one_hot", LabelError, r"index 2 is out of range \(1 of 2 are\); the axis has 2 elements",
        n([[0, 1], [2, 1]]), (2, 3)),
    row("one_hot", LabelError, r"x holds 0.5; labels and indices are whole", n([[0.5]]), (3,)),
]
# fmt: on


def computed(y):
    y.forward()
    return y


def look(result):
    """Errors of values are raised at once on the CPU, and when the host looks on a GPU."""
    for y in result if isinstance(result, tuple) else (result,):
        _ = y.d if isinstance(y, nn.Variable) else y.data


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}: {row.message}")
def test_bad_input_is_refused_with_a_message_that_helps(row):
    with nn.auto_forward(), pytest.raises(row.error) as caught:
        look(row.call())
    assert type(caught.value) is row.error
    message = str(caught.value)
    assert message.startswith(f"[{row.name}] "), message
    assert re.match(row.message, message.removeprefix(f"[{row.name}] ")), message
    assert len(re.sub(r" \(found on the GPU .*\)$", "", message)) < 400


def test_every_public_function_has_a_row():
    public = {name for name, f in vars(F).items() if inspect.isfunction(f)}
    assert not public - {row.name for row in ROWS}


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_wrong_label_leaves_the_graph_usable(dynamic):
    """The error is raised by the computation; with a right label the same graph computes."""
    x, t = v(2, 5), n([[0], [5]])
    with nn.auto_forward(dynamic):
        if dynamic:
            with pytest.raises(LabelError):
                look(F.softmax_cross_entropy(x, t))
            t.d = [[0], [4]]
            y = F.softmax_cross_entropy(x, t)
        else:
            y = F.softmax_cross_entropy(x, t)
            with pytest.raises(LabelError):
                look(computed(y))
            t.d = [[0], [4]]
            y.forward()
    np.testing.assert_allclose(y.d, np.log(5), rtol=1e-6)


def test_errors_are_python_s_own_kinds_too():
    """So that scripts that catch ValueError, TypeError or IndexError go on working."""
    with pytest.raises(ValueError, match="weight"):
        F.affine(X, v(4, 5))
    with pytest.raises(TypeError, match="ndarray"):
        F.relu(np.ones(2))
    with pytest.raises(IndexError, match="index 4"), nn.auto_forward():
        look(F.embed(n([4]), v(4, 2)))

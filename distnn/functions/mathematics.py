"""Mathematical functions of one array, element by element."""

from __future__ import annotations

from .elementwise import elementwise

exp = elementwise(
    "exp", "Exponential.", y="exp(x)", dx="dy * y", example="[0., 1.] -> [1.    , 2.7183]"
)
log = elementwise(
    "log",
    "Natural logarithm.",
    y="log(x)",
    dx="dy / x",
    example="[1., 2.] -> [0.    , 0.6931]",
)
sqrt = elementwise(
    "sqrt", "Square root.", y="sqrt(x)", dx="dy * 0.5 / y", example="[1., 4.] -> [1., 2.]"
)
sin = elementwise("sin", "Sine.", y="sin(x)", example="[0., 1.] -> [0.    , 0.8415]")
cos = elementwise("cos", "Cosine.", y="cos(x)", example="[0., 1.] -> [1.    , 0.5403]")
tan = elementwise(
    "tan",
    "Tangent.",
    y="tan(x)",
    dx="dy * (1 + y * y)",
    example="[0., 1.] -> [0.    , 1.5574]",
)
sinh = elementwise("sinh", "Hyperbolic sine.", y="sinh(x)", example="[0., 1.] -> [0.    , 1.1752]")
cosh = elementwise(
    "cosh", "Hyperbolic cosine.", y="cosh(x)", example="[0., 1.] -> [1.    , 1.5431]"
)
asin = elementwise("asin", "Inverse sine.", y="arcsin(x)", example="[0., 1.] -> [0.    , 1.5708]")
acos = elementwise("acos", "Inverse cosine.", y="arccos(x)", example="[0., 1.] -> [1.5708, 0.    ]")
atan = elementwise(
    "atan", "Inverse tangent.", y="arctan(x)", example="[0., 1.] -> [0.    , 0.7854]"
)
asinh = elementwise(
    "asinh",
    "Inverse hyperbolic sine.",
    y="arcsinh(x)",
    example="[0., 1.] -> [0.    , 0.8814]",
)
acosh = elementwise(
    "acosh",
    "Inverse hyperbolic cosine.",
    y="arccosh(x)",
    example="[1., 3.] -> [0.    , 1.7627]",
)
atanh = elementwise(
    "atanh",
    "Inverse hyperbolic tangent.",
    y="arctanh(x)",
    example="[0., .5] -> [0.    , 0.5493]",
)
abs = elementwise(
    "abs", "Absolute value; the gradient at 0 is that of positive x.", y="abs(x)",
    example="[-1., 2.] -> [1., 2.]",
)  # fmt: skip
sign = elementwise(
    "sign", "Sign of x, and alpha at 0; the gradient passes through unchanged.",
    y="where(x > 0, 1, where(x < 0, -1, alpha))", operands={"alpha": 1.0}, dx="dy",
    example="[-2., 0., 3.] -> [-1.,  1.,  1.]",
)  # fmt: skip
floor = elementwise(
    "floor", "Largest whole number not above x; the gradient passes through unchanged.",
    y="floor(x)", dx="dy", example="[-1.5, 1.5] -> [-2.,  1.]",
)  # fmt: skip
ceil = elementwise(
    "ceil", "Smallest whole number not below x; the gradient passes through unchanged.",
    y="ceil(x)", dx="dy", example="[-1.5, 1.5] -> [-1.,  2.]",
)  # fmt: skip

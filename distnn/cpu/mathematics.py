"""exp, log, tanh and relatives of float32, of operations that vectorise; for use inside of kernels.

Numba's own call a library for each element, unless its build has Intel's vector library; pip's has
not. Errors are measured in tests/test_cpu_elementwise.py.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

intrinsic: Any = numba.extending.intrinsic

_F = np.float32


@intrinsic
def multiply_add(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the processor can; of one float type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        name = f"llvm.fmuladd.f{signature.return_type.bitwidth}"
        declared = ir.FunctionType(kind, [kind] * 3)
        return builder.call(
            cgutils.get_or_insert_function(builder.module, declared, name), arguments
        )

    return a(a, b, c), generate


# 1.5 * 2^23: added to a float32 below 2^22, it leaves that rounded to an integer in the last bits.
_ROUNDER = _F(12582912.0)


@intrinsic
def _times_two_to(_: Any, value: Any, rounder: Any) -> Any:
    """value * 2^n for an n of -252 to 252, given as the float32 _ROUNDER + n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, rounder = arguments
        word = ir.IntType(32)
        n = builder.sub(builder.bitcast(rounder, word), ir.Constant(word, 0x4B400000))
        # 2^n itself may be no float, or one that lacks bits; the two halves always are.
        half = builder.ashr(n, ir.Constant(word, 1))
        for part in (half, builder.sub(n, half)):
            exponent = builder.add(part, ir.Constant(word, 127))
            bits = builder.shl(exponent, ir.Constant(word, 23))
            value = builder.fmul(value, builder.bitcast(bits, ir.FloatType()))
        return value

    return types.float32(types.float32, types.float32), generate


@numba.njit
def _reduced(x):
    """Of a float32 x = n log(2) + r with |r| <= log(2) / 2: _ROUNDER + n, and e^r - 1."""
    rounder = multiply_add(x, _F(1.44269504088896341), _ROUNDER)
    n = rounder - _ROUNDER
    r = multiply_add(n, _F(-0.693359375), x)
    r = multiply_add(n, _F(2.12194440e-4), r)
    # Minimax polynomial of Cephes' expf.
    p = multiply_add(_F(1.9875691500e-4), r, _F(1.3981999507e-3))
    p = multiply_add(p, r, _F(8.3334519073e-3))
    p = multiply_add(p, r, _F(4.1665795894e-2))
    p = multiply_add(p, r, _F(1.6666665459e-1))
    p = multiply_add(p, r, _F(5.0000001201e-1))
    return rounder, multiply_add(p, r * r, r)


@numba.njit
def _in_range(x):
    """x, or the nearest number from -104 to 89, where e^x is 0 and infinity; NaN stays."""
    x = _F(-104.0) if x < _F(-104.0) else x
    return _F(89.0) if x > _F(89.0) else x


@numba.njit
def exp(x):
    """e^x of a float32: 2^n e^r (Cody & Waite 1980)."""
    rounder, less_one = _reduced(_in_range(x))
    return _times_two_to(less_one + _F(1.0), rounder)


@numba.njit
def expm1(x):
    """e^x - 1 of a float32: 2^n (e^r - 1) + (2^n - 1)."""
    rounder, less_one = _reduced(_in_range(x))
    power = _times_two_to(_F(1.0), rounder)
    small = multiply_add(less_one, power, power - _F(1.0))
    # 2^n may be no float where e^x is one.
    return _times_two_to(less_one + _F(1.0), rounder) if x > _F(20.0) else small


@intrinsic
def _exponent(_: Any, x: Any) -> Any:
    """The e of a positive, normal float32 x = 2^e m with m from sqrt(1/2) to sqrt(2), as float."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        # 0x3F3504F3 is sqrt(1/2): what lies between it and its double has exponent 0.
        e = builder.ashr(builder.sub(bits, ir.Constant(word, 0x3F3504F3)), ir.Constant(word, 23))
        return builder.sitofp(e, ir.FloatType())

    return types.float32(types.float32), generate


@numba.njit
def log(x):
    """Natural logarithm of a float32: e log(2) + log(m)."""
    tiny = x < _F(1.1754944e-38)
    normal = x * _F(8388608.0) if tiny else x
    e = _exponent(normal)
    m = _times_two_to(normal, _ROUNDER - e) - _F(1.0)
    e = e - _F(23.0) if tiny else e
    z = m * m
    # Minimax polynomial of Cephes' logf.
    p = multiply_add(_F(7.0376836292e-2), m, _F(-1.1514610310e-1))
    p = multiply_add(p, m, _F(1.1676998740e-1))
    p = multiply_add(p, m, _F(-1.2420140846e-1))
    p = multiply_add(p, m, _F(1.4249322787e-1))
    p = multiply_add(p, m, _F(-1.6668057665e-1))
    p = multiply_add(p, m, _F(2.0000714765e-1))
    p = multiply_add(p, m, _F(-2.4999993993e-1))
    p = multiply_add(p, m, _F(3.3333331174e-1))
    y = multiply_add(p, m * z, e * _F(-2.12194440e-4))
    y = m + multiply_add(z, _F(-0.5), y)
    y = multiply_add(e, _F(0.693359375), y)
    y = x if x == _F(np.inf) else y
    y = _F(-np.inf) if x == _F(0.0) else y
    return y if x >= _F(0.0) else _F(np.nan)


@numba.njit
def log1p(x):
    """log(1 + x) of a float32: the logarithm of the rounded sum, and what rounding took from it."""
    whole = x + _F(1.0)
    y = log(whole) + (x - (whole - _F(1.0))) / whole
    return y if (whole > _F(0.0)) & (x < _F(np.inf)) else log(whole)


@numba.njit
def sigmoid(x):
    """1 / (1 + e^-x) of a float32."""
    return _F(1.0) / (_F(1.0) + exp(-x))


# tanh(x) = x P(x^2) / Q(x^2): the coefficients of Eigen's approximation (MPL2), which are facts.
_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
    1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = (_F(p) for p in _P)
_Q0, _Q1, _Q2, _Q3 = (_F(q) for q in _Q)


@numba.njit
def tanh(x):
    """tanh of a float32, within 3e-7 of its value."""
    clamped = _F(-7.9) if x < _F(-7.9) else x
    clamped = _F(7.9) if clamped > _F(7.9) else clamped
    s = clamped * clamped
    p = multiply_add(s, _P0, _P1)
    p = multiply_add(s, p, _P2)
    p = multiply_add(s, p, _P3)
    p = multiply_add(s, p, _P4)
    p = multiply_add(s, p, _P5)
    p = multiply_add(s, p, _P6) * clamped
    q = multiply_add(s, _Q0, _Q1)
    q = multiply_add(s, q, _Q2)
    q = multiply_add(s, q, _Q3)
    y = p / q
    # Tiny numbers would lose bits in p; beyond 9.1 the nearest float is 1.
    y = x if abs(x) < _F(4e-4) else y
    y = _F(1.0) if x > _F(9.1) else y
    return _F(-1.0) if x < _F(-9.1) else y

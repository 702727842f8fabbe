"""Rows for norms, clipping, normalized weights, roundings and random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given, whole

import distnn.functions as F

X = Input((2, 3, 4), away_from=(0.0,))
W = Input((4, 3, 2))


def p_norm(x: Any, p: float = 2, axis: Any = None, keepdims: bool = False, eps: float = 0) -> Any:
    return (np.sum(np.abs(x) ** p, axis, keepdims=keepdims) + eps) ** (1 / p)


def clip_by_norm(x: Any, limit: Any, axis: Any = None) -> Any:
    length = p_norm(x, 2, axis, True)
    return np.where(length > limit, x * limit / length, x)


def spectral(w: Any, u: Any, dim: int = 0, itr: int = 1) -> tuple[Any, Any, Any]:
    """The result, and u and v after the iterations."""
    matrix = np.moveaxis(w, dim, 0).reshape(w.shape[dim], -1)
    for _ in range(itr):
        v = matrix.T @ u
        v = v / np.sqrt(v @ v + 1e-12)
        u = matrix @ v
        u = u / np.sqrt(u @ u + 1e-12)
    return w / (u @ matrix @ v), u, v


def spectral_at(dim: int, itr: int) -> Any:
    """The result as a function of w alone, with u and v as they were: what has the gradient."""
    state: list[Any] = []

    def slope(w: Any, u: Any) -> Any:
        if not state:
            state.extend(spectral(w, u, dim, itr)[1:])
        matrix = np.moveaxis(w, dim, 0).reshape(w.shape[dim], -1)
        return w / (state[0] @ matrix @ state[1])

    return slope


def w_signs(w: Any) -> Any:
    """A leaf for the signs of w, of the kind that w is."""
    return type(w)(w.shape)


U = given([0.3, -1.2, 0.8, 0.5], grad=False)

# fmt: off
CASES = [
    *(Case("norm", lambda x, p=p, a=axis, k=keep: F.norm(x, p, a, k), [X],
           lambda x, p=p, a=axis, k=keep: p_norm(x, p or 2, a, k),
           f"p {p}, axis {axis}{', keepdims' * keep}", rtol=4e-6)
      for p in (None, 1, 3, 1.5) for axis, keep in ((None, False), (1, True), ((0, 2), False))),
    Case("norm", lambda x: F.norm(x, axis=1), [X], lambda x: p_norm(x, 2, 1), "batch",
         empty=[(0, 3, 4)]),
    *(Case("norm_normalization", lambda x, p=p, a=axis: F.norm_normalization(x, p, a, 1e-3), [X],
           lambda x, p=p, a=axis: x / p_norm(x, p or 2, a, True, 1e-3), f"p {p}, axes {axis}",
           rtol=4e-6)
      for p in (None, 1, 3) for axis in (None, 1, (0, 2))),
    Case("clip_by_value", lambda x: F.clip_by_value(x, -1, 0.5),
         [Input((2, 3, 4), away_from=(-1.0, 0.5))], lambda x: np.clip(x, -1, 0.5),
         empty=[(0, 3, 4)]),
    Case("clip_by_value", F.clip_by_value,
         [Input((2, 3)), given([[-1.0, 0.2, -0.3], [-2.5, -0.1, 0]]),
          given([[1.0, 0.4, 0.3], [2.5, 0.1, 0.6]])],
         lambda x, a, b: np.minimum(np.maximum(x, a), b), "by arrays"),
    *(Case("clip_by_norm", lambda x, n=n, a=axis: F.clip_by_norm(x, n, a), [X],
           lambda x, n=n, a=axis: clip_by_norm(x, n, a), f"to {n}, axis {axis}")
      for n, axis in ((1, None), (100, None), (2.2, 1), (1.5, (0, 2)))),
    Case("clip_by_norm", F.clip_by_norm, [X, given(1.3)], clip_by_norm, "to an array"),
    Case("clip_by_norm", lambda x: F.clip_by_norm(x, 1), [given([[0.0, 0.0]])], lambda x: x,
         "zeros"),
    *(Case("weight_normalization", lambda w, g, d=dim: F.weight_normalization(w, g, d),
           [W, Input((W.shape[dim],))],
           lambda w, g, d=dim: w * np.expand_dims(g, [i for i in range(3) if i != d]) / p_norm(
               w, 2, tuple(i for i in range(3) if i != d), True), f"dim {dim}")
      for dim in (0, 1, 2)),
    *(Case("spectral_norm", lambda w, u, d=dim, t=itr: F.spectral_norm(w, u, d, t),
           [Input(shape), U], lambda w, u, d=dim, t=itr: spectral(w, u, d, t)[0],
           f"dim {dim}, itr {itr}", slope=spectral_at(dim, itr), rtol=5e-6, second=False,
           updates=lambda w, u, d=dim, t=itr: {1: spectral(w, u, d, t)[1]})
      for shape, dim, itr in (((4, 3), 0, 1), ((4, 3, 2), 0, 3), ((3, 4, 2), 1, 1),
                              ((3, 2, 4), 2, 2))),
    Case("spectral_norm", lambda w, u: F.spectral_norm(w, u, test=True), [Input((4, 3)), U],
         lambda w, u: spectral(w, u)[0], "test", slope=spectral_at(0, 1), rtol=5e-6, second=False),
    Case("spectral_norm", lambda w, u: F.spectral_norm(w, u, test=True, output_u=True),
         [Input((4, 3)).constant(), U], lambda w, u: spectral(w, u)[:2], "output_u", rtol=5e-6),
    Case("round", F.round, [given([-2.5, -1.2, -0.5, 0, 0.4, 0.5, 1.5, 2.6])],
         lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5), slope=lambda x: x, empty=[(0,)],
         second=False),
    Case("binary_tanh", F.binary_tanh, [Input((3, 8), away_from=(-1.0, 0.0, 1.0))],
         lambda x: np.where(x > 0, 1.0, -1.0), slope=lambda x: np.clip(x, -1, 1), empty=[(0, 8)],
         second=False),
    Case("binary_sigmoid", F.binary_sigmoid, [Input((3, 8), away_from=(-1.0, 0.0, 1.0))],
         lambda x: np.where(x > 0, 1.0, 0.0), slope=lambda x: np.clip(x, -1, 1) / 2,
         empty=[(0, 8)], second=False),
    Case("binary_connect_affine", F.binary_connect_affine,
         [Input((2, 3)), given([[1.5, -2, 0.0, 3], [-1, 0.5, 2, -0.1], [1, 1, -1, 0]], grad=False),
          Input((3, 4)).constant(), Input((4,))],
         lambda x, w, s, b: x @ np.where(w == 0, 1, np.sign(w)) + b,
         updates=lambda x, w, s, b: {2: np.where(w == 0, 1, np.sign(w))}, empty=None),
    Case("binary_connect_affine",
         lambda w: F.binary_connect_affine(w * 0 + 2.0, w, w_signs(w), quantize_zero_to=-1.0),
         [Input((3, 3), away_from=(0.0,))], lambda w: 2 * np.ones((3, 3)) @ np.sign(w),
         "gradient of the weights", slope=lambda w: 2 * np.ones((3, 3)) @ w, second=False),
    Case("binary_connect_convolution",
         lambda x, w, s, b: F.binary_connect_convolution(x, w, s, b, pad=(0, 0)),
         [Input((2, 3, 2, 2)), Input((4, 3, 1, 1), away_from=(0.0,)).constant(),
          Input((4, 3, 1, 1)).constant(), Input((4,))],
         lambda x, w, s, b: np.einsum("nchw,oc->nohw", x, np.sign(w[:, :, 0, 0]))
         + b[:, None, None],
         updates=lambda x, w, s, b: {2: np.sign(w)}),
    Case("binary_weight_affine", F.binary_weight_affine,
         [Input((2, 3)), given([[1.5, -2, 0.0, 3], [-1, 0.5, 2, -0.1], [1, 1, -1, 0]], grad=False),
          Input((3, 4)).constant(), Input((4,)).constant(), Input((4,))],
         lambda x, w, s, a, b: x @ (np.where(w == 0, 1, np.sign(w)) * np.abs(w).mean(0)) + b,
         updates=lambda x, w, s, a, b: {2: np.where(w == 0, 1, np.sign(w)), 3: np.abs(w).mean(0)}),
    Case("binary_weight_convolution", F.binary_weight_convolution,
         [Input((2, 3, 2, 2)), Input((4, 3, 1, 1), away_from=(0.0,)).constant(),
          Input((4, 3, 1, 1)).constant(), Input((4,)).constant(), Input((4,))],
         lambda x, w, s, a, b: np.einsum("nchw,oc->nohw", x, np.sign(w[:, :, 0, 0]) * np.abs(
             w[:, :, 0, 0]).mean(1, keepdims=True)) + b[:, None, None],
         updates=lambda x, w, s, a, b: {2: np.sign(w), 3: np.abs(w).mean((1, 2, 3))}),
    Case("categorical_cross_entropy", F.categorical_cross_entropy,
         [Input((4, 3), 0.1, 0.9), whole((4, 1), 0, 3)],
         lambda x, t: -np.log(np.take_along_axis(x, t, 1)), empty=[(0, 3), (0, 1)]),
    Case("categorical_cross_entropy", lambda x, t: F.categorical_cross_entropy(x, t, axis=1),
         [Input((2, 3, 4), 0.1, 0.9), whole((2, 1, 4), 0, 3)],
         lambda x, t: -np.log(np.take_along_axis(x, t, 1)), "axis 1"),
    Case("kl_multinomial", F.kl_multinomial, [Input((4, 3), 0.1, 0.9), Input((4, 3), 0.1, 0.9)],
         lambda p, q: (p * np.log((p + 1e-8) / (q + 1e-8))).sum(1, keepdims=True),
         empty=[(0, 3), (0, 3)]),
    Case("kl_multinomial", lambda p, q: F.kl_multinomial(p, q, 2),
         [Input((2, 4, 3), 0.1, 0.9), Input((2, 4, 3), 0.1, 0.9)],
         lambda p, q: (p * np.log((p + 1e-8) / (q + 1e-8))).sum(2, keepdims=True), "base_axis 2"),
    Case("unlink", F.unlink, [Input((2, 3)).constant()], lambda x: x, empty=[(0, 3)]),
    Case("arange", lambda: F.arange(2, 7, 1.5), [], lambda: np.arange(2, 7, 1.5)),
    Case("arange", lambda: F.arange(5, -2, -2), [], lambda: np.arange(5.0, -2, -2), "down"),
    Case("linspace", lambda: F.linspace(-1, 2, 7), [], lambda: np.linspace(-1, 2, 7)),
    Case("linspace", lambda: F.linspace(3, 2, 1), [], lambda: np.linspace(3, 2, 1), "one"),
    Case("rand", lambda: F.rand(1, 3, (4, 5)), [], None),
    Case("randn", lambda: F.randn(1, 3, (4, 5)), [], None),
    Case("randint", lambda: F.randint(3, 4, (4, 5)), [], lambda: np.full((4, 5), 3),
         "of one number"),
    Case("random_flip", lambda x: F.random_flip(x, (1, 2)), [X], None),
    Case("random_shift", lambda x: F.random_shift(x, (1, 2)), [X], None),
    Case("random_shift", lambda x: F.random_shift(x, (1, 2), "reflect"), [X], None, "reflect"),
    Case("random_shift", lambda x: F.random_shift(x, (1,), "constant", 2), [X], None, "constant"),
    Case("random_crop", lambda x: F.random_crop(x, (2, 3)), [X], None),
    Case("image_augmentation",
         lambda x: F.image_augmentation(x, (4, 5), (1, 1), 0.8, 1.2, 0.3, 1.2, 0.1, True, True,
                                        0.2, True, 1.5, 0.1, False, 0.1),
         [Input((2, 3, 6, 7)).constant()], None),
]
# fmt: on

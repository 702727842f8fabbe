"""Convolutions with random numbers, and their results and gradients by definition in float64."""

from __future__ import annotations

from types import SimpleNamespace

import cases_convolution as definition
import numpy as np

from distnn.functions.im2col import Geometry
from distnn.namespace import NumpyNamespace


def case(x, w, **geometry):
    axes = len(x) - 2
    pad, stride, dilation = (
        geometry.get(name, (default,) * axes)
        for name, default in (("pad", 0), ("stride", 1), ("dilation", 1))
    )
    return x, w, Geometry(pad, stride, dilation, geometry.get("group", 1))


def problem(case):
    """Normal numbers, and results and gradients from the definition in float64."""
    x_shape, w_shape, g = case
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, np.float32) for s in (x_shape, w_shape))
    b = rng.standard_normal(w_shape[0], np.float32)
    geometry = g._asdict()
    y = definition.convolution(*(a.astype(np.float64) for a in (x, w, b)), **geometry)
    dy = rng.standard_normal(y.shape, np.float32)
    unread = [
        n + 2 * p - s * (o - 1) - d * (k - 1) - 1
        for n, o, k, p, s, d in zip(x_shape[2:], y.shape[2:], w_shape[2:], *g[:3], strict=True)
    ]
    dx = definition.deconvolution(
        dy.astype(np.float64), w.astype(np.float64), output_padding=unread, **geometry
    )
    # y is linear in each filter's number: its gradient is dy times the result for a filter of zeros
    # and that one.
    dw = np.zeros(w_shape)
    for place in np.ndindex(*w_shape[1:]):
        one = np.zeros(w_shape)
        one[(slice(None), *place)] = 1
        seen = definition.convolution(x.astype(np.float64), one, **geometry)
        dw[(slice(None), *place)] = (seen * dy).sum((0, *range(2, dy.ndim)))
    return SimpleNamespace(x=x, w=w, b=b, dy=dy, geometry=g, exact=(y, dx, dw))


def results(p, algorithm):
    """y, dx and dw in float32, each in the middle of memory that nobody else may write.

    `algorithm` of the namespace, the geometry, and the shapes of x and w.
    """
    found = algorithm(NumpyNamespace(), p.geometry, p.x.shape, p.w.shape)
    memory = [np.full(a.size + 128, 7, np.float32) for a in p.exact]
    arrays = [m[64:-64].reshape(a.shape) for m, a in zip(memory, p.exact, strict=True)]
    y, dx, dw = arrays
    for a in arrays:
        a.fill(np.nan)
    found.forward(p.x, p.w, p.b, y)
    found.gradients(p.dy, p.x, p.w, dx, dw)
    assert all((m[:64] == 7).all() and (m[-64:] == 7).all() for m in memory)
    return arrays


def errors(p, found):
    return [rms(a - e) / rms(e) for a, e in zip(found, p.exact, strict=True)]


def rms(a):
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))

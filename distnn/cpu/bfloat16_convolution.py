"""Convolution of bfloat16: the functions themselves with tile registers to compute by."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..function import Spec
from ..functions.convolution import Bilinear
from ..functions.convolution import Convolution as NumpyConvolution
from ..functions.convolution import Deconvolution as NumpyDeconvolution
from ..functions.convolution import FilterGradient as NumpyFilterGradient
from . import amx_convolution
from .bfloat16_affine import uses_tiles


class _Tiled(Bilinear, by_signature=False):
    """What the three share."""

    def __init__(self, function: Any) -> None:
        for name, value in vars(function).items():
            object.__setattr__(self, name, value)

    def algorithm(
        self, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype, scratch: Any = None
    ) -> Any:
        return amx_convolution.Tiles(self.geometry, tuple(x_shape), tuple(w_shape))

    def scratch_for(self, x_shape: Any, w_shape: Any, dtype: np.dtype) -> int:
        return 0

    @classmethod
    def can(cls, function: Any, x_shape: Any, w_shape: Any) -> bool:
        """Whether tiles compute the convolution of which x and w have these shapes."""
        x, w = (tuple(function.first_shape(shape)) for shape in (x_shape, w_shape))
        return amx_convolution.suits(function.geometry, x, w) and uses_tiles()


class Convolution(_Tiled, NumpyConvolution):
    """functions.convolution.Convolution."""

    @classmethod
    def suits(cls, function: Any, x: Spec, w: Spec, b: Any = None) -> bool:
        return cls.can(function, x.shape, w.shape)


class Deconvolution(_Tiled, NumpyDeconvolution):
    """functions.convolution.Deconvolution."""

    @classmethod
    def suits(cls, function: Any, x: Spec, w: Spec, b: Any = None) -> bool:
        shape = function.first_shape(w.shape)
        y = function.last_shape((x.shape[0], shape[1] * function.geometry.group, *function.lengths))
        return cls.can(function, y, w.shape)

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        x, w = self.first(xp, x), self.first(xp, w)
        shape = (len(x), w.shape[1], *self.lengths)
        y, out = self.room(xp, shape, x.dtype, out)
        self.algorithm(xp, shape, w.shape, x.dtype).gradients(x, None, w, y, None, b)
        return self.put(xp, y, out)


class FilterGradient(_Tiled, NumpyFilterGradient):
    """functions.convolution.FilterGradient."""

    @classmethod
    def suits(cls, function: Any, dy: Spec, x: Spec) -> bool:
        return cls.can(function, x.shape, function.last_shape(function._shape(dy, x)))

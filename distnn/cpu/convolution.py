"""Convolution with compiled kernels: 3x3 with stride 1 by Winograd's way, others over patches.

The twins are the functions themselves with one algorithm more to choose from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..function import Spec
from ..functions.convolution import Bilinear
from ..functions.convolution import Convolution as NumpyConvolution
from ..functions.convolution import Deconvolution as NumpyDeconvolution
from ..functions.convolution import FilterGradient as NumpyFilterGradient
from ..functions.convolution_ways import Ways
from ..functions.im2col import Patches as NumpyPatches
from ..functions.winograd import possible
from . import depthwise, dilated, direct, pointwise, tiny_maps
from .dilated import Dilated
from .patches import Patches
from .simd import LANES
from .winograd import Winograd
from .winograd_transforms import POINTS, TAPS, TILE

# What it costs to transform a point, and to copy a pixel into a patch, in multiplications that are
# done meanwhile. Measured on two cores with AVX-512, where it hardly matters in doubtful cases.
_TRANSFORM = 30
_COPY = 50


class _Compiled(Bilinear, by_signature=False):
    """What the three share."""

    def __init__(self, function: Any) -> None:
        for name, value in vars(function).items():
            object.__setattr__(self, name, value)

    @staticmethod
    def suits(function: Any, *specs: Spec | None) -> bool:
        """True: they choose by themselves."""
        return True

    def ways(
        self, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype, scratch: Any = None
    ) -> Ways:
        if dtype != np.float32 or len(x_shape) > 5:
            return super().ways(xp, x_shape, w_shape, dtype, scratch)
        g = self.geometry
        ways: Ways = {}
        if depthwise.suits(g, x_shape, w_shape):
            ways["compiled depthwise"] = lambda: depthwise.Depthwise(xp, g, x_shape, w_shape)
        if pointwise.suits(g, x_shape, w_shape):
            ways["compiled pointwise"] = lambda: pointwise.Pointwise(xp, g, x_shape, w_shape)
        if direct.suits(g, x_shape, w_shape):
            ways["compiled direct"] = lambda: direct.Direct(xp, g, x_shape, w_shape)
        if tiny_maps.suits(g, x_shape, w_shape):
            ways["compiled tiny maps"] = lambda: tiny_maps.TinyMaps(xp, g, x_shape, w_shape)
        ways["compiled patches"] = lambda: Patches(xp, g, x_shape, w_shape)
        if self.is_plain_3x3(w_shape) and possible(x_shape, g.pad):
            winograd: Ways = {"compiled Winograd": lambda: Winograd(xp, x_shape, w_shape, g.pad)}
            pays = _pays(x_shape, w_shape, g.pad)
            ways = winograd | ways if pays else ways | winograd
        elif dilated.suits(g, x_shape, w_shape):
            by_phases: Ways = {"compiled phases": lambda: Dilated(xp, g, x_shape, w_shape)}
            pays = _pays(*dilated.phases(g, x_shape, w_shape))
            ways = by_phases | ways if pays else ways | by_phases
        ways["patches"] = lambda: NumpyPatches(xp, g, x_shape, w_shape, dtype)
        return ways

    def scratch_for(self, x_shape: Any, w_shape: Any, dtype: np.dtype) -> int:
        return 0 if dtype == np.float32 else super().scratch_for(x_shape, w_shape, dtype)


class Convolution(_Compiled, NumpyConvolution):
    """functions.convolution.Convolution."""


class Deconvolution(_Compiled, NumpyDeconvolution):
    """functions.convolution.Deconvolution."""


class FilterGradient(_Compiled, NumpyFilterGradient):
    """functions.convolution.FilterGradient."""


def _pays(x_shape: Any, w_shape: Any, pads: Any) -> bool:
    """Whether Winograd's way takes less time than products over patches."""
    channels, *lengths = x_shape[1:]
    filters = w_shape[0]
    results = [n + 2 * p - 2 for n, p in zip(lengths, pads, strict=True)]
    tiles = math.prod(-(-n // TILE) for n in results)
    c, f = (-(-n // LANES) * LANES for n in (channels, filters))
    winograd = POINTS**2 * tiles * (c * f + _TRANSFORM * (c + f))
    patches = TAPS * math.prod(results) * channels * (filters + _COPY)
    return winograd < patches

"""NumPy's algorithms for convolution: against the definition in float64, and when each is taken."""

from __future__ import annotations

import numpy as np
import pytest
from convolution_problem import case, errors, problem, results

import distnn as nn
from distnn.functions import winograd
from distnn.functions.convolution import Convolution
from distnn.functions.depthwise import Depthwise
from distnn.functions.im2col import Geometry, Patches
from distnn.functions.winograd_tiles import WinogradTiles
from distnn.namespace import NumpyNamespace

FLOAT = np.dtype(np.float32)

WINOGRAD = {
    "tiles that fit": case((2, 5, 8, 12), (6, 5, 3, 3), pad=(1, 1)),
    "tiles that do not": case((9, 4, 11, 14), (3, 4, 3, 3), pad=(1, 1)),
    "no padding": case((2, 3, 7, 30), (4, 3, 3, 3)),
    "padding of one axis": case((2, 3, 5, 9), (4, 3, 3, 3), pad=(0, 2)),
    "whole tiles of padding": case((1, 2, 3, 2), (3, 2, 3, 3), pad=(6, 5)),
    "one pixel": case((2, 3, 1, 1), (2, 3, 3, 3), pad=(1, 1)),
}
GROUPS = {  # shared out to threads, some images at a time
    "tiles that fit": case((150, 5, 8, 12), (6, 5, 3, 3), pad=(1, 1)),
    "tiles that do not": case((290, 4, 9, 5), (3, 4, 3, 3), pad=(2, 1)),
    "one row of tiles": case((400, 3, 4, 4), (4, 3, 3, 3), pad=(1, 1)),
}
DEPTHWISE = {
    "3x3": case((3, 7, 8, 9), (7, 1, 3, 3), pad=(1, 1), group=7),
    "stride 2": case((20, 4, 9, 8), (4, 1, 3, 3), pad=(1, 1), stride=(2, 2), group=4),
    "dilated": case((2, 4, 9, 8), (4, 1, 3, 2), pad=(2, 1), dilation=(2, 3), group=4),
    "one axis": case((2, 4, 9), (4, 1, 3), stride=(3,), group=4),
    "three axes": case((2, 2, 4, 5, 6), (2, 1, 2, 3, 2), pad=(1, 0, 1), group=2),
}
POINTWISE = {
    "large maps": case((3, 6, 9, 8), (5, 6, 1, 1)),
    "groups": case((3, 6, 9, 8), (4, 3, 1, 1), group=2),
    "one large image": case((1, 3, 40, 30), (4, 3, 1, 1)),
    "slim maps": case((6, 5, 2, 2), (4, 5, 1, 1)),
}


def agree(case, algorithm, tolerance):
    p = problem(case)
    assert max(errors(p, results(p, algorithm))) < tolerance


@pytest.mark.parametrize("kind", [WinogradTiles, Depthwise, Patches])
def test_an_empty_batch_has_no_results_and_gradients_of_zero(kind):
    x, y = np.empty((0, 3, 6, 6), np.float32), np.empty((0, 3, 6, 6), np.float32)
    w = np.ones((3, 1 if kind is Depthwise else 3, 3, 3), np.float32)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 3 if kind is Depthwise else 1)
    if kind is WinogradTiles:
        found = kind(NumpyNamespace(), x.shape, w.shape, (1, 1), FLOAT)
    else:
        found = kind(NumpyNamespace(), geometry, x.shape, w.shape, FLOAT)
    found.forward(x, w, None, y)
    dw = np.full_like(w, np.nan)
    found.gradients(y, x, w, x.copy(), dw)
    assert not dw.any()


@pytest.mark.parametrize("name", WINOGRAD)
def test_winograd_of_tiles_agrees_with_the_definition(name):
    agree(
        WINOGRAD[name],
        lambda xp, g, x, w: WinogradTiles(xp, x, w, g.pad, FLOAT),
        2.5e-6,
    )


@pytest.mark.parametrize("name", [*WINOGRAD, *GROUPS])
def test_winograd_of_maps_agrees_with_the_definition(name):
    problem = (WINOGRAD | GROUPS)[name]
    agree(problem, lambda xp, g, x, w: winograd.Winograd(xp, x, w, g.pad, FLOAT, None), 2.5e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_groups_of_images_have_the_same_bits_on_any_number_of_threads(name):
    p = problem(GROUPS[name])
    found = []
    before = nn.get_num_threads()
    for threads in (1, 2, 5):
        nn.set_num_threads(threads)
        algorithm = winograd.Winograd(
            NumpyNamespace(), p.x.shape, p.w.shape, p.geometry.pad, FLOAT, None
        )
        assert algorithm.forward_groups.shares > 1 < algorithm.backward_groups.shares
        found.append([np.empty(a.shape, FLOAT) for a in (p.dy, p.x, p.w)])
        algorithm.forward(p.x, p.w, p.b, found[-1][0])
        algorithm.gradients(p.dy, p.x, p.w, *found[-1][1:])
    nn.set_num_threads(before)
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_sums_agree_with_the_definition(name):
    agree(DEPTHWISE[name], lambda *a: Depthwise(*a, FLOAT), 2e-7)


@pytest.mark.parametrize("name", POINTWISE)
def test_products_without_copies_agree_with_the_definition(name):
    agree(POINTWISE[name], lambda *a: Patches(*a, FLOAT), 4e-7)


@pytest.mark.parametrize("kind", ["tiles", "maps", "groups"])
def test_gradients_of_tiles_can_be_asked_for_one_by_one(kind):
    p = problem((GROUPS if kind == "groups" else WINOGRAD)["tiles that do not"])
    arguments = NumpyNamespace(), p.x.shape, p.w.shape, p.geometry.pad, FLOAT
    if kind == "tiles":
        tiles = WinogradTiles(*arguments)
    else:
        tiles = winograd.Winograd(*arguments, None)
    both = [np.empty_like(a) for a in (p.x, p.w)]
    tiles.gradients(p.dy, p.x, p.w, *both)
    alone = [np.empty_like(a) for a in (p.x, p.w)]
    tiles.gradients(p.dy, None, p.w, alone[0], None)
    tiles.gradients(p.dy, p.x, None, None, alone[1])
    for a, b in zip(both, alone, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("x", "w", "geometry", "dtype", "kind"),
    [
        ((256, 128, 8, 8), (128, 128, 3, 3), ((1, 1), (1, 1), (1, 1), 1), "f", winograd.Winograd),
        ((32, 64, 56, 56), (64, 64, 3, 3), ((1, 1), (1, 1), (1, 1), 1), "f", WinogradTiles),
        ((32, 64, 56, 56), (64, 64, 3, 3), ((1, 1), (1, 1), (1, 1), 1), "e", Patches),
        ((32, 64, 56, 56), (64, 64, 3, 3), ((1, 1), (2, 2), (1, 1), 1), "f", Patches),
        ((32, 3, 56, 56), (8, 3, 3, 3), ((1, 1), (1, 1), (1, 1), 1), "f", Patches),
        ((0, 64, 56, 56), (64, 64, 3, 3), ((1, 1), (1, 1), (1, 1), 1), "f", Patches),
        ((32, 64, 1, 1), (64, 64, 3, 3), ((1, 1), (1, 1), (1, 1), 1), "f", Patches),
        ((32, 64, 56, 56), (64, 1, 3, 3), ((1, 1), (1, 1), (1, 1), 64), "f", Depthwise),
    ],
)
def test_algorithms_are_chosen_by_shapes(x, w, geometry, dtype, kind):
    function = Convolution(Geometry(*geometry), False)
    assert type(function.algorithm(NumpyNamespace(), x, w, np.dtype(dtype))) is kind

"""Parameters: scopes, initial values, sharing, and what parametric functions create."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
import distnn.initializer as I
import distnn.parametric_functions as PF
from distnn import transfer
from distnn.errors import ParameterError
from distnn.parameter import (
    get_parameter,
    get_parameter_or_create,
    pop_parameter,
    set_parameter,
)


def shapes(grad_only=False):
    return {k: p.shape for k, p in nn.get_parameters(grad_only=grad_only).items()}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: PF.affine(nn.Variable((4, 6)), 10), {"affine/W": (6, 10), "affine/b": (10,)}),
        (
            lambda: PF.affine(nn.Variable((2, 3, 8, 8)), (5, 7)),
            {"affine/W": (192, 5, 7), "affine/b": (5, 7)},
        ),
        (
            lambda: PF.convolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3)),
            {"conv/W": (16, 3, 3, 3), "conv/b": (16,)},
        ),
        (
            lambda: PF.convolution(nn.Variable((2, 3, 8, 8)), 6, (3, 3), group=3, with_bias=False),
            {"conv/W": (6, 1, 3, 3)},
        ),
        (
            lambda: PF.convolution(nn.Variable((2, 8, 8, 3)), 16, (3, 3), channel_last=True),
            {"conv/W": (16, 3, 3, 3), "conv/b": (16,)},
        ),
        (
            lambda: PF.deconvolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3)),
            {"deconv/W": (3, 16, 3, 3), "deconv/b": (16,)},
        ),
        (
            lambda: PF.batch_normalization(nn.Variable((2, 3, 8, 8))),
            {f"bn/{k}": (1, 3, 1, 1) for k in ("beta", "gamma", "mean", "var")},
        ),
        (
            lambda: PF.batch_normalization(nn.Variable((4, 6)), no_scale=True),
            {f"bn/{k}": (1, 6) for k in ("beta", "mean", "var")},
        ),
        (
            lambda: PF.fused_batch_normalization(nn.Variable((2, 3, 8, 8))),
            {f"bn/{k}": (1, 3, 1, 1) for k in ("beta", "gamma", "mean", "var")},
        ),
        (
            lambda: PF.layer_normalization(nn.Variable((2, 3, 8, 8))),
            {f"layer_normalization/{k}": (1, 3, 8, 8) for k in ("beta", "gamma")},
        ),
        (
            lambda: PF.layer_normalization(nn.Variable((5, 2, 12)), batch_axis=(0, -2)),
            {f"layer_normalization/{k}": (1, 1, 12) for k in ("beta", "gamma")},
        ),
        (
            lambda: PF.instance_normalization(nn.Variable((2, 3, 8, 8)), no_bias=True),
            {"instance_normalization/gamma": (1, 3, 1, 1)},
        ),
        (
            lambda: PF.instance_normalization(nn.Variable((2, 8, 8, 3)), channel_axis=-1),
            {f"instance_normalization/{k}": (1, 1, 1, 3) for k in ("beta", "gamma")},
        ),
        (
            lambda: PF.group_normalization(nn.Variable((2, 4, 8, 8)), 2),
            {f"group_normalization/{k}": (1, 4, 1, 1) for k in ("beta", "gamma")},
        ),
        (lambda: PF.embed(nn.Variable((4,)), 10, 5), {"embed/W": (10, 5)}),
        (lambda: PF.prelu(nn.Variable((2, 3, 8, 8))), {"prelu/slope": ()}),
        (lambda: PF.prelu(nn.Variable((2, 3, 8, 8)), shared=False), {"prelu/slope": (3,)}),
        (
            lambda: PF.depthwise_convolution(nn.Variable((2, 3, 8, 8)), (3, 3), multiplier=2),
            {"depthwise_conv/W": (6, 3, 3), "depthwise_conv/b": (6,)},
        ),
        (lambda: PF.spectral_norm(nn.Variable((10, 6))), {"spectral-norm/u": (10,)}),
        (lambda: PF.weight_normalization(nn.Variable((10, 6)), 1), {"wn/g": (6,)}),
        (
            lambda: PF.binary_connect_affine(nn.Variable((4, 6)), 10),
            {"bicon_affine/W": (6, 10), "bicon_affine/Wb": (6, 10), "bicon_affine/b": (10,)},
        ),
        (
            lambda: PF.binary_connect_convolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3)),
            {
                "bicon_conv/W": (16, 3, 3, 3),
                "bicon_conv/Wb": (16, 3, 3, 3),
                "bicon_conv/b": (16,),
            },
        ),
        (
            lambda: PF.binary_weight_affine(nn.Variable((4, 6)), (2, 5), with_bias=False),
            {"bwn_affine/W": (6, 2, 5), "bwn_affine/Wb": (6, 2, 5), "bwn_affine/alpha": (2, 5)},
        ),
        (
            lambda: PF.binary_weight_convolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3)),
            {
                "bwn_conv/W": (16, 3, 3, 3),
                "bwn_conv/Wb": (16, 3, 3, 3),
                "bwn_conv/alpha": (16,),
                "bwn_conv/b": (16,),
            },
        ),
    ],
)
def test_parametric_functions_create_nnablas_parameters_in_its_order(call, expected):
    call()
    assert list(shapes().items()) == list(expected.items())


@pytest.mark.parametrize(
    ("call", "key", "limit"),
    [
        (lambda: PF.affine(nn.Variable((4, 6)), 10), "affine/W", 0.6123724356957945),
        (
            lambda: PF.convolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3)),
            "conv/W",
            0.1873171623163388,
        ),
        (
            lambda: PF.convolution(nn.Variable((2, 3, 8, 8)), 6, (3, 3), group=3),
            "conv/W",
            0.2721655269759087,
        ),
        (
            lambda: PF.deconvolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3)),
            "deconv/W",
            0.1873171623163388,
        ),
        (lambda: PF.embed(nn.Variable((4,)), 10, 5), "embed/W", 1.7320508075688772),
        (
            lambda: PF.depthwise_convolution(nn.Variable((2, 3, 8, 8)), (3, 3), multiplier=2),
            "depthwise_conv/W",
            0.2721655269759087,
        ),
        (
            lambda: PF.binary_connect_affine(nn.Variable((4, 6)), 10),
            "bicon_affine/W",
            0.6123724356957945,
        ),
    ],
)
def test_initial_weights_equal_nnablas(call, key, limit):
    """Limits as NNabla 1.39 prints them; values are the first draws of RandomState(313)."""
    call()
    found = nn.get_parameters()[key].d
    expected = np.random.RandomState(313).uniform(-limit, limit, found.shape).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_weights_of_a_network_are_drawn_one_after_the_other():
    x = nn.Variable((1, 2))
    PF.affine(x, 2, name="a")
    PF.affine(x, 2, name="b")
    rng = np.random.RandomState(313)
    limit = np.sqrt(6 / 4)
    for name in "ab":
        expected = rng.uniform(-limit, limit, (2, 2)).astype(np.float32)
        np.testing.assert_array_equal(nn.get_parameters()[f"{name}/affine/W"].d, expected)


def test_running_statistics_are_no_trained_parameters():
    PF.batch_normalization(nn.Variable((2, 3)))
    assert list(nn.get_parameters()) == ["bn/beta", "bn/gamma"]
    everything = nn.get_parameters(grad_only=False)
    assert [float(p.d[0, 0]) for p in everything.values()] == [0, 1, 0, 1]


def test_scopes_nest_and_can_be_entered_again():
    with nn.parameter_scope("a/b"):
        PF.affine(nn.Variable((1, 2)), 3, name="c")
    with nn.parameter_scope("a"):
        assert list(nn.get_parameters()) == ["b/c/affine/W", "b/c/affine/b"]
        with nn.parameter_scope("b"), nn.parameter_scope("c"), nn.parameter_scope("affine"):
            assert get_parameter("W").shape == (2, 3)
    with nn.parameter_scope("", scope=nn.get_current_parameter_scope()["a"]):
        assert next(iter(nn.get_parameters(path="x"))) == "x/b/c/affine/W"


def test_a_parameter_is_shared_by_all_calls_in_its_scope():
    x = nn.Variable((1, 2))
    first, second = PF.affine(x, 3), PF.affine(x, 3)
    assert first.parent.inputs[1] == second.parent.inputs[1]
    assert first.parent.inputs[1].data == nn.get_parameters()["affine/W"].data


def test_fix_parameters_concerns_one_call_only():
    x = nn.Variable((1, 2))
    y = PF.affine(x, 3, fix_parameters=True)
    assert not y.parent.inputs[1].need_grad
    assert nn.get_parameters()["affine/W"].need_grad
    assert PF.affine(x, 3).parent.inputs[1].need_grad


def test_apply_w_gives_the_weight_to_use():
    y = PF.affine(nn.Variable((1, 2)), 3, apply_w=lambda w: w * 2)
    assert y.parent.inputs[1].parent.name == "MulScalar"


def test_initializers_may_be_arrays_or_functions():
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    PF.affine(nn.Variable((1, 2)), 3, w_init=w, b_init=lambda shape: np.full(shape, 7))
    np.testing.assert_array_equal(nn.get_parameters()["affine/W"].d, w)
    np.testing.assert_array_equal(nn.get_parameters()["affine/b"].d, [7, 7, 7])


def test_parameters_of_the_double_context_are_float64_with_the_same_values():
    PF.affine(nn.Variable((1, 2)), 3, name="a")
    nn.seed(313)
    with nn.context_scope(nn.Context(["cpu:double"])):
        PF.affine(nn.Variable((1, 2)), 3, name="b")
    a, b = (nn.get_parameters()[f"{k}/affine/W"].d for k in "ab")
    assert b.dtype == np.float64
    np.testing.assert_array_equal(a, b)


def test_parameters_lie_one_after_the_other():
    for name in "abc":
        PF.affine(nn.Variable((1, 16)), 16, name=name)
    arrays = [p.data._storage.array for p in nn.get_parameters().values()]
    addresses = [transfer.address(array) for array in arrays]
    assert np.diff(addresses).tolist() == [1024, 64, 1024, 64, 1024]


def test_parameters_can_be_set_and_removed():
    v = nn.Variable((2,), need_grad=True)
    set_parameter("a/b/v", v)
    assert get_parameter("a/b/v") is v
    assert get_parameter("a/b/w") is None
    assert get_parameter("a/b/v/w") is None
    assert pop_parameter("a/b/v") is v
    assert pop_parameter("a/b/v") is None
    assert pop_parameter("x/y") is None


def test_clearing_a_scope_leaves_others_and_running_graphs():
    x = nn.Variable.from_numpy_array(np.ones((1, 2), np.float32))
    y = PF.affine(x, 3, name="a")
    PF.affine(x, 3, name="b")
    with nn.parameter_scope("a"):
        nn.clear_parameters()
    assert list(nn.get_parameters()) == ["b/affine/W", "b/affine/b"]
    y.forward()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: PF.affine(nn.Variable((1, 2)), 4), r"'W' exists with shape \(2, 3\).*\(2, 4\)"),
        (lambda: nn.parameter_scope("affine/W").__enter__(), "'W' is a parameter of shape"),
        (lambda: get_parameter_or_create("affine", (2,)), "'affine' is a scope"),
        (lambda: set_parameter("affine", nn.Variable()), "'affine' is a scope"),
        (lambda: set_parameter("v", 3), "'v' is int"),
        (lambda: get_parameter_or_create("new"), "shape is None; pass its shape"),
        (lambda: get_parameter_or_create("new", (2,), np.ones(3)), r"gives shape \(3,\)"),
        (
            lambda: PF.batch_normalization(nn.Variable((2, 3)), param_init={"x": None}),
            r"param_init has \['x'\]",
        ),
        (
            lambda: PF.layer_normalization(nn.Variable((2, 3)), param_init={"mean": None}),
            r"param_init has \['mean'\]; the parameters are \['beta', 'gamma'\]",
        ),
        (lambda: nn.parameter_scope(3).__enter__(), "name is 3"),
    ],
)
def test_bad_arguments_are_named(call, match):
    PF.affine(nn.Variable((1, 2)), 3)
    with pytest.raises(ParameterError, match=match):
        call()


def test_initializers_draw_what_they_say():
    rng = np.random.RandomState(5)
    normal = I.NormalInitializer(0.5, np.random.RandomState(5))((3, 2))
    np.testing.assert_allclose(normal, 0.5 * rng.randn(3, 2), rtol=1e-6)
    whole = I.UniformIntInitializer((2, 5))((1000,))
    assert set(np.unique(whole)) == {2, 3, 4}
    q = I.OrthogonalInitializer(2.0)((4, 3, 2)).reshape(4, 6)
    np.testing.assert_allclose(q @ q.T, 4 * np.eye(4), atol=1e-5)
    np.testing.assert_array_equal(I.RangeInitializer(1, 2)((2, 3)), [[1, 3, 5]] * 2)


def test_normalizations_start_with_a_shift_of_0_and_a_scale_of_1():
    x = nn.Variable.from_numpy_array(np.random.RandomState(0).randn(4, 6, 5))
    for name, options in (("layer", {}), ("instance", {}), ("group", {"num_groups": 2})):
        y = getattr(PF, f"{name}_normalization")(x, **options, fix_parameters=True)
        plain = getattr(F, f"{name}_normalization")(x, None, None, **options)
        nn.forward_all([y, plain])
        np.testing.assert_array_equal(y.d, plain.d)
        assert not y.need_grad
    assert not np.any(nn.get_parameters()["layer_normalization/beta"].d)
    assert np.all(nn.get_parameters()["layer_normalization/gamma"].d == 1)


def test_a_decorated_function_has_its_own_scope_and_name():
    @PF.parametric_function_api("scale", [("s", "Factor", "(1,)", True)])
    def scale(x, factor=2.0, fix_parameters=False):
        """Scale."""
        return x * get_parameter_or_create("s", (1,), I.ConstantInitializer(factor))

    scale(nn.Variable((3,)), 5.0, False, "first")
    scale(nn.Variable((3,)), name="second")
    assert list(nn.get_parameters()) == ["first/scale/s", "second/scale/s"]
    assert nn.get_parameters()["first/scale/s"].d[0] == 5
    assert "Factor" in scale.__doc__

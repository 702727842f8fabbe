"""Chains of elementwise functions: found where they should be, and with the bits of the walk."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn import backward_program, forward_program, fusion, rematerialization
from distnn.backend import cpu_backend
from distnn.context import Context, context_scope, current_backend
from distnn.formula import Formula
from distnn.formula_chain import Chain, Link, renamed
from distnn.plan import plans

UNARY = [
    F.tanh,
    F.sigmoid,
    F.relu,
    F.exp,
    F.sin,
    lambda x: F.leaky_relu(x, alpha=0.3),
    lambda x: x * 1.25,
    lambda x: 0.5 - x,
    lambda x: F.greater_scalar(x, 0.1),
    lambda x: F.elu(x, alpha=1.5),
]
BINARY = [F.add2, F.sub2, F.mul2, F.maximum2, lambda a, b: a / (F.abs(b) + 2)]


def random_graph(seed, shape):
    """Leaves and a loss of some twenty elementwise functions over them, with broadcasting."""
    rng = np.random.RandomState(seed)
    leaves = []
    for s in (
        shape,
        shape,
        tuple(1 if i == 0 else n for i, n in enumerate(shape)),
        (1,) * len(shape),
    ):
        leaf = nn.Variable(s, need_grad=True)
        leaf.d = rng.uniform(-1, 1, s).astype(np.float32)
        leaves.append(leaf)
    values = [leaves[0]]
    for _ in range(20):
        a = values[rng.randint(max(0, len(values) - 3), len(values))]
        if rng.rand() < 0.6:
            values.append(UNARY[rng.randint(len(UNARY))](a))
        else:
            b = [*leaves, *values][rng.randint(len(leaves) + len(values))]
            values.append(BINARY[rng.randint(len(BINARY))](a, b))
        if rng.rand() < 0.1:
            values[-1].persistent = True
    return leaves, values, F.sum(values[-1] + values[rng.randint(len(values))])


def nothing(function):
    pass


def bits(leaves, values, loss, walk, flags):
    """What the second run of forward and backward leaves behind."""
    hook = {"function_pre_hook": nothing} if walk else {}
    for leaf in leaves:
        leaf.grad.zero()
    for _ in range(2):
        loss.forward(**flags, **hook)
        # What was computed and not freed; `.d` of all of it would keep it from being freed.
        seen = [v.data.get_data("r").copy() for v in values if v.data._storage.array is not None]
        if not flags.get("clear_buffer"):
            loss.backward(clear_buffer=True, **hook)
    grads = [leaf.grad.get_data("r").copy() for leaf in leaves]
    return [loss.d.copy(), *seen, *grads]


@pytest.mark.parametrize("shape", [(3, 5), (2, 40, 1024), ()], ids=str)
@pytest.mark.parametrize("type_config", ["float", "half", "double"])
@pytest.mark.parametrize(
    "flags", [{}, {"clear_no_need_grad": True}, {"clear_buffer": True}], ids=["", "train", "infer"]
)
def test_random_graphs_have_the_bits_of_the_walk(shape, type_config, flags):
    context = context_of(type_config)
    for seed in range(6):
        with context_scope(context):
            graph = random_graph(seed, shape)
            expected = bits(*graph, True, flags)
            found = bits(*graph, False, flags)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_gradients_of_bfloat16_are_rounded_where_the_walk_rounds_them():
    """A mean's gradient is a product with a number: float32 to NumPy."""
    pytest.importorskip("ml_dtypes")
    with context_scope(context_of("bfloat16")):
        x = nn.Variable.from_numpy_array(np.linspace(-1, 1, 15).reshape(3, 5), need_grad=True)
        h = F.tanh(x)
        y = F.mean(F.mean(h * h, axis=1))
        graph = [x], [h], y
        expected, found = (
            bits(*graph, walk, {"clear_no_need_grad": True}) for walk in (True, False)
        )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def chains(monkeypatch):
    """The chains that are evaluated; those of small arrays too, whose kernels programs call."""
    found = []
    monkeypatch.setattr(type(current_backend()), "runs_as_text", lambda self, size: False)
    namespace = type(current_backend().xp)
    evaluate = namespace.evaluate_chain
    monkeypatch.setattr(
        namespace,
        "evaluate_chain",
        lambda self, chain, *rest: found.append(chain) or evaluate(self, chain, *rest),
    )
    return found


def test_neighbours_are_one_chain_and_what_is_between_them_is_not_stored(chains):
    if not current_backend().chains_formulas:
        pytest.skip("the kernels of --device numba chain nothing")
    x = nn.Variable((2, 3), need_grad=True)
    x.d = np.linspace(-1, 1, 6).reshape(2, 3)
    h = x * 2.0
    y = F.tanh(h + 1.0)
    loss = F.sum(F.transpose(y * y, (1, 0)))  # else the sum would take the chain
    for _ in range(2):
        loss.forward(clear_no_need_grad=True)
        x.grad.zero()
        loss.backward(clear_buffer=True)
    forward, backward = chains
    # The product and the sum in the middle are read by nobody else, nor by a gradient.
    assert [len(c.links) for c in (forward, backward)] == [4, 3]
    assert (len(forward.arrays), len(forward.outputs), len(forward.numbers)) == (1, 2, 2)
    assert (len(backward.arrays), len(backward.outputs)) == (2, 1)
    t = np.tanh(2 * x.d.astype(np.float64) + 1)
    np.testing.assert_allclose(loss.d, (t * t).sum(), rtol=1e-6)
    np.testing.assert_allclose(x.g, 2 * t * (1 - t * t) * 2, rtol=1e-5)


def test_functions_of_other_shapes_and_with_hooks_are_not_in_chains(chains):
    x = nn.Variable((2, 3))
    x.d = 1
    y = F.exp(F.sum(F.exp(x), axis=1))
    for _ in range(3):
        y.forward(clear_buffer=True)
    z = F.exp(F.exp(x))
    for _ in range(3):
        z.forward(clear_buffer=True, function_pre_hook=nothing)
    assert not chains


def test_a_network_with_chains_and_batch_normalization_trains_as_the_walk_does():
    def train(walk):
        nn.clear_parameters()
        nn.random.set_parameter_seed(313)
        hook = {"function_pre_hook": nothing} if walk else {}
        x = nn.Variable((4, 3, 6, 6))
        h = PF.batch_normalization(PF.convolution(x, 5, (3, 3), pad=(1, 1), name="a"), name="a")
        h = F.swish(h) + F.relu(PF.convolution(x, 5, (1, 1), name="b")) * 0.5
        loss = F.mean((F.sigmoid(h) - 0.5) ** 2.0)
        rng = np.random.RandomState(3)
        losses = []
        for _ in range(3):
            x.d = rng.randn(*x.shape).astype(np.float32)
            loss.forward(clear_no_need_grad=True, **hook)
            for p in nn.get_parameters().values():
                p.grad.zero()
            loss.backward(clear_buffer=True, **hook)
            for p in nn.get_parameters().values():
                p.data.copy_from(p.data - p.grad * 0.5)
            losses.append(float(loss.d))
        return losses, [p.d.copy() for p in nn.get_parameters(grad_only=False).values()]

    expected, found = train(True), train(False)
    assert found[0] == expected[0]
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def found_steps(monkeypatch):
    """The steps of programs that are made: of forwards, of backwards."""
    found = []
    for module, name in (
        (forward_program, "fused_forward"),
        (backward_program, "fused_backward"),
    ):
        kept, find = [], getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, kept=kept, find=find: kept.append(find(*a)) or kept[-1]
        )
        found.append(kept)
    return found


def joined_names(steps, makes_input=False):
    """Numbers of the functions of steps that are one with a function that is no formula.

    Args:
        makes_input: those of reductions, not of functions with a chain after them.
    """
    fused = (fusion.FusedForward, fusion.FusedBackward)
    names = [
        tuple(member.node for member in step.steps)
        for found in steps
        for step in found
        if isinstance(step, fused) and step.function is not None
        if getattr(step, "makes_input", False) == makes_input
    ]
    return [*dict.fromkeys(names)]  # of programs for other flags they are the same


def context_of(type_config):
    present = nn.get_current_context()
    name, bfloat = present.backend[0].partition(":")[0], type_config == "bfloat16"
    if bfloat and name == "cpu" and nn.get_cpu_kernels() == "numpy":
        pytest.skip("bfloat16 on the CPU needs compiled kernels: --device numba")
    backend = f"{name}:{'float' if bfloat else type_config}"
    return Context([backend], precision="bf16" if bfloat else "highest")


def normalized(x, name):
    return PF.batch_normalization(x, name=name)


# What follows a normalization, and how many functions of it are computed with it, forward and
# backward, where all that can be is.
FOLLOWING = {
    **{name: (getattr(F, name), 1, 1) for name in ("tanh", "relu", "elu", "gelu", "softplus")},
    "numbers": (lambda y: F.sigmoid(y * 0.75 + 0.5) * 2.0, 4, 4),
    "two readers": (lambda y: F.relu(y) * y, 2, 0),  # the gradients of y are two, and are added
    "itself kept": (lambda y: F.tanh(y) + F.sum(y, axis=(1,), keepdims=True), 1, 0),
}


@pytest.mark.parametrize(
    ("kind", "type_config"),
    [
        *((kind, "float") for kind in FOLLOWING),
        *(("numbers", dtype) for dtype in ("half", "bfloat16")),
    ],
)
def test_what_follows_a_function_that_can_do_it_too(kind, type_config, found_steps):
    follow, forward, backward = FOLLOWING[kind]

    def network():
        nn.clear_parameters()
        nn.random.set_parameter_seed(313)
        x = nn.Variable((6, 4, 3, 5), need_grad=True)
        x.d = np.random.RandomState(1).randn(*x.shape).astype(np.float32)
        y = normalized(x, "a")
        h = follow(y)
        return [x], [y, h], F.mean(F.sum(h, axis=(1, 2, 3)) ** 2.0)

    several = kind in ("tanh", "numbers")
    for flags in [{"clear_no_need_grad": True}, *[{"clear_buffer": True}, {}] * several]:
        same_as_the_walk(network, type_config, flags)
    before, after = (joined_names(steps) for steps in found_steps)
    assert before == [tuple(range(forward + 1))]
    assert after == ([tuple(range(backward, -1, -1))] if backward else [])


def test_gradients_that_read_broadcast_arrays_are_not_joined(found_steps):
    """The mask needs no gradient, and has not the shape of what batch normalization gives."""

    def network():
        nn.clear_parameters()
        nn.random.set_parameter_seed(313)
        x = nn.Variable((6, 4, 3, 5), need_grad=True)
        x.d = np.random.RandomState(1).randn(*x.shape).astype(np.float32)
        mask = nn.Variable((1, 4, 1, 1))
        mask.d = np.arange(4).reshape(mask.shape)
        y = F.tanh(normalized(x, "a") * mask)
        return [x], [y], F.mean(F.sum(y, axis=(1, 2, 3)) ** 2.0)

    same_as_the_walk(network, "float", {"clear_no_need_grad": True})
    assert joined_names(found_steps[1]) == []


@pytest.mark.parametrize("name", ["tanh", "sin", "gelu"])  # there is no compiled sine
@pytest.mark.parametrize("shape", [(40, 8, 8, 8), (3000, 8)])
def test_large_results_have_the_bits_of_functions_one_by_one(name, shape):
    def network():
        nn.clear_parameters()
        nn.random.set_parameter_seed(313)
        x = nn.Variable(shape, need_grad=True)
        x.d = np.random.RandomState(1).randn(*shape).astype(np.float32)
        a = getattr(F, name)(normalized(x, "a"))
        b = getattr(F, name)(normalized(a, "b") + a)
        return [x], [a, b], F.mean(F.sin(b * 0.5) + F.tanh(b * b))

    same_as_the_walk(network, "float", {"clear_no_need_grad": True})


def same_as_the_walk(network, type_config, flags):
    """Results, gradients and statistics of a network by its program are those of the walk."""
    with context_scope(context_of(type_config)):
        expected = bits(*network(), True, flags)
        statistics = [p.d.copy() for p in nn.get_parameters(grad_only=False).values()]
        found = bits(*network(), False, flags)
    for p, value in zip(nn.get_parameters(grad_only=False).values(), statistics, strict=True):
        np.testing.assert_array_equal(p.d, value)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("type_config", ["float", "half"])
@pytest.mark.parametrize("flags", [{"clear_no_need_grad": True}, {"clear_buffer": True}])
def test_what_joins_a_function_in_a_network(type_config, flags, found_steps):
    def network():
        nn.clear_parameters()
        nn.random.set_parameter_seed(313)
        x = nn.Variable((6, 4, 3, 5), need_grad=True)
        x.d = np.random.RandomState(1).randn(*x.shape).astype(np.float32)
        a = F.relu(normalized(x, "a"))
        b = F.relu(normalized(a * 2.0, "b") + a)
        c = F.tanh(PF.batch_normalization(b, batch_stat=False, name="c"))
        d = F.relu(PF.affine(c, 7, name="d"))
        e = PF.affine(d, 7, name="e")  # not joined: somebody else reads it
        g = F.tanh(PF.affine(d, 7, name="g"))  # not joined: of a library
        loss = F.mean(F.relu(e) + F.relu(PF.affine(d, 7, name="f")) + e + g)
        return [x], [a, b, c, d, e], loss

    same_as_the_walk(network, type_config, flags)
    before, after = (joined_names(steps) for steps in found_steps)
    # Of these, only a batch normalization that computes its statistics takes chains on the CPU.
    on_cpu = nn.get_current_context().backend[0].startswith("cpu")
    assert before == [(0, 1, 2), (3, 4, 5), *([] if on_cpu else [(6, 7), (8, 9), (14, 15)])]
    if "clear_buffer" not in flags:
        # The second one's sum has two summands: the chain writes the gradient of the other.
        assert after == [(5, 4, 3), (1, 0)]


def test_what_follows_a_normalization_over_ranks(found_steps):
    comm = C.MultiProcessDataParallelCommunicator(nn.get_current_context())
    comm.init()

    def network():
        nn.clear_parameters()
        nn.random.set_parameter_seed(313)
        x, z = (nn.Variable((6, 4, 3, 5), need_grad=True) for _ in range(2))
        x.d, z.d = np.random.RandomState(1).randn(2, *x.shape).astype(np.float32)
        h = z * 2.0
        y = F.tanh(PF.sync_batch_normalization(x, comm, name="a") + h)
        return [x, z], [y], F.mean(F.sum(y, axis=(1, 2, 3)) ** 2.0)

    same_as_the_walk(network, "float", {"clear_no_need_grad": True})
    if not nn.get_current_context().backend[0].startswith("cpu"):
        assert [joined_names(steps) for steps in found_steps] == [[(1, 2, 3)], [(3, 2, 1)]]


def test_what_a_function_updates_is_not_read_early_by_what_joins_it():
    """One element a channel: the running mean has the shape of the result."""

    def network():
        nn.clear_parameters()
        x = nn.Variable((1, 4), need_grad=True)
        x.d = np.random.RandomState(1).randn(1, 4).astype(np.float32)
        y = normalized(x, "a")
        mean = nn.get_parameters(grad_only=False)["a/bn/mean"]
        return [x], [y], F.sum(F.tanh(y + mean))

    same_as_the_walk(network, "float", {"clear_no_need_grad": True})


# Rows, columns, packs that cross rows, several blocks, axes apart, nothing to reduce, nothing.
REDUCED = [
    ("sum", (3, 7), (1,), "float"),
    ("mean", (40, 64), (0,), "float"),
    ("mean", (6, 4, 3, 8), (0, 2, 3), "half"),
    ("sum", (6, 7, 3, 8), (0, 2), "half"),
    ("mean", (2, 40_000), (0, 1), "float"),
    ("sum", (300, 96), (0,), "double"),
    ("mean", (5, 1), (1,), "float"),
    ("sum", (0, 3), (0,), "float"),
    ("max", (6, 4, 3, 5), (1, 2), "float"),
    ("max", (6, 4, 3, 5), (0, 2), "float"),
    ("min", (3, 64), (1,), "half"),
]


@pytest.mark.parametrize(("name", "shape", "axes", "type_config"), REDUCED, ids=str)
def test_a_reduction_takes_the_chain_before_it(name, shape, axes, type_config, found_steps):
    def network():
        rng = np.random.RandomState(1)
        leaves = []
        for s in (shape, (*shape[:-1], 1), (1, *shape[1:])):
            leaves.append(nn.Variable(s, need_grad=True))
            leaves[-1].d = rng.uniform(-1, 1, s).astype(np.float32)
        x, column, row = leaves
        kept = F.tanh((x + column) * row)
        y = getattr(F, name)(kept * 0.75, axis=axes, keepdims=True)
        return leaves, [kept, y], F.sum(F.reshape(y, (-1,)))

    several = type_config == "half"
    for flags in [{"clear_no_need_grad": True}, *[{}, {"clear_buffer": True}] * several]:
        same_as_the_walk(network, type_config, flags)
    if not nn.get_current_context().backend[0].startswith("cpu"):
        declined = name == "max" and axes == (0, 2)
        assert joined_names(found_steps[0], True) == ([] if declined else [(0, 1, 2, 3, 4)])


def test_a_reduced_chain_by_its_definition():
    rng = np.random.RandomState(0)
    a, b = rng.randn(7, 30, 11), rng.randn(1, 30, 1)
    x, y = nn.Variable(a.shape), nn.Variable(b.shape)
    x.d, y.d = a, b
    loss = F.mean(F.tanh(x) * y, axis=(0, 2))
    for _ in range(2):
        loss.forward(clear_buffer=True)
    np.testing.assert_allclose(loss.d, (np.tanh(a) * b).mean((0, 2)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [7, 100_000])
def test_a_chain_by_its_definition(size):
    rng = np.random.RandomState(0)
    a, b = (rng.uniform(0.5, 2, (size, 2)).astype(np.float32) for _ in range(2))
    links = [
        Link(
            "s", renamed(Formula("x + k * y", ("x", "y"), ("k",)), {"x": "a", "y": "b", "k": "n"})
        ),
        Link("t", renamed(Formula("where(x > y, 1, 0)", ("x", "y"), ()), {"x": "s", "y": "b"})),
        Link("u", renamed(Formula("exp(x) - y", ("x", "y"), ()), {"x": "s", "y": "t"})),
    ]
    chain = Chain(links, ("a", "b"), ("n",), ("u", "s"))
    outs = [np.empty_like(a), np.empty_like(a)]
    cpu_backend("float").xp.evaluate_chain(chain, [a, b], [-0.75], outs)
    s = a.astype(np.float64) - 0.75 * b
    np.testing.assert_allclose(outs[1], s, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outs[0], np.exp(s) - (s > b), rtol=1e-5, atol=1e-6)
    assert str(chain).startswith("s = a + n * b; t = where(")


def gelu(x):
    """By its parts: all of it can be had again from x and the tanh, or from x alone."""
    return x * 0.5 * (F.tanh((x * x * x * 0.044715 + x) * 0.79788456) + 1.0)


@contextmanager
def keeping_all():
    """Nothing is computed again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rematerialization, "_MOST_CALLS", 0)
        plans._plans.clear()
        yield
    plans._plans.clear()


@pytest.mark.parametrize(
    ("type_config", "flags"),
    [
        ("float", {"clear_no_need_grad": True}),
        ("half", {"clear_no_need_grad": True}),
        ("float", {}),
    ],
    ids=["train", "half", "all"],
)
def test_gradients_compute_again_what_was_not_kept(type_config, flags, monkeypatch):
    monkeypatch.setattr(type(current_backend()), "recomputes", lambda self, formula, size: True)

    def network():
        nn.clear_parameters()
        nn.random.set_parameter_seed(313)
        x = nn.Variable((6, 4, 5, 5), need_grad=True)
        x.d = np.random.RandomState(1).randn(*x.shape).astype(np.float32)
        h = gelu(F.transpose(x, (0, 1, 3, 2)))
        g = PF.batch_normalization(h, name="a")
        y = F.sigmoid(g) * F.tanh(g * 0.5 + 1.0)
        return [x], [] if "clear_no_need_grad" in flags else [h, y], F.mean(F.exp(y) * y)

    context = context_of(type_config)
    with context_scope(context):
        expected = bits(*network(), False, flags)
        found = bits(*network(), True, flags)  # step by step, with what was forgotten
        with keeping_all():
            kept = bits(*network(), False, flags)
        report, listing = nn.profiler.memory(network()[2]), nn.profiler.listing(network()[2])
    for a, b, c in zip(expected, found, kept, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert report.computed_again >= 4
    assert "recomputes" in listing
    assert "again" not in listing  # no pass of its own


def test_what_is_computed_again_takes_no_memory_in_between():
    """In float64, by the definition, and with a peak that is measured."""
    x = nn.Variable((256, 512), need_grad=True)
    x.d = np.random.RandomState(0).randn(*x.shape)
    a = x.d.astype(np.float64)
    peaks = []
    for how in (keeping_all, nullcontext):
        with how():
            loss = F.sum(gelu(F.transpose(x, (1, 0))))
            report = nn.profiler.memory(loss)
            for _ in range(2):
                with nn.profiler.peak_memory() as peak:
                    x.grad.zero()
                    loss.forward(clear_no_need_grad=True)
                    loss.backward(clear_buffer=True)
        peaks.append((report.kept, peak.bytes))
    u = 0.79788456 * (a + 0.044715 * a**3)
    slope = 0.5 * (1 + np.tanh(u))
    slope += 0.5 * a * (1 - np.tanh(u) ** 2) * 0.79788456 * (1 + 3 * 0.044715 * a**2)
    np.testing.assert_allclose(x.g, slope, rtol=1e-4, atol=1e-5)
    assert peaks[1][0] <= 0.75 * peaks[0][0]
    if current_backend().name == "cpu":
        assert peaks[1][1] < peaks[0][1]

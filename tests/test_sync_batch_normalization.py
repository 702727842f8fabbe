"""Synchronized batch normalization against PyTorch and NumPy on the batches of all ranks in one."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import TRANSPORTS, connected, on_ranks

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.context import current_world
from distnn.errors import ArgumentError, CommunicatorError, ShapeError

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])
CHANNELS = 3


def double():
    return nn.context_scope(nn.Context(["cpu:double"]))


def batch(rank, shape=(4, CHANNELS, 3, 2), equal=False, offset=0.0):
    """x and dy of a rank; other ranks have other means and, unless equal, other batch sizes."""
    rng = np.random.RandomState(rank)
    shape = (shape[0] if equal else shape[0] + 2 * rank, *shape[1:])
    x = rng.uniform(-1, 1 + rank, shape) + 0.3 * rank + offset
    return x, rng.uniform(-1, 1, shape)


def statistics(shape, axes):
    rng = np.random.RandomState(99)
    kept = tuple(n if i in axes else 1 for i, n in enumerate(shape))
    return [rng.uniform(0.5, 1.5, kept) for _ in range(4)]  # beta, gamma, mean, variance


def parameters(shape, axes):
    beta, gamma, mean, variance = (nn.Variable.from_numpy_array(a) for a in statistics(shape, axes))
    beta.need_grad = gamma.need_grad = True
    return beta, gamma, mean, variance


def by_definition(size, axes, **options):
    """Results and gradients in float64, on all ranks' batches in one (Ioffe & Szegedy, 2015)."""
    everybodys = [batch(r, **options) for r in range(size)]
    x, dy = (np.concatenate([parts[i] for parts in everybodys]) for i in range(2))
    beta, gamma, mean, variance = statistics(x.shape, axes)
    others = tuple(i for i in range(x.ndim) if i not in axes)
    n = np.prod([x.shape[i] for i in others])
    batch_mean, batch_variance = x.mean(others, keepdims=True), x.var(others, keepdims=True)
    deviation = np.sqrt(batch_variance + 1e-5)
    normal = (x - batch_mean) / deviation
    d_beta = dy.sum(others, keepdims=True)
    d_gamma = (dy * normal).sum(others, keepdims=True)
    return {
        "y": normal * gamma + beta,
        "dx": gamma / deviation * (dy - d_beta / n - normal * d_gamma / n),
        "beta": d_beta.reshape(-1),
        "gamma": d_gamma.reshape(-1),
        "mean": (0.9 * mean + 0.1 * batch_mean).reshape(-1),
        "variance": (0.9 * variance + 0.1 * batch_variance * n / (n - 1)).reshape(-1),
    }


def mine(whole, rank, **options):
    """The part of a rank in an array of all ranks' batches."""
    lengths = [len(batch(r, **options)[0]) for r in range(rank + 1)]
    return whole[sum(lengths[:-1]) : sum(lengths)]


@everywhere
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((4, CHANNELS, 3, 2), (1,)), ((4, 5), (1,)), ((2, 3, 4, 2), (1, 3)), ((2, 3, 16, 16), (1,))],
)
@pytest.mark.parametrize("equal", [True, False])
def test_it_is_batch_normalization_of_all_ranks_batches_in_one(
    transport, shape, axes, equal, dynamic
):
    options = {"shape": shape, "equal": equal}

    def work():
        comm = connected()
        expected = by_definition(comm.size, axes, **options)
        values, seed = batch(comm.rank, **options)
        with double(), nn.auto_forward(dynamic):
            x = nn.Variable.from_numpy_array(values, need_grad=True)
            beta, gamma, mean, variance = parameters(shape, axes)
            y = F.sync_batch_normalization(x, beta, gamma, mean, variance, comm, axes=axes)
            if not dynamic:
                y.forward(clear_no_need_grad=True)
            x.grad.zero(), beta.grad.zero(), gamma.grad.zero()
            y.backward(seed)
            comm.all_reduce([beta.grad, gamma.grad])  # sums, as with all parameters
        near = {"rtol": 1e-9, "atol": 1e-12}
        np.testing.assert_allclose(y.d, mine(expected["y"], comm.rank, **options), **near)
        np.testing.assert_allclose(x.g, mine(expected["dx"], comm.rank, **options), **near)
        for name, found in [
            ("beta", beta.g),
            ("gamma", gamma.g),
            ("mean", mean.d),
            ("variance", variance.d),
        ]:
            np.testing.assert_allclose(found.reshape(-1), expected[name], err_msg=name, **near)

    on_ranks(transport, work)


@everywhere
def test_all_ranks_hold_the_same_bits_of_the_statistics(transport):
    def work():
        comm = connected()
        x = nn.Variable.from_numpy_array(batch(comm.rank)[0])
        with nn.auto_forward():
            PF.sync_batch_normalization(x, comm)
        names = ["bn/beta", "bn/gamma", "bn/mean", "bn/var"]
        found = nn.get_parameters(grad_only=False)
        assert list(found) == names
        assert list(nn.get_parameters()) == names[:2]
        for name in names:
            everybodys = [nn.NdArray((1, CHANNELS, 1, 1)) for _ in range(comm.size)]
            comm.all_gather(found[name].data, everybodys)
            assert all(np.array_equal(a.data, found[name].d) for a in everybodys)
        assert not np.any(found["bn/mean"].d == 0)

    on_ranks(transport, work)


@everywhere
def test_a_large_mean_costs_no_digits(transport):
    """E(x^2) - E(x)^2 in float32 would be noise here."""
    options = {"equal": False, "offset": 3000.0, "shape": (16, CHANNELS, 4, 4)}

    def work():
        comm = connected()
        whole = np.concatenate([batch(r, **options)[0] for r in range(comm.size)])
        whole = whole.astype(np.float32).astype(np.float64)
        x = nn.Variable.from_numpy_array(batch(comm.rank, **options)[0].astype(np.float32))
        with nn.auto_forward():
            results = PF.sync_batch_normalization(x, comm, output_stat=True)
        np.testing.assert_allclose(results[1].d.reshape(-1), whole.mean((0, 2, 3)), rtol=1e-7)
        np.testing.assert_allclose(results[2].d.reshape(-1), whole.var((0, 2, 3)), rtol=5e-5)

    on_ranks(transport, work)


@everywhere
def test_on_one_rank_it_has_the_bits_of_batch_normalization(transport):
    def work():
        comm = connected()
        comm.new_group(("first", [0]))
        if comm.rank:
            return
        values, seed = batch(0, shape=(6, CHANNELS, 16, 16))
        found = []
        for synchronized in (False, True):
            nn.clear_parameters()
            x = nn.Variable.from_numpy_array(values, need_grad=True)
            with nn.auto_forward():
                if synchronized:
                    y = PF.sync_batch_normalization(x, comm, "first")
                else:
                    y = PF.batch_normalization(x)
            y.backward(seed)
            parameters = nn.get_parameters(grad_only=False).values()
            found.append([y.d, x.g, *(p.d for p in parameters), *(p.g for p in parameters)])
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))

    on_ranks(transport, work)


@several
def test_a_rank_may_have_an_empty_batch(transport):
    def work():
        comm = connected()
        values, seed = batch(0)
        if comm.rank:
            values, seed = values[:0], seed[:0]
        x = nn.Variable.from_numpy_array(values, need_grad=True)
        with nn.auto_forward():
            y, mean, _ = PF.sync_batch_normalization(x, comm, output_stat=True)
        y.backward(seed)
        np.testing.assert_allclose(mean.d, batch(0)[0].mean((0, 2, 3), keepdims=True), rtol=1e-5)
        assert x.g.shape == values.shape

    on_ranks(transport, work)


@everywhere
def test_an_empty_batch_on_all_ranks_is_an_error_on_all(transport):
    def work():
        comm = connected()
        with nn.auto_forward(), pytest.raises(ShapeError, match="empty on all ranks"):
            PF.sync_batch_normalization(nn.Variable((0, 3)), comm)

    on_ranks(transport, work)


@everywhere
def test_inference_exchanges_nothing(transport):
    def work():
        comm = connected()
        before = comm._groups["world"].count.number
        with nn.auto_forward():
            y = PF.sync_batch_normalization(nn.Variable((2, 3)), comm, batch_stat=False)
        assert comm._groups["world"].count.number == before
        assert y.shape == (2, 3)

    on_ranks(transport, work)


def objective(parts):
    """NumPy: what the derivatives below are of, from all ranks' batches in one."""
    whole = np.concatenate(parts)
    mean = whole.mean(0, keepdims=True)
    variance = ((whole - mean) ** 2).mean(0, keepdims=True)
    y = (whole - mean) / np.sqrt(variance + 1e-5)
    return (np.sin(y) * np.arange(1, 4)).sum() + (mean**2).sum() + (variance**3).sum()


def central(function, values, direction, step):
    return (function(values + step * direction) - function(values - step * direction)) / (2 * step)


@everywhere
def test_first_and_second_derivatives_by_rules(transport):
    """nn.grad records the exchange: derivatives of the sum of all ranks' losses, to any order."""

    def work():
        comm = connected()
        rngs = [np.random.RandomState(r) for r in range(comm.size)]
        parts = [rng.uniform(-1, 1, (3 + r, 3)) for r, rng in enumerate(rngs)]
        directions = [rng.uniform(-1, 1, (3 + r, 3)) for r, rng in enumerate(rngs)]
        sizes = np.cumsum([len(p) for p in parts])[:-1]

        def total(values):
            return objective(np.split(values, sizes))

        def first(values):  # gradient by differences, of everything
            found = np.empty_like(values)
            for i in np.ndindex(values.shape):
                unit = np.zeros_like(values)
                unit[i] = 1
                found[i] = central(total, values, unit, 1e-5)
            return found

        def slope(values):  # d/dx of |gradient|^2 / 2, in one direction: needs the second
            return (first(values) ** 2).sum() / 2

        whole, direction = np.concatenate(parts), np.concatenate(directions)
        with double():
            x = nn.Variable.from_numpy_array(parts[comm.rank], need_grad=True)
            stats = [nn.Variable.from_numpy_array(np.zeros((1, 3))) for _ in range(2)]
            y, mean, variance = F.sync_batch_normalization(
                x, None, None, *stats, comm, output_stat=True
            )
            weights = nn.Variable.from_numpy_array(np.arange(1.0, 4.0).reshape(1, 3))
            # mean and variance are every rank's: each contributes its share of them
            loss = F.sum(F.sin(y) * weights)
            loss = loss + (F.sum(mean**2) + F.sum(variance**3)) * (1 / comm.size)
            (dx,) = nn.grad(loss, x)
            (ddx,) = nn.grad(F.sum(dx**2) * 0.5, x)
            nn.forward_all([dx, ddx])
            np.testing.assert_allclose(
                dx.d, np.split(first(whole), sizes)[comm.rank], rtol=1e-6, atol=1e-8
            )
            found = nn.NdArray.from_numpy_array(np.array([(ddx.d * directions[comm.rank]).sum()]))
            comm.all_reduce(found)
        expected = central(slope, whole, direction, 1e-4)
        np.testing.assert_allclose(found.data[0], expected, rtol=1e-5)
        # backward takes the fast path; the rules must agree with it
        loss.forward()
        x.grad.zero()
        loss.backward()
        np.testing.assert_allclose(x.g, dx.d, rtol=1e-9, atol=1e-12)

    on_ranks(transport, work)


# -- together with gradients that are summed while backward runs -----------------------------------


def network(comm, values, synchronized=True):
    x = nn.Variable.from_numpy_array(values)
    h = x
    for i in range(3):
        with nn.parameter_scope(f"layer{i}"):
            h = PF.convolution(h, 4, (3, 3), pad=(1, 1), with_bias=False)
            if synchronized:
                h = PF.sync_batch_normalization(h, comm)
            else:
                h = PF.batch_normalization(h)
            h = F.tanh(h)
    return F.sum(PF.affine(h, 2) ** 2)


@everywhere
@pytest.mark.parametrize("pack_size", [1, 40, 10_000])
@pytest.mark.parametrize("dynamic", [False, True])
def test_with_the_callback_gradients_are_those_of_one_batch(transport, pack_size, dynamic):
    def work():
        comm = connected()
        parts = [batch(r, (2, 2, 5, 5))[0] for r in range(comm.size)]
        with double():
            network(comm, np.concatenate(parts), False)  # weights, equal on all ranks
            registered = nn.get_parameters()
            whole = network(comm, np.concatenate(parts), False)
            whole.forward()
            for p in registered.values():
                p.grad.zero()
            whole.backward()
            expected = {name: p.g.copy() for name, p in registered.items()}
            grads = [p.grad for p in registered.values()]
            callback = comm.all_reduce_callback(grads, pack_size)
            with nn.auto_forward(dynamic):
                loss = network(comm, parts[comm.rank])
            for _ in range(4):
                if not dynamic:
                    loss.forward(clear_no_need_grad=True)
                for g in grads:
                    g.zero()
                loss.backward(clear_buffer=not dynamic, communicator_callbacks=callback)
                for name, p in registered.items():
                    np.testing.assert_allclose(p.g, expected[name], 1e-8, 1e-10, err_msg=name)

    on_ranks(transport, work)


@several
def test_where_graphs_differ_all_ranks_raise_instead_of_adding_what_does_not_belong(transport):
    """On one rank a bucket is complete before, on another after a collective of backward."""

    def work():
        comm = connected(timeout=20)
        for name in ("a", "b"):
            PF.affine(nn.Variable((1, 3)), 3, name=name, with_bias=False)
        grads = [p.grad for p in nn.get_parameters().values()]
        callback = comm.all_reduce_callback(grads, 1, same_graph=False)
        x = nn.Variable.from_numpy_array(np.ones((4, 3), np.float32) * comm.rank)
        with nn.auto_forward():
            h = PF.affine(x, 3, name="a", with_bias=False)
            if comm.rank:
                h = F.tanh(PF.sync_batch_normalization(h, comm))
                h = PF.affine(h, 3, name="b", with_bias=False)
            else:
                h = PF.affine(F.tanh(h), 3, name="b", with_bias=False)
                h = PF.sync_batch_normalization(h, comm)
            loss = F.sum(h**2)
            good = F.sum(PF.affine(x, 3, name="a", with_bias=False))
        size = comm.size
        expected = np.full((3, 3), 4 * size * (size - 1) / 2)
        for _ in range(3):
            match = r"different collectives: .* bucket 0 of all_r"
            with pytest.raises(CommunicatorError, match=match):
                loss.backward(communicator_callbacks=callback)
            # Ranks had queued different numbers of buckets; who has caught the error can go on.
            for grad in grads:
                grad.zero()
            good.backward(communicator_callbacks=callback)
            np.testing.assert_array_equal(grads[0].data, expected)
            assert grads[1].zeroing
            comm.barrier()

    on_ranks(transport, work)


@several
def test_other_collectives_on_other_ranks_are_named(transport):
    def work():
        comm = connected()
        x = nn.Variable.from_numpy_array(batch(comm.rank)[0])
        calls = [lambda: PF.sync_batch_normalization(x, comm), comm.barrier]
        text = r"different collectives: sync_batch_normalization on rank 0; barrier on rank 1"
        with nn.auto_forward(), pytest.raises(CommunicatorError, match=text):
            calls[min(comm.rank, 1)]()

    on_ranks(transport, work)


@several
def test_other_numbers_of_channels_on_other_ranks_are_named(transport):
    def work():
        comm = connected()
        x = nn.Variable((4, 2 + comm.rank))
        with (
            nn.auto_forward(),
            pytest.raises(CommunicatorError, match=r"statistics \(1, 2\) on rank 0"),
        ):
            PF.sync_batch_normalization(x, comm)

    on_ranks(transport, work)


def test_plans_do_not_keep_a_communicator_alive():
    import gc
    import weakref

    comm = C.DataParallelCommunicator()
    comm.init()
    x = nn.Variable((2, 3))
    y = PF.sync_batch_normalization(x, comm)
    y.forward()
    gone = weakref.ref(comm)
    current_world().communicator = None
    del comm
    gc.collect()
    assert gone() is None
    with pytest.raises(CommunicatorError, match="its communicator is gone; keep it"):
        y.forward()


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda x, c: PF.sync_batch_normalization(x, None), ArgumentError, "comm is NoneType; pas"),
        (lambda x, c: PF.sync_batch_normalization(x, c, "g"), ArgumentError, "group is 'g'"),
        (
            lambda x, c: PF.sync_batch_normalization(x, C.Comm()),
            CommunicatorError,
            r"\[sync_batch_normalization\] the communicator is not connected; call init",
        ),
        (
            lambda x, c: PF.sync_batch_normalization(x, c, param_init={"w": None}),
            ValueError,
            r"\[sync_batch_normalization\] param_init has \['w'\]",
        ),
        (
            lambda x, c: PF.sync_batch_normalization(x, c, batch_stat=False, output_stat=True),
            ArgumentError,
            r"\[sync_batch_normalization\] output_stat=True",
        ),
        (
            lambda x, c: F.sync_batch_normalization(x, x, None, x, x, c),
            ShapeError,
            r"\[sync_batch_normalization\] beta has shape \(2, 3\) but x \(2, 3\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, kind, match):
    with pytest.raises(kind, match=match):
        call(nn.Variable((2, 3)), connected())

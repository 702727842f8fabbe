"""All-reduce over grids of ranks: equals the sum, on any grid that fits, over threads and MPI."""

from __future__ import annotations

import numpy as np
import pytest
from launching import launch, needs_mpi, write
from ranks import connected

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
from distnn.errors import ArgumentError, CommunicatorError

GRIDS = [(1, 1), (2, 2), (3, 2), (2, 3), (1, 4), (4, 1), (1, 6)]
grids = pytest.mark.parametrize("shape", GRIDS, ids=str)
SHAPES = [(5,), (300, 301), (1,), (2, 3, 4), (70_001,)]


def values(rank, dtype=np.float32):
    rng = np.random.RandomState(40 + rank)
    return [(100 * rng.standard_normal(s)).astype(dtype) for s in SHAPES]


def total(size, dtype=np.float32):
    everybodys = [values(r, dtype) for r in range(size)]
    return [sum(a.astype(np.float64) for a in same) for same in zip(*everybodys, strict=True)]


def arrays(found):
    return [nn.NdArray.from_numpy_array(v) for v in found]


def assert_equal_bits(comm, items):
    for item in items:
        everybodys = arrays([np.zeros_like(item.data)] * comm.size)
        comm.all_gather(item, everybodys)
        for other in everybodys:
            np.testing.assert_array_equal(other.data, item.data)


@grids
@pytest.mark.parametrize(
    ("dtype", "division"),
    [(t, d) for t in (np.float16, np.float32, np.float64) for d in (False, True)]
    + [(np.int64, False)],
)
def test_a_torus_sums_over_all_ranks(shape, division, dtype):

    def work():
        comm = connected()
        torus = C.TorusAllReduce(comm, shape)
        items = arrays(values(comm.rank, dtype))
        torus.all_reduce(items, division)
        eps = np.finfo(dtype).eps if np.dtype(dtype).kind == "f" else 0
        for item, expected in zip(items, total(comm.size, dtype), strict=True):
            expected = expected / (comm.size if division else 1)
            np.testing.assert_allclose(item.data, expected, rtol=4 * eps, atol=1000 * eps)
            assert item.dtype == dtype
        assert_equal_bits(comm, items)

    C.run_threads(work, shape[0] * shape[1])


@pytest.mark.parametrize("per_group", [1, 2, 3, 6, None])
def test_the_hierarchy_sums_over_all_ranks(per_group):
    def work():
        comm = connected()
        hierarchy = C.HierarchicalAllReduce(comm, per_group)
        assert hierarchy.shape[1] == (per_group or 6)  # threads are on one machine
        items = arrays(values(comm.rank))
        comm.all_reduce(items, algorithm=hierarchy)
        for item, expected in zip(items, total(comm.size), strict=True):
            np.testing.assert_allclose(item.data, expected, rtol=1e-5, atol=1e-3)

    C.run_threads(work, 6)


class Counting:
    """Counts the bytes that a rank gives to a transport."""

    def __init__(self, transport):
        self.transport, self.calls = transport, []
        self.rank, self.size = transport.rank, transport.size

    def __getattr__(self, name):
        method = getattr(self.transport, name)

        def counted(array, *rest):
            self.calls.append((name, array.nbytes))
            return method(array, *rest)

        return counted


def test_between_rows_travels_only_the_part_of_a_column():
    def work():
        comm = connected()
        torus = C.TorusAllReduce(comm, (2, 3))
        row, column = torus._row, torus._column = Counting(torus._row), Counting(torus._column)
        item = nn.NdArray.from_numpy_array(np.ones(3000, np.float32))
        torus.all_reduce(item)
        assert row.calls == [("reduce_scatter", 12000), ("all_gather", 4000)]
        assert column.calls == [("all_reduce", 4000)]
        assert (item.data == 6).all()

    C.run_threads(work, 6)


def test_gradients_of_a_network_go_over_the_torus_while_backward_runs():
    def work():
        comm = connected()
        found = []
        for algorithm in (None, C.TorusAllReduce(comm, (2, 2))):
            nn.clear_parameters()
            nn.seed(313)
            x = nn.Variable((4, 6))
            x.d = np.random.RandomState(comm.rank).standard_normal((4, 6))
            loss = F.mean(PF.affine(F.tanh(PF.affine(x, 50, name="1")), 3, name="2") ** 2)
            grads = [p.grad for p in nn.get_parameters().values()]
            callback = comm.all_reduce_callback(grads, 100, division=True, algorithm=algorithm)
            loss.forward()
            for grad in grads:
                grad.zero()
            loss.backward(communicator_callbacks=callback)
            found.append([g.get_data("r").copy() for g in grads])
        for plain, torus in zip(*found, strict=True):
            np.testing.assert_allclose(torus, plain, rtol=1e-5, atol=1e-7)

    C.run_threads(work, 4)


def test_shapes_that_do_not_fit_are_refused():
    def work():
        comm = connected()
        with pytest.raises(ArgumentError, match=r"\(3, 2\), which makes 6 ranks, .* has 4; pass"):
            C.TorusAllReduce(comm, (3, 2))
        with pytest.raises(ArgumentError, match=r"\(-2, -2\).*\[\(1, 4\), \(2, 2\), \(4, 1\)\]"):
            C.TorusAllReduce(comm, (-2, -2))
        with pytest.raises(ArgumentError, match=r"shape is 4; pass \(rows, columns\)"):
            C.TorusAllReduce(comm, 4)
        with pytest.raises(ArgumentError, match=r"ranks_per_group is 3 but .* 4 ranks"):
            C.HierarchicalAllReduce(comm, 3)
        torus = C.TorusAllReduce(comm, (2, 2))
        comm.new_group(("two", [0, 1]))
        if comm.rank < 2:
            with pytest.raises(ArgumentError, match=r"ranks \[0, 1\] but TorusAllReduce\(2, 2\)"):
                comm.all_reduce(nn.NdArray((2,)), group="two", algorithm=torus)

    C.run_threads(work, 4)


def test_ranks_must_choose_the_same_shape():
    def work():
        comm = connected()
        with pytest.raises(CommunicatorError, match="TorusAllReduce"):
            C.TorusAllReduce(comm, (2, 1) if comm.rank else (1, 2))

    C.run_threads(work, 2)


def test_machines_with_different_numbers_of_ranks_are_refused():
    def work():
        comm = connected()
        comm._groups["world"].transport.local_rank = [0, 1, 2, 0][comm.rank]
        with pytest.raises(ArgumentError, match=r"places \[0, 1, 2, 0\] on their machines"):
            C.HierarchicalAllReduce(comm)
        comm._groups["world"].transport.local_rank = [0, 1, 0, 1][comm.rank]
        assert C.HierarchicalAllReduce(comm).shape == (2, 2)

    C.run_threads(work, 4)


JOB = """
    import sys
    import numpy as np
    import distnn as nn
    import distnn.communicators as C

    comm = C.MultiProcessDataParallelCommunicator(timeout=30)
    comm.init()
    shape = tuple(map(int, sys.argv[1:]))
    for algorithm in (C.TorusAllReduce(comm, shape), C.HierarchicalAllReduce(comm)):
        parts = [np.random.RandomState(r).standard_normal(30_001).astype(np.float32)
                 for r in range(comm.size)]
        array = nn.NdArray.from_numpy_array(parts[comm.rank])
        comm.all_reduce(array, algorithm=algorithm)
        np.testing.assert_allclose(array.data, sum(p.astype(np.float64) for p in parts), atol=1e-5)
        others = [nn.NdArray(array.shape) for _ in range(comm.size)]
        comm.all_gather(array, others)
        assert all(np.array_equal(o.data, array.data) for o in others)
    print("rank", comm.rank, "is right")
"""


@needs_mpi
@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (2, 3)], ids=str)
def test_real_processes_sum_over_a_torus(shape, tmp_path):
    ranks = shape[0] * shape[1]
    arguments = [write(tmp_path, JOB), *map(str, shape)]
    found = launch("-n", str(ranks), "--timeout", "100", *arguments, cwd=tmp_path)
    assert found.status == 0, found.err
    assert all(f"rank {r} is right" in found.out for r in range(ranks))

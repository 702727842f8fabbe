"""Data of one rank reach the others in parts."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from ranks import TRANSPORTS, connected, on_ranks

import distnn.communicators as C
import distnn.communicators.scatter
from distnn.errors import CommunicatorError

everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])


def samples(length):
    rng = np.random.RandomState(3)
    images = rng.uniform(0, 255, (length, 3, 4)).astype(np.float32)
    labels = np.arange(length, dtype=np.int64)
    return images, labels, labels % 2 == 0


def of_rank(comm, rank, length):
    """The length that another rank has."""
    return int(comm.all_reduce_scalars({"n": length}, weights=float(comm.rank == rank))["n"])


@everywhere
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 24, 25, 1003])
def test_parts_are_the_data(transport, shuffle, equal, length, monkeypatch):
    monkeypatch.setattr(distnn.communicators.scatter, "_MESSAGE_BYTES", 5000)
    whole = samples(length)

    def work():
        comm = connected()
        src = comm.size - 1
        data = whole if comm.rank == src else None
        part = comm.scatter_data(data, src, shuffle, 11, equal)
        assert isinstance(part, tuple)
        for found, given in zip(part, whole, strict=True):
            assert found.dtype == given.dtype
            assert np.array_equal(found, given[part[1]])  # rows still belong together
        lengths = [of_rank(comm, r, len(part[1])) for r in range(comm.size)]
        where = np.zeros(max(length, 1))
        np.add.at(where, part[1], 1)
        mean = comm.all_reduce_scalars({str(i): n for i, n in enumerate(where)})
        counts = np.rint([mean[str(i)] * comm.size for i in range(length)])
        assert np.all(counts >= 1)  # every sample is somewhere
        if equal:
            assert lengths == [-(-length // comm.size)] * comm.size
            if length >= comm.size:
                assert counts.sum() - length < comm.size  # as few as possible twice
        else:
            assert max(lengths) - min(lengths) <= 1
            assert np.all(counts == 1)
        if length == 1003:
            assert np.array_equal(part[1], np.sort(part[1])) != shuffle

    on_ranks(transport, work)


@everywhere
@pytest.mark.parametrize("dtype", [">f4", "f2", "c8", "bfloat16"])
def test_every_dtype_of_numbers_travels(transport, dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    whole = (np.arange(24) / 8).reshape(12, 2).astype(dtype)

    def work():
        comm = connected()
        part = comm.scatter_data(whole if comm.rank == 0 else None)
        assert part.dtype == whole.dtype
        start = 12 * comm.rank // comm.size
        np.testing.assert_array_equal(part, whole[start : start + len(part)])
        assert len(part) >= 12 // comm.size

    on_ranks(transport, work)


@everywhere
def test_an_array_and_a_list_come_back_as_such(transport):
    def work():
        comm = connected()
        first = comm.rank == 0
        part = comm.scatter_data(np.arange(12.0) if first else None)
        assert isinstance(part, np.ndarray)
        found = comm.scatter_data([{"name": str(i)} for i in range(12)] if first else None)
        assert found == [{"name": str(int(i))} for i in part]

    on_ranks(transport, work)


@everywhere
def test_strided_and_empty_rows(transport):
    whole = np.arange(120).reshape(20, 6)[::2, ::3]

    def work():
        comm = connected()
        data = (whole, np.empty((10, 0))) if comm.rank == 0 else None
        part, nothing = comm.scatter_data(data, force_equal_length=False)
        start, stop = (10 * r // comm.size for r in (comm.rank, comm.rank + 1))
        assert np.array_equal(part, whole[start:stop])
        assert nothing.shape == (stop - start, 0)

    on_ranks(transport, work)


@several
def test_no_message_is_larger_than_a_few_megabytes(transport, monkeypatch):
    largest = []
    original = C.threads.ThreadsTransport.scatter

    def watched(self, parts, out, root):
        largest.append(out.nbytes)
        return original(self, parts, out, root)

    monkeypatch.setattr(C.threads.ThreadsTransport, "scatter", watched)

    def work():
        comm = connected()
        whole = np.arange(6_000_000).reshape(-1, 100) if comm.rank == 0 else None
        part = comm.scatter_data(whole)
        assert part.nbytes >= 48_000_000 // comm.size
        assert np.array_equal(part[0], np.arange(100) + 60_000 * comm.rank // comm.size * 100)

    on_ranks(transport, work)
    assert all(n <= 8 << 20 for n in largest)


@several
def test_a_group_scatters_among_its_ranks(transport):
    def work():
        comm = connected()
        ranks = list(range(comm.size))[1:]
        comm.new_group(("others", ranks))
        if comm.rank:
            data = np.arange(len(ranks)) * 5 if comm.rank == 1 else None
            assert comm.scatter_data(data, src=1, group="others").tolist() == [5 * (comm.rank - 1)]

    on_ranks(transport, work)


@several
@pytest.mark.parametrize(
    ("data", "match"),
    [
        (None, r"rank 1 cannot: .*data\[0\] is NoneType; pass a tuple of NumPy arrays"),
        ((np.zeros(3), [1]), r"data\[1\] is list; pass a tuple"),
        (np.zeros(()), r"data\[0\] is an array of shape \(\) and dtype float64"),
        (np.array([None]), r"dtype object; pass"),
        ((np.zeros(3), np.zeros(4)), r"data have \[3, 4\] rows; pass arrays with as many rows"),
        ((), r"data have \[\] rows"),
        ([lambda: 0], r"rank 1 cannot: .*pickle"),
    ],
)
def test_what_is_wrong_on_the_source_is_raised_on_all_ranks(transport, data, match):
    def work():
        comm = connected()
        with pytest.raises(CommunicatorError, match=match):
            comm.scatter_data(data if comm.rank == 1 else None, src=1)
        comm.barrier()

    on_ranks(transport, work)


@several
def test_what_is_wrong_on_another_rank_is_raised_on_all_ranks(transport):
    def work():
        comm = connected()
        with pytest.raises(CommunicatorError, match=r"rank 1 cannot: .*data are given here"):
            comm.scatter_data(np.zeros(4) if comm.rank < 2 else None)
        with pytest.raises(CommunicatorError, match=r"seed=0.* on rank 0; .*seed=1.* on rank 1"):
            comm.scatter_data(None, seed=comm.rank)
        with pytest.raises(CommunicatorError, match="scatter_data from rank 0 on rank 0; sc"):
            comm.scatter_data(None, src=min(comm.rank, 1))
        comm.barrier()

    on_ranks(transport, work)


def test_the_example_in_the_documentation_runs():
    method = C.MultiProcessDataParallelCommunicator.scatter_data
    (example,) = doctest.DocTestFinder().find(method, "scatter_data", globs={})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0

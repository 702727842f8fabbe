"""Figures averaged over ranks, and NNabla's functions that make and ask for a communicator."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys

import numpy as np
import pytest
from launching import needs_mpi
from ranks import TRANSPORTS, connected, on_ranks
from test_mpi_jobs import run

import distnn as nn
import distnn.communicators as C
import distnn.utils.communicator_util as util
from distnn.errors import ArgumentError, CommunicatorError, ContextError, MissingExtraError


@pytest.fixture
def no_gpu(extension):
    if extension != "cpu":
        pytest.skip("there is a GPU, or one is emulated")


everywhere = pytest.mark.parametrize("transport", TRANSPORTS)
several = pytest.mark.parametrize("transport", TRANSPORTS[1:])


def figures(rank):
    rng = np.random.RandomState(rank)
    return rng.uniform(1, 2, 2), rng.randint(1, 50)


@everywhere
def test_means_are_weighted_and_in_float64(transport):
    def work():
        comm = connected()
        (loss, accuracy), n = figures(comm.rank)
        found = comm.all_reduce_scalars({"loss": loss, "accuracy": accuracy}, weights=n)
        everybodys = [figures(r) for r in range(comm.size)]
        weights = [n for _, n in everybodys]
        for i, name in enumerate(("loss", "accuracy")):
            expected = np.average([v[i] for v, _ in everybodys], weights=weights)
            assert math.isclose(found[name], expected, rel_tol=1e-14)
        assert list(found) == ["loss", "accuracy"]
        assert comm.all_reduce_scalars({"rank": np.float32(comm.rank)}) == {
            "rank": (comm.size - 1) / 2
        }
        assert comm.all_reduce_scalars({}) == {}

    on_ranks(transport, work)


@several
def test_weights_by_name_and_ranks_that_have_none(transport):
    def work():
        comm = connected()
        nobody = comm.rank > 0
        found = comm.all_reduce_scalars(
            {"a": math.nan if nobody else 3.0, "b": float(comm.rank)},
            weights={"a": 0 if nobody else 2, "b": 1},
        )
        assert found == {"a": 3.0, "b": (comm.size - 1) / 2}
        assert math.isnan(comm.all_reduce_scalars({"a": math.nan if nobody else 3.0})["a"])

    on_ranks(transport, work)


@several
def test_other_names_are_named_on_all_ranks(transport):
    def work():
        comm = connected()
        names = ["accuracy", "loss"] if comm.rank == 0 else ["accuracy", "error"]
        with pytest.raises(CommunicatorError, match=r"scalar 'loss' on rank 0; scalar 'error' on"):
            comm.all_reduce_scalars(dict.fromkeys(names, 1.0))
        # Their order does not matter.
        values = {"a": 1.0, "b": 2.0}
        if comm.rank:
            values = {"b": 2.0, "a": 1.0}
        assert comm.all_reduce_scalars(values) == {"a": 1.0, "b": 2.0}
        with pytest.raises(CommunicatorError, match="'a' has weight 0 on all ranks"):
            comm.all_reduce_scalars({"a": 1.0}, weights=0)

    on_ranks(transport, work)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (-1, "weights are -1; pass finite numbers"),
        (math.nan, "weights are nan"),
        ({"b": 1}, r"weights has \['b'\] but not \['a'\]"),
    ],
)
def test_bad_weights_are_named(weights, match):
    with pytest.raises(ArgumentError, match=match):
        connected().all_reduce_scalars({"a": 1.0}, weights)


@everywhere
def test_create_communicator_connects_the_ranks(transport):
    def work():
        assert util.current_communicator() is None
        comm = util.create_communicator(type_config="double")
        assert util.current_communicator() is comm
        assert nn.get_current_context().backend == ["cpu:double"]
        assert util.single_or_rankzero() is (comm.rank == 0)
        a = nn.NdArray.from_numpy_array(np.ones(2))
        comm.all_reduce(a)
        assert np.all(a.data == comm.size)

    on_ranks(transport, work)


@pytest.mark.parametrize("name", ["cudnn", "cuda"])
def test_a_gpu_is_never_replaced_by_the_cpu(name, caplog, no_gpu):
    with pytest.raises((MissingExtraError, ContextError), match="use 'cpu'"):
        util.create_communicator(extension_module=name)
    assert util.create_communicator(ignore_error=True, extension_module=name) is None
    assert "this rank runs alone" in caplog.text


def test_several_ranks_never_run_as_single_ones(no_gpu):
    def work():
        with pytest.raises(CommunicatorError, match="there is no communicator yet"):
            util.single_or_rankzero()
        with pytest.raises((MissingExtraError, ContextError)):
            util.create_communicator(ignore_error=True, extension_module="cudnn")

    C.run_threads(work, 2)


def test_one_rank_is_the_only_one():
    code = "from distnn.utils.communicator_util import *; print(single_or_rankzero())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"


WITHOUT_MPI = """
    import sys
    sys.modules["mpi4py"] = None
    from distnn.utils.communicator_util import create_communicator
    create_communicator(ignore_error=True)
    print("went on")
"""


@needs_mpi
def test_a_job_whose_ranks_cannot_be_connected_ends(tmp_path):
    finished, _ = run(tmp_path, WITHOUT_MPI, [], {"OMPI_COMM_WORLD_SIZE": "2"})
    assert finished.returncode == 1
    assert "2 ranks were started" in finished.stderr
    assert "went on" not in finished.stdout


def test_the_examples_in_the_documentation_run():
    method = C.MultiProcessDataParallelCommunicator.all_reduce_scalars
    for item in (method, util.create_communicator):
        (example,) = doctest.DocTestFinder().find(item, item.__name__, globs=vars(util).copy())
        assert example.examples
        assert doctest.DocTestRunner().run(example).failed == 0

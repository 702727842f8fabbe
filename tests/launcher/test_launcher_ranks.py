"""What a rank finds out about itself before MPI is there: its place, its cores and its GPU."""

from __future__ import annotations

import os

import pytest

from distnn.launcher import cores, gpus
from distnn.launcher.errors import LaunchError
from distnn.launcher.place import Place, place_of

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
# What a daemon of mpirun has, being a task of Slurm itself.
DAEMON = {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2", "SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (OPEN_MPI, Place(5, 8, 1, 4, by_srun=False)),
        ({**DAEMON, **OPEN_MPI}, Place(5, 8, 1, 4, by_srun=False)),
        (
            {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            Place(3, 4, 1, 2, by_srun=False),
        ),
        (
            {
                **{"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "11", "SLURM_LOCALID": "1"},
                **{"SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "PMIX_RANK": "9"},
            },
            Place(9, 11, 1, 3, by_srun=True),
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            Place(1, 2, 1, 2, by_srun=False),
        ),
        ({"PATH": "/bin"}, None),
    ],
)
def test_the_place_is_read_from_whoever_started_the_process(environment, place):
    assert place_of(environment) == place


def quad(package: int) -> list[set[int]]:
    """Four cores of a package, two logical CPUs each."""
    return [{core, core + 8} for core in range(4 * package, 4 * package + 4)]


EIGHT = quad(0) + quad(1)


@pytest.mark.parametrize(
    ("index", "parts", "bind", "share"),
    [
        (0, 2, "auto", quad(0)),
        (1, 2, "auto", quad(1)),
        (2, 3, "auto", EIGHT[4:6]),
        (7, 8, "auto", EIGHT[7:]),
        (1, 2, "core", EIGHT[1:2]),
        (0, 9, "auto", None),
        (0, 9, "core", None),
    ],
)
def test_ranks_share_the_cores_of_a_node_in_equal_neighbouring_parts(index, parts, bind, share):
    assert cores.share(EIGHT, index, parts, bind) == share


@pytest.mark.parametrize("parts", range(1, 9))
def test_no_core_belongs_to_two_ranks(parts):
    shares = [cores.share(EIGHT, index, parts, "auto") for index in range(parts)]
    taken = [cpu for share in shares for core in share for cpu in core]
    assert len(taken) == len(set(taken))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux's CPU affinity")
def test_the_cores_of_this_process_are_those_it_may_run_on():
    assert set().union(*cores.available()) == os.sched_getaffinity(0)


def place(local_rank: int, local_size: int, by_srun: bool = False) -> Place:
    return Place(local_rank + 8, 16, local_rank, local_size, by_srun)


@pytest.mark.parametrize(
    ("environment", "count", "expected"),
    [
        ({}, 4, ["0", "1", "2", "3"]),
        ({}, 8, ["0", "1", "2", "3"]),
        ({}, 0, [None] * 4),
        ({"CUDA_VISIBLE_DEVICES": "7,5,3,1"}, 8, ["7", "5", "3", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,MIG-c,x"}, 8, ["GPU-a", "GPU-b", "MIG-c", "x"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, [None] * 4),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 8, [None] * 4),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 8, [None] * 4),
    ],
)
def test_each_local_rank_sees_one_gpu_of_those_visible(environment, count, expected):
    seen = [gpus.visible_device(place(i, 4), environment, count=lambda: count) for i in range(4)]
    assert seen == expected


@pytest.mark.parametrize(
    ("environment", "count", "message"),
    [
        ({}, 2, r"3 ranks on this node, but this node has 2 GPU\(s\).*--share-gpu"),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, 8, "CUDA_VISIBLE_DEVICES=4,6 lists 2"),
    ],
)
@pytest.mark.parametrize("rank", range(3))
def test_fewer_gpus_than_ranks_is_an_error_on_every_rank(environment, count, message, rank):
    with pytest.raises(LaunchError, match=message):
        gpus.visible_device(place(rank, 3), environment, count=lambda: count)


def test_several_ranks_may_share_a_gpu_when_asked_to():
    seen = [
        gpus.visible_device(place(i, 3), {"CUDA_VISIBLE_DEVICES": "4,6"}, shared=True)
        for i in range(3)
    ]
    assert seen == ["4", "6", "4"]


def test_the_number_of_gpus_of_a_node_can_be_limited():
    def seen(per_node):
        return gpus.visible_device(place(1, 2), {}, per_node, count=lambda: 4)

    assert seen(2) == "1"
    assert seen(0) is None
    with pytest.raises(LaunchError, match="2 ranks on this node"):
        gpus.visible_device(place(0, 2), {"CUDA_VISIBLE_DEVICES": "0,1"}, 1)
    with pytest.raises(LaunchError, match="--gpus-per-node is 5, but this node has 4"):
        seen(5)


def test_the_one_gpu_that_slurm_gives_a_task_is_left_as_it_is():
    task = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4"}
    assert gpus.visible_device(place(3, 4, by_srun=True), task) is None


def test_slurm_tasks_that_would_share_one_gpu_unasked_are_an_error():
    node = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "1"}
    with pytest.raises(LaunchError, match="4 ranks on this node"):
        gpus.visible_device(place(3, 4, by_srun=True), node)

"""The mpirun command for every MPI, machine and wish; nothing is run."""

from __future__ import annotations

import sys

import pytest

from distnn.launcher import command
from distnn.launcher.command import Machine
from distnn.launcher.errors import LaunchError
from distnn.launcher.mpi import Mpi
from distnn.launcher.options import Options

RANK = [sys.executable, command.START, "--bind"]
LAPTOP = Machine(cores=4, root=False, allocated=False)
CONTAINER = Machine(cores=2, root=True, allocated=False)
CLUSTER = Machine(cores=64, root=False, allocated=True)

# vendor, machine, options besides script, words between mpirun and the rank's command, bind
COMMANDS = {
    "open mpi": ("Open MPI", LAPTOP, {"np": 4}, "-n 4 --map-by slot --bind-to none", "auto"),
    "open mpi, one core each": (
        *("Open MPI", LAPTOP, {"np": 2, "bind": "core"}),
        *("-n 2 --map-by slot --bind-to none", "core"),
    ),
    "open mpi, more ranks than cores": (
        *("Open MPI", LAPTOP, {"np": 5}),
        *("-n 5 --map-by slot:OVERSUBSCRIBE --bind-to none", "auto"),
    ),
    "open mpi, root, as many ranks as cores": (
        *("Open MPI", CONTAINER, {"np": 2}),
        *("--allow-run-as-root -n 2 --map-by slot --bind-to none", "auto"),
    ),
    "open mpi, root, more ranks than cores": (
        *("Open MPI", CONTAINER, {"np": 3}),
        *("--allow-run-as-root -n 3 --map-by slot:OVERSUBSCRIBE --bind-to none", "auto"),
    ),
    "open mpi, hosts: their slots count, not our cores": (
        *("Open MPI", LAPTOP, {"np": 16, "hosts": "a:8,b:8"}),
        *("-n 16 --host a:8,b:8 --map-by slot --bind-to none -x DISTNN_LAUNCHER", "auto"),
    ),
    "open mpi, hostfile": (
        *("Open MPI", LAPTOP, {"np": 16, "hostfile": "hosts"}),
        *("-n 16 --hostfile hosts --map-by slot --bind-to none -x DISTNN_LAUNCHER", "auto"),
    ),
    "open mpi, hosts from the batch system": (
        *("Open MPI", CLUSTER, {"np": 128}),
        *("-n 128 --map-by slot --bind-to none -x DISTNN_LAUNCHER", "auto"),
    ),
    "open mpi, more for mpirun": (
        *("Open MPI", LAPTOP, {"np": 2, "mpi_args": ("--mca", "pml", "ob1")}),
        *("-n 2 --map-by slot --bind-to none --mca pml ob1", "auto"),
    ),
    "open mpi, the user binds": (
        *("Open MPI", LAPTOP, {"np": 2, "mpi_args": ("--map-by", "slot:PE=2")}),
        *("-n 2 --map-by slot:PE=2", "given"),
    ),
    "open mpi, the user distributes": (
        *("Open MPI", LAPTOP, {"np": 2, "mpi_args": ("-N", "1")}),
        *("-n 2 --bind-to none -N 1", "auto"),
    ),
    "mpich": ("MPICH", LAPTOP, {"np": 4}, "-n 4 -genvall -bind-to none", "auto"),
    "mpich, root, more ranks than cores": (
        *("MPICH", CONTAINER, {"np": 3}),
        *("-n 3 -genvall -bind-to none", "auto"),
    ),
    "mpich, hosts": (
        *("MPICH", LAPTOP, {"np": 4, "hosts": "a:2,b:2"}),
        *("-n 4 -hosts a:2,b:2 -genvall -bind-to none", "auto"),
    ),
    "mpich, hostfile": (
        *("MPICH", LAPTOP, {"np": 4, "hostfile": "hosts"}),
        *("-n 4 -f hosts -genvall -bind-to none", "auto"),
    ),
    "mpich, the user binds": (
        *("MPICH", LAPTOP, {"np": 4, "mpi_args": ("-bind-to", "core:2")}),
        *("-n 4 -genvall -bind-to core:2", "given"),
    ),
    "intel mpi": ("Intel MPI", LAPTOP, {"np": 4}, "-n 4 -genvall -genv I_MPI_PIN 0", "auto"),
    "intel mpi, hosts": (
        *("Intel MPI", LAPTOP, {"np": 4, "hosts": "a:2,b:2"}),
        *("-n 4 -hosts a,b -ppn 2 -genvall -genv I_MPI_PIN 0", "auto"),
    ),
    "intel mpi, hosts without counts": (
        *("Intel MPI", LAPTOP, {"np": 2, "hosts": "a,b"}),
        *("-n 2 -hosts a,b -genvall -genv I_MPI_PIN 0", "auto"),
    ),
    "intel mpi, hostfile": (
        *("Intel MPI", LAPTOP, {"np": 4, "hostfile": "hosts"}),
        *("-n 4 -machinefile hosts -genvall -genv I_MPI_PIN 0", "auto"),
    ),
}


def build(vendor: str, machine: Machine, **wishes) -> list[str]:
    options = Options(**{"np": 2, "script": "train.py", **wishes})
    local = command.is_local(options, machine, "laptop")
    return command.build(Mpi(vendor, "", ""), "mpirun", options, machine, local)


@pytest.mark.parametrize(
    ("vendor", "machine", "wishes", "words", "bind"), COMMANDS.values(), ids=COMMANDS.keys()
)
def test_each_mpi_is_told_the_same_in_its_own_words(vendor, machine, wishes, words, bind):
    expected = ["mpirun", *words.split(), *RANK, bind, "train.py"]
    assert build(vendor, machine, **wishes) == expected


@pytest.mark.parametrize("vendor", ["Open MPI", "MPICH", "Intel MPI"])
def test_wishes_that_concern_a_rank_reach_it_under_every_mpi(vendor, tmp_path):
    words = build(
        vendor,
        LAPTOP,
        module=True,
        args=("--lr", "0.1", "-n", "3"),
        env=("A=b c", "D=e"),
        gpus_per_node=2,
        share_gpu=True,
        tee="0",
        log_dir=str(tmp_path),
    )
    assert words[words.index(command.START) + 1 :] == [
        *("--bind", "auto", "--gpus-per-node", "2", "--share-gpu", "--env", "A=b c"),
        *("--env", "D=e", "--tee", "0", "--log-dir", str(tmp_path)),
        *("-m", "train.py", "--lr", "0.1", "-n", "3"),
    ]


def test_the_log_folder_is_the_same_wherever_a_rank_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = build("Open MPI", LAPTOP, log_dir="logs")
    assert words[words.index("--log-dir") + 1] == str(tmp_path / "logs")


def test_intel_mpi_refuses_hosts_with_different_numbers_of_ranks():
    with pytest.raises(LaunchError, match=r"a:2,b:1.*--hostfile"):
        build("Intel MPI", LAPTOP, hosts="a:2,b:1")


@pytest.mark.parametrize(
    ("wishes", "machine", "local"),
    [
        ({}, LAPTOP, True),
        ({}, CLUSTER, False),
        ({"hosts": "localhost:2"}, LAPTOP, True),
        ({"hosts": "localhost:2,laptop"}, CLUSTER, True),
        ({"hosts": "localhost:2,other:2"}, LAPTOP, False),
        ({"hostfile": "hosts"}, LAPTOP, False),
    ],
)
def test_only_jobs_on_this_machine_alone_are_local(wishes, machine, local):
    options = Options(np=2, script="train.py", **wishes)
    assert command.is_local(options, machine, "laptop") is local


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "PBS_NODEFILE", "LSB_JOBID"])
def test_a_batch_system_is_known_by_its_variables(name):
    assert Machine.this({name: "1"}).allocated
    assert not Machine.this({}).allocated
    assert Machine.this({}).cores >= 1

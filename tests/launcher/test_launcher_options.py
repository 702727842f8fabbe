"""The command line of distnn-launch: what is understood, and what is refused with which words."""

from __future__ import annotations

import pytest

from distnn.launcher.errors import LaunchError
from distnn.launcher.options import parse


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    return tmp_path


def test_options_after_the_script_are_the_scripts_own():
    options = parse(["-n", "2", "--tee", "0", "train.py", "-n", "9", "--tee", "all", "--help"])
    assert (options.np, options.tee) == (2, "0")
    assert options.args == ("-n", "9", "--tee", "all", "--help")


def test_a_module_is_named_as_for_python():
    options = parse(["-n", "2", "-m", "package.train", "--lr", "0.1"])
    assert options.module
    assert (options.script, options.args) == ("package.train", ("--lr", "0.1"))


def test_all_options_arrive():
    words = (
        "--np 3 --hostfile hosts --bind core --gpus-per-node 2 --share-gpu --env A=1 --env B=x=y "
        "--timeout 1.5 --tee none --log-dir logs --mpirun /x/mpirun --dry-run train.py"
    )
    options = parse([*words.split(), "a b"])
    assert (options.np, options.hostfile, options.bind) == (3, "hosts", "core")
    assert (options.gpus_per_node, options.share_gpu) == (2, True)
    assert options.env == ("A=1", "B=x=y")
    assert (options.timeout, options.tee, options.log_dir) == (1.5, "none", "logs")
    assert (options.mpirun, options.dry_run, options.args) == ("/x/mpirun", True, ("a b",))


def test_options_for_mpirun_are_split_as_a_shell_does():
    options = parse(["-n", "1", "--mpi-args=--mca pml ob1 -x 'A=b c'", "train.py"])
    assert options.mpi_args == ("--mca", "pml", "ob1", "-x", "A=b c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-n 0 train.py", "-n is 0; pass the number of ranks, 1 or more"),
        ("-n -2 train.py", "-n is -2"),
        ("-n 2 missing.py", "script 'missing.py' does not exist in .*; pass a path"),
        ("-n 2 --timeout 0 train.py", "--timeout is 0; pass seconds"),
        ("-n 2 --timeout nan train.py", "--timeout is nan"),
        ("-n 2 --env A train.py", "--env is 'A'; pass NAME=VALUE"),
        ("-n 2 --env =A train.py", "--env is '=A'"),
        ("-n 2 --gpus-per-node -1 train.py", "--gpus-per-node is -1; pass 0 or more"),
        ("-n 2 -H a:1,b:1 --hostfile hosts train.py", "both --hosts a:1,b:1 and --hostfile hosts"),
        ("-n 2 --hostfile nowhere train.py", "--hostfile 'nowhere' is no file"),
        ("-n 2 --mpi-args=' train.py", '--mpi-args is "\'": No closing quotation'),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_way_out(words, message):
    with pytest.raises(LaunchError, match=message):
        parse(words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-n 2 --foo train.py", "unrecognized arguments: --foo"),
        ("-n 2 --time 3 train.py", "unrecognized arguments: --time"),  # no abbreviations
        ("-n two train.py", "argument -n/--np: invalid int value: 'two'"),
        ("-n 2 --bind socket train.py", "argument --bind: invalid choice: 'socket'"),
        ("-n 2", "required: script"),
        ("train.py", "required: -n/--np"),
    ],
)
def test_unknown_options_and_missing_ones_end_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as ending:
        parse(words.split())
    assert ending.value.code == 2
    assert message in capsys.readouterr().err

"""Cores: which this process may use, and the share of one rank.

The ranks bind themselves, with mpirun told to bind nothing: only on its own node can a rank see the
cores there are, and it works the same under every MPI. Open MPI's own default is one core per rank.
"""

from __future__ import annotations

import os


def available() -> list[set[int]]:
    """The physical cores this process may run on, each as the set of its logical CPUs.

    Cores of one package are neighbours, so that a contiguous share stays within one.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [{cpu} for cpu in range(os.cpu_count() or 1)]
    allowed = os.sched_getaffinity(0)
    cores: dict[tuple[int, str], set[int]] = {}
    for cpu in sorted(allowed):
        package = _topology(cpu, "physical_package_id", "0")
        siblings = _topology(cpu, "thread_siblings_list", str(cpu))
        key = (int(package) if package.lstrip("-").isdigit() else 0, siblings)
        cores.setdefault(key, set()).add(cpu)
    return [cores[key] for key in sorted(cores, key=lambda key: (key[0], min(cores[key])))]


def share(cores: list[set[int]], index: int, parts: int, bind: str) -> list[set[int]] | None:
    """The cores of rank `index` out of `parts` on a node; None where ranks outnumber the cores.

    Args:
        bind: "auto" for an equal contiguous share, "core" for one core.
    """
    each = len(cores) // parts
    if each == 0:
        return None
    if bind == "core":
        each = 1
    return cores[index * each : (index + 1) * each]


def bind_to(cores: list[set[int]]) -> None:
    """Keep this process and those it starts on `cores`."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set().union(*cores))


def _topology(cpu: int, name: str, default: str) -> str:
    try:
        with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/{name}") as file:
            return file.read().strip()
    except OSError:
        return default

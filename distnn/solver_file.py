"""Solver-state files: step counts and states of a solver by parameter, in NNabla's layout.

Per parameter a group of its name, in it the step count `t` and one array per state. What NNabla
keeps elsewhere is not in it either: learning rate, settings, random state.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from .array_file import ArrayFile, Arrays, Attributes
from .errors import SolverError
from .solvers.solver import SolverState
from .variable import Variable

logger = logging.getLogger("distnn")


def save_states(states: Mapping[str, SolverState], path: Any) -> None:
    """Write the states of a solver to a file; `Solver.save_states` calls it.

    The file is written beside its final place and then moved there: a crash leaves the old one.

    Args:
        states: parameter name -> state, as `Solver.get_states()` returns.
        path: ends in .h5 (NNabla's own layout) or .safetensors.
    Raises: SolverError for another ending, and where there are no states: the solver has no
        parameters yet. MissingExtraError where h5py or safetensors is not installed.

    >>> import os, tempfile, distnn as nn, distnn.solvers as S
    >>> solver = S.Momentum()
    >>> solver.set_parameters({"w": nn.Variable((2,), need_grad=True)})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     solver.save_states(os.path.join(folder, "momentum.h5"))
    ...     solver.load_states(os.path.join(folder, "momentum.h5"))
    >>> solver.get_states()["w"]
    <SolverState ['m'] t=0>
    """
    file = ArrayFile("save_states", SolverError, path)
    if not states:
        raise file.error(
            f"the solver has no parameters, so {file.name} is left as it was; call set_parameters "
            "first"
        )
    arrays: Arrays = {}
    attributes: Attributes = {}
    for index, (key, state) in enumerate(states.items()):
        attributes[key] = {"index": index}
        arrays[f"{key}/t"] = np.array(state.t, np.int64)
        for number, (name, variable) in enumerate(state.pstate.items()):
            arrays[f"{key}/{name}"] = variable.data.get_data("r")
            attributes[f"{key}/{name}"] = {"index": number}
    file.write(arrays, attributes)


def load_states(
    path: Any, parameters: Collection[str], state_names: Collection[str]
) -> dict[str, SolverState]:
    """Read the states of a solver from a file; `Solver.load_states` calls it.

    Parameters of the file that the solver does not have are ignored, with one line in the log.

    Args:
        path: ends in .h5 (distnn's or NNabla's) or .safetensors.
        parameters: names of the solver's parameters.
        state_names: names of the states that it keeps for each.
    Returns: parameter name -> state, for `Solver.set_states`, which checks the shapes.
    Raises: SolverError where the file is missing or broken, where a parameter is not in it, and
        where its states are those of another solver. MissingExtraError where h5py or safetensors
        is not installed.

    >>> import os, tempfile, distnn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "momentum.safetensors")
    ...     save_states({"w": SolverState({"m": nn.Variable((2,))}, t=7)}, path)
    ...     load_states(path, ["w"], ["m"])
    {'w': <SolverState ['m'] t=7>}
    """
    file = ArrayFile("load_states", SolverError, path)
    if not parameters:
        raise file.error("the solver has no parameters to load for; call set_parameters first")
    arrays, _ = file.read()
    # The whole path above an array, and nothing shorter: "w" is not "w2", "a" is not "a/b".
    groups: dict[str, Arrays] = {}
    for name, values in arrays.items():
        key, _, state = name.rpartition("/")
        groups.setdefault(key, {})[state] = values
    loaded = {key: _state(file, key, groups, state_names) for key in parameters}
    ignored = [key for key in groups if key not in loaded]
    if ignored:
        logger.warning(
            "[load_states] %s: ignored the states of %s, which the solver does not have",
            file.name,
            ", ".join(map(repr, ignored)),
        )
    return loaded


def _state(
    file: ArrayFile, key: str, groups: Mapping[str, Arrays], state_names: Collection[str]
) -> SolverState:
    """The state of the parameter `key`, if the file has it and it is one of this solver."""
    if key not in groups:
        raise file.error(
            f"{key!r} is registered but not in {file.name}, which has {sorted(groups)}; load the "
            "states of this network, or register only parameters of the file"
        )
    states = dict(groups[key])
    t = states.pop("t", None)
    if t is None or t.size != 1 or t.dtype.kind not in "iu":
        found = "missing" if t is None else f"{t.dtype} of shape {t.shape}"
        raise file.error(
            f"the step count '{key}/t' in {file.name} is {found} but should be one integer; is it "
            "a file of solver states?"
        )
    if set(states) != set(state_names):
        raise file.error(
            f"{key!r} has states {sorted(states)} in {file.name} but this solver keeps "
            f"{sorted(state_names)}; load the file of a solver of the same kind"
        )
    pstate = {name: Variable.from_numpy_array(states[name]) for name in state_names}
    return SolverState(pstate, t.item())

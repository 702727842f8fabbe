"""Solvers against NNabla 1.39.0 itself: values that record_nnabla_solvers.py had it compute."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import distnn.solvers as S
from distnn.parameter import create_parameter

RECORDED = json.loads(Path(__file__).with_name("nnabla_solvers.json").read_text())
CASES = [
    pytest.param(case, id="-".join([case["name"], *map(str, case["settings"].values())]))
    for case in RECORDED["cases"]
]
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_parameters_and_states_are_those_of_nnabla(case):
    solver = getattr(S, case["name"])(**case["settings"])
    rng = np.random.RandomState(5)
    parameters = {}
    for key, shape in RECORDED["shapes"].items():
        parameters[key] = create_parameter(key, shape, None, True)
        values = np.zeros(shape) if key == "zeros" else rng.uniform(-1, 1, shape)
        parameters[key].d = values.astype(np.float32)
    solver.set_parameters(parameters)
    for step in range(RECORDED["steps"]):
        for p in parameters.values():
            p.g = rng.uniform(-1, 1, p.shape).astype(np.float32)
        if str(step) in RECORDED["decays"]:
            solver.weight_decay(RECORDED["decays"][str(step)])
        if str(step) in RECORDED["rates"]:
            solver.set_learning_rate(solver.learning_rate() * RECORDED["rates"][str(step)])
        solver.update()
    assert solver.weight_decay_is_fused() == case["fused"]
    for key, wanted in case["parameters"].items():
        np.testing.assert_allclose(parameters[key].d, wanted, rtol=1e-5, atol=1e-5)
    for key, state in solver.get_states().items():
        assert state.t == RECORDED["steps"]
        assert set(state.pstate) == set(case["states"][key])
        for name, wanted in case["states"][key].items():
            np.testing.assert_allclose(state.pstate[name].d, wanted, rtol=1e-5, atol=1e-5)


@every_case
def test_settings_and_their_defaults_are_those_of_nnabla(case):
    solver = getattr(S, case["name"])
    signature = inspect.signature(solver)
    assert list(signature.parameters) == list(case["default"])
    for name, wanted in case["default"].items():  # NNabla's are float32
        assert signature.parameters[name].default == pytest.approx(wanted, rel=1e-6)
    assert solver().info == {n: p.default for n, p in signature.parameters.items()}


def test_there_are_all_solvers_of_nnabla():
    assert {case["name"] for case in RECORDED["cases"]} == {*S.__all__} - {"Solver", "SolverState"}
    assert len({case["name"] for case in RECORDED["cases"]}) == 18

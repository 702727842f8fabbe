"""Calls of solvers captured as CUDA graphs: the values are those of calls without, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from cases_solvers import RULES as SOLVERS
from test_cuda_capture import both, launches, libraries, switch  # noqa: F401

import distnn as nn
import distnn.solvers as S

pytestmark = pytest.mark.usefixtures("gpu", "libraries", "switch")

STEPS = 9
HOST_READS = ("Lars", "Lamb")  # their steps depend on norms, which the host computes with


class Problem:
    """Parameters that lie in one run, in two dtypes, and apart, with gradients that are made up."""

    def __init__(self, solver):
        self.rng = np.random.RandomState(0)
        self.solver = solver
        make = nn.parameter.get_parameter_or_create
        self.parameters = {
            f"p{i}": make(f"p{i}", (size,), self.rng.randn(size).astype("f"), True)
            for i, size in enumerate([5, 300, 9000, 1])
        }
        solver.set_parameters(nn.get_parameters())

    def gradients(self, names=None, scale=1.0, **special):
        self.solver.zero_grad()
        for name, p in self.parameters.items():
            values = self.rng.randn(*p.shape).astype("f") * np.float32(scale)
            if names is None or name in names:
                p.grad.data = values
        for name, value in special.items():
            self.parameters[name].g[0] = value

    def values(self):
        states = self.solver.get_states()
        return {
            name: (
                p.d.copy(),
                p.g.copy(),
                states[name].t,
                {k: v.d.copy() for k, v in states[name].pstate.items()},
            )
            for name, p in self.parameters.items()
        }


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in HOST_READS])
def test_a_schedule_of_rates_decay_and_scale(name):
    def work():
        problem = Problem(SOLVERS[name][0]())
        solver, found = problem.solver, []
        rate = solver.learning_rate()
        for k in range(STEPS):
            problem.gradients(scale=2.0 ** (k % 3))
            solver.scale_grad(1 / 2.0 ** (k % 3))
            solver.weight_decay(1e-3 * (k % 2))
            solver.clip_grad_by_norm(2.0)
            solver.set_learning_rate(rate / (k + 1))
            solver.update()
            found.append(problem.values())
        return found

    both(work)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_gradients_that_are_not_finite(bad):
    def work():
        problem = Problem(S.Adam(0.1))
        found = []
        for k in range(2 * STEPS):
            problem.gradients(**({"p2": bad} if k % 4 == 3 else {}))
            problem.solver.weight_decay(1e-3)
            problem.solver.update(skip_if_nonfinite=True)
            found.append((problem.solver.skipped_updates(), problem.values()))
        return found

    assert both(work)[-1][0] == 4


def test_parameters_without_gradients_are_skipped():
    names = list("0123")

    def work():
        problem, found = Problem(S.Momentum(0.1)), []
        for k in range(4 * STEPS):
            problem.gradients([f"p{i}" for i in names if int(i) != k % 3])
            problem.solver.weight_decay(1e-2)
            problem.solver.update()
            found.append(problem.values())
        return found

    both(work)


def test_other_parameters_and_other_memory():
    def work():
        problem, found = Problem(S.Adam(0.1)), []
        for k in range(4 * STEPS):
            if k == STEPS:
                w = problem.parameters["p1"]
                w.data = nn.NdArray.from_numpy_array(np.full(w.shape, 0.1, "f"))
            if k == 2 * STEPS:
                late = nn.parameter.get_parameter_or_create("late", (7,), None, True)
                problem.parameters["late"] = late
                problem.solver.set_parameters({"late": late}, reset=False, retain_state=True)
            if k == 3 * STEPS:
                problem.solver.set_states(problem.solver.get_states())
            problem.gradients()
            problem.solver.clip_grad_by_norm(1.0 if k % 8 < 6 else 0.5)
            problem.solver.update()
            found.append(problem.values())
        return found

    both(work)


@pytest.mark.parametrize("name", HOST_READS)
def test_a_solver_that_waits_for_norms_has_no_graph_and_says_so(name):
    nn.set_capture(True)
    problem = Problem(SOLVERS[name][0]())
    for _ in range(STEPS):
        problem.gradients()
        problem.solver.update()
    assert f"update of {name}: not captured: " in nn.profiler.capture_report()


def test_each_call_is_one_launch_and_the_host_only_sets_numbers():
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("looks into the emulator")
    nn.set_capture(True)
    problem = Problem(S.Adam(0.1))
    for k in range(STEPS):
        problem.gradients()
        for p in problem.parameters.values():
            p.grad._storage.materialize()
        gpu_emulator.record.clear()
        with launches() as seen:
            problem.solver.weight_decay(1e-3)
            problem.solver.clip_grad_by_norm(1.0)
            problem.solver.update(skip_if_nonfinite=True)
        if k == 0:
            without = len(gpu_emulator.record.kernels())
    assert len(seen) == 3
    operations = list(gpu_emulator.record.operations)
    graphs = [o[1]._capture.operations for o in operations if o[0] == "graph"]
    inside = [entry[1] for graph in graphs for entry, *_ in graph if entry[0] == "kernel"]
    outside = gpu_emulator.record.kernels()
    for kernel in inside:
        outside.remove(kernel)
    assert outside == ["set_words"]  # the rate with its bias correction
    assert without >= len(inside) + 1

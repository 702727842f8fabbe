"""Steps launched as one CUDA graph: the values are those without, to the bit."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cuda_capture import (  # noqa: F401
    batches,
    libraries,
    network,
    parameters,
    same,
    switch,
)

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn import capture
from distnn.context import Context, World, world_scope
from distnn.errors import GraphError

pytestmark = pytest.mark.usefixtures("gpu", "libraries", "switch", "driver")

STEPS = 9


@pytest.fixture
def driver(monkeypatch):
    import gpu_emulator

    if gpu_emulator.installed():
        from distnn.cuda import merging

        monkeypatch.setattr(merging, "_driver", lambda: gpu_emulator.driver.cuda)


@contextmanager
def launches():
    """Gives a list with the number of graphs of each launch in the block."""
    from distnn.cuda.merging import Merged
    from distnn.cuda.recording import Recording

    seen, launch, launch_merged = [], Recording.launch, Merged.launch

    def noted(self, number=0):
        seen.append(1)
        launch(self, number)

    def noted_merged(self):
        seen.append(-1)
        launch_merged(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recording, "launch", noted)
        patch.setattr(Merged, "launch", noted_merged)
        yield seen


EVERY = ((False, nullcontext), (True, nullcontext), (False, nn.step), (True, nn.step))


def all_ways(work, ways=EVERY):
    """What `work(step)` returns without capture, captured, and in steps; all agree."""
    found, seen = [], []
    for on, step in ways:
        with world_scope(World()) as world:
            world.context = Context(["cudnn:float"])
            nn.set_capture(on)
            with launches() as seen:
                found.append(work(step))
    for other in found[1:]:
        assert same(found[0], other), found
    return seen


def small(x, t):
    """As `network`, in a moment."""
    h = F.reshape(x, (x.shape[0], -1))
    h = F.relu(PF.batch_normalization(PF.affine(h, 4, name="hidden"), axes=[1], name="bn"))
    h = F.dropout(h, 0.3)
    return F.mean(F.softmax_cross_entropy(PF.affine(h, 3, name="out"), t))


def trainer(solver=None, network=network):
    x, t = nn.Variable((6, 2, 6, 6)), nn.Variable((6, 1))
    loss = network(x, t)
    solver = solver or S.Adam(1e-2)
    solver.set_parameters(nn.get_parameters())
    return x, t, loss, solver


@pytest.mark.parametrize("read", [True, False])
def test_static_training(read):
    def work(step):
        x, t, loss, solver = trainer()
        losses = []
        for _, batch in zip(range(STEPS), batches(), strict=False):
            x.d, t.d = batch
            with step():
                loss.forward(clear_no_need_grad=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True)
                solver.weight_decay(1e-3)
                solver.clip_grad_by_norm(1.0)
                solver.update(skip_if_nonfinite=True)
            if read:
                losses.append(loss.d.copy())
        return losses, loss.d.copy(), parameters(), solver.skipped_updates()

    seen = all_ways(work)
    assert seen[-3:] == [-1, -1, -1]
    assert "step: 5 graphs are 1 launch" in nn.profiler.capture_report()


@pytest.mark.parametrize("keep", [True, False])
def test_dynamic_training(keep):
    def work(step):
        solver, losses = S.Adam(1e-2), []
        for _, (images, labels) in zip(range(2 * STEPS), batches(), strict=False):
            with step():
                x = nn.Variable.from_numpy_array(images)
                t = nn.Variable.from_numpy_array(labels)
                with nn.auto_forward():
                    loss = network(x, t)
                solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True)
                solver.weight_decay(1e-3)
                solver.update()
            losses.append(loss if keep else loss.d.copy())
        return [loss.d.copy() if keep else loss for loss in losses], parameters()

    seen = all_ways(work)
    assert seen[-2:] == [-1, -1]


def test_a_step_is_one_launch_after_what_the_batch_needs():
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("looks into the emulator")
    nn.set_capture(True)
    x, t, loss, solver = trainer()
    data = batches()
    for _ in range(STEPS):
        x.d, t.d = next(data)
        gpu_emulator.record.clear()
        with nn.step():
            loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.update()
            before = [o[0] for o in gpu_emulator.record.operations]
    assert before == []
    operations = list(gpu_emulator.record.operations)
    ((at, graph),) = [(i, o[1]) for i, o in enumerate(operations) if o[0] == "graph"]
    assert len(operations) - at - 1 == len(graph._capture.operations)  # nothing comes after it
    assert gpu_emulator.record.synchronizations == 0


@pytest.mark.parametrize(
    "look",
    [
        lambda x, t, loss, solver: loss.d.copy(),
        lambda x, t, loss, solver: parameters(),
        lambda x, t, loss, solver: [g.data.copy() for g in map(grad_of, nn.get_parameters())],
        lambda x, t, loss, solver: solver.get_states() and None,
        lambda x, t, loss, solver: solver.set_learning_rate(solver.learning_rate() / 2),
        lambda x, t, loss, solver: x.data.fill(0.5),
        lambda x, t, loss, solver: nn.get_parameters()["hidden/affine/W"].data.fill(0.1),
        lambda x, t, loss, solver: nn.get_parameters()["hidden/affine/b"].grad.zero(),
        lambda x, t, loss, solver: solver.zero_grad(),
        lambda x, t, loss, solver: solver.check_inf_or_nan_grad(),
        lambda x, t, loss, solver: F.dropout(nn.NdArray.from_numpy_array(np.ones(9, "f"))).data,
        lambda x, t, loss, solver: nn.seed(5),
        lambda x, t, loss, solver: F.relu(nn.NdArray.from_numpy_array(loss.d)).data,
        lambda x, t, loss, solver: nn.get_parameters()["out/affine/W"].grad.zeroing,
        lambda x, t, loss, solver: [p.data.modification_count for p in (loss,)],
        lambda x, t, loss, solver: frozen(),
        lambda x, t, loss, solver: solver.update(skip_if_nonfinite=True),
        lambda x, t, loss, solver: solver.skipped_updates(),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_somebody_looks_or_writes_in_a_step(look, place):
    def work(step):
        x, t, loss, solver = trainer(S.Momentum(0.05), small)
        found = []
        for k, batch in zip(range(6), batches(), strict=False):
            x.d, t.d = batch

            def look_at(number, k=k):
                if number == place and k > 3:
                    looked = look(x, t, loss, solver)
                    found.append(0 if looked is None else looked)

            with step():
                loss.forward(clear_no_need_grad=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True)
                look_at(0)
                solver.weight_decay(1e-3)
                look_at(1)
                solver.update()
            found.append((loss.d.copy(), parameters()))
        return found

    all_ways(work, (EVERY[0], EVERY[-1]))


def frozen():
    nn.get_parameters(grad_only=False)["hidden/affine/W"].need_grad = False


def grad_of(name):
    return nn.get_parameters()[name].grad


def test_several_forwards_backwards_and_updates_in_a_step():
    def work(step):
        x, t, loss, solver = trainer(S.Adam(0.05), small)
        data, found = batches(), []
        for k in range(STEPS):
            x.d, t.d = next(data)
            with step():
                solver.zero_grad()
                for i in range(2):
                    if i and k % 2:
                        x.d, t.d = next(data)
                    loss.forward(clear_no_need_grad=True)
                    loss.backward(clear_buffer=True)
                if k == STEPS - 2:
                    solver.scale_grad(float("inf"))
                solver.update(skip_if_nonfinite=True)
                solver.update(skip_if_nonfinite=True)
            found.append((loss.d.copy(), parameters()))
        found.append((solver.skipped_updates(), [s.t for s in solver.get_states().values()]))
        return found

    all_ways(work)


def test_two_networks_that_train_each_other():
    def work(step):
        z = nn.Variable((4, 3))
        fake = F.tanh(PF.affine(z, 5, name="generator"))
        held = fake.get_unlinked_variable(need_grad=False)
        own = F.mean(F.softplus(PF.affine(held, 1, name="critic")))
        theirs = F.mean(F.softplus(-PF.affine(fake, 1, name="critic")))
        solvers = {}
        for name in ("generator", "critic"):
            solvers[name] = S.Adam(0.05)
            with nn.parameter_scope(name):
                solvers[name].set_parameters(nn.get_parameters())
        rng, found = np.random.RandomState(0), []
        for _ in range(STEPS):
            z.d = rng.randn(4, 3)
            with step():
                fake.forward()
                own.forward(clear_no_need_grad=True)
                solvers["critic"].zero_grad()
                own.backward(clear_buffer=True)
                solvers["critic"].update()
                theirs.forward(clear_no_need_grad=True)
                solvers["generator"].zero_grad()
                theirs.backward(clear_buffer=True)
                solvers["generator"].update()
            found.append((own.d.copy(), theirs.d.copy(), parameters()))
        return found

    all_ways(work)


def test_a_network_of_many_structures():
    def work(step):
        solver, found = S.Momentum(0.05), []
        for k, (images, labels) in zip(range(30), batches(), strict=False):
            x = nn.Variable.from_numpy_array(images)
            t = nn.Variable.from_numpy_array(labels)
            with step(), nn.auto_forward():
                h = F.reshape(x, (x.shape[0], -1))
                for layer in range(1 + k % 3):
                    h = F.tanh(PF.affine(h, 8, name=f"layer{layer}"))
                loss = F.mean(F.softmax_cross_entropy(PF.affine(h, 3, name="out"), t))
                solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True)
                solver.update()
            found.append((loss.d.copy(), parameters()))
        return found

    all_ways(work)


def test_an_exception_leaves_what_was_called_before():
    def work(step):
        x, t, loss, solver = trainer(S.Sgd(0.05), small)
        found = []
        for k, batch in zip(range(2 * STEPS), batches(), strict=False):
            x.d, t.d = batch
            try:
                with step():
                    loss.forward(clear_no_need_grad=True)
                    solver.zero_grad()
                    loss.backward(clear_buffer=True)
                    if k % 5 == 4:
                        raise KeyError(k)
                    solver.update()
            except KeyError:
                pass
            found.append((loss.d.copy(), parameters()))
        return found

    all_ways(work)


def test_where_the_step_is_split_is_reported(caplog):
    nn.set_capture(True)
    x, t, loss, solver = trainer(network=small)
    data = batches()
    with caplog.at_level("INFO", logger="distnn"):
        for _ in range(STEPS):
            x.d, t.d = next(data)
            with nn.step():
                loss.forward(clear_no_need_grad=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True)
                float(loss.d)
                solver.update()
    assert "test_cuda_step.py" in nn.profiler.capture_report().splitlines()[-1]
    assert sum("launched in parts" in line for line in caplog.messages) == 1


def test_without_the_driver_graphs_are_launched_one_by_one(monkeypatch, caplog):
    from distnn.cuda import merging

    def missing():
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(merging, "_driver", missing)

    def work(step):
        x, t, loss, solver = trainer(network=small)
        for _, batch in zip(range(STEPS), batches(), strict=False):
            x.d, t.d = batch
            with step():
                loss.forward(clear_no_need_grad=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True)
                solver.update()
        return loss.d.copy(), parameters()

    with caplog.at_level("INFO", logger="distnn"):
        assert -1 not in all_ways(work)
    assert "one after the other: OSError: libcuda" in nn.profiler.capture_report()
    assert sum("one after the other" in line for line in caplog.messages) == 1


def test_what_another_world_does_in_a_step_is_done_at_once():
    def work(step):
        found = []
        with world_scope(World()) as other:
            other.context = Context(["cudnn:float"])
            x, t, loss, solver = trainer(S.Sgd(0.05), small)
        for _, batch in zip(range(STEPS), batches(), strict=False):
            with step(), world_scope(other):
                x.d, t.d = batch
                loss.forward(clear_no_need_grad=True)
                solver.zero_grad()
                loss.backward(clear_buffer=True)
                solver.update()
            with world_scope(other):
                assert other.record is None or not other.record._later
                found.append((loss.d.copy(), parameters()))
        return found

    assert -1 not in all_ways(work)


def test_a_step_in_a_step():
    with nn.step(), pytest.raises(GraphError, match="inside of another step"), nn.step():
        pass
    with nn.step():
        pass


def test_graphs_that_are_let_go_of_are_not_launched():
    nn.set_capture(True)
    x, t, loss, solver = trainer(network=small)
    data = batches()
    for k in range(3 * STEPS):
        x.d, t.d = next(data)
        with nn.step():
            loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.update()
        if k == STEPS:
            w = nn.get_parameters()["out/affine/W"]
            w.data = nn.NdArray.from_numpy_array(np.full(w.shape, 0.1, "f"))
        if k == 2 * STEPS:
            nn.set_capture(False)
            nn.set_capture(True)
    assert np.isfinite(loss.d)


class Player:
    """Two networks over the same parameters, and what can be done with them, by name."""

    def __init__(self):
        self.x = nn.Variable((4, 3))
        self.losses = [self.loss(self.x), self.loss(self.x * 2)]
        self.made = None
        self.solver = S.Momentum(0.05)
        self.solver.set_parameters(nn.get_parameters())
        self.seen = []
        self.count = 0

    @staticmethod
    def loss(x):
        h = F.dropout(F.tanh(PF.affine(x, 4, name="a")), 0.3)
        return F.sum(PF.affine(h, 2, name="b") ** 2)

    def play(self, action, k):
        solver, loss = self.solver, self.losses[k]
        self.count += 1
        w = nn.get_parameters()["ab"[k] + "/affine/W"]
        if action == "batch":
            self.x.d = np.sin(np.arange(12).reshape(4, 3) + self.count)
        elif action == "forward":
            loss.forward(clear_no_need_grad=True)
        elif action == "backward":
            loss.forward(clear_no_need_grad=True)
            loss.backward(1 + k, clear_buffer=True)
        elif action == "dynamic":
            with nn.auto_forward():
                self.made = self.loss(self.x)
            self.made.backward(clear_buffer=True)
        elif action == "update":
            solver.update(skip_if_nonfinite=k == 1)
        elif action == "read":
            self.seen.append((w.d if k else w.g).copy())
        elif action == "loss":
            self.seen.append((loss if k or self.made is None else self.made).d.copy())
        elif action == "write":
            w.data.fill(0.1 * self.count) if k else w.grad.zero()
        elif action == "rate":
            solver.set_learning_rate(0.1 / self.count)
        else:
            getattr(solver, action)(*([0.5] if action != "zero_grad" else []))

    def run(self, actions):
        for action, k in actions:
            self.play(action, k)

    def values(self):
        return self.seen, parameters(), {k: v.t for k, v in self.solver.get_states().items()}


_OFTEN = ["forward", "backward", "backward", "dynamic", "update", "zero_grad", "weight_decay"]
_ACTIONS = [*_OFTEN, "batch", "read", "loss", "write", "rate", "clip_grad_by_norm", "scale_grad"]
_PROGRAM = st.lists(st.tuples(st.sampled_from(_ACTIONS), st.integers(0, 1)), max_size=12)


def test_random_programs_in_steps(monkeypatch):
    warm = [(action, k) for action in _ACTIONS for k in (0, 1) if action not in ("read", "write")]

    def work(step, programs):
        player = Player()
        for _ in range(3):
            player.run(warm)
        for program in programs:
            with step():
                player.run(program)
        return player.values()

    @settings(max_examples=10, deadline=None)
    @given(st.lists(_PROGRAM, min_size=1, max_size=3))
    @example([[("batch", 0), ("backward", 0), ("weight_decay", 0), ("update", 0)]] * 3)
    def check(programs):
        seen.extend(all_ways(lambda step: work(step, programs), (EVERY[0], EVERY[-1])))

    seen = []
    monkeypatch.setattr(capture, "_WARM_UP", 0)
    check()
    assert -1 in seen

"""Programs captured as CUDA graphs: the values are those of runs without, to the bit."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn import capture
from distnn.context import Context, World, world_scope
from distnn.errors import LabelError
from distnn.function import Function, Spec
from distnn.graph import Node

pytestmark = pytest.mark.usefixtures("gpu", "libraries")

STEPS = 7  # some run step by step, some as a program, one is captured, the others launch it


@pytest.fixture
def libraries(monkeypatch):
    """Products of matrices by cuBLASLt: those of cuBLAS cannot be captured."""
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.importorskip("nvmath")
        yield
        return
    import fake_cublaslt

    yield from fake_cublaslt.installed(monkeypatch)


@pytest.fixture(autouse=True)
def switch():
    before = nn.get_capture()
    yield
    nn.set_capture(False)
    nn.set_capture(before)


def graphs() -> int:
    return nn.profiler.plan_stats()["captured_graphs"]


def both(work):
    """What `work` returns without capture and with it, each in a World of its own; they agree."""
    found, launched = [], []
    for on in (False, True):
        with world_scope(World()) as world:
            world.context = Context(["cudnn:float"])
            nn.set_capture(on)
            with launches() as seen:
                found.append(work())
            launched.append(len(seen))
    assert same(*found), found
    assert launched[0] == 0
    assert launched[1] > 0
    return found[1]


@contextmanager
def launches():
    """Gives a list that has an entry for each launch of a graph in the block."""
    from distnn.cuda.recording import Recording

    seen, launch = [], Recording.launch

    def noted(self, number=0):
        seen.append(number)
        launch(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recording, "launch", noted)
        yield seen


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b, equal_nan=True)


def parameters():
    found = nn.get_parameters(grad_only=False)
    return {name: (p.d.copy(), p.g.copy()) for name, p in found.items()}


def batches(seed=0, batch=6):
    rng = np.random.RandomState(seed)
    while True:
        yield rng.randn(batch, 2, 6, 6).astype("f"), rng.randint(0, 3, (batch, 1))


def network(x, t):
    """Of everything that a captured forward has to do more than to launch kernels."""
    h = PF.convolution(x, 4, (3, 3), pad=(1, 1), name="conv")
    h = F.relu(PF.batch_normalization(h, name="bn"))
    h = F.max_pooling(h, (2, 2))
    h = F.reshape(h, (x.shape[0], -1))
    h = F.dropout(F.tanh(PF.affine(h, 8, name="hidden")), 0.3)
    return F.mean(F.softmax_cross_entropy(PF.affine(h, 3, name="out"), t))


def trainer(solver=None):
    """(x, t, loss, step) of a static graph; step trains it on a batch."""
    x, t = nn.Variable((6, 2, 6, 6)), nn.Variable((6, 1))
    loss = network(x, t)
    solver = solver or S.Adam(1e-2)
    solver.set_parameters(nn.get_parameters())

    def step(batch):
        x.d, t.d = batch
        loss.forward(clear_no_need_grad=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.weight_decay(1e-3)
        solver.update()

    return x, t, loss, step


# -- static graphs ----------------------------------------------------------------------------


@pytest.mark.parametrize("read", [True, False])
def test_training_captured_is_training(read):
    def work():
        _, _, loss, step = trainer()
        losses = []
        for _, batch in zip(range(STEPS), batches(), strict=False):
            step(batch)
            if read:
                losses.append(loss.d.copy())
        return losses, loss.d.copy(), parameters()

    both(work)


def test_a_captured_iteration_is_a_launch_for_each_call():
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("looks into the emulator")
    nn.set_capture(True)
    _, _, _, step = trainer(S.Sgd(0.1))
    data = batches()
    for _ in range(STEPS):
        step(next(data))
    gpu_emulator.record.clear()
    with launches() as seen:
        step(next(data))
    assert len(seen) == 4  # forward, backward, weight decay, update
    # What is left to the host: the number of the draw. The rest is in the graphs.
    operations = list(gpu_emulator.record.operations)
    by_host = [o[1] for o in operations if o[0] == "kernel"]
    recorded = [o[1]._capture.operations for o in operations if o[0] == "graph"]
    inside = [entry[1] for graph in recorded for entry, *_ in graph if entry[0] == "kernel"]
    for name in inside:
        by_host.remove(name)
    assert by_host == ["set_words"]
    assert len(inside) > 15


def test_values_taken_from_earlier_iterations_stay():
    nn.set_capture(True)
    _, _, loss, step = trainer()
    taken, copies = [], []
    for _, batch in zip(range(STEPS), batches(), strict=False):
        step(batch)
        taken.append(loss.d)
        copies.append(float(loss.d))
    assert [float(value) for value in taken] == copies
    assert len(set(copies)) == STEPS


def test_whichever_way_a_batch_is_written():
    def work():
        x = nn.Variable((2, 3))
        y = F.sum(F.exp(x * 0.5) + x)
        values = np.arange(6, dtype="f").reshape(2, 3)
        held = x.d
        other = nn.NdArray.from_numpy_array(values)
        found = []
        for k in range(12):
            if k % 4 == 0:
                x.d = values + k
            elif k % 4 == 1:
                held[...] = k
            elif k % 4 == 2:
                x.data.fill(k)
            else:
                other.data = values * k
                x.data.copy_from(other)
            y.forward()
            found.append(y.d.copy())
        return found

    found = both(work)
    assert len({float(value) for value in found}) == 12


def test_schedules_of_learning_rate_and_loss_scale():
    def work():
        x, t, loss, _ = trainer()
        solver = S.Momentum(0.1)
        solver.set_parameters(nn.get_parameters())
        found = []
        for k, batch in zip(range(STEPS), batches(), strict=False):
            x.d, t.d = batch
            loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            scale = 2.0 ** (k % 3)
            loss.backward(scale, clear_buffer=True)
            solver.scale_grad(1 / scale)
            solver.set_learning_rate(0.1 / (k + 1))
            solver.update()
            found.append(loss.d.copy())
        return found, parameters()

    both(work)


def test_gradients_are_added_up():
    def work():
        x, t, loss, _ = trainer()
        solver = S.Sgd(0.1)
        solver.set_parameters(nn.get_parameters())
        found = []
        data = batches()
        for _ in range(STEPS):
            solver.zero_grad()
            for _ in range(3):
                x.d, t.d = next(data)
                loss.forward(clear_no_need_grad=True)
                loss.backward(clear_buffer=True)
            found.append(parameters())
            solver.update()
        return found

    both(work)


def test_gradients_of_inputs():
    def work():
        x = nn.Variable((2, 3), need_grad=True)
        y = F.sum(F.tanh(x) * x)
        found = []
        for k in range(STEPS):
            x.d = np.arange(6).reshape(2, 3) * 0.1 + k
            if k != 5:
                x.grad.zero()
            y.forward(clear_no_need_grad=True)
            y.backward(np.float32(k + 1), clear_buffer=True)
            found.append(x.g.copy())
        return found

    both(work)


def test_two_graphs_of_one_structure_crossed():
    def work():
        graphs, data = [], batches()
        for name in "ab":
            with nn.parameter_scope(name):
                x, t = nn.Variable((6, 2, 6, 6)), nn.Variable((6, 1))
                graphs.append((x, t, network(x, t)))
        found = []
        for p in nn.get_parameters().values():
            p.grad.zero()
        for _ in range(STEPS):
            for x, t, loss in graphs:
                x.d, t.d = next(data)
                loss.forward(clear_no_need_grad=True)
            for _, _, loss in graphs:
                loss.backward(clear_buffer=True)
                found.append(loss.d.copy())
        return found, parameters()

    both(work)


def test_two_results_of_one_graph():
    def work():
        x = nn.Variable((4, 3), need_grad=True)
        h = F.tanh(x * 2)
        a, b = F.sum(h * h), F.sum(F.exp(h))
        found = []
        for k in range(STEPS):
            x.d = np.arange(12).reshape(4, 3) * 0.1 + k * 0.3
            x.grad.zero()
            for y in (a, b):
                y.forward(clear_no_need_grad=True)
                found.append(h.d.copy())
                y.backward(clear_buffer=y is b)
            found += [a.d.copy(), b.d.copy(), x.g.copy()]
        return found

    both(work)


@pytest.mark.parametrize("flags", [(), (True,), (False, True)])
def test_evaluation_between_training(flags):
    def work():
        _, _, _, step = trainer()
        x, found = nn.Variable((6, 8)), []
        y = F.softmax(PF.affine(x, 3, name="out"))
        data = batches()
        for k in range(STEPS):
            step(next(data))
            for j in range(2):
                x.d = np.arange(48).reshape(6, 8) * 0.01 * (k + j)
                y.forward(*flags)
                found.append(y.d.copy())
        return found

    both(work)


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_what_backward_computes_again(is_dynamic, caplog):
    def make(x, t, k):
        with nn.recompute():
            h = F.dropout(F.tanh(PF.affine(x, 8, name="hidden")), 0.3)
            h = F.exp(PF.batch_normalization(h, axes=[1], name="bn") * 0.5)
        return F.mean(F.softmax_cross_entropy(PF.affine(h, 3, name="out"), t))

    def static():
        x, t, data, found = nn.Variable((6, 2, 6, 6)), nn.Variable((6, 1)), batches(), []
        loss = make(x, t, 0)
        for _ in range(2 * STEPS):
            x.d, t.d = next(data)
            loss.forward(clear_no_need_grad=True)
            for p in nn.get_parameters().values():
                p.grad.zero()
            loss.backward(clear_buffer=True)
            found.append((loss.d.copy(), parameters()))
        return found

    with caplog.at_level("INFO", logger="distnn"):
        both((lambda: dynamic(make)) if is_dynamic else static)
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.rand(-1, 2, x.shape) * x,
        lambda x: F.randn(1, 2, x.shape) * x,
        lambda x: F.dropout(x, 0.4) + F.dropout(x, 0.2, seed=5),
        lambda x: F.random_flip(x, (1,)),
    ],
)
def test_random_functions_draw_new_numbers_at_each_launch(draw, is_dynamic):
    def work():
        x, found = nn.Variable((3, 4)), []
        y = draw(x) + 1
        x.d = np.arange(12).reshape(3, 4)
        for _ in range(2 * STEPS):
            if is_dynamic:
                with nn.auto_forward():
                    y = draw(x) + 1
            else:
                y.forward()
            found.append(y.d.copy())
        return found

    assert len({each.tobytes() for each in both(work)}) > 3


def test_a_parameter_is_replaced():
    def work():
        _, _, loss, step = trainer()
        found, data = [], batches()
        for k in range(2 * STEPS):
            if k == STEPS:
                w = nn.get_parameters()["out/affine/W"]
                w.data = nn.NdArray.from_numpy_array(np.full(w.shape, 0.1, "f"))
            step(next(data))
            found.append(loss.d.copy())
        return found

    both(work)


def test_the_graph_is_changed():
    def work():
        _, _, loss, step = trainer()
        found, data = [], batches()
        frozen = nn.get_parameters()["conv/conv/W"]
        for k in range(3 * STEPS):
            if k in (STEPS, 2 * STEPS):
                frozen.need_grad = k > STEPS
            step(next(data))
            found.append((loss.d.copy(), frozen.d.copy()))
        return found

    both(work)


def test_switched_off_and_on_again():
    def work():
        _, _, loss, step = trainer()
        on, found, data = nn.get_capture(), [], batches()
        for k in range(3 * STEPS):
            if on and k in (STEPS, 2 * STEPS):
                nn.set_capture(k > STEPS)
            step(next(data))
            found.append(loss.d.copy())
        return found

    both(work)
    assert nn.get_capture()
    nn.set_capture(False)
    assert graphs() == 0
    assert nn.profiler.capture_report().startswith("nothing is captured")


def test_hooks_see_each_function():
    def work():
        x = nn.Variable((2, 3), need_grad=True)
        y = F.sum(F.tanh(x * 2) + x)
        seen, found = [], []
        for k in range(2 * STEPS):
            x.d = np.full((2, 3), k)
            x.grad.zero()
            hook = (lambda node: seen.append(node.name)) if k == STEPS else None
            y.forward(clear_no_need_grad=True, function_pre_hook=hook)
            y.backward(clear_buffer=True, function_post_hook=hook)
            found.append((y.d.copy(), x.g.copy()))
        return found, len(seen)

    assert both(work)[1] == 8


def test_a_label_out_of_range():
    nn.set_capture(True)
    _, _, loss, step = trainer()
    data = batches()
    for _ in range(STEPS):
        step(next(data))
    before = parameters()
    x, t = next(data)
    t[2] = 7
    step((x, t))
    with pytest.raises(LabelError, match="7"):
        _ = loss.d
    after = parameters()
    for name in nn.get_parameters():  # but for running statistics
        np.testing.assert_array_equal(before[name][0], after[name][0])
    step(next(data))
    assert np.isfinite(loss.d)


def test_labels_that_are_no_whole_numbers():
    nn.set_capture(True)
    _, _, loss, step = trainer()
    data = batches()
    for _ in range(STEPS):
        step(next(data))
    x, t = next(data)
    with pytest.raises(LabelError, match="whole"):
        step((x, t + 0.5))
    step((x, t))
    assert np.isfinite(loss.d)


def test_an_error_of_a_callback_leaves_the_next_step_as_it_is():
    class Callback:
        fails = False
        told = 0

        def begin(self, coming, plan):
            pass

        def ready(self, storage):
            self.told += 1
            if self.fails and self.told == 3:
                raise RuntimeError("the third")

        def finish(self):
            self.told = 0

    def work():
        x, t, loss, _ = trainer()
        solver = S.Sgd(0.1)
        solver.set_parameters(nn.get_parameters())
        callback, found, data = Callback(), [], batches()
        for k in range(2 * STEPS):
            x.d, t.d = next(data)
            loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            callback.fails = k == STEPS
            try:
                loss.backward(clear_buffer=True, communicator_callbacks=callback)
            except RuntimeError:
                callback.told = 0
                continue
            solver.update()
            found.append((loss.d.copy(), parameters()))
        return found

    assert len(both(work)) == 2 * STEPS - 1


def test_the_graph_is_cut_where_a_callback_starts_something():
    nn.set_capture(True)
    order = []

    class Callback:
        started = 0

        def begin(self, coming, plan):
            self.started = self.told = 0

        def ready(self, storage):
            self.told += 1
            self.started = self.told // 3
            order.append(not storage.zeroing)

        def finish(self):
            pass

    x, t, loss, _ = trainer()
    data = batches()
    for _ in range(STEPS):
        x.d, t.d = next(data)
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True, communicator_callbacks=Callback())
    assert all(order)
    # Eight parameters: after the third and the sixth of them.
    (line,) = [s for s in nn.profiler.capture_report().splitlines() if s.startswith("backward")]
    assert "3 graphs" in line


def test_an_exported_result_is_a_copy():
    nn.set_capture(True)
    x = nn.Variable((2, 3))
    y = x * 2
    for k in range(STEPS):
        x.d = k
        y.forward()
    assert graphs() == 1
    taken = nn.from_dlpack(y.data)
    before = taken.data.copy()
    x.d = 100
    y.forward()
    np.testing.assert_array_equal(taken.data, before)
    np.testing.assert_array_equal(y.d, np.full((2, 3), 200))


def test_graphs_go_with_what_they_were_captured_of():
    nn.set_capture(True)
    x = nn.Variable((2, 3), need_grad=True)
    y = F.sum(F.tanh(x))
    for _ in range(STEPS):
        x.d = 1
        y.forward(clear_no_need_grad=True)
        y.backward(clear_buffer=True)
    assert graphs() == 2
    assert nn.profiler.plan_stats()["captured_bytes"] > 0
    del y
    gc.collect()
    assert graphs() == 0


# -- dynamic graphs ---------------------------------------------------------------------------


def dynamic(make, steps=2 * STEPS, solver=None, clear=True, keep=None):
    """Losses and parameters of a dynamic loop; `make(x, t, k)` is the loss of iteration k."""
    solver = solver or S.Adam(1e-2)
    found = []
    for k, (images, labels) in zip(range(steps), batches(), strict=False):
        x = nn.Variable.from_numpy_array(images)
        t = nn.Variable.from_numpy_array(labels)
        with nn.auto_forward():
            loss = make(x, t, k)
        solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        solver.zero_grad()
        loss.backward(clear_buffer=clear)
        solver.update()
        if keep is not None:
            keep.append(loss)
        else:
            found.append(loss.d.copy())
    return found, parameters()


def test_dynamic_training_captured_is_dynamic_training():
    both(lambda: dynamic(lambda x, t, k: network(x, t)))


def test_a_dynamic_iteration_is_launches():
    nn.set_capture(True)
    dynamic(lambda x, t, k: network(x, t))
    with launches() as seen:
        dynamic(lambda x, t, k: network(x, t), steps=3)
    assert len(seen) == 6 + 1  # forward and backward, three times; a solver's third update


def test_one_graph_each_is_enough_for_a_dynamic_loop():
    reports = []

    def make(x, t, k):
        reports[:] = nn.profiler.capture_report().splitlines()
        return network(x, t)

    nn.set_capture(True)
    dynamic(make, steps=3 * STEPS)
    assert len(reports) == 3  # the calls, backward, update
    assert all(": 1 graph, " in line for line in reports), reports


@pytest.mark.parametrize("clear", [True, False])
def test_losses_that_are_kept_for_an_epoch(clear):
    def work():
        kept = []
        found = dynamic(lambda x, t, k: network(x, t), keep=kept, clear=clear)
        return [loss.d.copy() for loss in kept], found

    losses, _ = both(work)
    assert len({float(loss) for loss in losses}) == len(losses)


def test_structures_that_alternate():
    def make(x, t, k):
        h = F.reshape(x, (x.shape[0], -1))
        for layer in range(3):
            if (k % 4) >> (layer % 2) & 1 or layer == 2:
                h = F.tanh(PF.affine(h, 8, name=f"layer{layer}_{h.shape[1]}"))
        return F.mean(F.softmax_cross_entropy(PF.affine(h, 3, name="out"), t))

    both(lambda: dynamic(make, steps=24))


def test_values_that_are_held_across_iterations():
    def work():
        held, copies = [], []

        def make(x, t, k):
            h = F.exp(F.reshape(x, (x.shape[0], -1)) * 0.3)
            y = F.tanh(PF.affine(h, 8, name="hidden"))
            if k % 3:
                h.persistent = y.persistent = True
                held.append((h, y))
                copies.append((h.d.copy(), y.d.copy()) if k % 2 else None)
            return F.mean(F.softmax_cross_entropy(PF.affine(y, 3, name="out"), t))

        found = dynamic(make, steps=20)
        for (h, y), copy in zip(held, copies, strict=True):
            if copy is not None:
                assert same((h.d, y.d), copy)
        return found, [(h.d.copy(), y.d.copy()) for h, y in held]

    both(work)


def test_dynamic_graphs_crossed():
    def work():
        found, data, pending = [], batches(), []
        w = nn.parameter.get_parameter_or_create("w", (8, 3), need_grad=True)
        w.d = np.arange(24).reshape(8, 3) * 0.05
        for _ in range(3 * STEPS):
            x = nn.Variable.from_numpy_array(next(data)[0].reshape(6, -1)[:, :8].copy())
            with nn.auto_forward():
                y = F.sum(F.tanh(F.affine(F.exp(x * 0.1), w)))
            pending.append(y)
            _ = y.d
            if len(pending) == 3:
                w.grad.zero()
                for y in (pending[1], pending[0], pending[2]):
                    y.backward(clear_buffer=True)
                    found.append((y.d.copy(), w.g.copy()))
                pending.clear()
        return found

    both(work)


def test_a_branch_on_a_value_and_writes_in_between():
    def work():
        found = []
        w = nn.parameter.get_parameter_or_create("w", (4,), need_grad=True)
        w.d = 1
        for k in range(3 * STEPS):
            x = nn.Variable.from_numpy_array(np.full(4, np.cos(k), "f"), need_grad=True)
            with nn.auto_forward():
                y = F.tanh(x * w) + x
                if float(F.sum(y).d) > 0:
                    y = F.exp(y * 0.5)
                w.d = w.d * 0.9
                z = F.sum(y * w)
            with nn.auto_forward(), nn.no_grad():
                found.append(F.softmax(y * 2).d.copy())
            w.grad.zero()
            z.backward(clear_buffer=True)
            found.append((z.d.copy(), x.g.copy(), w.g.copy()))
        return found

    both(work)


def test_steps_in_a_dynamic_graph_that_are_numbers():
    def work():
        found = []
        for k in range(3 * STEPS):
            x = nn.Variable.from_numpy_array(np.arange(4).astype("f"), need_grad=True)
            with nn.auto_forward():
                y = F.sum(F.tanh(x * 2) * (1 / (k // 5 + 1)))
            y.backward(clear_buffer=True)
            found.append((y.d.copy(), x.g.copy()))
        return found

    both(work)


def test_gradients_of_inputs_of_dynamic_graphs_stay():
    def work():
        kept = []
        for k in range(2 * STEPS):
            x = nn.Variable.from_numpy_array(np.arange(4) + np.float32(k), need_grad=True)
            with nn.auto_forward():
                y = F.sum(F.tanh(x * 0.2) * x)
            y.backward(clear_buffer=True)
            kept.append(x)
        return [x.g.copy() for x in kept]

    found = both(work)
    assert len({float(g[1]) for g in found}) == len(found)


@pytest.mark.parametrize("marks", [False, True])
def test_random_programs_captured_as_soon_as_they_come_again(marks):
    """As in test_record.py, where programs do not come again often enough to be captured."""
    from test_record import _ACTION, assert_same, run_program

    @settings(max_examples=100, deadline=None)
    @given(st.lists(_ACTION, min_size=3, max_size=25))
    def check(actions):
        actions = [action for action in actions if not marks or action[0] != 7]
        expected = run_program(actions, False)
        for _ in range(5):
            assert_same(run_program(actions, True, marks), expected)

    nn.set_capture(True)
    with pytest.MonkeyPatch.context() as patch, launches() as seen:
        patch.setattr(capture, "_WARM_UP", 0)
        check()
    assert len(seen) > 40


# -- what cannot be captured ------------------------------------------------------------------


class Peeking(Function):
    """y = x * (its first element as the host sees it)."""

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, x.dtype)

    def forward(self, xp, x):
        return x * float(x.reshape(-1)[0])

    def grad_x(self, xp, dy, x):
        return dy * x


def test_what_looks_at_values_runs_without_a_graph_and_says_so(caplog):
    def work():
        x = nn.Variable((2, 3), need_grad=True)
        y = F.sum(Peeking.of()(x) * 2)
        found = []
        for k in range(STEPS):
            x.d = np.arange(6).reshape(2, 3) + k
            x.grad.zero()
            y.forward(clear_no_need_grad=True)
            y.backward(clear_buffer=True)
            found.append((y.d.copy(), x.g.copy()))
        return found, nn.profiler.capture_report()

    with caplog.at_level("INFO", logger="distnn"):
        found = []
        for on in (False, True):
            nn.set_capture(on)
            found.append(work())
    assert same(found[0][0], found[1][0])
    assert "forward of sum () after 2 functions: not captured: " in found[1][1]
    assert "apture" in found[1][1].split("not captured: ")[1]
    assert "forward of sum () after 2 functions runs without a CUDA graph" in caplog.text


def test_no_memory_for_a_capture(monkeypatch):
    from distnn.cuda.arena import Arena

    def work():
        _, _, loss, step = trainer()
        found = []
        for _, batch in zip(range(2 * STEPS), batches(), strict=False):
            step(batch)
            found.append(loss.d.copy())
        reports.append(nn.profiler.capture_report())
        return found, parameters()

    taken, reports = [], []
    malloc = Arena.malloc

    def fails(self, size):
        taken.append(size)
        if len(taken) == 5:
            raise MemoryError("not that much")
        return malloc(self, size)

    monkeypatch.setattr(Arena, "malloc", fails)
    both(work)
    assert "forward of mean () after 10 functions: not captured: MemoryError" in reports[1]
    assert "backward of mean () after 10 functions: 1 graph" in reports[1]


def test_numbers_that_change():
    def work():
        x = nn.Variable((3,))
        y = F.sum(F.tanh(x * 2))
        node: Node = y.parent.inputs[0].parent.inputs[0].parent
        found = []
        for k in range(2 * STEPS):
            x.d = [1, 2, 3]
            node.operands = dict.fromkeys(node.operands, 2.0 + k // 2)
            y.forward()
            found.append(y.d.copy())
        return found

    both(work)


# -- memory -----------------------------------------------------------------------------------


def test_graphs_give_way_where_no_memory_is_left():
    import cupy

    nn.set_capture(True)
    x = nn.Variable((1 << 20,), need_grad=True)
    x.d = 1
    y = F.sum(F.tanh(F.exp(F.sin(x))))
    for _ in range(STEPS):
        y.forward(clear_no_need_grad=True)
        y.backward(clear_buffer=True)
    held = nn.profiler.plan_stats()["captured_bytes"]
    assert held > 8 << 20
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = y.d.copy()
    pool.set_limit(size=pool.used_bytes() + (4 << 20))
    try:
        large = cupy.empty(8 << 20, np.uint8)
    finally:
        pool.set_limit(size=0)
    assert graphs() == 0
    del large
    y.forward(clear_no_need_grad=True)
    np.testing.assert_array_equal(y.d, before)


def test_what_was_not_used_for_long_goes_first(monkeypatch):
    nn.set_capture(True)
    x = nn.Variable((1 << 18,))
    ys = [F.sum(F.exp(x) * F.sin(x) + k) for k in range(4)]
    monkeypatch.setattr(capture, "_SHARE_OF_MEMORY", 0)
    for y in ys:
        for _ in range(STEPS):
            y.forward()
    assert graphs() == 1
    lines = nn.profiler.capture_report().splitlines()
    assert sum("1 graph" in line for line in lines) == 1


def test_an_arena_gives_again_what_was_let_go():
    import cupy

    from distnn.cuda.arena import Arena, is_block

    arena = Arena()
    with cupy.cuda.using_allocator(arena.malloc):
        a, b, c = (cupy.empty(1 << 20, np.uint8) for _ in range(3))
        small = cupy.empty(3, np.float32)
        addresses = {x.data.ptr for x in (a, b, c)}
        assert arena.nbytes == 3 * (1 << 20) + (2 << 20)
        del a, c
        d, e = cupy.empty(1 << 18, np.float32), cupy.empty((1 << 19, 2), np.uint8)
        assert {x.data.ptr for x in (b, d, e)} == addresses
        assert arena.nbytes == 5 << 20
        del d
        large = cupy.empty((1 << 20) + 1, np.uint8)  # not split off what is too small
        assert large.data.ptr not in addresses
    assert is_block(small)
    assert is_block(large[3:])
    assert not is_block(cupy.empty(3))
    del arena
    large[...] = 1  # its memory is still there
    assert int(large[-1]) == 1


def test_neighbours_in_an_arena_are_joined():
    import cupy

    from distnn.cuda.arena import Arena

    arena = Arena()
    with cupy.cuda.using_allocator(arena.malloc):
        first = [cupy.empty(512, np.uint8) for _ in range(8)]
        start = first[0].data.ptr
        for k in (3, 1, 0, 2, 7, 5, 6, 4):
            first[k] = None
        whole = cupy.empty(4096, np.uint8)
    assert whole.data.ptr == start
    assert arena.nbytes == 2 << 20

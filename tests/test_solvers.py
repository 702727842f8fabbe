"""Solvers: update rules against their equations in NumPy, states, and what is skipped."""

from __future__ import annotations

import numpy as np
import pytest
from cases_solvers import RULES

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.context import World, current_backend, world_scope
from distnn.errors import ArgumentError, SolverError
from distnn.parameter import create_parameter

every_solver = pytest.mark.parametrize("name", RULES)


def parameters(shapes=((3, 4), (5,), (2, 2, 2)), type_config="float"):
    """Parameters in a slab, with values of their own."""
    rng = np.random.RandomState(0)
    with nn.context_scope(nn.Context([f"cpu:{type_config}"])):
        found = {f"p{i}": create_parameter(f"p{i}", s, None, True) for i, s in enumerate(shapes)}
    for p in found.values():
        p.d = rng.uniform(-1, 1, p.shape).astype(p.data.dtype)
    return found


def give_gradients(params, step, scale=1.0):
    rng = np.random.RandomState(100 + step)
    for p in params.values():
        p.g = (scale * rng.uniform(-1, 1, p.shape)).astype(p.data.dtype)


@every_solver
@pytest.mark.parametrize(("type_config", "rtol"), [("float", 2e-5), ("double", 1e-12)])
def test_an_update_follows_the_equation(name, type_config, rtol):
    make, rule = RULES[name]
    params = parameters(type_config=type_config)
    solver = make()
    solver.set_parameters(params)
    expected = {k: p.d.astype(np.float64) for k, p in params.items()}
    states = {k: dict.fromkeys(solver.states, np.zeros(p.shape)) for k, p in params.items()}
    for t in range(1, 13):
        give_gradients(params, t)
        solver.update()
        for k, p in params.items():
            g = p.g.astype(np.float64)
            expected[k] = rule(expected[k], g, states[k], t)
            np.testing.assert_allclose(p.d, expected[k], rtol=rtol, atol=rtol)
    for k, state in solver.get_states().items():
        assert state.t == 12
        for s, values in state.pstate.items():
            np.testing.assert_allclose(values.d, states[k][s], rtol=rtol, atol=rtol)


@every_solver
def test_parameters_one_by_one_get_the_bits_they_get_together(name):
    make, _ = RULES[name]
    together = parameters()
    solver = make()
    solver.set_parameters(together)
    alone = {}
    for k, p in together.items():
        alone[k] = nn.Variable.from_numpy_array(p.d, need_grad=True)  # not in a slab
    solvers = {k: make() for k in alone}
    for k, p in alone.items():
        solvers[k].set_parameters({k: p})
    for t in range(3):
        give_gradients(together, t)
        give_gradients(alone, t)
        solver.update()
        for s in solvers.values():
            s.update()
    for k in together:
        assert np.array_equal(together[k].d, alone[k].d)


@every_solver
def test_a_parameter_that_comes_late_begins_at_step_one(name):
    make, rule = RULES[name]
    params = parameters()
    solver = make()
    expected = {k: p.d.astype(np.float64) for k, p in params.items()}
    states = {k: dict.fromkeys(solver.states, np.zeros(p.shape)) for k, p in params.items()}
    first_steps = {"p0": 0, "p1": 2, "p2": 3}
    for step in range(5):
        present = {k: p for k, p in params.items() if step >= first_steps[k]}
        solver.set_parameters(present, reset=False, retain_state=True)
        give_gradients(present, step)
        for k, p in present.items():
            g, t = p.g.astype(np.float64), step - first_steps[k] + 1
            expected[k] = rule(expected[k], g, states[k], t)
        solver.update()
    for k, p in params.items():
        np.testing.assert_allclose(p.d, expected[k], rtol=2e-5, atol=2e-5)
    assert [s.t for s in solver.get_states().values()] == [5, 3, 2]


@every_solver
def test_a_parameter_without_gradient_keeps_value_state_and_step_count(name):
    make, rule = RULES[name]
    params = parameters()
    solver = make()
    solver.set_parameters(params)
    expected = params["p1"].d.astype(np.float64)
    state = dict.fromkeys(solver.states, np.zeros(params["p1"].shape))
    for step in range(6):
        solver.zero_grad()
        give_gradients(params if step % 2 else {"p0": params["p0"]}, step)
        solver.update()
        if step % 2:
            g = params["p1"].g.astype(np.float64)
            expected = rule(expected, g, state, step // 2 + 1)
    np.testing.assert_allclose(params["p1"].d, expected, rtol=2e-5, atol=2e-5)
    assert [s.t for s in solver.get_states().values()] == [6, 3, 3]


def test_zero_grad_writes_nothing_until_somebody_looks():
    (p,) = parameters(((4,),)).values()
    p.g = 3
    memory = p.g
    solver = S.Sgd(1.0)
    solver.set_parameters({"p": p})
    before = p.d.copy()
    solver.zero_grad()
    assert np.all(memory == 3)
    solver.update()
    assert np.array_equal(p.d, before)
    assert np.all(p.grad.get_data("r") == 0)
    assert p.grad.zeroing  # looking read-only does not count as writing
    _ = p.g
    assert not p.grad.zeroing


def test_the_address_of_a_parameter_never_changes():
    params = parameters()
    addresses = {k: p.d.ctypes.data for k, p in params.items()}
    held = params["p0"].d
    solver = S.Adam()
    solver.set_parameters(params)
    for t in range(3):
        give_gradients(params, t)
        solver.update()
        create_parameter(f"late{t}", (1000, 100), None, True)
    params["p0"].d = np.ones((3, 4), np.float32)
    assert {k: p.d.ctypes.data for k, p in params.items()} == addresses
    assert np.all(held == 1)


def test_a_parameter_becomes_float32_again_with_the_update():
    params = parameters()
    solver = S.Sgd(0.5)
    solver.set_parameters(params)
    address = params["p0"].d.ctypes.data
    params["p0"].d = np.full((3, 4), 2.0)  # float64
    assert params["p0"].d.dtype == np.float64
    for p in params.values():
        p.g = 1
    solver.update()
    assert params["p0"].d.dtype == np.float32
    assert params["p0"].d.ctypes.data == address
    assert np.all(params["p0"].d == 1.5)


def test_a_gradient_in_other_memory_is_followed():
    """Also where Python gives the new array the old one's place, and so its id."""
    w = nn.Variable.from_numpy_array(np.zeros(4, np.float32), need_grad=True)
    solver = S.Sgd(1.0)
    solver.set_parameters({"w": w})
    w.grad.fill(0)
    backend = current_backend()
    for i in range(1, 5):
        rows = backend.full((8, 4), float(i), np.dtype(np.float32))
        w.grad._storage.clear("")
        w.grad._storage.place(rows[i])
        solver.update()
    np.testing.assert_array_equal(w.d, np.full(4, -10))


@every_solver
def test_sets_of_parameters_alternate_while_memory_moves(name):
    make, rule = RULES[name]
    params = parameters(type_config="double")
    solver = make()
    solver.set_parameters(params)
    expected = {k: p.d.copy() for k, p in params.items()}
    states = {k: dict.fromkeys(solver.states, np.zeros(p.shape)) for k, p in params.items()}
    counts = dict.fromkeys(params, 0)
    for step in range(12):
        if step == 5:  # new arrays of the same values
            params["p0"].data = nn.NdArray.from_numpy_array(params["p0"].d)
        if step == 7:
            params["p1"].grad = nn.NdArray.from_numpy_array(params["p1"].g)
        chosen = {k: p for i, (k, p) in enumerate(params.items()) if step % 3 != i}
        solver.zero_grad()
        give_gradients(chosen, step)
        solver.update()
        for k, p in chosen.items():
            counts[k] += 1
            expected[k] = rule(expected[k], p.g.copy(), states[k], counts[k])
        for k, p in params.items():
            np.testing.assert_allclose(p.d, expected[k], rtol=1e-11, atol=1e-12)
            assert solver.get_states()[k].t == counts[k]


def test_retained_state_moves_to_the_new_variable():
    """After clear_parameters and a rebuild the new Variables train, with the old state."""
    solver = S.Momentum(0.1, 0.5)
    x = nn.Variable.from_numpy_array(np.ones((2, 3), np.float32))

    def loss():
        with nn.auto_forward():
            return F.sum(PF.affine(x, 2, with_bias=False))

    for step in range(3):
        y = loss()
        solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        solver.zero_grad()
        y.backward()
        solver.update()
        if step < 2:
            values = nn.get_parameters()["affine/W"].d.copy()
            nn.clear_parameters()
            loss()
            nn.get_parameters()["affine/W"].d = values
    state = solver.get_states()["affine/W"]
    assert state.t == 3
    np.testing.assert_allclose(state.pstate["m"].d, np.full((3, 2), 0.2 * (1 + 0.5 + 0.25)))
    assert solver.get_parameters()["affine/W"] == nn.get_parameters()["affine/W"]


@pytest.mark.parametrize("retain_state", [True, False])
def test_the_new_variable_always_takes_the_place_of_the_old(retain_state):
    old, new = (nn.Variable.from_numpy_array(np.zeros(2, np.float32)) for _ in range(2))
    solver = S.Momentum(1.0)
    solver.set_parameters({"w": old})
    old.g = 1
    solver.update()
    solver.set_parameters({"w": new}, reset=False, retain_state=retain_state)
    new.g = 1
    solver.update()
    assert np.all(old.d == -1)
    assert np.allclose(new.d, -1.9 if retain_state else -1)


def test_without_reset_parameters_that_are_not_mentioned_stay():
    params = parameters()
    solver = S.Sgd()
    solver.set_parameters({"p0": params["p0"]})
    solver.set_parameters({"p1": params["p1"]}, reset=False)
    assert list(solver.get_parameters()) == ["p0", "p1"]
    solver.set_parameters({"p2": params["p2"]})
    assert list(solver.get_parameters()) == ["p2"]
    solver.remove_parameters(["p2"])
    assert not solver.get_parameters()


def test_retained_state_of_another_shape_raises_and_changes_nothing():
    params = parameters()
    solver = S.Adam()
    solver.set_parameters(params)
    other = {"p0": params["p0"], "p1": nn.Variable((6,))}
    with pytest.raises(SolverError, match=r"'p1' has shape \(6,\).*\(5,\).*retain_state=False"):
        solver.set_parameters(other, reset=False, retain_state=True)
    assert solver.get_parameters()["p1"] is params["p1"]


def test_weight_decay_adds_to_the_gradient():
    params = parameters()
    solver = S.Sgd(1.0)
    solver.set_parameters(params)
    give_gradients({"p0": params["p0"]}, 0)
    before = {k: p.d.copy() for k, p in params.items()}
    g = params["p0"].g.copy()
    solver.weight_decay(0.5)
    np.testing.assert_allclose(params["p0"].g, g + 0.5 * before["p0"], rtol=1e-6)
    solver.update()
    assert np.array_equal(params["p1"].d, before["p1"])
    assert not solver.weight_decay_is_fused()


def test_adamw_uses_a_given_weight_decay_once_and_follows_the_schedule():
    p = nn.Variable.from_numpy_array(np.ones(2, np.float32))
    solver = S.AdamW(0.1, wd=0.0)
    solver.set_parameters({"p": p})
    p.g = 0
    solver.weight_decay(0.5)
    solver.update()
    np.testing.assert_allclose(p.d, 0.5)
    solver.update()
    np.testing.assert_allclose(p.d, 0.5)  # back to wd
    solver.set_learning_rate(0.05)
    solver.weight_decay(0.5)
    solver.update()
    np.testing.assert_allclose(p.d, 0.375)  # half the rate, half the decay
    assert solver.weight_decay_is_fused()


def test_clipping_is_per_parameter():
    params = {k: nn.Variable.from_numpy_array(np.zeros(2, np.float32)) for k in "ab"}
    solver = S.Sgd()
    solver.set_parameters(params)
    params["a"].g = np.array([3, 4], np.float32)
    params["b"].g = np.array([0.3, 0.4], np.float32)
    solver.clip_grad_by_norm(1.0)
    np.testing.assert_allclose(params["a"].g, [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(params["b"].g, [0.3, 0.4], rtol=1e-6)


def test_gradients_are_scaled():
    params = parameters()
    solver = S.Sgd()
    solver.set_parameters(params)
    give_gradients(params, 0)
    before = {k: p.g.copy() for k, p in params.items()}
    solver.scale_grad(0.25)
    for k, p in params.items():
        np.testing.assert_array_equal(p.g, 0.25 * before[k])


@pytest.mark.parametrize(
    ("value", "inf", "nan"), [(np.inf, True, False), (np.nan, False, True), (1.0, False, False)]
)
def test_infinities_and_nans_of_gradients_are_found(value, inf, nan):
    params = parameters()
    solver = S.Sgd()
    solver.set_parameters(params)
    give_gradients(params, 0)
    params["p2"].g[1, 1, 1] = value
    assert solver.check_inf_grad() is inf
    assert solver.check_nan_grad() is nan
    assert solver.check_inf_or_nan_grad() is (inf or nan)


@every_solver
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_update_with_gradients_that_are_not_finite_can_be_skipped(name, bad):
    def trained(skipping):
        """After four good steps; `skipping` has steps between them that must not count."""
        rng = np.random.RandomState(1)
        first = rng.uniform(-1, 1, (3, 4)), rng.uniform(-1, 1, 5)
        params = {f"p{i}": create_parameter(f"p{i}", v.shape, v, True) for i, v in enumerate(first)}
        solver = RULES[name][0]()
        solver.set_parameters(params)
        for k in range(7):
            if k % 2 and not skipping:
                continue
            give_gradients(params, k)
            if k % 2:
                params["p1"].g[2] = bad
            solver.weight_decay(0.1)
            solver.update(skip_if_nonfinite=True)
        states = solver.get_states()
        return solver.skipped_updates(), {
            key: (p.d.copy(), states[key].t, {s: v.d for s, v in states[key].pstate.items()})
            for key, p in params.items()
        }

    context = nn.get_current_context()
    with world_scope(World()) as world:
        world.context = context
        skipped, found = trained(True)
    with world_scope(World()) as world:
        world.context = context
        none, wanted = trained(False)
    assert (skipped, none) == (3, 0)
    for key, (values, t, states) in wanted.items():
        np.testing.assert_array_equal(found[key][0], values)
        assert found[key][1] == t == 4
        for s, state in states.items():
            np.testing.assert_array_equal(found[key][2][s], state)


def test_a_gradient_that_was_not_computed_is_not_checked():
    p = nn.Variable.from_numpy_array(np.zeros(2, np.float32))
    p.g = np.nan
    solver = S.Sgd()
    solver.set_parameters({"p": p})
    solver.zero_grad()
    assert not solver.check_inf_or_nan_grad()


def test_states_can_be_read_and_set():
    params = parameters()
    solver, other = S.Adam(), S.Adam()
    solver.set_parameters(params)
    give_gradients(params, 0)
    solver.update()
    copies = {k: nn.Variable.from_numpy_array(p.d, need_grad=True) for k, p in params.items()}
    other.set_parameters(copies)
    other.set_states(solver.get_states())
    for t in range(2):
        give_gradients(params, t)
        give_gradients(copies, t)
        solver.update()
        other.update()
    for k in params:
        assert np.array_equal(params[k].d, copies[k].d)


def test_the_learning_rate_can_be_changed():
    p = nn.Variable.from_numpy_array(np.zeros(1, np.float32))
    solver = S.Sgd(1.0)
    solver.set_parameters({"p": p})
    solver.set_learning_rate(0.5)
    assert solver.learning_rate() == 0.5
    p.g = 1
    solver.update()
    assert p.d[0] == -0.5


def test_hooks_run_before_and_after_an_update():
    p = nn.Variable.from_numpy_array(np.zeros(1, np.float32))
    solver = S.Sgd(1.0)
    solver.set_parameters({"p": p})
    p.g = 1
    seen = []
    nn.set_solver_pre_hook("k", lambda: seen.append(("global", float(p.d[0]))))
    try:
        solver.update(
            lambda: seen.append(("pre", float(p.d[0]))),
            lambda: seen.append(("post", float(p.d[0]))),
        )
    finally:
        nn.unset_solver_pre_hook("k")
    assert seen == [("global", 0.0), ("pre", 0.0), ("post", -1.0)]


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda s: S.Sgd(-1), ArgumentError, "learning rate is -1"),
        (lambda s: S.Adam(beta1=1), ArgumentError, r"\[Adam\] beta1 is 1; pass .* below 1"),
        (lambda s: S.Lion(beta2=-0.1), ArgumentError, r"\[Lion\] beta2 is -0.1; pass"),
        (lambda s: S.AMSBound(gamma=0), ArgumentError, r"\[AMSBound\] gamma is 0; pass a positive"),
        (lambda s: S.Lamb(gamma_l=11), ArgumentError, "gamma_l is 11 and gamma_u 10.0; pass 0 <="),
        (lambda s: s.set_learning_rate(float("nan")), ArgumentError, "is nan"),
        (lambda s: s.set_parameters({"w": np.zeros(2)}), SolverError, "'w' is ndarray"),
        (lambda s: s.remove_parameters(["x"]), SolverError, "'x' is not registered"),
        (lambda s: s.clip_grad_by_norm(0), ArgumentError, "clip_norm is 0"),
        (lambda s: s.set_states({"x": None}), SolverError, "'x' is not registered"),
        (
            lambda s: s.set_states({"w": S.SolverState({"v": nn.Variable((2,))}, 1)}),
            SolverError,
            r"states \['v'\] but Adam keeps \['mean', 'var'\]",
        ),
        (
            lambda s: s.set_states(
                {"w": S.SolverState({k: nn.Variable((3,)) for k in ("mean", "var")}, 1)}
            ),
            SolverError,
            r"has shape \(3,\) but the parameter \(2,\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, kind, match):
    solver = S.Adam()
    solver.set_parameters({"w": nn.Variable((2,))})
    with pytest.raises(kind, match=match):
        call(solver)


def test_parameters_that_are_no_dict_are_refused():
    with pytest.raises(SolverError, match=r"param_dict is list; pass a dict of name -> Variable"):
        S.Sgd().set_parameters([nn.Variable((2,))])

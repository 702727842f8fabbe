"""Writes nnabla_solvers.json: what NNabla's solvers make of the same gradients.

A program for NNabla itself, which needs Python 3.10 or older: pip install nnabla==1.39.0 and run it
in this folder. test_solvers_against_nnabla.py compares.
"""

import json
from pathlib import Path

import nnabla as nn
import nnabla.solvers as S
import numpy as np

STEPS = 12
SHAPES = {"a/W": [2, 3], "a/b": [3], "zeros": [2]}
DECAYS = {3: 0.3, 8: 0.02}  # step: rate given to weight_decay before it
RATES = {6: 0.5}  # step: factor of the learning rate from it on
CASES = [
    ("Sgd", {"lr": 0.1}),
    ("SgdW", {"lr": 0.1, "momentum": 0.8, "wd": 0.02}),
    ("Momentum", {"lr": 0.1, "momentum": 0.8}),
    ("Nesterov", {"lr": 0.1, "momentum": 0.8}),
    ("Lars", {"lr": 0.1, "momentum": 0.8, "coefficient": 0.05, "eps": 1e-6}),
    ("Lars", {"lr": 0.1, "eps": 20.0}),
    ("Lars", {"lr": 0.1, "eps": 1.5}),
    ("Adadelta", {"lr": 0.7, "decay": 0.8, "eps": 1e-3}),
    ("Adagrad", {"lr": 0.1, "eps": 0.1}),
    ("AdaBelief", {"alpha": 0.05, "beta1": 0.7, "beta2": 0.9, "eps": 1e-2}),
    ("AdaBelief", {"alpha": 0.05, "beta2": 0.9, "eps": 1e-2, "amsgrad": True}),
    ("AdaBelief", {"alpha": 0.05, "wd": 0.1}),
    ("AdaBelief", {"alpha": 0.05, "wd": 0.1, "weight_decouple": True}),
    ("AdaBelief", {"alpha": 0.05, "wd": 0.1, "weight_decouple": True, "fixed_decay": True}),
    ("AdaBelief", {"alpha": 0.05, "beta2": 0.9, "wd": 0.1, "rectify": True}),
    ("RMSprop", {"lr": 0.1, "decay": 0.8, "eps": 1e-3}),
    ("RMSpropGraves", {"lr": 0.01, "decay": 0.8, "momentum": 0.7, "eps": 1e-2}),
    ("Adam", {"alpha": 0.1, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3}),
    ("AdamW", {"alpha": 0.1, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3, "wd": 0.02}),
    ("AdaBound", {"alpha": 0.1, "eps": 0.05, "final_lr": 0.2, "gamma": 0.3}),
    ("Adamax", {"alpha": 0.1, "beta1": 0.7, "beta2": 0.95, "eps": 0.1}),
    ("AMSGRAD", {"alpha": 0.1, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3}),
    ("AMSGRAD", {"alpha": 0.1, "beta2": 0.95, "bias_correction": True}),
    # A final_lr so large that the upper bound, which NNabla computes wrongly, is not met.
    ("AMSBound", {"alpha": 0.1, "eps": 1e-3, "final_lr": 2.0, "gamma": 0.01}),
    ("AMSBound", {"alpha": 0.1, "final_lr": 2.0, "gamma": 0.01, "bias_correction": True}),
    ("Lamb", {"eta": 0.1, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3}),
    ("Lamb", {"eta": 0.1, "gamma_l": 0.5, "gamma_u": 1.2, "bias_correction": True}),
    ("Lamb", {"eta": 0.1, "eps": 1.1}),
    ("Lion", {"lr": 0.01, "beta1": 0.7, "beta2": 0.95}),
]


def record(name, settings):
    solver = getattr(S, name)(**settings)
    rng = np.random.RandomState(5)
    parameters = {}
    for key, shape in SHAPES.items():
        parameters[key] = nn.Variable(shape)
        parameters[key].d = 0 if key == "zeros" else rng.uniform(-1, 1, shape).astype("f")
    solver.set_parameters(parameters)
    for step in range(STEPS):
        for p in parameters.values():
            p.g = rng.uniform(-1, 1, p.shape).astype("f")
        if step in DECAYS:
            solver.weight_decay(DECAYS[step])
        if step in RATES:
            solver.set_learning_rate(solver.learning_rate() * RATES[step])
        solver.update()
    states = solver.get_states()
    return {
        "name": name,
        "settings": settings,
        "fused": solver.weight_decay_is_fused(),
        "default": dict(getattr(S, name)().info),
        "parameters": {key: p.d.tolist() for key, p in parameters.items()},
        "states": {
            key: {s: v.d.tolist() for s, v in states[key].pstate.items()} for key in parameters
        },
    }


def main():
    shared = {"steps": STEPS, "shapes": SHAPES, "decays": DECAYS, "rates": RATES}
    found = {"version": nn.__version__, **shared, "cases": [record(*case) for case in CASES]}
    Path(__file__).with_name("nnabla_solvers.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

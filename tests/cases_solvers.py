"""Every solver, and its rule in float64 from its definition: rule(w, g, state, t) -> w.

A state is a dict of arrays that are zero at first; t counts from 1.
"""

from __future__ import annotations

import numpy as np

import distnn.solvers as S


def sgd(w, g, s, t):
    return w - 0.1 * g


def momentum(w, g, s, t):
    s["m"] = 0.8 * s["m"] + 0.1 * g
    return w - s["m"]


def nesterov(w, g, s, t):
    before = s["m"]
    s["m"] = 0.8 * before - 0.1 * g
    return w - 0.8 * before + (1 + 0.8) * s["m"]


def sgdw(w, g, s, t):
    return momentum(w, g, s, t) - 0.02 * w


def lion(w, g, s, t):
    u = np.sign(0.7 * s["m"] + 0.3 * g)
    s["m"] = 0.95 * s["m"] + 0.05 * g
    return w - 0.1 * u


def adagrad(w, g, s, t):
    s["v"] = s["v"] + g**2
    return w - 0.1 * g / (np.sqrt(s["v"]) + 1e-3)


def adadelta(w, g, s, t):
    s["e_sqr_grad"] = 0.8 * s["e_sqr_grad"] + 0.2 * g**2
    delta = np.sqrt(s["e_sqr_delta"] + 1e-3) / np.sqrt(s["e_sqr_grad"] + 1e-3) * g
    s["e_sqr_delta"] = 0.8 * s["e_sqr_delta"] + 0.2 * delta**2
    return w - 0.7 * delta


def rmsprop(w, g, s, t):
    s["v"] = 0.8 * s["v"] + 0.2 * g**2
    return w - 0.1 * g / (np.sqrt(s["v"]) + 1e-3)


def rmsprop_graves(w, g, s, t):
    s["n"] = 0.8 * s["n"] + 0.2 * g**2
    s["g"] = 0.8 * s["g"] + 0.2 * g
    s["d"] = 0.7 * s["d"] - 0.1 * g / np.sqrt(s["n"] - s["g"] ** 2 + 1e-2)
    return w + s["d"]


def adam(w, g, s, t, decay=0.0):
    s["mean"] = 0.7 * s["mean"] + 0.3 * g
    s["var"] = 0.95 * s["var"] + 0.05 * g**2
    rate = 0.1 * np.sqrt(1 - 0.95**t) / (1 - 0.7**t)
    return w - rate * s["mean"] / (np.sqrt(s["var"]) + 1e-6) - decay * w


def adamw(w, g, s, t):
    return adam(w, g, s, t, decay=0.02)


def adamax(w, g, s, t):
    s["m"] = 0.7 * s["m"] + 0.3 * g
    s["u"] = np.maximum(0.95 * s["u"], np.abs(g))
    return w - 0.1 / (1 - 0.7**t) * s["m"] / (s["u"] + 1e-3)


def _amsgrad_moments(g, s):
    s["m"] = 0.7 * s["m"] + 0.3 * g
    s["v"] = 0.95 * s["v"] + 0.05 * g**2
    s["v_hat"] = np.maximum(s["v_hat"], s["v"])


def amsgrad(w, g, s, t):
    _amsgrad_moments(g, s)
    return w - 0.1 * s["m"] / (np.sqrt(s["v_hat"]) + 1e-3)


def amsgrad_corrected(w, g, s, t):
    _amsgrad_moments(g, s)
    m, v_hat = s["m"] / (1 - 0.7**t), s["v_hat"] / (1 - 0.95**t)
    return w - 0.1 * m / (np.sqrt(v_hat) + 1e-3 / np.sqrt(1 - 0.95**t))


def _bounds(t):
    return 0.2 * (1 - 1 / (0.3 * t + 1)), 0.2 * (1 + 1 / (0.3 * t))


def adabound(w, g, s, t):
    s["mean"] = 0.7 * s["mean"] + 0.3 * g
    s["var"] = 0.95 * s["var"] + 0.05 * g**2
    rate = 0.1 * np.sqrt(1 - 0.95**t) / (1 - 0.7**t)
    return w - np.clip(rate / (np.sqrt(s["var"]) + 1e-3), *_bounds(t)) * s["mean"]


def amsbound(w, g, s, t):
    _amsgrad_moments(g, s)
    return w - np.clip(0.1 / (np.sqrt(s["v_hat"]) + 1e-3), *_bounds(t)) * s["m"]


def adabelief(w, g, s, t):
    s["mean"] = 0.7 * s["mean"] + 0.3 * g
    s["var"] = 0.95 * s["var"] + 0.05 * (g - s["mean"]) ** 2 + 1e-3
    m, v = s["mean"] / (1 - 0.7**t), s["var"] / (1 - 0.95**t)
    return w - 0.1 * m / (np.sqrt(v) + 1e-3)


def adabelief_with_everything(w, g, s, t):
    s["mean"] = 0.7 * s["mean"] + 0.3 * g
    s["var"] = 0.8 * s["var"] + 0.2 * (g - s["mean"]) ** 2
    s["s_max"] = np.maximum(s["s_max"], s["var"]) + 1e-3
    w = w - 0.1 * 0.2 * w
    limit = 2 / (1 - 0.8) - 1
    rho = limit - 2 * t * 0.8**t / (1 - 0.8**t)
    if rho <= 4:
        return w - 0.1 * s["mean"]
    r = np.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    m, v = s["mean"] / (1 - 0.7**t), s["s_max"] / (1 - 0.8**t)
    return w - 0.1 * r * m / (np.sqrt(v) + 1e-3)


def lars(w, g, s, t):
    rate = 0.1 * 0.05 * np.linalg.norm(w) / np.linalg.norm(g)
    s["v"] = 0.8 * s["v"] + rate * g
    return w - s["v"]


def lamb(w, g, s, t):
    s["mean"] = 0.7 * s["mean"] + 0.3 * g
    s["var"] = 0.95 * s["var"] + 0.05 * g**2
    r = s["mean"] / (np.sqrt(s["var"]) + 1e-3)
    return w - 0.1 * min(np.linalg.norm(w), 10) / np.linalg.norm(r) * r


def lamb_clipped(w, g, s, t):
    s["mean"] = 0.7 * s["mean"] + 0.3 * g
    s["var"] = 0.95 * s["var"] + 0.05 * g**2
    r = s["mean"] / (1 - 0.7**t) / (np.sqrt(s["var"] / (1 - 0.95**t)) + 1e-3)
    return w - 0.1 * np.clip(np.linalg.norm(w), 1.3, 1.6) / np.linalg.norm(r) * r


RULES = {
    "Sgd": (lambda: S.Sgd(0.1), sgd),
    "Momentum": (lambda: S.Momentum(0.1, 0.8), momentum),
    "Nesterov": (lambda: S.Nesterov(0.1, 0.8), nesterov),
    "SgdW": (lambda: S.SgdW(0.1, 0.8, wd=0.02), sgdw),
    "Lion": (lambda: S.Lion(0.1, 0.7, 0.95), lion),
    "Adagrad": (lambda: S.Adagrad(0.1, 1e-3), adagrad),
    "Adadelta": (lambda: S.Adadelta(0.7, 0.8, 1e-3), adadelta),
    "RMSprop": (lambda: S.RMSprop(0.1, 0.8, 1e-3), rmsprop),
    "RMSpropGraves": (lambda: S.RMSpropGraves(0.1, 0.8, 0.7, 1e-2), rmsprop_graves),
    "Adam": (lambda: S.Adam(0.1, 0.7, 0.95, 1e-6), adam),
    "AdamW": (lambda: S.AdamW(0.1, 0.7, 0.95, 1e-6, wd=0.02), adamw),
    "Adamax": (lambda: S.Adamax(0.1, 0.7, 0.95, 1e-3), adamax),
    "AMSGRAD": (lambda: S.AMSGRAD(0.1, 0.7, 0.95, 1e-3), amsgrad),
    "AMSGRAD corrected": (
        lambda: S.AMSGRAD(0.1, 0.7, 0.95, 1e-3, bias_correction=True),
        amsgrad_corrected,
    ),
    "AdaBound": (lambda: S.AdaBound(0.1, 0.7, 0.95, 1e-3, 0.2, 0.3), adabound),
    "AMSBound": (lambda: S.AMSBound(0.1, 0.7, 0.95, 1e-3, 0.2, 0.3), amsbound),
    "AdaBelief": (lambda: S.AdaBelief(0.1, 0.7, 0.95, 1e-3), adabelief),
    "AdaBelief with everything": (
        lambda: S.AdaBelief(
            0.1, 0.7, 0.8, 1e-3, wd=0.2, amsgrad=True, weight_decouple=True, rectify=True
        ),
        adabelief_with_everything,
    ),
    "Lars": (lambda: S.Lars(0.1, 0.8, 0.05), lars),
    "Lamb": (lambda: S.Lamb(0.1, 0.7, 0.95, eps=1e-3), lamb),
    "Lamb clipped": (
        lambda: S.Lamb(0.1, 0.7, 0.95, 1.3, 1.6, 1e-3, bias_correction=True),
        lamb_clipped,
    ),
}

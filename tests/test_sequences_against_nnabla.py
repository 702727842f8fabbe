"""Recurrent layers and Transformers have NNabla's parameters, initial values and results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from record_nnabla_sequences import calls, parameters

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF

RECORDED = json.loads(Path(__file__).with_name("nnabla_sequences.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_parameters_and_results_are_nnablas(name):
    results = calls(nn, F, PF)[name]()
    results = results if isinstance(results, tuple) else (results,)
    nn.forward_all(results)
    recorded = RECORDED[name]
    assert parameters(nn) == recorded["parameters"]
    for y, expected in zip(results, recorded["results"], strict=True):
        np.testing.assert_allclose(y.d, expected, rtol=2e-6, atol=2e-6)

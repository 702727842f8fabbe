"""The table of function tests: rows for every function, by family, and for operators.

A row says how a function is called, on which inputs, and its definition in plain NumPy, written in
float64 from the definition; what a row may say is in `cases_row.py`. `test_functions.py` checks
every row for every property.
"""

from __future__ import annotations

import cases_arithmetic
import cases_attention
import cases_convolution
import cases_elementwise
import cases_indexing
import cases_layer_normalization
import cases_linear_algebra
import cases_matrix
import cases_norm
import cases_normalization
import cases_operators
import cases_places
import cases_pooling
import cases_rearranging
import cases_recurrent
import cases_reduction
import cases_shaping
import cases_softmax
from cases_row import Case

CASES: list[Case] = [
    *cases_elementwise.CASES,
    *cases_arithmetic.CASES,
    *cases_matrix.CASES,
    *cases_convolution.CASES,
    *cases_normalization.CASES,
    *cases_layer_normalization.CASES,
    *cases_pooling.CASES,
    *cases_recurrent.CASES,
    *cases_reduction.CASES,
    *cases_softmax.CASES,
    *cases_attention.CASES,
    *cases_indexing.CASES,
    *cases_shaping.CASES,
    *cases_places.CASES,
    *cases_rearranging.CASES,
    *cases_norm.CASES,
    *cases_linear_algebra.CASES,
    *cases_operators.CASES,
]

"""Attention of several heads, made of products, softmax and dropout."""

from __future__ import annotations

import math
from typing import Any

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..formula import Formula
from .affine import affine, batch_matmul
from .dropout import dropout as dropped
from .elementwise import Elementwise
from .padding import pad
from .shapes import number, shape_of, whole_number
from .shaping import broadcast, concatenate, reshape, transpose
from .softmax import softmax

_NAME = "multi_head_attention"
_FORMULA = Formula("where(hidden, value, x)", ("hidden", "x"), ("value",))
_HIDE = Elementwise(_NAME, _FORMULA, ("hidden", "x"), ("value",))


@function_api
def multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    num_heads: int,
    q_weight: Any,
    k_weight: Any,
    v_weight: Any,
    out_weight: Any,
    q_bias: Any = None,
    k_bias: Any = None,
    v_bias: Any = None,
    out_bias: Any = None,
    attn_bias_k: Any = None,
    attn_bias_v: Any = None,
    dropout: float = 0.0,
    additive_mask: Any = None,
    key_padding_mask: Any = None,
) -> Any:
    """Attention: each target takes the values of all sources, weighted by query and key.

        q, k, v = query W_q + b_q, key W_k + b_k, value W_v + b_v  (their last axis cut into heads)
        a = softmax(q k^T / sqrt(E / num_heads) + mask),  y = (a v) W_out + b_out

    Args:
        query: (L_T, B, D_q).
        key, value: (L_S, B, D_k) and (L_S, B, D_v).
        num_heads: divides E and E_v.
        q_weight, k_weight: (D_q, E) and (D_k, E).
        v_weight, out_weight: (D_v, E_v) and (E_v, E_out).
        q_bias, k_bias, v_bias, out_bias: (E,), (E,), (E_v,), (E_out,); or None.
        attn_bias_k, attn_bias_v: E and E_v numbers: one more source, the same in each sequence,
            which no mask hides; or None.
        dropout: probability with which a weight is set to 0.
        additive_mask: (L_T, L_S), added to q k^T: -inf hides a source from a target.
        key_padding_mask: (B, L_S), 1 for sources that are hidden from all targets, else 0. Where
            all sources are hidden the weights are NaN.
    Returns: y (L_T, B, E_out), and the weights (B * num_heads, L_T, L_S).
    Raises: ShapeError where shapes do not fit; ArgumentError for a bad num_heads or dropout.

    Vaswani et al., "Attention is all you need", arXiv:1706.03762.

    >>> import distnn as nn, distnn.functions as F
    >>> x, w = nn.Variable((5, 2, 12)), nn.Variable((12, 12))
    >>> y, weights = F.multi_head_attention(x, x, x, 3, w, w, w, w)
    >>> y.shape, weights.shape
    ((5, 2, 12), (6, 5, 5))
    """
    targets, batch, _ = _sequence("query", query)
    sources = _sequence("key", key)[0]
    for name, x in (("key", key), ("value", value)):
        if _sequence(name, x)[:2] != (sources, batch):
            raise ShapeError(
                f"[{_NAME}] {name} has shape {x.shape} but query {query.shape} and key {key.shape} "
                f"need ({sources}, {batch}, ...): as many sources, and query's batch"
            )
    heads = whole_number(_NAME, "num_heads", num_heads)
    width = _width("q_weight", q_weight, heads)
    if _width("k_weight", k_weight, heads) != width:
        raise ShapeError(
            f"[{_NAME}] k_weight has shape {k_weight.shape} but q_weight {q_weight.shape}; both "
            f"need {width} columns"
        )
    value_width = _width("v_weight", v_weight, heads)
    p = number(_NAME, "dropout", dropout)
    if not 0 <= p < 1:
        raise ArgumentError(
            f"[{_NAME}] dropout is {p}; pass a probability from 0 up to but without 1"
        )
    _expect("additive_mask", additive_mask, (targets, sources), query, key)
    _expect("key_padding_mask", key_padding_mask, (batch, sources), query, key)

    q = affine(query, q_weight, q_bias, base_axis=2) * (width // heads) ** -0.5
    k = affine(key, k_weight, k_bias, base_axis=2)
    v = affine(value, v_weight, v_bias, base_axis=2)
    if (attn_bias_k is None) != (attn_bias_v is None):
        raise ArgumentError(
            f"[{_NAME}] only one of attn_bias_k and attn_bias_v is given; pass both"
        )
    if attn_bias_k is not None:
        k = _with_source("attn_bias_k", k, attn_bias_k)
        v = _with_source("attn_bias_v", v, attn_bias_v)
        sources += 1
        additive_mask, key_padding_mask = (
            mask if mask is None else pad(mask, (0, 1))
            for mask in (additive_mask, key_padding_mask)
        )
    q, k, v = (_heads(x, batch * heads) for x in (q, k, v))
    scores = batch_matmul(q, k, transpose_b=True)
    if additive_mask is not None:
        scores = scores + reshape(additive_mask, (1, targets, sources))
    if key_padding_mask is not None:
        hidden = reshape(key_padding_mask, (batch, 1, 1, sources))
        scores = reshape(scores, (batch, heads, targets, sources))
        scores = _HIDE(hidden, scores, value=-math.inf)
        scores = reshape(scores, (batch * heads, targets, sources))
    weights = softmax(scores)
    if p:
        weights = dropped(weights, p)
    y = reshape(transpose(batch_matmul(weights, v), (1, 0, 2)), (targets, batch, value_width))
    return affine(y, out_weight, out_bias, base_axis=2), weights


def _sequence(name: str, x: Any) -> tuple[int, ...]:
    shape = shape_of(_NAME, name, x)
    if len(shape) != 3:
        raise ShapeError(f"[{_NAME}] {name} has shape {shape}; pass (length, batch, numbers)")
    return shape


def _width(name: str, weight: Any, heads: int) -> int:
    """Columns of a weight, which the heads share."""
    shape = shape_of(_NAME, name, weight)
    if len(shape) != 2:
        raise ShapeError(f"[{_NAME}] {name} has shape {shape}; pass (inputs, outputs)")
    if heads < 1 or shape[1] % heads:
        raise ArgumentError(
            f"[{_NAME}] num_heads is {heads} but {name} {shape} has {shape[1]} columns; pass a "
            "number that divides them"
        )
    return shape[1]


def _expect(name: str, mask: Any, shape: tuple[int, ...], query: Any, key: Any) -> None:
    if mask is not None and shape_of(_NAME, name, mask) != shape:
        raise ShapeError(
            f"[{_NAME}] {name} has shape {mask.shape} but query {query.shape} and key {key.shape} "
            f"need {shape}"
        )


def _with_source(name: str, x: Any, bias: Any) -> Any:
    """x (L, B, E) with one more source."""
    _, batch, width = x.shape
    if math.prod(shape_of(_NAME, name, bias)) != width:
        raise ShapeError(f"[{_NAME}] {name} has shape {bias.shape}; pass ({width},)")
    return concatenate(x, broadcast(reshape(bias, (1, 1, width)), (1, batch, width)), axis=0)


def _heads(x: Any, count: int) -> Any:
    """(L, B, E) -> (B * heads, L, E / heads)"""
    length, batch, width = x.shape
    return transpose(reshape(x, (length, count, width * batch // max(count, 1))), (1, 0, 2))

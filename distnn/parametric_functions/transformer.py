"""Attention and Transformers with their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import functions as F
from ..errors import ShapeError
from ..functions.shapes import shape_of
from ..initializer import (
    ConstantInitializer,
    UniformInitializer,
    calc_uniform_lim_glorot,
)
from ..parameter import Initializer, get_parameter_or_create, parameter_scope
from .connection import affine
from .normalization import layer_normalization
from .scope import parametric_function_api

_ATTENTION = [
    ("q_weight", "Weight of queries", "(D_q, E)", True),
    ("k_weight", "Weight of keys", "(D_k, E)", True),
    ("v_weight", "Weight of values", "(D_v, E_v)", True),
    ("out_weight", "Weight of the output", "(E_v, out_dim)", True),
    ("q_bias", "Bias of queries", "(E,)", True),
    ("k_bias", "Bias of keys", "(E,)", True),
    ("v_bias", "Bias of values", "(E_v,)", True),
    ("out_bias", "Bias of the output", "(out_dim,)", True),
    ("attn_bias_k", "Key of one more source", "(1, 1, E)", True),
    ("attn_bias_v", "Value of one more source", "(1, 1, E_v)", True),
]


@parametric_function_api("multi_head_attention", _ATTENTION)
def multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    num_heads: int = 12,
    dropout: float = 0.0,
    k_embed_dim: int | None = None,
    v_embed_dim: int | None = None,
    out_dim: int | None = None,
    rng: Any = None,
    with_bias: bool = True,
    add_attn_bias: bool = False,
    additive_mask: Any = None,
    key_padding_mask: Any = None,
    fix_parameters: bool = False,
    param_init: Mapping[str, Initializer] | None = None,
) -> Any:
    """Attention of several heads with its weights and biases; see F.multi_head_attention.

    Args:
        query: (L_T, B, D_q).
        key, value: (L_S, B, D_k) and (L_S, B, D_v).
        num_heads, dropout, additive_mask, key_padding_mask: see F.multi_head_attention.
        k_embed_dim: E of queries and keys; default D_q.
        v_embed_dim: E_v of values; default D_v.
        out_dim: of the output; default E_v.
        rng: generator of the default initializers.
        with_bias: use the biases of queries, keys, values and output.
        add_attn_bias: use attn_bias_k and attn_bias_v.
        fix_parameters: compute no gradients of the parameters in this call.
        param_init: initializers by parameter name; default uniform after Glorot, of
            biases but those of attention 0.
    Returns: y (L_T, B, out_dim), and the weights (B * num_heads, L_T, L_S).

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> x = nn.Variable((5, 2, 12))
    >>> y, weights = PF.multi_head_attention(x, x, x, num_heads=3)
    >>> y.shape
    (5, 2, 12)
    """
    name = "multi_head_attention"
    for what, array in (("query", query), ("key", key), ("value", value)):
        if len(shape_of(name, what, array)) != 3:
            raise ShapeError(f"[{name}] {what} has shape {array.shape}; pass (length, batch, D)")
    e = query.shape[2] if k_embed_dim is None else k_embed_dim
    e_v = value.shape[2] if v_embed_dim is None else v_embed_dim
    e_out = e_v if out_dim is None else out_dim
    given = param_init or {}

    found: dict[str, Any] = {}

    def create(key: str, shape: tuple[int, ...], default: Any) -> None:
        initializer = default if given.get(key) is None else given[key]
        found[key] = get_parameter_or_create(key, shape, initializer, True, not fix_parameters)

    lengths = {"q": (query.shape[2], e), "k": (key.shape[2], e), "v": (value.shape[2], e_v)}
    lengths["out"] = (e_v, e_out)
    for which, shape in lengths.items():
        create(f"{which}_weight", shape, _glorot(*shape, rng))
    if with_bias:
        for which, (_, length) in lengths.items():
            create(f"{which}_bias", (length,), ConstantInitializer())
    if add_attn_bias:
        for which, length in (("k", e), ("v", e_v)):
            create(f"attn_bias_{which}", (1, 1, length), _glorot(length, 1, rng))
    return F.multi_head_attention(
        query, key, value, num_heads, dropout=dropout, additive_mask=additive_mask,
        key_padding_mask=key_padding_mask, **found,
    )  # fmt: skip


def _glorot(inputs: int, outputs: int, rng: Any) -> Initializer:
    return UniformInitializer(calc_uniform_lim_glorot(inputs, outputs), rng)


_ENCODER = [
    ("src_self_attn", "Attention", "see multi_head_attention", True),
    ("enc_affine1, enc_affine2", "Affine maps", "see affine", True),
    ("enc_layer_norm1, enc_layer_norm2", "Normalizations", "see layer_normalization", True),
]
_DECODER = [
    ("tgt_self_attn, tgt_memory_attn", "Attention", "see multi_head_attention", True),
    ("dec_affine1, dec_affine2", "Affine maps", "see affine", True),
    ("dec_layer_norm1, ...2, ...3", "Normalizations", "see layer_normalization", True),
]


def _attended(
    name: str, x: Any, source: Any, heads: int, dropout: float, rng: Any, add_attn_bias: bool,
    additive_mask: Any, key_padding_mask: Any, fix: bool,
) -> Any:  # fmt: skip
    y, _ = multi_head_attention(
        x, source, source, heads, dropout, rng=rng, add_attn_bias=add_attn_bias,
        additive_mask=additive_mask, key_padding_mask=key_padding_mask, fix_parameters=fix,
        name=name,
    )  # fmt: skip
    return y


def _added(name: str, x: Any, y: Any, dropout: float, fix: bool) -> Any:
    """Layer normalization of x + y, with dropout of y."""
    y = F.dropout(y, dropout) if dropout else y
    return layer_normalization(x + y, batch_axis=(0, 1), fix_parameters=fix, name=name)


def _fed_forward(
    names: tuple[str, str], x: Any, width: int, dropout: float, activation: Any, rng: Any, fix: bool
) -> Any:
    activation = F.relu if activation is None else activation
    h = activation(affine(x, width, base_axis=2, fix_parameters=fix, rng=rng, name=names[0]))
    h = F.dropout(h, dropout) if dropout else h
    return affine(h, x.shape[2], base_axis=2, fix_parameters=fix, rng=rng, name=names[1])


@parametric_function_api("transformer_encode", _ENCODER)
def transformer_encode(
    src: Any,
    embed_dim: int,
    num_heads: int,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: Any = None,
    src_additive_mask: Any = None,
    src_key_padding_mask: Any = None,
    rng: Any = None,
    add_attn_bias: bool = False,
    fix_parameters: bool = False,
) -> Any:
    """One layer of a Transformer's encoder: attention to itself, then two affine maps.

    Each part's result is added to its input, and the sum normalized.

    Args:
        src: (L_S, B, E).
        embed_dim: E.
        num_heads: of the attention.
        dim_feedforward: outputs of the first affine map.
        dropout: probability in the attention's weights and of each part's result.
        activation: function between the affine maps; default F.relu.
        src_additive_mask, src_key_padding_mask: (L_S, L_S) and (B, L_S); see
            F.multi_head_attention.
        rng: generator of initial weights.
        add_attn_bias: see multi_head_attention.
        fix_parameters: compute no gradients of the parameters in this call.
    Returns: (L_S, B, E).

    Vaswani et al., "Attention is all you need", arXiv:1706.03762.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.transformer_encode(nn.Variable((5, 2, 12)), 12, 3).shape
    (5, 2, 12)
    """
    _check_width("transformer_encode", "src", src, embed_dim)
    more = (num_heads, dropout, rng, add_attn_bias)
    y = _attended(
        "src_self_attn", src, src, *more, src_additive_mask, src_key_padding_mask, fix_parameters
    )
    x = _added("enc_layer_norm1", src, y, dropout, fix_parameters)
    y = _fed_forward(
        ("enc_affine1", "enc_affine2"), x, dim_feedforward, dropout, activation, rng, fix_parameters
    )
    return _added("enc_layer_norm2", x, y, dropout, fix_parameters)


@parametric_function_api("transformer_decode", _DECODER)
def transformer_decode(
    tgt: Any,
    memory: Any,
    embed_dim: int,
    num_heads: int,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: Any = None,
    tgt_additive_mask: Any = None,
    memory_additive_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    rng: Any = None,
    add_attn_bias: bool = False,
    fix_parameters: bool = False,
) -> Any:
    """One layer of a Transformer's decoder: attention to itself and to memory, two affine maps.

    Each part's result is added to its input, and the sum normalized.

    Args:
        tgt: (L_T, B, E).
        memory: (L_S, B, E), what the encoder returned.
        tgt_additive_mask, memory_additive_mask: (L_T, L_T) and (L_T, L_S); see
            F.multi_head_attention.
        tgt_key_padding_mask, memory_key_padding_mask: (B, L_T) and (B, L_S).
        embed_dim, num_heads, dim_feedforward, dropout, activation, rng, add_attn_bias,
            fix_parameters: see transformer_encode.
    Returns: (L_T, B, E).

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.transformer_decode(nn.Variable((4, 2, 12)), nn.Variable((5, 2, 12)), 12, 3).shape
    (4, 2, 12)
    """
    _check_width("transformer_decode", "tgt", tgt, embed_dim)
    _check_width("transformer_decode", "memory", memory, embed_dim)
    more = (num_heads, dropout, rng, add_attn_bias)
    y = _attended(
        "tgt_self_attn", tgt, tgt, *more, tgt_additive_mask, tgt_key_padding_mask, fix_parameters
    )
    x = _added("dec_layer_norm1", tgt, y, dropout, fix_parameters)
    y = _attended(
        "tgt_memory_attn", x, memory, *more, memory_additive_mask, memory_key_padding_mask,
        fix_parameters,
    )  # fmt: skip
    x = _added("dec_layer_norm2", x, y, dropout, fix_parameters)
    y = _fed_forward(
        ("dec_affine1", "dec_affine2"), x, dim_feedforward, dropout, activation, rng, fix_parameters
    )
    return _added("dec_layer_norm3", x, y, dropout, fix_parameters)


@parametric_function_api(
    "transformer",
    [
        ("encoder00, ...", "Layers of the encoder", "see transformer_encode", True),
        ("decoder00, ...", "Layers of the decoder", "see transformer_decode", True),
    ],
)
def transformer(
    src: Any,
    tgt: Any,
    embed_dim: int = 512,
    num_heads: int = 8,
    num_encoder_layers: int = 6,
    num_decoder_layers: int = 6,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: Any = None,
    src_additive_mask: Any = None,
    tgt_additive_mask: Any = None,
    memory_additive_mask: Any = None,
    src_key_padding_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    rng: Any = None,
    add_attn_bias: bool = False,
    fix_parameters: bool = False,
) -> Any:
    """A Transformer: an encoder of src, and a decoder of tgt that attends to its result.

    Args:
        src, tgt: (L_S, B, E) and (L_T, B, E), embedded and with their positions.
        num_encoder_layers, num_decoder_layers: how many layers each has.
        embed_dim, num_heads, dim_feedforward, dropout, activation, rng, add_attn_bias,
            fix_parameters, masks: see transformer_encode and transformer_decode.
    Returns: (L_T, B, E).

    Vaswani et al., "Attention is all you need", arXiv:1706.03762.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.transformer(nn.Variable((5, 2, 12)), nn.Variable((4, 2, 12)), 12, 3, 1, 1, 16).shape
    (4, 2, 12)
    """
    memory = src
    for i in range(num_encoder_layers):
        with parameter_scope(f"encoder{i:02d}"):
            memory = transformer_encode(
                memory, embed_dim, num_heads, dim_feedforward, dropout, activation,
                src_additive_mask, src_key_padding_mask, rng, add_attn_bias, fix_parameters,
            )  # fmt: skip
    y = tgt
    for i in range(num_decoder_layers):
        with parameter_scope(f"decoder{i:02d}"):
            y = transformer_decode(
                y, memory, embed_dim, num_heads, dim_feedforward, dropout, activation,
                tgt_additive_mask, memory_additive_mask, tgt_key_padding_mask,
                memory_key_padding_mask, rng, add_attn_bias, fix_parameters,
            )  # fmt: skip
    return y


def _check_width(name: str, what: str, x: Any, embed_dim: int) -> None:
    shape = shape_of(name, what, x)
    if len(shape) != 3 or shape[2] != embed_dim:
        raise ShapeError(
            f"[{name}] {what} has shape {shape} but embed_dim is {embed_dim}; pass "
            f"(length, batch, {embed_dim})"
        )

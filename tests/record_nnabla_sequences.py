"""Writes nnabla_sequences.json: what NNabla's recurrent layers and Transformers make of `calls`.

A program for NNabla itself, which needs Python 3.10 or older: pip install nnabla==1.39.0 and run it
in this folder. test_sequences_against_nnabla.py makes the same calls, and compares.
"""

import json
from pathlib import Path

import numpy as np


def calls(nn, F, PF):
    """By name, calls of parametric functions on variables that are the same in each process."""
    rng = np.random.RandomState(3)

    def variable(*shape):
        x = nn.Variable(shape)
        x.d = rng.uniform(-1, 1, shape).astype(np.float32)
        return x

    def hidden(rows):
        x = nn.Variable((len(rows), len(rows[0])))
        x.d = np.array(rows)
        return x

    x = variable(3, 2, 4)
    h, c = variable(1, 1, 2, 5), variable(1, 1, 2, 5)
    h2, c2 = variable(2, 2, 2, 5), variable(2, 2, 2, 5)
    xs, state = variable(2, 4), [variable(2, 5), variable(2, 5)]
    q, k, v = variable(3, 2, 6), variable(4, 2, 6), variable(4, 2, 9)
    masks = variable(4, 4), variable(3, 3), variable(3, 4)
    padding = hidden([[0, 0, 1, 0], [0, 1, 1, 0]]), hidden([[0, 0, 1], [0, 1, 1]])
    both = {"num_layers": 2, "bidirectional": True}
    of_source = {"src_additive_mask": masks[0], "src_key_padding_mask": padding[0]}
    of_target = {
        "tgt_additive_mask": masks[1],
        "memory_additive_mask": masks[2],
        "tgt_key_padding_mask": padding[1],
        "memory_key_padding_mask": padding[0],
    }
    to_source = {"additive_mask": masks[2], "key_padding_mask": padding[0]}

    def cell_twice():
        cell = PF.LSTMCell(2, 5, name="cell")
        return cell(xs), cell(xs), cell.c

    return {
        "rnn": lambda: PF.rnn(x, h),
        "rnn, relu": lambda: PF.rnn(x, h2, nonlinearity="relu", with_bias=False, **both),
        "lstm": lambda: PF.lstm(x, h, c),
        "lstm, both directions": lambda: PF.lstm(x, h2, c2, **both),
        "gru": lambda: PF.gru(x, h),
        "gru, both directions": lambda: PF.gru(x, h2, **both),
        "lstm_cell": lambda: PF.lstm_cell(xs, *state, 5),
        "LSTMCell": cell_twice,
        "attention": lambda: PF.multi_head_attention(q, k, v, 3),
        "attention, masks": lambda: PF.multi_head_attention(q, k, v, 3, **to_source),
        "attention, one more source": lambda: PF.multi_head_attention(
            q, k, v, 3, add_attn_bias=True, out_dim=4, **to_source
        ),
        "attention, widths": lambda: PF.multi_head_attention(
            q, k, v, 3, k_embed_dim=12, v_embed_dim=3, with_bias=False
        ),
        "encode": lambda: PF.transformer_encode(k, 6, 3, 8, 0.0, **of_source),
        "decode": lambda: PF.transformer_decode(q, k, 6, 3, 8, 0.0, **of_target),
        "transformer": lambda: PF.transformer(
            k, q, 6, 3, 2, 2, 8, 0.0, activation=F.tanh, add_attn_bias=True, **of_source,
            **of_target
        ),
    }  # fmt: skip


def parameters(nn):
    """Of each parameter its name, shape, whether it is trained, and the sum of its values."""
    return [
        [name, list(p.shape), bool(p.need_grad), float(p.d.astype(np.float64).sum())]
        for name, p in nn.get_parameters(grad_only=False).items()
    ]


if __name__ == "__main__":
    import nnabla as nn
    import nnabla.functions as F
    import nnabla.parametric_functions as PF

    found = {}
    for name, call in calls(nn, F, PF).items():
        nn.clear_parameters()
        nn.random.prng = np.random.RandomState(313)
        results = call()
        results = results if isinstance(results, tuple) else (results,)
        F.sink(*results).forward()
        values = [np.round(y.d.astype(np.float64), 7).tolist() for y in results]
        found[name] = {"parameters": parameters(nn), "results": values}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
    path = Path(__file__).with_name("nnabla_sequences.json")
    path.write_text("{\n" + rows + "\n}\n")

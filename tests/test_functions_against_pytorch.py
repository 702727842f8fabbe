"""In float32 our functions and gradients are about as near to the exact ones as PyTorch's are.

The exact ones are PyTorch's in float64, of the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
TF = torch.nn.functional

# One rounding of a float32: who is nearer than this by chance has no advantage.
_FLOOR = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Row:
    """The same function of ours and of PyTorch's, on normal numbers times `scale`.

    labels: one past the largest of the whole numbers that the last input holds; None for floats.
    times: how many times PyTorch's error ours may be.
    """

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shapes: list[tuple[int, ...]]
    scale: float = 1.0
    positive: bool = False
    labels: int | None = None
    times: float = 3.0

    def draw(self) -> list[np.ndarray]:
        rng = np.random.RandomState(0)
        values = [(self.scale * rng.standard_normal(s)).astype(np.float32) for s in self.shapes]
        if self.positive:
            values = [np.abs(v) + np.float32(0.1) for v in values]
        if self.labels is not None:
            values[-1] = rng.randint(0, self.labels, self.shapes[-1])
        return values


def same(name: str, ours: Any, theirs: Any, *shapes: tuple[int, ...], **options: Any) -> Row:
    return Row(name, ours, theirs, list(shapes), **options)


def activation(name: str, ours: Any, theirs: Any) -> list[Row]:
    """Near 0 and far from it."""
    return [
        same(f"{name}, scale {scale}", ours, theirs, (40, 500), scale=scale)
        for scale in (0.01, 1.0, 10.0)
    ]


def convolution(name: str, x: tuple[int, ...], w: tuple[int, ...], **arguments: Any) -> Row:
    """With `pad` etc. as numbers, the same for each axis."""
    ndim = len(x) - 2
    transposed = arguments.pop("transposed", False)
    # Winograd's products are amplified when they are put together: rms 1.7e-6 for 256 channels,
    # where PyTorch's direct sums have 2.1e-7. That buys 4 times fewer multiplications.
    times = 10.0 if "Winograd" in name else 3.0
    bias = w[1] * arguments.get("group", 1) if transposed else w[0]
    mine = {k: v if k == "group" else (v,) * ndim for k, v in arguments.items()}
    names = {"pad": "padding", "group": "groups"}
    its = {names.get(k, k): v for k, v in arguments.items()}
    theirs = getattr(TF, f"conv_transpose{ndim}d" if transposed else f"conv{ndim}d")
    ours = F.deconvolution if transposed else F.convolution
    return same(
        f"{'de' * transposed}convolution {name}",
        lambda *v: ours(*v, **mine),
        lambda *v: theirs(*v, **its),
        x,
        w,
        (bias,),
        times=times,
    )


def pooling(
    name: str, ours: Any, theirs: Any, shape: tuple[int, ...], kernel: int, stride: int, pad: int
) -> Row:
    ndim = len(shape) - 2
    its = getattr(TF, f"{theirs}_pool{ndim}d")
    return same(
        f"{name} {ndim}-D, kernel {kernel}, stride {stride}, pad {pad}",
        lambda x: ours(x, (kernel,) * ndim, stride=(stride,) * ndim, pad=(pad,) * ndim),
        lambda x: its(x, kernel, stride, pad),
        shape,
    )


def normalization(name: str, shape: tuple[int, ...], shift: float = 0.0) -> Row:
    """Batch normalization as in training; statistics are compared in another test."""
    channels = per_channel(shape)

    def ours(x: Any, beta: Any, gamma: Any) -> Any:
        stats = [nn.Variable(channels) for _ in range(2)]
        return F.batch_normalization(x + shift, beta, gamma, *stats)

    def theirs(x: Any, beta: Any, gamma: Any) -> Any:
        return TF.batch_norm(x + shift, None, None, gamma.reshape(-1), beta.reshape(-1), True)

    return same(f"batch_normalization {name}", ours, theirs, shape, channels, channels)


def residual(name: str, shape: tuple[int, ...]) -> Row:
    """Batch normalization, addition and relu."""
    channels = per_channel(shape)

    def ours(x: Any, beta: Any, gamma: Any, z: Any) -> Any:
        stats = [nn.Variable(channels) for _ in range(2)]
        return F.fused_batch_normalization(x, beta, gamma, *stats, z)

    def theirs(x: Any, beta: Any, gamma: Any, z: Any) -> Any:
        y = TF.batch_norm(x, None, None, gamma.reshape(-1), beta.reshape(-1), True)
        return torch.relu(y + z)

    return same(f"fused_batch_normalization {name}", ours, theirs, shape, channels, channels, shape)


def of_examples(kind: str, note: str, shape: tuple[int, ...], shift: float = 0.0) -> Row:
    """Layer normalization of the last axis, instance normalization or 4 groups."""
    parameter = (*(1,) * (len(shape) - 1), shape[-1]) if kind == "layer" else per_channel(shape)
    options = {
        "layer": {"batch_axis": list(range(len(shape) - 1))},
        "instance": {},
        "group": {"num_groups": 4},
    }[kind]

    def ours(x: Any, beta: Any, gamma: Any) -> Any:
        return getattr(F, f"{kind}_normalization")(x + shift, beta, gamma, **options)

    def theirs(x: Any, beta: Any, gamma: Any) -> Any:
        beta, gamma, x = beta.reshape(-1), gamma.reshape(-1), x + shift
        if kind == "layer":
            return TF.layer_norm(x, gamma.shape, gamma, beta)
        if kind == "instance":
            return TF.instance_norm(x, None, None, gamma, beta)
        return TF.group_norm(x, 4, gamma, beta)

    return same(f"{kind}_normalization {note}", ours, theirs, shape, parameter, parameter)


def per_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, shape[1], *(1,) * (len(shape) - 2))


def cross_entropy(name: str, x: tuple[int, ...], scale: float) -> Row:
    target = (x[0], 1, *x[2:])
    return same(
        f"softmax_cross_entropy {name}, scale {scale}",
        lambda x, t: F.softmax_cross_entropy(x, t, axis=1),
        lambda x, t: TF.cross_entropy(x, t[:, 0], reduction="none")[:, None],
        x,
        target,
        scale=scale,
        labels=x[1],
    )


def recurrent(kind: str, note: str, layers: int, directions: int, size: int = 48) -> Row:
    """Over 12 steps of 6 sequences; PyTorch has two weights and two biases for each of ours."""
    gates, biases = {"lstm": (4, 4), "gru": (3, 4), "rnn_tanh": (1, 1)}[kind]
    above = (directions + 1) * size
    lead = () if kind == "rnn_tanh" else (gates,)
    shapes = [(12, 6, 20), (layers, directions, 6, size), (directions, *lead, size, 20 + size)]
    shapes += [(layers - 1, directions, *lead, size, above)] * (layers > 1)
    shapes.append((layers, directions, *(() if kind == "rnn_tanh" else (biases,)), size))

    def ours(x: Any, h: Any, w: Any, *rest: Any) -> Any:
        states = (h, h) if kind == "lstm" else (h,)
        above, b = rest if layers > 1 else (None, *rest)
        function = getattr(F, kind.partition("_")[0])
        more = {"num_layers": layers, "bidirectional": directions == 2}
        return function(x, *states, w, above, b, **more)[0]

    def theirs(x: Any, h: Any, w: Any, *rest: Any) -> Any:
        *above, b = rest
        weights = [w, *(above[0] if above else ())]
        parameters = []
        for i in range(layers):
            for d in range(directions):
                matrix = weights[i][d].reshape(gates * size, -1)
                of_x, of_h = b[i, d].reshape(-1), torch.zeros_like(b[i, d].reshape(-1))
                if kind == "gru":
                    of_h = torch.cat([of_h[: 2 * size], b[i, d, 3]])
                    of_x = of_x[: 3 * size]
                parameters += [matrix[:, :-size], matrix[:, -size:], of_x, of_h]
        h = h.reshape(-1, *h.shape[2:])
        states = (h, h) if kind == "lstm" else h
        return getattr(torch, kind)(
            x, states, parameters, True, layers, 0.0, True, directions == 2, False
        )[0]

    return same(f"{kind} {note}", ours, theirs, *shapes, scale=0.3)


# fmt: off
ROWS = [
    *activation("sigmoid", F.sigmoid, torch.sigmoid),
    of_examples("layer", "vectors", (64, 300)),
    of_examples("layer", "tokens", (8, 30, 256)),
    of_examples("layer", "long", (4, 60000)),
    of_examples("layer", "large mean", (64, 300), shift=100.0),
    of_examples("instance", "images", (8, 6, 20, 20)),
    of_examples("instance", "sequences", (8, 6, 50)),
    of_examples("instance", "large mean", (8, 6, 20, 20), shift=100.0),
    of_examples("group", "images", (8, 16, 14, 14)),
    of_examples("group", "large mean", (8, 16, 14, 14), shift=100.0),
    *activation("log_sigmoid", F.log_sigmoid, TF.logsigmoid),
    *activation("tanh", F.tanh, torch.tanh),
    *activation("softplus", F.softplus, lambda x: TF.softplus(x, threshold=1e6)),
    *activation("softsign", F.softsign, TF.softsign),
    *activation("swish", F.swish, TF.silu),
    *activation("mish", F.mish, TF.mish),
    *activation("gelu", F.gelu, lambda x: TF.gelu(x, approximate="tanh")),
    *activation("elu", F.elu, TF.elu),
    *activation("selu", F.selu, TF.selu),
    *activation("leaky_relu", F.leaky_relu, lambda x: TF.leaky_relu(x, 0.1)),
    *activation("tanh_shrink", F.tanh_shrink, TF.tanhshrink),
    *activation("softmax", F.softmax, lambda x: torch.softmax(x, -1)),
    *activation("log_softmax", F.log_softmax, lambda x: torch.log_softmax(x, -1)),
    same("prelu", F.prelu, TF.prelu, (8, 16, 9, 9), (16,)),
    same("sigmoid_cross_entropy", lambda x: F.sigmoid_cross_entropy(x, F.constant(1, x.shape)),
         lambda x: TF.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none"),
         (40, 500), scale=5.0),
    same("huber_loss", F.huber_loss, lambda a, b: 2 * TF.huber_loss(a, b, reduction="none"),
         (40, 500), (40, 500)),
    same("exp", F.exp, torch.exp, (40, 500), scale=5.0),
    same("log", F.log, torch.log, (40, 500), positive=True),
    same("sqrt", F.sqrt, torch.sqrt, (40, 500), positive=True),
    same("pow2", F.pow2, torch.pow, (40, 500), (40, 500), positive=True),
    same("div2", F.div2, torch.div, (40, 500), (40, 500), positive=True),
    same("sum of many", F.sum, torch.sum, (300, 1000)),
    same("mean of columns", lambda x: F.mean(x, axis=0), lambda x: x.mean(0), (30000, 4)),
    same("mean of maps", lambda x: F.mean(x, axis=(0, 2, 3)), lambda x: x.mean((0, 2, 3)),
         (64, 8, 14, 14)),
    same("prod", lambda x: F.prod(x, axis=1), lambda x: x.prod(1), (200, 9)),
    same("affine", F.affine, lambda x, w, b: x @ w + b, (64, 300), (300, 100), (100,)),
    # OpenBLAS adds 5000 products less evenly than PyTorch does on processors with AVX-512.
    same("affine, deep", F.affine, lambda x, w, b: x @ w + b, (4, 5000), (5000, 10), (10,),
         times=5),
    same("batch_matmul", F.batch_matmul, torch.matmul, (12, 40, 64), (12, 64, 50)),
    same("embed", lambda w, i: F.embed(i, w), lambda w, i: TF.embedding(i, w),
         (50, 32), (40, 30), labels=50),
    *(recurrent(kind, note, *sizes)
      for kind in ("lstm", "gru", "rnn_tanh")
      for note, *sizes in (("one layer", 1, 1), ("two layers, both directions", 2, 2))),
    convolution("1-D", (4, 8, 50), (16, 8, 5), pad=2),
    convolution("2-D, 5x5", (4, 8, 14, 14), (16, 8, 5, 5), pad=2),
    convolution("2-D, 3x3, few channels", (4, 3, 32, 32), (16, 3, 3, 3), pad=1),
    convolution("2-D, stride", (4, 8, 15, 15), (16, 8, 3, 3), pad=1, stride=2),
    convolution("2-D, dilation and groups", (4, 8, 15, 15), (16, 4, 3, 3), dilation=2, group=2),
    convolution("2-D, a group a channel", (4, 16, 14, 14), (16, 1, 3, 3), pad=1, group=16),
    convolution("2-D, 1x1", (4, 64, 8, 8), (32, 64, 1, 1)),
    convolution("3-D", (2, 4, 8, 8, 8), (8, 4, 3, 3, 3), pad=1),
    convolution("Winograd 8x8", (16, 128, 8, 8), (128, 128, 3, 3), pad=1),
    convolution("Winograd 7x7", (8, 256, 7, 7), (256, 256, 3, 3), pad=1),
    convolution("Winograd 4x4", (16, 64, 4, 4), (64, 64, 3, 3), pad=1),
    convolution("Winograd 14x14 in kernels", (4, 128, 14, 14), (128, 128, 3, 3), pad=1),
    convolution("1-D", (4, 8, 20), (8, 6, 5), transposed=True, stride=2),
    convolution("2-D", (4, 8, 7, 7), (8, 6, 4, 4), transposed=True, stride=2, pad=1),
    convolution("2-D, groups and dilation", (4, 8, 7, 7), (8, 3, 3, 3), transposed=True,
                group=2, dilation=2),
    convolution("3-D", (2, 4, 4, 4, 4), (4, 3, 3, 3, 3), transposed=True, stride=2),
    convolution("Winograd", (8, 128, 8, 8), (128, 128, 3, 3), transposed=True, pad=1),
    normalization("of images", (16, 8, 12, 12)),
    normalization("of small maps", (16, 32, 3, 3)),
    normalization("of vectors", (256, 40)),
    normalization("of sequences", (16, 8, 50)),
    normalization("of a large mean", (16, 8, 6, 6), shift=100.0),
    residual("of images", (16, 8, 12, 12)),
    residual("of vectors", (256, 40)),
    *(pooling(name, ours, theirs, shape, *window)
      for name, ours, theirs in (("max_pooling", F.max_pooling, "max"),
                                 ("average_pooling", F.average_pooling, "avg"))
      for shape in ((4, 8, 30), (4, 8, 14, 15), (2, 4, 8, 9, 8))
      for window in ((2, 2, 0), (3, 2, 1))),
    *(cross_entropy(name, x, scale)
      for name, x in (("vectors", (64, 10)), ("many classes", (16, 1000)),
                      ("images", (4, 10, 8, 8)))
      for scale in (1.0, 20.0)),
]
# fmt: on


def ours(row: Row, values: list[np.ndarray], weight: np.ndarray | None = None) -> list[np.ndarray]:
    """The result and the gradients of the inputs."""
    leaves = [nn.Variable.from_numpy_array(v, need_grad=v.dtype.kind == "f") for v in values]
    y = row.ours(*leaves)
    y.forward()
    y.backward(weight)
    return [y.d, *(x.g for x in leaves if x.need_grad)]


def theirs(row: Row, values: list[np.ndarray], weight: np.ndarray, dtype: Any) -> list[np.ndarray]:
    leaves = [
        torch.tensor(v, dtype=dtype, requires_grad=True) if v.dtype.kind == "f" else torch.tensor(v)
        for v in values
    ]
    y = row.theirs(*leaves)
    y.backward(torch.tensor(weight, dtype=dtype))
    return [a.detach().numpy() for a in (y, *(x.grad for x in leaves if x.requires_grad))]


def rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_our_error_is_about_that_of_pytorch(row, extension):
    values = row.draw()
    with torch.no_grad():
        shape = row.theirs(*(torch.tensor(v) for v in values)).shape
    weight = np.random.RandomState(1).standard_normal(tuple(shape)).astype(np.float32)
    exact = theirs(row, values, weight, torch.float64)
    its = theirs(row, values, weight, torch.float32)
    mine = ours(row, values, weight)
    assert len(mine) == len(its)
    for i, (e, t, m) in enumerate(zip(exact, its, mine, strict=True)):
        assert m.shape == e.shape
        # PyTorch's results are the CPU's; products of matrices on a GPU add up term by term.
        times = row.times if extension == "cpu" else 2 * row.times
        allowed = times * rms(t - e) + _FLOOR * rms(e)
        assert rms(m - e) <= allowed, "result" if i == 0 else f"gradient of input {i - 1}"


def test_running_statistics_are_those_of_pytorch():
    """Whose momentum is the weight of the new ones."""
    x = np.random.RandomState(0).standard_normal((8, 3, 4, 5)).astype(np.float32)
    module = torch.nn.BatchNorm2d(3, momentum=0.25)
    module.train()
    stats = [nn.Variable.from_numpy_array(np.full((1, 3, 1, 1), v, np.float32)) for v in (0, 1)]
    y = F.batch_normalization(nn.Variable.from_numpy_array(x), None, None, *stats, decay_rate=0.75)
    for _ in range(3):
        module(torch.tensor(x))
        y.forward()
    np.testing.assert_allclose(
        stats[0].d.ravel(), module.running_mean.numpy(), rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(stats[1].d.ravel(), module.running_var.numpy(), rtol=1e-5)
    module.eval()
    y = F.batch_normalization(nn.Variable.from_numpy_array(x), None, None, *stats, batch_stat=False)
    y.forward()
    expected = module(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(y.d, expected, rtol=1e-5, atol=1e-6)

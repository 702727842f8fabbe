"""Networks that benchmarks train with distnn and with PyTorch: each is written once for both.

A network of distnn computes the loss and creates its parameters; its twin for PyTorch takes the
tensors of these parameters by name (`tensors_of` says which), so that both start equal.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))


class Network(NamedTuple):
    """One network, twice, and what it is trained on."""

    batch: Callable[[], tuple[np.ndarray, np.ndarray]]
    ours: Callable[[Any, Any], Any]  # Variables x, t -> loss
    peers: Callable[[Mapping[str, Any], Any, Any], Any]  # parameters, tensors x, t -> loss
    channel_last: bool = False  # images, and so the filters of convolutions
    solver: str = "Adam"


Arrays = Mapping[str, np.ndarray]


def tensors_of(network: Network, arrays: Arrays) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, as PyTorch has them.

    Filters are (O, I, H, W); a recurrent layer has matrices and biases of input and state apart.

    >>> network = Network(lambda: None, None, None, channel_last=True)
    >>> tensors_of(network, {"a/conv/W": np.zeros((8, 3, 3, 4))})["a/conv/W"].shape
    (8, 4, 3, 3)
    """
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if network.channel_last and name.endswith("conv/W"):
            found[name] = np.moveaxis(array, 3, 1)
        elif name.startswith("lstm/"):
            found |= _lstm_tensors(name, array)
        else:
            found[name] = array
    return found


def _labels(rng: np.random.Generator, batch: int, classes: int) -> np.ndarray:
    return rng.integers(0, classes, (batch, 1))


# -- the seed network: a deep CNN on images of 8x8 pixels -----------------------------------------


def seed(depth: int = 30, batch: int = 256, width: float = 1.0) -> Network:
    """`depth` + 2 convolutions with batch normalization and tanh, as in examples/."""

    def images() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        return rng.uniform(0, 16, (batch, 1, 8, 8)).astype(np.float32), _labels(rng, batch, 10)

    def ours(x: Any, t: Any) -> Any:
        from static_vs_dynamic import cnn

        import distnn.functions as F

        return F.mean(F.softmax_cross_entropy(cnn(x, depth, width, lambda i: False), t))

    return Network(images, ours, seed_of_torch)


def seed_of_torch(w: Mapping[str, Any], x: Any, t: Any) -> Any:
    """The seed network, as deep as there are parameters."""
    import torch.nn.functional as T

    layers = dict.fromkeys(name.rsplit("/", 2)[0] for name in w if "/conv/" in name)
    for layer in layers:
        x = T.conv2d(x, w[f"{layer}/conv/W"], w[f"{layer}/conv/b"], padding=1)
        x = _batch_normalized(w, layer, x).tanh()
    x = T.avg_pool2d(x, 2).flatten(1)
    x = (x @ w["cnn/fc/affine/W"] + w["cnn/fc/affine/b"]).tanh()
    scores = x @ w["cnn/classifier/affine/W"] + w["cnn/classifier/affine/b"]
    return T.cross_entropy(scores, t[:, 0])


def _batch_normalized(w: Mapping[str, Any], scope: str, x: Any) -> Any:
    import torch.nn.functional as T

    values = [w.get(f"{scope}/bn/{name}") for name in ("mean", "var", "gamma", "beta")]
    vectors = [None if v is None else v.view(-1) for v in values]  # statistics may be left out
    return T.batch_norm(x, *vectors, training=True, momentum=0.1, eps=1e-5)


# -- ResNets --------------------------------------------------------------------------------------

Blocks = tuple[int, int, int, int]


def resnet50(
    batch: int = 128, size: int = 224, blocks: Blocks = (3, 4, 6, 3), width: int = 64,
    channel_last: bool = True, bottleneck: bool = True,
) -> Network:  # fmt: skip
    """He et al., arXiv:1512.03385, with the stride in the 3x3 convolution, as PyTorch has it."""

    def images() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        shape = (batch, size, size, 3) if channel_last else (batch, 3, size, size)
        return rng.standard_normal(shape, np.float32), _labels(rng, batch, 1000)

    ours = functools.partial(
        _resnet, blocks=blocks, width=width, bottleneck=bottleneck, channel_last=channel_last
    )
    peers = functools.partial(
        _resnet_of_torch, blocks=blocks, bottleneck=bottleneck, channel_last=channel_last
    )
    return Network(images, ours, peers, channel_last, "Momentum")


def resnet18(
    batch: int = 32, size: int = 64, blocks: Blocks = (2, 2, 2, 2), width: int = 64
) -> Network:
    """The same with two 3x3 convolutions in a block, channels first."""
    return resnet50(batch, size, blocks, width, channel_last=False, bottleneck=False)


def _resnet(
    x: Any, t: Any, blocks: Blocks, width: int, bottleneck: bool, channel_last: bool
) -> Any:
    import distnn.functions as F
    import distnn.parametric_functions as PF

    axes = (3,) if channel_last else (1,)

    def convolution(h: Any, channels: int, kernel: int, stride: int = 1) -> Any:
        return PF.convolution(
            h, channels, (kernel, kernel), (kernel // 2, kernel // 2), (stride, stride),
            channel_last=channel_last, with_bias=False,
        )  # fmt: skip

    def layer(h: Any, scope: str, channels: int, kernel: int, stride: int = 1, z: Any = None):
        import distnn as nn

        with nn.parameter_scope(scope):
            h = convolution(h, channels, kernel, stride)
            if scope.endswith("shortcut"):
                return PF.batch_normalization(h, axes)
            return PF.fused_batch_normalization(h, z, axes)

    h = layer(x, "stem", width, 7, 2)
    h = F.max_pooling(h, (3, 3), (2, 2), pad=(1, 1), channel_last=channel_last)
    for i, repeats in enumerate(blocks):
        for j in range(repeats):
            scope, stride = f"block{i}.{j}", 2 if i and j == 0 else 1
            channels = width << i
            outputs, shortcut = 4 * channels if bottleneck else channels, h
            if j == 0 and (i or bottleneck):
                shortcut = layer(h, f"{scope}/shortcut", outputs, 1, stride)
            if bottleneck:
                h = layer(h, f"{scope}/a", channels, 1)
                h = layer(h, f"{scope}/b", channels, 3, stride)
                h = layer(h, f"{scope}/c", outputs, 1, z=shortcut)
            else:
                h = layer(h, f"{scope}/a", channels, 3, stride)
                h = layer(h, f"{scope}/b", channels, 3, z=shortcut)
    h = F.mean(h, (1, 2) if channel_last else (2, 3))
    return F.mean(F.softmax_cross_entropy(PF.affine(h, 1000), t))


def _resnet_of_torch(
    w: Mapping[str, Any], x: Any, t: Any, blocks: Blocks, bottleneck: bool, channel_last: bool
) -> Any:
    import torch.nn.functional as T

    def layer(h: Any, scope: str, stride: int = 1) -> Any:
        weight = w[f"{scope}/conv/W"]
        h = T.conv2d(h, weight, None, stride, weight.shape[-1] // 2)
        return _batch_normalized(w, scope, h)

    # A view of the same memory: PyTorch's channels_last format.
    h = x.permute(0, 3, 1, 2) if channel_last else x
    h = T.max_pool2d(layer(h, "stem", 2).relu_(), 3, 2, 1)
    for i, repeats in enumerate(blocks):
        for j in range(repeats):
            scope, stride = f"block{i}.{j}", 2 if i and j == 0 else 1
            projected = j == 0 and (i or bottleneck)
            shortcut = layer(h, f"{scope}/shortcut", stride) if projected else h
            if bottleneck:
                h = layer(h, f"{scope}/a").relu_()
                h = layer(h, f"{scope}/b", stride).relu_()
                h = layer(h, f"{scope}/c").add_(shortcut).relu_()
            else:
                h = layer(h, f"{scope}/a", stride).relu_()
                h = layer(h, f"{scope}/b").add_(shortcut).relu_()
    h = h.mean((2, 3))
    return T.cross_entropy(T.linear(h, w["affine/W"].T, w["affine/b"]), t[:, 0])


# -- Transformer ----------------------------------------------------------------------------------


def transformer(
    layers: int = 6, d: int = 512, heads: int = 8, batch: int = 32, length: int = 256,
    vocabulary: int = 10_000,
) -> Network:  # fmt: skip
    """A language model: causal attention, normalization first, without dropout.

    Vaswani et al., arXiv:1706.03762. PyTorch computes attention and layer normalization by one
    function each; in distnn they are written with elementary functions.
    """

    def tokens() -> tuple[np.ndarray, np.ndarray]:
        text = np.random.default_rng(0).integers(0, vocabulary, (batch, length + 1))
        return text[:, :-1].copy(), text[:, 1:, None].copy()

    ours = functools.partial(_transformer, layers=layers, d=d, heads=heads, vocabulary=vocabulary)
    return Network(
        tokens, ours, functools.partial(_transformer_of_torch, layers=layers, heads=heads)
    )


def _transformer(x: Any, t: Any, layers: int, d: int, heads: int, vocabulary: int) -> Any:
    import distnn as nn
    import distnn.functions as F
    import distnn.parametric_functions as PF
    from distnn.initializer import ConstantInitializer, NormalInitializer
    from distnn.parameter import get_parameter_or_create

    batch, length = x.shape

    def parameter(name: str, shape: tuple[int, ...], initializer: Any, trained: bool = True) -> Any:
        return get_parameter_or_create(name, shape, initializer, trained)

    def normalized(h: Any, name: str) -> Any:
        gamma = parameter(f"{name}/gamma", (1, 1, d), ConstantInitializer(1))
        beta = parameter(f"{name}/beta", (1, 1, d), ConstantInitializer(0))
        return F.layer_normalization(h, beta, gamma, batch_axis=[0, 1])

    def affine(h: Any, outputs: int, name: str) -> Any:
        return PF.affine(h, outputs, base_axis=2, name=name)

    def attention(h: Any) -> Any:
        qkv = F.reshape(affine(h, 3 * d, "qkv"), (batch, length, 3, heads, d // heads))
        qkv = F.reshape(F.transpose(qkv, (2, 0, 3, 1, 4)), (3, batch * heads, length, d // heads))
        q, k, v = F.split(qkv, axis=0)
        scores = F.batch_matmul(q, k, transpose_b=True) * (d // heads) ** -0.5
        h = F.batch_matmul(F.softmax(scores + mask), v)
        h = F.transpose(F.reshape(h, (batch, heads, length, d // heads)), (0, 2, 1, 3))
        return affine(F.reshape(h, (batch, length, d)), d, "projection")

    future = np.triu(np.full((1, length, length), -1e4, np.float32), 1)
    mask = parameter("mask", future.shape, future, False)
    h = PF.embed(x, vocabulary, d)
    h = h + parameter("positions", (1, length, d), NormalInitializer(0.02))
    for i in range(layers):
        with nn.parameter_scope(f"layer{i}"):
            h = h + attention(normalized(h, "norm1"))
            hidden = F.gelu(affine(normalized(h, "norm2"), 4 * d, "hidden"))
            h = h + affine(hidden, d, "output")
    scores = affine(normalized(h, "norm"), vocabulary, "vocabulary")
    return F.mean(F.softmax_cross_entropy(scores, t))


def _transformer_of_torch(w: Mapping[str, Any], x: Any, t: Any, layers: int, heads: int) -> Any:
    import torch.nn.functional as T

    def affine(h: Any, scope: str) -> Any:
        return T.linear(h, w[f"{scope}/affine/W"].T, w[f"{scope}/affine/b"])

    def normalized(h: Any, scope: str) -> Any:
        gamma, beta = w[f"{scope}/gamma"].view(-1), w[f"{scope}/beta"].view(-1)
        return T.layer_norm(h, gamma.shape, gamma, beta, 1e-5)

    batch, length = x.shape
    h = T.embedding(x, w["embed/W"]) + w["positions"]
    for i in range(layers):
        scope = f"layer{i}"
        qkv = affine(normalized(h, f"{scope}/norm1"), f"{scope}/qkv")
        q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        a = T.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + affine(a.transpose(1, 2).reshape(batch, length, -1), f"{scope}/projection")
        hidden = T.gelu(
            affine(normalized(h, f"{scope}/norm2"), f"{scope}/hidden"), approximate="tanh"
        )
        h = h + affine(hidden, f"{scope}/output")
    scores = affine(normalized(h, "norm"), "vocabulary")
    return T.cross_entropy(scores.flatten(0, 1), t.reshape(math.prod(t.shape)))


# -- LSTM -----------------------------------------------------------------------------------------


def lstm(
    layers: int = 2, size: int = 256, batch: int = 32, length: int = 100, classes: int = 10
) -> Network:
    """Layers of long short-term memory, and a class for each step (Hochreiter & Schmidhuber)."""

    def sequences() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((length, batch, size), np.float32)
        return x, rng.integers(0, classes, (length, batch, 1))

    ours = functools.partial(_lstm, layers=layers, size=size, classes=classes)
    return Network(sequences, ours, functools.partial(_lstm_of_torch, layers=layers))


def _lstm(x: Any, t: Any, layers: int, size: int, classes: int) -> Any:
    import distnn as nn
    import distnn.functions as F
    import distnn.parametric_functions as PF

    begin = [nn.Variable((layers, 1, x.shape[1], size)) for _ in range(2)]
    for state in begin:
        state.data.zero()
    y, _, _ = PF.lstm(x, *begin, num_layers=layers)
    return F.mean(F.softmax_cross_entropy(PF.affine(y, classes, base_axis=2), t))


def _lstm_tensors(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """What torch.lstm takes of one parameter of PF.lstm with one direction."""
    if name == "lstm/bias":
        return {f"lstm/bias{i}": row.reshape(-1) for i, row in enumerate(array[:, 0])}
    first = name == "lstm/weight_l0"
    hidden = array.shape[-2]
    found = {}
    for i, matrix in enumerate(array if first else array[:, 0], 0 if first else 1):
        rows = matrix.reshape(-1, matrix.shape[-1])
        found[f"lstm/of_x{i}"], found[f"lstm/of_h{i}"] = rows[:, :-hidden], rows[:, -hidden:]
    return found


def _lstm_of_torch(w: Mapping[str, Any], x: Any, t: Any, layers: int) -> Any:
    import torch

    weights = []
    for i in range(layers):
        bias = w[f"lstm/bias{i}"]
        # PyTorch has a second bias, which is of no use.
        weights += [w[f"lstm/of_x{i}"], w[f"lstm/of_h{i}"], bias, torch.zeros_like(bias)]
    begin = x.new_zeros(layers, x.shape[1], weights[1].shape[1])
    y = torch.lstm(x, (begin, begin), weights, True, layers, 0.0, True, False, False)[0]
    scores = torch.nn.functional.linear(y, w["affine/W"].T, w["affine/b"])
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), t.flatten())

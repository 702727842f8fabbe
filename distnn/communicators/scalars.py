"""Figures of training (loss, accuracy, ...) averaged over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ArgumentError, CommunicatorError
from .header import Schedule

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator


def all_reduce_scalars(
    comm: MultiProcessDataParallelCommunicator,
    values: Mapping[str, float],
    weights: float | Mapping[str, float],
    group: str,
) -> dict[str, float]:
    """Weighted means over ranks, by name; see the communicator's method."""
    names = sorted(values)
    if isinstance(weights, Mapping):
        missing = [name for name in names if name not in weights]
        if missing:
            raise ArgumentError(
                f"[all_reduce_scalars] weights has {sorted(weights)} but not {missing}; pass a "
                "weight for each value, or one number"
            )
        given = [weights[name] for name in names]
    else:
        given = [weights] * len(names)
    weight = np.array(given, np.float64)
    if np.any(~(weight >= 0)) or np.any(np.isinf(weight)):
        raise ArgumentError(
            f"[all_reduce_scalars] weights are {weights}; pass finite numbers of 0 or more"
        )
    value = np.array([float(values[name]) for name in names])
    sums = np.stack([np.where(weight > 0, weight * value, 0.0), weight])
    entries = [f"scalar {name!r}" for name in names]
    schedule = Schedule("all_reduce_scalars", entries, only_compared=True)
    comm._run(schedule, lambda transport, _: transport.all_reduce(sums, "sum"), group)
    for name, total in zip(names, sums[1], strict=True):
        if total == 0:
            raise CommunicatorError(
                f"[all_reduce_scalars] {name!r} has weight 0 on all ranks, so it has no mean"
            )
    means = dict(zip(names, (sums[0] / sums[1]).tolist(), strict=True))
    return {name: means[name] for name in values}

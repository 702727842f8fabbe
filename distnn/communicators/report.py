"""What the exchange of one backward cost, and how much of it the computation hid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BucketTimes:
    """When a bucket was complete, and when the communication thread or stream worked on it.

    Seconds since backward began, on this rank; for gradients on a GPU by its clock. From `begin` to
    `end` a rank also waits for the slowest one.
    """

    ready: float
    begin: float
    end: float


@dataclass(frozen=True)
class OverlapReport:
    """The exchange of one backward, in seconds; made by `AllReduceCallback.report`.

    Args:
        backward: from its begin until the last sum was there.
        communication: work of the communication thread: the header and all buckets; waiting for
            slower ranks included.
        exposed: how long the main thread waited because the last sums were not there yet.
        buckets: times of each bucket that was reduced, in order.

    >>> print(OverlapReport(0.040, 0.010, 0.002, (BucketTimes(0.02, 0.02, 0.03),)))
    backward 40.00 ms, communication 10.00 ms in 1 bucket: 2.00 ms exposed, 80 % hidden
    """

    backward: float
    communication: float
    exposed: float
    buckets: tuple[BucketTimes, ...]

    @property
    def hidden(self) -> float:
        """Share of communication that ran behind computation: 1 - exposed / communication, >= 0."""
        if self.communication <= 0:
            return 1.0
        return max(0.0, 1 - self.exposed / self.communication)

    def __str__(self) -> str:
        number = len(self.buckets)
        return (
            f"backward {self.backward * 1e3:.2f} ms, communication {self.communication * 1e3:.2f} "
            f"ms in {number} bucket{'s' * (number != 1)}: {self.exposed * 1e3:.2f} ms exposed, "
            f"{self.hidden:.0%} hidden".replace("%", " %")
        )


def of_gpu(began: Any, computed: Any, fences: Sequence[Any]) -> OverlapReport:
    """The exchange of one backward on a GPU, which has to come to its end first.

    Args:
        began: mark (cuda.fence.mark) where backward began.
        computed: mark where it had computed all gradients.
        fences: of the buckets.
    """
    from ..cuda.fence import seconds

    buckets = tuple(BucketTimes(*fence.times(began)) for fence in fences)
    backward = seconds(began, computed)
    end = max((bucket.end for bucket in buckets), default=backward)
    return OverlapReport(
        backward=max(backward, end),
        communication=sum(bucket.end - bucket.begin for bucket in buckets),
        exposed=max(0.0, end - backward),
        buckets=buckets,
    )

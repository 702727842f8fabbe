"""What the exchange of one backward cost, and how much of it the computation hid."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BucketTimes:
    """When a bucket was complete, and when the communication thread worked on it.

    Seconds since backward began, on this rank. From `begin` to `end` a rank also waits for the
    slowest one.
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

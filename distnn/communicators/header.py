"""The header that opens every collective: do all ranks mean the same?

Each rank sends its sequence number, the operation and a hash of its schedule (names, shapes and
dtypes of the arrays) in one message of fixed size. Where ranks disagree all of them see it,
exchange their schedules in full and raise an error that names the first difference. Without this
MPI would add up arrays that do not belong together, or hang.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..errors import CommunicatorError
from .transport import Transport


class Schedule:
    """What a rank is about to exchange, in words."""

    def __init__(self, operation: str, entries: Sequence[str]) -> None:
        self.operation = operation
        self.entries = tuple(entries)
        text = "\n".join((operation, *self.entries)).encode()
        # 62 bits: the header also sends the negative
        self.hash = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


def exchange(
    transport: Transport, sequence: int, schedule: Schedule, incomplete: bool = False
) -> bool:
    """Agree on a collective.

    Args:
        incomplete: whether this rank lacks some of the arrays (a parameter without gradient).
    Returns: whether any rank lacks some.
    Raises: CommunicatorError on all ranks where they disagree.
    """
    facts = (sequence, schedule.hash)
    # A maximum over x and -x: equal on all ranks exactly if the two results add up to 0.
    words = np.array([*facts, *(-f for f in facts), int(incomplete)], np.int64)
    transport.all_reduce(words, "max")
    if words.tolist()[:-1] != [*facts, *(-f for f in facts)]:
        _raise_difference(transport, sequence, schedule)
    return bool(words[-1])


def _raise_difference(transport: Transport, sequence: int, schedule: Schedule) -> None:
    """Compare schedules in full and raise on every rank."""
    mine = "\n".join((str(sequence), schedule.operation, *schedule.entries)).encode()
    everybodys = [text.decode().split("\n") for text in transport.all_gather_bytes(mine)]
    numbers, operations, entries = zip(
        *((int(lines[0]), lines[1], lines[2:]) for lines in everybodys), strict=True
    )
    if len(set(operations)) > 1:
        raise CommunicatorError(
            f"[{schedule.operation}] ranks call different collectives: {_by_rank(operations)}; all "
            "ranks must call the same ones in the same order"
        )
    if len(set(numbers)) > 1:
        raise CommunicatorError(
            f"[{schedule.operation}] ranks have made different numbers of collectives before this "
            f"one: {_by_rank([str(n) for n in numbers])}; one of them left some out"
        )
    longest = max(len(found) for found in entries)
    for i in range(longest):
        at = [found[i] if i < len(found) else "nothing" for found in entries]
        if len(set(at)) > 1:
            lengths = ", ".join(str(len(found)) for found in entries)
            raise CommunicatorError(
                f"[{schedule.operation}] ranks disagree in array {i}: {_by_rank(at)} (the lists "
                f"have {lengths} arrays); pass the same arrays, in the same order, on all ranks"
            )
    raise CommunicatorError(f"[{schedule.operation}] ranks disagree, but not in what they say")


def _by_rank(texts: Sequence[str]) -> str:
    """ "a on rank 0, 2; b on rank 1"."""
    ranks: dict[str, list[str]] = {}
    for rank, text in enumerate(texts):
        ranks.setdefault(text, []).append(str(rank))
    return "; ".join(f"{text} on rank {', '.join(found)}" for text, found in ranks.items())

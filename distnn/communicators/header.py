"""The header that opens every collective: do all ranks mean the same?

Each rank sends its sequence number, the operation and a hash of its schedule (names, shapes and
dtypes of the arrays) in one message of fixed size. Where ranks disagree all of them see it,
exchange their schedules in full and raise an error that names the first difference. Without this
MPI would add up arrays that do not belong together, or hang.

A rank that has run out of data (join.py) does not say what it is about to exchange: it learns it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..errors import CommunicatorError
from .transport import Transport

_JOINED = "join"
_NOTHING = -(1 << 62)  # below every hash and every negative of one


class Schedule:
    """What a rank is about to exchange, in words."""

    def __init__(
        self,
        operation: str,
        entries: Sequence[str],
        noun: str = "array",
        layout: str = "",
        place: str = "",
        problem: str = "",
        only_compared: bool = False,
    ) -> None:
        """Describe a collective.

        Args:
            operation: its name.
            entries: what it is about, one line each.
            noun: what the entries are.
            layout: how the arrays lie in memory, where neighbours are exchanged as one.
            place: the kind of memory that they lie in.
            problem: why this cannot be done, on any rank; raised when the ranks have agreed.
            only_compared: that the collective needs nothing of what its header tells; such a header
                is left out where DISTNN_CHECK is 0.
        """
        self.operation = operation
        self.noun = noun
        self.place = place
        self.problem = problem
        self.entries = tuple(entries)
        self.only_compared = only_compared
        self._layout = layout

    @cached_property
    def hash(self) -> int:
        """62 bits: the header also sends the negative."""
        text = "\n".join((self.operation, *self.entries, self._layout, self.place)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


class Joined(Schedule):
    """That a rank has no data and follows the others, to one of the schedules it knows.

    None: to any.
    """

    def __init__(self, known: Collection[int] | None) -> None:
        super().__init__(_JOINED, [])
        self.hash = _NOTHING
        self.known = known


class Agreement(NamedTuple):
    """What the ranks agreed on."""

    incomplete: bool  # whether any rank lacks some of the arrays
    active: int  # number of ranks that have data
    hash: int | None = None  # of the schedule; None where no rank has data


class Count:
    """How many collectives a group of ranks has begun; the same number on all of its ranks."""

    def __init__(self) -> None:
        self.number = 0


def exchange(
    transport: Transport, count: Count, schedule: Schedule, incomplete: bool = False
) -> Agreement:
    """Agree on a collective.

    Where ranks disagree they have left their common order. This is then where they find it again:
    they all know that the others raise here too, and go on from one number.

    Args:
        count: this collective is the last in it.
        incomplete: whether this rank lacks some of the arrays (a parameter without gradient).
    Raises: CommunicatorError on all ranks where they disagree.
    """
    joined = isinstance(schedule, Joined)
    # A maximum over x and -x: equal on all ranks exactly if the two results add up to 0.
    negative = _NOTHING if joined else -schedule.hash
    number = count.number
    last, first, found, minus, any_incomplete, any_joined = transport.largest(
        (number, -number, schedule.hash, negative, incomplete, joined)
    )
    nobody = found == _NOTHING
    if last + first or not (nobody or found + minus == 0):
        count.number = last
        _raise_difference(transport, number, schedule)
    if nobody:
        return Agreement(False, 0)
    active = transport.size
    if any_joined:
        known = schedule.known if isinstance(schedule, Joined) else None
        unknown = known is not None and found not in known
        counts = np.array([not joined, unknown], np.int64)
        transport.all_reduce(counts, "sum")
        if counts[1]:
            _raise_unknown(transport, schedule)
        active = int(counts[0])
    return Agreement(bool(any_incomplete), active, found)


def _raise_unknown(transport: Transport, schedule: Schedule) -> None:
    """Raise on every rank: one without data does not know this collective."""
    texts = [text.decode() for text in transport.all_gather_bytes(schedule.operation.encode())]
    operation = next(text for text in texts if text != _JOINED)
    without = ", ".join(str(rank) for rank, text in enumerate(texts) if text == _JOINED)
    raise CommunicatorError(
        f"[{operation}] rank {without} ran out of data and cannot take part: inside join the only "
        "collectives are those of callbacks that join was given on all ranks, "
        "comm.join(batches, {callback: solver.update}); do others after the loop"
    )


def _raise_difference(transport: Transport, number: int, schedule: Schedule) -> None:
    """Compare schedules in full and raise on every rank."""
    lines = (str(number), schedule.operation, schedule.place, *schedule.entries)
    mine = "\n".join(lines).encode()
    everybodys = [text.decode().split("\n") for text in transport.all_gather_bytes(mine)]
    # Ranks without data say nothing about what is exchanged.
    active = {r: lines for r, lines in enumerate(everybodys) if lines[1] != _JOINED}
    operations = {r: lines[1] for r, lines in active.items()}
    if len(set(operations.values())) > 1:
        raise CommunicatorError(
            f"[{schedule.operation}] ranks call different collectives: {by_rank(operations)}; all "
            "ranks must call the same ones in the same order"
        )
    numbers = {r: lines[0] for r, lines in enumerate(everybodys)}
    if len(set(numbers.values())) > 1:
        raise CommunicatorError(
            f"[{schedule.operation}] ranks have made different numbers of collectives before this "
            f"one: {by_rank(numbers)}; one of them left some out"
        )
    entries = {r: lines[3:] for r, lines in active.items()}
    for i in range(max(map(len, entries.values()))):
        at = {r: found[i] if i < len(found) else "nothing" for r, found in entries.items()}
        if len(set(at.values())) > 1:
            lengths = ", ".join(str(len(found)) for found in entries.values())
            noun = schedule.noun
            raise CommunicatorError(
                f"[{schedule.operation}] ranks disagree in {noun} {i}: {by_rank(at)} (the lists "
                f"have {lengths} {noun}s); pass the same {noun}s, in the same order, on all ranks"
            )
    places = {r: lines[2] for r, lines in active.items()}
    if len(set(places.values())) > 1:
        raise CommunicatorError(
            f"[{schedule.operation}] the arrays lie on {by_rank(places)}; make them on the same "
            "kind of device on all ranks: nn.set_default_context before anything else"
        )
    raise CommunicatorError(
        f"[{schedule.operation}] the ranks' arrays lie in memory in different orders; create the "
        "parameters in the same order on all ranks"
    )


def by_rank(texts: Mapping[int, str]) -> str:
    """ "a on rank 0, 2; b on rank 1"."""
    ranks: dict[str, list[str]] = {}
    for rank, text in texts.items():
        ranks.setdefault(text, []).append(str(rank))
    return "; ".join(f"{text} on rank {', '.join(found)}" for text, found in ranks.items())

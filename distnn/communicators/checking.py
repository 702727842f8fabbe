"""DISTNN_CHECK: how much ranks compare; all of them must have the same setting.

Unset: a header opens every collective. 1: graphs are compared too. 0: headers go that only compare;
those stay that tell something, as which gradients are missing.
"""

from __future__ import annotations

import os

from ..errors import ArgumentError, CommunicatorError
from .header import by_rank
from .transport import Transport

CHECK_VARIABLE = "DISTNN_CHECK"
_MEANING = {"": None, "0": False, "1": True}


def agree_on_check(transport: Transport, check: bool | None) -> bool | None:
    """The setting of all ranks: `check` where it is given, else that of the environment.

    Raises: CommunicatorError, on all ranks, where they have different ones. Ranks without headers
        would wait for ever for, or be added to, what others send first.
    """
    text = os.environ.get(CHECK_VARIABLE, "") if check is None else str(int(check))
    texts = [found.decode() for found in transport.all_gather_bytes(text.encode())]
    if len(set(texts)) > 1:
        who = by_rank({rank: found or "not set" for rank, found in enumerate(texts)})
        raise CommunicatorError(
            f"[init] {CHECK_VARIABLE}, or check=, is {who}; give all ranks the same, for example "
            f"by mpirun -x {CHECK_VARIABLE}"
        )
    if text not in _MEANING:
        raise ArgumentError(
            f"[init] {CHECK_VARIABLE} is {text!r}; set it to 1 (also compare graphs) or 0 (leave "
            "out headers that only compare), or leave it unset"
        )
    return _MEANING[text]

"""distnn-launch: starts a program on many ranks over mpirun, and ends all of it when one fails.

    distnn-launch -n 4 train.py --batch-size 64

Standard library only. Two sides talk over TCP: the launcher (`job.py`) and, around every rank, a
supervisor (`rank.py`) that starts the user's program (`worker.py`) and knows how it ended.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run `distnn-launch` with `argv` (else the command line); its exit status is returned."""
    from .launch import launch

    return launch(argv)

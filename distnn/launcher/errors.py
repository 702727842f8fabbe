"""LaunchError: what a user of the launcher can mend; touches nothing else of distnn."""

from __future__ import annotations


class LaunchError(Exception):
    """The job cannot be started as asked; the message says why and what mends it."""

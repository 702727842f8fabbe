"""The logger that monitors write to: standard logging's "distnn", shown on stderr from INFO on.

Importing this module attaches a handler, unless the program has set one.

>>> from distnn.logger import logger
>>> logger.name
'distnn'
"""

from __future__ import annotations

import logging

logger = logging.getLogger("distnn")


class _RankFormatter(logging.Formatter):
    """Lines begin with the rank where there are several."""

    def format(self, record: logging.LogRecord) -> str:
        from .errors import rank_prefix

        return rank_prefix() + super().format(record)


if not logger.handlers and not logging.getLogger().handlers:
    _handler = logging.StreamHandler()
    _handler.setFormatter(_RankFormatter("%(asctime)s [%(levelname)s]: %(message)s"))
    logger.addHandler(_handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)

"""Starts the supervisor of a rank without importing distnn: `python start.py OPTIONS script args`.

`python -m distnn.launcher.rank` does the same, but loads distnn's __init__ and NumPy first, once
more for each rank, to no use.
"""

from __future__ import annotations

import os
import sys
import types

_folder = os.path.dirname(os.path.realpath(__file__))
if sys.path and os.path.realpath(sys.path[0]) == _folder:
    del sys.path[0]
_package = types.ModuleType("distnn")
_package.__path__ = [os.path.dirname(_folder)]
sys.modules["distnn"] = _package

from distnn.launcher.rank import main  # noqa: E402  # after the package it is in

sys.exit(main())

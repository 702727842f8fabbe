"""`python -m distnn.launcher` is `distnn-launch`."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())

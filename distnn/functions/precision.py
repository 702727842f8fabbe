"""In what half precision is computed where rounding every operation would cost too much."""

from __future__ import annotations

import numpy as np


def wide(dtype: np.dtype) -> np.dtype:
    """float32 for half precision, else the dtype itself."""
    return np.promote_types(dtype, np.float32)

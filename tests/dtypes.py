"""Types of arrays by their names."""

from typing import Any

import ml_dtypes
import numpy as np


def dtype_of(name: str) -> np.dtype[Any]:
    """The type with this name; NumPy itself does not know bfloat16."""
    return np.dtype(getattr(ml_dtypes, name, name))

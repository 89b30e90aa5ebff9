"""Labels of pandas in products, which are those of ``x @ w``: pandas would align all operands as if they were added."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["check", "labelled"]


def check(base: str, operands: Mapping[str, Any]) -> None:
    """Refuse labels that differ from those that they meet, as ``x @ w`` does; what has no labels may meet any."""
    w = operands["w"]
    if not _is(w, "DataFrame"):
        return
    for name, axis, theirs in (("x", "rows", w.index), ("b", "columns", w.columns)):
        labels = _last_labels(operands[name])
        if labels is not None and not labels.equals(theirs):
            allowed = f"the labels of the {axis} of w in their order"
            raise ValueError(f"{base}: {name} must have {allowed}: try {name}[w.{'index' if name == 'x' else 'columns'}]")


def labelled(x: Any, w: Any, y: Any) -> Any:
    """A product with the labels that pandas gives ``x @ w``."""
    rows, columns = (x.index if _is(x, "DataFrame") else None), (w.columns if _is(w, "DataFrame") else None)
    if type(y) is not np.ndarray or (rows is None and columns is None):
        return y
    pandas = sys.modules["pandas"]
    if y.ndim == 2:
        return pandas.DataFrame(y, rows, columns, copy=False)
    return pandas.Series(y, columns, name=getattr(x, "name", None), copy=False) if y.ndim == 1 else y


def _is(value: Any, name: str) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, name))


def _last_labels(value: Any) -> Any:
    """The labels of the last axis."""
    return value.columns if _is(value, "DataFrame") else value.index if _is(value, "Series") else None

"""What compiled code raises: built from numbers, since it has no strings."""

from __future__ import annotations

from typing import Any

import numpy as np

NO_KERNEL = "fastrelu: the kernel could not be made; the reason was printed before"
NO_MEMORY = "fastrelu: no memory"


def _stand_in(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of a shape that takes no memory."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


class ShapeError(ValueError):
    """Shapes that do not fit, with the sentence that the same call from Python raises.

    Parameters
    ----------
    call : str
        The call, with ``{}`` where the arrays stand.
    axes : str
        Their numbers of axes, one digit pair each, and ``u`` before that of an array of uint8.
    *lengths : int
        The lengths of all these axes.
    """

    def __init__(self, call: str, axes: str, *lengths: int):
        import fastrelu

        arrays: dict[str, np.ndarray] = {}
        rest = list(lengths)
        for i, word in enumerate(axes.split()):
            count = int(word.lstrip("u"))
            shape, rest = tuple(rest[:count]), rest[count:]
            arrays[f"a{i}"] = _stand_in(shape, np.uint8 if word.startswith("u") else np.float64)
        try:
            eval(call.format(*arrays), {"fastrelu": fastrelu, **arrays})
        except ValueError as error:
            super().__init__(str(error))
        else:
            super().__init__(f"{call.format(*(a.shape for a in arrays.values()))}: shapes do not fit")
        self._given = call, axes, *lengths

    def __reduce__(self) -> Any:
        return ShapeError, self._given

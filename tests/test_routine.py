"""What Python hands to kernels."""

import numpy as np
import pytest

from fastrelu.native.routine import address


class Subclass(np.ndarray):
    """An array of a type of its own."""


@pytest.mark.parametrize(
    "a",
    [
        np.arange(6.0),
        np.arange(6.0)[2:],
        np.arange(6.0)[::-2],
        np.arange(12.0).reshape(3, 4).T[1:],
        np.empty((3, 0)),
        np.array(2.0),
        np.broadcast_to(np.arange(3), (4, 3)),
        np.frombuffer(bytes(9), "f4", 2, 1),
        np.arange(6).view(Subclass)[1:],
    ],
    ids=["whole", "from_an_element_on", "backwards", "transposed", "empty", "0d", "broadcast", "unaligned", "subclass"],
)
def test_address_is_what_numpy_says(a):
    assert address(a) == a.ctypes.data

"""The emulator itself: what each instruction gives, and that what is wrong is found."""

import numpy as np

from fastrelu.cuda.launch import Kernel
from fastrelu.cuda.toolkit import cuda, types


def test_kernel_by_the_way_of_the_package(device):
    pointer = types.CPointer(types.float32)

    def double(x, y, n):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            y[i] = x[i] + x[i]

    x = device.array(np.arange(1003, dtype=np.float32), writable=False)
    y = device.empty((1003,), np.float32)
    Kernel(double, (pointer, pointer, types.int64), 256).launch(0, 0, (3, 1, 1), x.host.ctypes.data, y.host.ctypes.data, 1003)
    np.testing.assert_array_equal(y.host, 2 * x.host)
    assert device.launches[-1].instructions["add.f32"] == 1003

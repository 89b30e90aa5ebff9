"""Plain NumPy in place of the convolution, which is not there yet, for the tests of `fastrelu.nn`. To be removed."""

import numpy as np

import fastrelu


def windows(x, w, stride, padding, dilation):
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    x = np.pad(x, [(0, 0), (0, 0), (ph, ph), (pw, pw)])
    kh, kw = w.shape[2:]
    view = np.lib.stride_tricks.sliding_window_view(x, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), (2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]


def conv2d(x, w, b=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, *, out=None):
    y = np.einsum("nchwkl,ockl->nohw", windows(x, w, stride, padding, dilation), w)
    y = y if b is None else y + b[:, None, None]
    if out is not None:
        out[...] = y
    return y if out is None else out


def conv2d_relu(*arguments, out=None):
    return fastrelu.relu(conv2d(*arguments), out=out)


def conv2d_backward(dy, x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, *, wanted=("dx", "dw", "db"), out=None):
    dw = np.einsum("nchwkl,nohw->ockl", windows(x, w, stride, padding, dilation), dy)
    dx = np.zeros_like(x)
    if "dx" in wanted:
        ph, pw = padding
        padded = np.zeros((*x.shape[:2], x.shape[2] + 2 * ph, x.shape[3] + 2 * pw), x.dtype)
        for k in range(w.shape[2]):
            for m in range(w.shape[3]):
                h, v = k * dilation[0], m * dilation[1]
                place = padded[:, :, h : h + stride[0] * dy.shape[2] : stride[0], v : v + stride[1] * dy.shape[3] : stride[1]]
                place += np.einsum("nohw,oc->nchw", dy, w[:, :, k, m])
        dx = padded[:, :, ph : ph + x.shape[2], pw : pw + x.shape[3]]
    gradients = {"dx": dx, "dw": dw, "db": dy.sum((0, 2, 3))}
    results = tuple(gradients[name] for name in wanted)
    for result, place in zip(results, out or (None,) * len(results), strict=True):
        if place is not None:
            place[...] = result
    return results


def conv2d_relu_backward(dy, y, *arguments, **keywords):
    return conv2d_backward(fastrelu.relu_backward(dy, y), *arguments, **keywords)


for function in (conv2d, conv2d_relu, conv2d_backward, conv2d_relu_backward):
    if not hasattr(fastrelu, function.__name__):
        setattr(fastrelu, function.__name__, function)

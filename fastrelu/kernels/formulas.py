"""Every activation, every derivative and every step of an optimizer, once, for one value.

`x` is an input, `y` an output, `dy` the gradient that arrives; a parameter such as `alpha` comes last. A formula sees
vectors (`fastrelu.kernels.vector`) of any number of lanes and is inlined in each kernel that uses it.

A NaN counts as positive: `relu` returns it, and the gradient passes where it stands, so that it is never hidden.
"""

from numba.extending import register_jitable

from fastrelu.kernels.functions import exp, expm1, log1p, ratio
from fastrelu.kernels.vector import (
    absolute,
    copysign,
    fma,
    is_minus,
    is_negative,
    is_positive,
    is_zero,
    like,
    negated,
    sqrt,
    where,
)


@register_jitable
def relu(x):
    return where(is_minus(x), 0, x)


@register_jitable
def relu_derivative(x, at_zero):
    return where(is_zero(x), at_zero, where(is_minus(x), 0, like(x, 1)))


@register_jitable
def relu_backward(dy, y):
    return where(is_minus(y) | is_zero(y), 0, dy)


@register_jitable
def relu_mask(y):
    """Where the gradient passes: y > 0 or y is NaN."""
    return negated(is_minus(y) | is_zero(y))


@register_jitable
def leaky_relu(x, alpha):
    return where(is_negative(x), alpha * x, x)


@register_jitable
def leaky_relu_backward(dy, y, alpha):
    return where(is_minus(y) | is_zero(y), alpha * dy, dy)


@register_jitable
def prelu_alpha_gradient(dy, x):
    # x <= 0 contributes; a NaN does too, so that it shows in the sum.
    return where(is_positive(x), 0, dy * x)


@register_jitable
def elu(x, alpha):
    return where(is_negative(x), alpha * expm1(x)[0], x)


@register_jitable
def elu_backward(dy, y, alpha):
    # alpha * exp(x) = y + alpha
    return where(is_minus(y) | is_zero(y), dy * (y + alpha), dy)


@register_jitable
def sigmoid(x):
    # With e = exp(-|x|) nothing overflows, and small results keep all their digits.
    e = exp(-absolute(x))
    return ratio(where(is_minus(x), e, 1), like(x, 1), e, like(x, 0))


@register_jitable
def sigmoid_backward(dy, y):
    return dy * (y * (1 - y))


@register_jitable
def tanh(x):
    # (1 - e**-2|x|) / (1 + e**-2|x|), written with expm1 to be accurate near 0
    e, lost = expm1(-2 * absolute(x))
    return copysign(ratio(e, like(x, 2), e, lost), x)


@register_jitable
def tanh_backward(dy, y):
    return dy * fma(-y, y, 1)


@register_jitable
def softplus(x):
    # log(1 + e**x) = max(x, 0) + log(1 + e**-|x|)
    return relu(x) + log1p(exp(-absolute(x)))


@register_jitable
def softplus_backward(dy, y):
    # 1 - e**-y is the sigmoid of the input.
    return dy * -expm1(-y)[0]


@register_jitable
def _decayed(p, g, decay):
    # Without decay an infinite parameter is left alone: 0 times it would be NaN.
    return where(is_zero(decay), g, g + decay * p)


@register_jitable
def sgd(p, g, decay, rate):
    return (p - rate * _decayed(p, g, decay),)


@register_jitable
def sgd_momentum(p, g, velocity, decay, rate, momentum):
    velocity = momentum * velocity + _decayed(p, g, decay)
    return p - rate * velocity, velocity


@register_jitable
def adam(p, g, mean, square, decay, rate, beta1, rest1, beta2, rest2, root, eps):
    # rest is 1 - beta; rate and root have the corrections for the start: rate / (1 - beta1**t) and sqrt(1 - beta2**t)
    g = _decayed(p, g, decay)
    mean = beta1 * mean + rest1 * g
    square = beta2 * square + rest2 * (g * g)
    return p - rate * mean / (sqrt(square) / root + eps), mean, square

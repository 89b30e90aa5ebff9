"""exp, expm1, log1p and log on vectors of float32 and float64, on the ranges that the activations need.

Numba has had no vector mathematics library since 0.62, and a scalar `math.exp` in a loop is 10 to 90 times slower.
Each function here is a range reduction and a short polynomial; the coefficients minimise the largest relative error
(weighted least squares with Lawson's weights, in 60 digits) after those before them were rounded to the element type.
Only fused multiply-adds, additions, products and divisions occur, so the bits are the same on every host.
"""

from dataclasses import dataclass

from numba.extending import overload, register_jitable

from fastrelu.kernels.lanes import exponent_and_mantissa
from fastrelu.kernels.vector import Vector, fma, like, maximum, polynomial, power_of_two, where


@dataclass(frozen=True)
class _Constants:
    """The numbers of one element type."""

    log2_e: float
    ln2: float  # rounded to the element type
    ln2_low: float  # ln 2 - ln2, so that the sum has twice the digits
    # Adding `round_shift` leaves the nearest integer n, plus the exponent bias, in the low bits of the sum.
    round_shift: float
    # A power of two by which exp lifts its result, and takes it back at the end: only that last step can be subnormal.
    lift: int
    exp_lowest: float  # exp is 0 from here down
    expm1_lowest: float  # expm1 rounds to -1 from here down
    expm1_tail: tuple  # (e**r - 1 - r) / r**2 for |r| <= ln(2) / 2
    atanh_tail: tuple  # (atanh(s) / s - 1) / z with z = s**2 <= 0.04


_CONSTANTS = {
    "float32": _Constants(
        log2_e=1.4426950216293335,
        ln2=0.6931471824645996,
        ln2_low=-1.9046542121259336e-09,
        round_shift=1.5 * 2**23 + 127,
        lift=64,
        exp_lowest=-104.0,
        expm1_lowest=-18.0,
        # relative error of expm1: 1.5e-8
        expm1_tail=(0.5, 0.1666654497385025, 0.04166645184159279, 0.008366400375962257, 0.001393620972521603),
        # relative error of atanh: 3.0e-9
        atanh_tail=(0.33333471417427063, 0.1997901052236557, 0.15179714560508728),
    ),
    "float64": _Constants(
        log2_e=1.4426950408889634,
        ln2=0.6931471805599453,
        ln2_low=2.3190468138462996e-17,
        round_shift=1.5 * 2**52 + 1023,
        lift=512,
        exp_lowest=-746.0,
        expm1_lowest=-38.0,
        # relative error of expm1: 2.1e-17
        expm1_tail=(
            0.5000000000000004,
            0.16666666666666682,
            0.04166666666658306,
            0.00833333333331685,
            0.0013888888929950187,
            0.00019841269898263016,
            2.4801506880048797e-05,
            2.7557232104937557e-06,
            2.7625491294934556e-07,
            2.5113190880549477e-08,
        ),
        # relative error of atanh: 1.6e-19
        atanh_tail=(
            0.3333333333333331,
            0.20000000000022808,
            0.14285714278911973,
            0.11111112059580132,
            0.09090837250238198,
            0.07695438904830403,
            0.06588464175407852,
            0.06911863006452217,
        ),
    ),
}


def exp(x):
    """e**x for x <= 0, subnormal results included. Stands for compiled code only."""
    raise NotImplementedError


def expm1(x):
    """e**x - 1 for x <= 0, accurate near 0, and what its rounding lost. Stands for compiled code only."""
    raise NotImplementedError


def log1p(x):
    """log(1 + x) for 0 <= x <= 1, accurate near 0. Stands for compiled code only."""
    raise NotImplementedError


def log(x):
    """The logarithm of a finite float64 x >= 1, or NaN. Stands for compiled code only."""
    raise NotImplementedError


@register_jitable
def ratio(x, a, b, rest):
    """(x + rest) / (a + b) for |a| >= |b| and |rest| << |x|, rounded nearly once: the errors of sum and quotient are made good.

    The error of the sum is that of Dekker's Fast2Sum (1971, doi:10.1007/BF01397083).
    """
    total = a + b
    lost = b - (total - a)
    inverse = 1.0 / total
    quotient = x * inverse
    residue = fma(-quotient, lost, fma(-quotient, total, x) + rest)
    return fma(residue, inverse, quotient)


@overload(exp)
def _exp(x):
    if not isinstance(x, Vector):
        return None
    c = _CONSTANTS[x.element.name]
    tail = polynomial(c.expm1_tail)
    log2_e, ln2, ln2_low, lowest = c.log2_e, c.ln2, c.ln2_low, c.exp_lowest
    shift, back = c.round_shift + c.lift, 2.0**-c.lift

    def implementation(x):
        x = maximum(lowest, x)
        shifted = fma(x, log2_e, shift)
        n = shifted - shift
        r = fma(n, -ln2_low, fma(n, -ln2, x))
        power = 1.0 + fma(r * r, tail(r), r)
        return power * power_of_two(shifted) * back

    return implementation


@overload(expm1)
def _expm1(x):
    if not isinstance(x, Vector):
        return None
    c = _CONSTANTS[x.element.name]
    tail = polynomial(c.expm1_tail)
    log2_e, ln2, lowest, shift = c.log2_e, c.ln2, c.expm1_lowest, c.round_shift

    def implementation(x):
        x = maximum(lowest, x)
        shifted = fma(x, log2_e, shift)
        # One step of reduction is enough: its error is |n| * ln2_low, and 2**n scales it down.
        r = fma(shifted - shift, -ln2, x)
        power = power_of_two(shifted)
        small, large = fma(r * r, tail(r), r), power - 1.0
        total = fma(power, small, large)
        return total, fma(power, small, large - total)

    return implementation


@overload(log1p)
def _log1p(x):
    if not isinstance(x, Vector):
        return None
    c = _CONSTANTS[x.element.name]
    tail = polynomial(c.atanh_tail)
    ln2, ln2_low = c.ln2, c.ln2_low

    def implementation(x):
        # log(1 + x) = 2 atanh(x / (2 + x)), and beyond 1/2 the same of (1 + x) / 2 plus ln 2: then |s| <= 1/5.
        upper = x > 0.5
        s = ratio(where(upper, x - 1.0, x), where(upper, like(x, 3.0), like(x, 2.0)), x, like(x, 0.0))
        twice = s + s
        z = s * s
        rest = fma(twice * z, tail(z), where(upper, ln2_low, like(x, 0.0)))
        return where(upper, ln2, like(x, 0.0)) + (twice + rest)

    return implementation


@overload(log)
def _log(x):
    if not isinstance(x, Vector) or x.element.name != "float64":
        return None
    c = _CONSTANTS["float64"]
    ln2, ln2_low = c.ln2, c.ln2_low

    def implementation(x):
        n, fraction = exponent_and_mantissa(x)
        # A NaN would look like a number to what takes its bits apart.
        return fma(n, ln2, fma(n, ln2_low, log1p(fraction - 1.0))) + (x - x)

    return implementation

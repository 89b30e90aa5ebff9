"""A network of two ReLUs that turns a dosage into an effectiveness, step by step; a curve with a point comes out.

One branch is dosage * 1.70 - 0.85, ReLU, * -40.8. The other one ends with * 2.7; its first weight and bias are not given in the
text that the network is from, and are fitted here: by gradient descent from many starts at once, with everything else fixed, to
dosages that do nothing (low), work (medium) and do nothing (high). The sum of both branches minus 16 goes through a last ReLU.

    python -m fastrelu.examples.dosage [--seed 0] [--plot dosage.png]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastrelu
from fastrelu.examples import plots, terminal

WEIGHT, BIAS, SCALE = 1.70, -0.85, -40.8
"""The first branch."""
OTHER_SCALE = 2.7
"""The second branch, as far as it is given."""
SHIFT = -16.0
"""What is added to the sum of both."""

DOSAGES = {"low": (0.0, 0.1, 0.2, 0.3, 0.4), "medium": (0.49, 0.5, 0.51), "high": (0.6, 0.7, 0.8, 0.9, 1.0)}
EFFECTS = {"low": 0.0, "medium": 1.0, "high": 0.0}
STARTS, STEPS, RATE, MOMENTUM = 512, 10_000, 0.15, 0.98


@dataclass(frozen=True)
class Fit:
    """What gradient descent has found.

    Attributes
    ----------
    weight, bias : float
        Of the second branch.
    error : float
        The mean square of the differences from the data.
    start : (float, float)
        The weight and bias from which they were reached.
    arrived : int
        How many of the starts ended at an error that is no more than 1 % larger.
    """

    weight: float
    bias: float
    error: float
    start: tuple[float, float]
    arrived: int


@dataclass(frozen=True)
class Steps:
    """Everything that the network calculates on the way: one array of the shape of `dosage` for each step."""

    dosage: np.ndarray
    first: np.ndarray
    first_relu: np.ndarray
    first_scaled: np.ndarray
    second: np.ndarray
    second_relu: np.ndarray
    second_scaled: np.ndarray
    total: np.ndarray
    shifted: np.ndarray
    effect: np.ndarray


def data() -> tuple[np.ndarray, np.ndarray]:
    """Dosages and their effects."""
    pairs = [(dosage, EFFECTS[name]) for name, dosages in DOSAGES.items() for dosage in dosages]
    x, y = np.array(pairs).T
    return x, y


def steps(dosage: np.ndarray, weight: float, bias: float) -> Steps:
    """Take the dosages of shape (n,) through the network."""
    first = dosage * WEIGHT + BIAS
    first_relu = fastrelu.relu(first)
    first_scaled = first_relu * SCALE
    second = dosage * weight + bias
    second_relu = fastrelu.relu(second)
    second_scaled = second_relu * OTHER_SCALE
    total = first_scaled + second_scaled
    shifted = total + SHIFT
    effect = fastrelu.relu(shifted)
    return Steps(dosage, first, first_relu, first_scaled, second, second_relu, second_scaled, total, shifted, effect)


def fit(seed: int) -> Fit:
    """Fit the weight and bias of the second branch.

    A start at which no medium dosage comes through both ReLUs has no gradient to follow, and where a high one does, both
    may be switched off for good. Hence many starts: each is a column of one layer, so that a step moves all of them.
    """
    rng = np.random.default_rng(seed)
    x, wanted = data()
    x, wanted = x[:, None], wanted[:, None]
    given = fastrelu.relu(x * WEIGHT + BIAS) * SCALE + SHIFT
    w, b = rng.uniform(0, 30, (1, STARTS)), rng.uniform(-10, 10, STARTS)
    starts = w[0].copy(), b.copy()
    # The dosages that matter lie close together, so that the slope is hardly felt: momentum saves most of the steps.
    w_speed, b_speed = np.zeros_like(w), np.zeros_like(b)
    for _ in range(STEPS):
        h = fastrelu.linear_relu(x, w, b)
        y = fastrelu.relu(h * OTHER_SCALE + given)
        dy = (y - wanted) * (2 / len(x))
        dh = fastrelu.relu_backward(dy, y) * OTHER_SCALE
        _, dw, db = fastrelu.linear_relu_backward(dh, h, x, None, wanted=("dw", "db"))
        w_speed = MOMENTUM * w_speed + dw
        b_speed = MOMENTUM * b_speed + db
        w -= RATE * w_speed
        b -= RATE * b_speed
    y = fastrelu.relu(fastrelu.linear_relu(x, w, b) * OTHER_SCALE + given)
    errors = np.mean((y - wanted) ** 2, axis=0)
    best = int(errors.argmin())
    start = float(starts[0][best]), float(starts[1][best])
    return Fit(float(w[0, best]), float(b[best]), float(errors[best]), start, int((errors <= 1.01 * errors[best]).sum()))


def sharp_softplus(z: np.ndarray, sharpness: float) -> np.ndarray:
    """Softplus with a bend that is so many times as sharp: ReLU in the limit."""
    return np.asarray(fastrelu.softplus(z * sharpness)) / sharpness


def smooth_effect(dosage: np.ndarray, found: Fit, sharpness: float) -> np.ndarray:
    """The whole network with softplus in the place of each ReLU."""
    first = sharp_softplus(dosage * WEIGHT + BIAS, sharpness) * SCALE
    second = sharp_softplus(dosage * found.weight + found.bias, sharpness) * OTHER_SCALE
    return sharp_softplus(first + second + SHIFT, sharpness)


def draw(found: Fit, path: Path) -> None:
    """Save the picture: a panel for each step."""
    x = np.linspace(0, 1, 2001)
    s = steps(x, found.weight, found.bias)
    places, effects = data()
    sign = "+" if found.bias >= 0 else "-"
    panels = (
        (f"1. dosage $\\times$ {WEIGHT:.2f} - {-BIAS:.2f}, ReLU", s.first, s.first_relu, plots.BLUE),
        (f"2. $\\times$ ({SCALE:g})", None, s.first_scaled, plots.BLUE),
        (
            f"3. dosage $\\times$ {found.weight:.2f} {sign} {abs(found.bias):.2f}, ReLU",
            s.second,
            s.second_relu,
            plots.VERMILION,
        ),
        (f"4. $\\times$ {OTHER_SCALE:g}", None, s.second_scaled, plots.VERMILION),
        ("5. sum of both branches", None, s.total, plots.GREEN),
        (f"6. minus {-SHIFT:g}", None, s.shifted, plots.GREEN),
    )
    title = "From dosage to effectiveness: two bent lines make a curve with a point"
    with plots.picture(path, title, 3, 3, (14, 11)) as axes:
        for panel, (name, before, after, colour) in zip(axes.flat, panels, strict=False):
            if before is not None:
                panel.plot(x, before, "--", color=plots.GREY, linewidth=1.5, label="before ReLU")
            panel.plot(x, after, color=colour, label="after ReLU" if before is not None else None)
            panel.axhline(0, color=plots.GREY, linewidth=0.8)
            panel.set(title=name, xlabel="dosage")
            if before is not None:
                panel.legend(loc="upper left")
        axes[1, 1].plot(x, s.first_scaled, "--", color=plots.BLUE, linewidth=1.3, label="step 2")
        axes[1, 1].plot(x, s.second_scaled, "--", color=plots.VERMILION, linewidth=1.3, label="step 4")
        axes[1, 1].legend(loc="lower left")
        last, near, smooth = axes[2]
        for panel in (last, near):
            panel.plot(x, s.effect, color=plots.PURPLE, zorder=2)
            panel.plot(places, effects, "o", color="black", markersize=7, zorder=3, label="data")
        last.set(title="7. ReLU: the effectiveness", xlabel="dosage", ylabel="effectiveness")
        for name, dosages in DOSAGES.items():
            last.text(np.mean(dosages), 1.42 if name == "medium" else 0.12, name, ha="center", fontsize=12)
        last.set_ylim(-0.05, 1.6)
        last.legend(loc="upper right")
        near.set(title="The same, near dosage 0.5", xlabel="dosage", xlim=(0.43, 0.57), ylim=(-0.05, 1.6))
        near.annotate("first ReLU\nswitches on", (0.5, s.effect.max()), (0.522, 1.3), arrowprops={"arrowstyle": "->"})
        near.annotate("last ReLU\nswitches on", (x[s.effect > 0][0], 0), (0.435, 0.3), arrowprops={"arrowstyle": "->"})
        smooth.plot(x, s.effect, color=plots.PURPLE, label="ReLU")
        for sharpness, line, colour in ((400, "--", plots.GREEN), (100, "-.", plots.ORANGE), (50, ":", plots.BLUE)):
            smooth.plot(
                x, smooth_effect(x, found, sharpness), line, color=colour, label=f"softplus, {sharpness} times as sharp"
            )
        smooth.set(title="Softplus beside ReLU", xlabel="dosage", xlim=(0.43, 0.57), ylim=(-0.05, 2.1))
        smooth.legend(loc="upper left")


def main(arguments: Sequence[str] | None = None) -> Fit:
    """Run the command; returns the fit."""
    parser = terminal.parser("dosage", "A small network with ReLU from dosage to effectiveness, step by step.")
    options = terminal.parse(parser, arguments)
    found = fit(options.seed)
    print(f"second branch: weight {found.weight:.4f}, bias {found.bias:.4f}, mean squared error {found.error:.4f}")
    print(f"from weight {found.start[0]:.2f}, bias {found.start[1]:.2f}; {found.arrived} of {STARTS} starts end there")
    chosen = steps(np.array([0.0, 0.25, 0.5, 0.515, 0.75, 1.0]), found.weight, found.bias)
    rows = [[name.replace("_", " "), *map(float, values)] for name, values in vars(chosen).items() if name != "dosage"]
    terminal.print_table("step by step", ["dosage", *(f"{dosage:g}" for dosage in chosen.dosage)], rows)
    if options.plot:
        draw(found, options.plot)
    return found


if __name__ == "__main__":
    main()

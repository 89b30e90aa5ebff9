"""One neuron, step by step: the weighted sum of two inputs, the bias, ReLU.

    python -m fastrelu.examples.neuron [--inputs 1.2 -0.9] [--weights 0.5 -1.1] [--bias 0.1] [--plot neuron.png]

The course's text has these numbers, and 1.49 for the result. They give 0.6 + 0.99 + 0.1 = 1.69; the bias -0.1 gives 1.49.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastrelu
from fastrelu.examples import plots, terminal

INPUTS, WEIGHTS, BIAS = (1.2, -0.9), (0.5, -1.1), 0.1


@dataclass(frozen=True)
class Neuron:
    """A neuron with what goes in and comes out.

    Attributes
    ----------
    inputs, weights : ndarray of shape (n,)
        One of each for each line that comes in.
    bias : float
        What is added.
    before, output : float
        What it is before and after ReLU.
    """

    inputs: np.ndarray
    weights: np.ndarray
    bias: float
    before: float
    output: float


def fire(inputs: Sequence[float], weights: Sequence[float], bias: float) -> Neuron:
    """Calculate the output of a neuron."""
    x, w, b = np.array(inputs), np.array(weights), np.array([bias])
    before = fastrelu.linear(x, w[:, None], b)[0]
    output = fastrelu.linear_relu(x, w[:, None], b)[0]  # both steps in one
    return Neuron(x, w, bias, float(before), float(output))


def report(neuron: Neuron) -> None:
    """Print the calculation."""
    products = neuron.inputs * neuron.weights
    for x, w, product in zip(neuron.inputs, neuron.weights, products, strict=True):
        print(f"input {x:5.2f}  times weight {w:5.2f}  = {product:6.3f}")
    print(f"weighted sum                   = {products.sum():6.3f}")
    print(f"plus the bias {neuron.bias:5.2f}            = {neuron.before:6.3f}")
    print(f"ReLU: max(0, {neuron.before:.3f})".ljust(31) + f"= {neuron.output:6.3f}")


def draw(neuron: Neuron, path: Path) -> None:
    """Save the picture: the neuron on the left, its point on ReLU on the right."""
    with plots.picture(path, "One neuron", 1, 2, (12, 4.6)) as axes:
        diagram, curve = axes[0]
        diagram.set(xlim=(-0.15, 3.75), ylim=(-1.35, 1.35), aspect="equal", title="Weighted sum, bias, ReLU")
        diagram.axis("off")
        heights = np.linspace(0.85, -0.85, len(neuron.inputs))
        sizes = {"s": 2600, "zorder": 3, "edgecolors": "black", "linewidths": 1.2}
        arrow = {"arrowstyle": "-|>", "linewidth": 1.6, "shrinkA": 26, "shrinkB": 27, "color": "black"}
        middle = {"ha": "center", "va": "center", "zorder": 4}
        for x, w, height in zip(neuron.inputs, neuron.weights, heights, strict=True):
            diagram.annotate("", (1.5, 0), (0.15, height), arrowprops=arrow)
            diagram.scatter(0.15, height, color="white", **sizes)
            diagram.text(0.15, height, f"{x:g}", fontsize=13, **middle)
            diagram.text(0.82, height / 2 + 0.24 * np.sign(height or 1), f"$\\times$ {w:g}", color=plots.VERMILION, **middle)
        diagram.annotate("", (2.65, 0), (1.5, 0), arrowprops=arrow)
        diagram.annotate("", (3.7, 0), (2.65, 0), arrowprops={**arrow, "shrinkB": 0})
        diagram.scatter([1.5, 2.65], [0, 0], color=["#dcecf7", "#fbe6cf"], **sizes)
        diagram.text(1.5, 0, f"sum\n{neuron.before:.2f}", **middle)
        diagram.text(2.65, 0, f"ReLU\n{neuron.output:.2f}", **middle)
        diagram.annotate("", (1.5, 0), (1.5, -0.9), arrowprops={**arrow, "shrinkA": 10})
        diagram.text(1.5, -0.98, f"bias {neuron.bias:+g}", color=plots.VERMILION, **middle)
        diagram.text(3.5, 0.18, f"{neuron.output:.2f}", fontsize=13, fontweight="bold", **middle)

        reach = max(2.0, 1.3 * abs(neuron.before))
        z = np.array([-reach, 0.0, reach])
        curve.plot(z, fastrelu.relu(z), color=plots.BLUE)
        curve.plot([neuron.before] * 2, [0, neuron.output], ":", color=plots.GREY)
        curve.plot([-reach, neuron.before], [neuron.output] * 2, ":", color=plots.GREY)
        curve.plot(neuron.before, neuron.output, "o", color=plots.VERMILION, markersize=10)
        curve.annotate(
            f"({neuron.before:.2f}, {neuron.output:.2f})",
            (neuron.before, neuron.output),
            (-12, 6),
            textcoords="offset points",
            ha="right",
            fontsize=12,
        )
        curve.axhline(0, color=plots.GREY, linewidth=0.8)
        curve.axvline(0, color=plots.GREY, linewidth=0.8)
        curve.set(title="Its place on ReLU", xlabel="weighted sum plus bias", ylabel="output", xlim=(-reach, reach))


def main(arguments: Sequence[str] | None = None) -> Neuron:
    """Run the command; returns the neuron."""
    parser = terminal.parser("neuron", "One neuron with ReLU, step by step.", seed=False)
    parser.add_argument("--inputs", type=float, nargs="+", default=INPUTS, help="1.2 and -0.9 by default")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="as many; 0.5 and -1.1 by default")
    parser.add_argument("--bias", type=float, default=BIAS, help="0.1 by default")
    options = terminal.parse(parser, arguments)
    if len(options.weights) != len(options.inputs):
        parser.error(f"--weights must be as many as --inputs, {len(options.inputs)}, not {len(options.weights)}")
    neuron = fire(options.inputs, options.weights, options.bias)
    report(neuron)
    if (*options.inputs, *options.weights, options.bias) == (*INPUTS, *WEIGHTS, BIAS):
        other = fire(INPUTS, WEIGHTS, -BIAS)
        print(f"The {other.output:.2f} of the course's text is the output with the bias {-BIAS:g}.")
    if options.plot:
        draw(neuron, options.plot)
    return neuron


if __name__ == "__main__":
    main()

"""ReLU and its derivative, beside sigmoid, tanh and the functions that came after it: leaky ReLU, parametric ReLU, ELU.

python -m fastrelu.examples.relu_plot [--plot relu.png]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastrelu
from fastrelu.examples import plots, terminal

SLOPE = 0.25
"""Of the parametric ReLU, as its training starts with it (He et al. 2015, doi:10.1109/ICCV.2015.123)."""


@dataclass(frozen=True)
class Curve:
    """An activation function and its derivative at the points x."""

    x: np.ndarray
    y: np.ndarray
    slope: np.ndarray


def curves(x: np.ndarray) -> dict[str, Curve]:
    """All functions at the points `x`. A derivative is the gradient that a backward function makes of ones."""
    ones = np.ones_like(x)

    def of_output(forward: Callable[[Any], Any], backward: Callable[[Any, Any], Any]) -> Curve:
        y = forward(x)
        return Curve(x, y, backward(ones, y))

    elu, elu_backward = partial(fastrelu.elu, alpha=1.0), partial(fastrelu.elu_backward, alpha=1.0)
    return {
        "ReLU": of_output(fastrelu.relu, fastrelu.relu_backward),
        "sigmoid": of_output(fastrelu.sigmoid, fastrelu.sigmoid_backward),
        "tanh": of_output(fastrelu.tanh, fastrelu.tanh_backward),
        "leaky ReLU": of_output(fastrelu.leaky_relu, fastrelu.leaky_relu_backward),
        "parametric ReLU": Curve(x, fastrelu.prelu(x, SLOPE), fastrelu.prelu_backward(ones, x, np.float64(SLOPE))[0]),
        "ELU": of_output(elu, elu_backward),
    }


def smooth_curves() -> dict[str, Curve]:
    """All functions at so many points that a plot of them is smooth."""
    return curves(np.linspace(-4, 4, 801))


FORMULAS = {
    "ReLU": "$\\max(0, x)$",
    "sigmoid": "$1 / (1 + e^{-x})$",
    "tanh": "$\\tanh x$",
    "leaky ReLU": "slope 0.01 below 0",
    "parametric ReLU": f"slope {SLOPE} (learned)",
    "ELU": "$e^x - 1$ below 0",
}
PANELS = (("ReLU",), ("sigmoid",), ("tanh",), ("leaky ReLU", "parametric ReLU", "ELU"))


def draw(found: Mapping[str, Curve], path: Path) -> None:
    """Save the picture: functions above, derivatives below."""
    styles = {"leaky ReLU": (plots.GREEN, "-"), "parametric ReLU": (plots.PURPLE, "--"), "ELU": (plots.ORANGE, "-.")}
    title = "ReLU beside sigmoid and tanh, and the variants that keep a gradient below 0"
    with plots.picture(path, title, 2, 4, (15, 7)) as axes:
        for (above, below), names in zip(axes.T, PANELS, strict=True):
            for name in names:
                curve = found[name]
                colour, line = styles.get(name, (plots.BLUE if name == "ReLU" else plots.VERMILION, "-"))
                label = f"{name.replace('parametric ', 'P')}: {FORMULAS[name]}"
                above.plot(curve.x, curve.y, line, color=colour, label=label)
                # A jump is no line.
                jump = np.insert(curve.slope, curve.x.searchsorted(0, "right"), np.nan)
                below.plot(np.insert(curve.x, curve.x.searchsorted(0, "right"), np.nan), jump, line, color=colour, label=name)
            above.set(title=names[0] if len(names) == 1 else "Variants of ReLU", xlabel="x", ylabel="f(x)")
            below.set(title="Derivative", xlabel="x", ylabel="f '(x)")
            if len(names) == 1:
                above.text(0.05, 0.9, FORMULAS[names[0]], transform=above.transAxes, fontsize=12)
            else:
                above.legend(loc="upper left", fontsize=9)
                below.legend(loc="center right", fontsize=9, handlelength=1.4)
            for panel in (above, below):
                panel.axhline(0, color=plots.GREY, linewidth=0.8)
                panel.axvline(0, color=plots.GREY, linewidth=0.8)
            above.set(xlim=(-4, 4), ylim=(-1.3, 4.1))
            below.set(xlim=(-4, 4), ylim=(-0.1, 1.25))
        kink, jump = axes[:, 0]
        kink.annotate("kink at 0", (0, 0), (0.6, -0.9), arrowprops={"arrowstyle": "->"})
        jump.plot(0, 1, "o", color=plots.BLUE, markerfacecolor="white", markersize=7, zorder=3)
        jump.plot(0, 0, "o", color=plots.BLUE, markersize=7, zorder=3)
        jump.annotate("0 at 0, by convention", (0, 0), (-3.6, 0.3), arrowprops={"arrowstyle": "->"})
        axes[1, 1].annotate(
            f"at most {found['sigmoid'].slope.max():.2f}", (0, 0.25), (0.8, 0.5), arrowprops={"arrowstyle": "->"}
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Curve]:
    """Run the command; returns the curves by their names."""
    parser = terminal.parser("relu_plot", "ReLU and its derivative beside other activation functions.", seed=False)
    options = terminal.parse(parser, arguments)
    places = [-2.0, -0.5, 0.0, 0.5, 2.0]
    few = curves(np.array(places))
    for title, part in (("f(x)", "y"), ("derivative", "slope")):
        rows = [[name, *map(float, getattr(curve, part))] for name, curve in few.items()]
        terminal.print_table(title, ["x", *map(str, places)], rows)
    found = smooth_curves()
    if options.plot:
        draw(found, options.plot)
    return found


if __name__ == "__main__":
    main()

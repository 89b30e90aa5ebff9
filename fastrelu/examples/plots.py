"""How the pictures of the examples look, and how they are saved.

Nothing here touches Matplotlib's global state or opens a window: a picture is drawn into memory and written to a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# Okabe and Ito 2008, "Color Universal Design": told apart by all kinds of colour vision.
BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
GREY = "#6b6b6b"

_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "axes.prop_cycle": "cycler('color', ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'])",
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    "figure.constrained_layout.hspace": 0.06,
    "figure.constrained_layout.wspace": 0.04,
    "savefig.dpi": 85,
    "svg.fonttype": "none",
}


def check(path: Path) -> None:
    """Raise if a picture cannot be saved there: ImportError without Matplotlib, ValueError for the path."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise ImportError('a picture needs Matplotlib: pip install "fastrelu[examples]"') from None
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"the picture's name must end in .png, .svg, .pdf or another of Matplotlib's formats, not {path.name!r}"
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the picture's folder must exist: {path.absolute().parent}")


@contextmanager
def picture(path: Path, title: str, rows: int = 1, columns: int = 1, size: tuple[float, float] = (8, 4.5)) -> Iterator[Any]:
    """An array (rows, columns) of axes to draw on. The picture is saved at the end of the block.

    Parameters
    ----------
    path : Path
        Its ending says the format.
    title : str
        Above all axes.
    rows, columns : int
        Of axes.
    size : (float, float)
        Width and height in inches.
    """
    check(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title, fontsize=14, fontweight="bold")
        axes = figure.subplots(rows, columns, squeeze=False)
        yield axes
        figure.savefig(path)
    if path.suffix.lower() == ".png":
        from PIL import Image  # comes with Matplotlib

        # A plot has few colours: a third of the bytes.
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(200, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def draw_loss(axes: Any, history: Any) -> None:
    """The loss of each epoch of a `fastrelu.nn.History`."""
    _draw_curves(axes, "Loss", "loss", history.loss, history.validation_loss)
    axes.set_ylim(bottom=0)


def draw_accuracy(axes: Any, history: Any) -> None:
    """The accuracy of each epoch."""
    _draw_curves(axes, "Accuracy", "share that is right", history.accuracy, history.validation_accuracy, "lower right")
    axes.set_ylim(top=1.01)


def draw_gradient_norm(axes: Any, history: Any) -> None:
    """The norm of the gradient, the mean over each epoch."""
    _draw_curves(axes, "Gradient norm", "L2 norm, mean of the epoch", history.gradient_norm)
    axes.set_ylim(bottom=0)


def _draw_curves(
    axes: Any,
    title: str,
    label: str,
    training: Sequence[float],
    validation: Sequence[float] | None = None,
    place: str = "upper right",
) -> None:
    epochs = np.arange(1, len(training) + 1)
    marker = "." if len(training) <= 30 else ""
    axes.plot(epochs, training, marker=marker, markersize=8, color=BLUE, label="training")
    if validation is not None:
        axes.plot(epochs, validation, marker=marker, markersize=8, linestyle="--", color=VERMILION, label="validation")
        axes.legend(loc=place)
    axes.set(title=title, xlabel="epoch", ylabel=label)
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_confusion(axes: Any, matrix: np.ndarray, classes: Sequence[str], title: str = "Confusion matrix") -> None:
    """A confusion matrix: the colour is the share of the row, the number is the count."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=9)
    places = np.arange(len(classes))
    upright = max(map(len, classes)) <= 3
    axes.set_xticks(places, classes, rotation=0 if upright else 45, ha="center" if upright else "right", rotation_mode="anchor")
    axes.set_yticks(places, classes)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(title=title, xlabel="predicted", ylabel="true")

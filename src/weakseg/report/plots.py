"""The plots of a report: confusion matrix, IoU bars, background-score curve, losses.

Each function takes plain numbers, as the JSON files of a run hold them, and returns a `Plot` that can become SVG text
for an HTML page or a PNG. Figures are as narrow as a phone, on a white ground, in the colours of Okabe and Ito, which
colour-blind readers and black-and-white printers keep apart. The same numbers always give the same bytes.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0  # inches: on a phone the text is scaled down to no less than three quarters
PNG_DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GRID = "#DDDDDD"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "text.parse_math": False,  # a class may be called "US$"
    # Text stays text: browsers bring the fonts for class names in any script, and the page can be searched.
    "svg.fonttype": "none",
    # Names of clip paths would be random without it.
    "svg.hashsalt": "weakseg",
}

MAX_NUMBERED_CLASSES = 12
"""Confusion matrices of up to this many rows have a number in every cell."""

MAX_DRAWN_CLASSES = 100
"""A plot of more classes would be too large to be drawn: it shows so many of them."""

NOT_LOSSES = ("step", "epoch", "lr", "images_per_s")
"""The keys of a training log's lines that are no term of the loss."""

MAX_POINTS = 120
"""A longer loss curve is drawn as the mean and the range of so many equal pieces."""


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's settings while a figure is made or written; nobody else's figures change."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@dataclass(frozen=True)
class Plot:
    """A figure and what it shows, in words for those who cannot see it."""

    figure: Figure
    description: str

    def svg(self) -> str:
        """An `<svg>` element to put into an HTML page; its `viewBox` lets the page scale it."""
        text = self._render("svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}).decode()
        return text[text.index("<svg") :].replace(
            "<svg", f'<svg role="img" aria-label="{html.escape(self.description)}"', 1
        )

    def png(self) -> bytes:
        """The figure as a PNG with 150 dots per inch."""
        return self._render("png", dpi=PNG_DPI, metadata={"Software": None})

    def save(self, path: Path) -> None:
        """Write a file, an SVG or a PNG by its suffix."""
        if path.suffix not in (".svg", ".png"):
            raise WeaksegError(f"{path}: a plot is saved as .svg or .png.")
        write_bytes(path, self.svg().encode() if path.suffix == ".svg" else self.png())

    def _render(self, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.figure.savefig(buffer, format=kind, facecolor="white", **options)
        return buffer.getvalue()


@_style()
def confusion_matrix(matrix: npt.ArrayLike, names: Sequence[str]) -> Plot:
    """What the pixels of each class were taken for, in % of the class; of many classes, those with the most pixels.

    `matrix` holds pixel counts, true label × predicted label: (n, n) for the n `names` (background first), or
    (n + 1, n + 1) with "no class" last, as `Confusion.matrix`; that row or column is only drawn where it counts.
    """
    counts = np.asarray(matrix, np.float64)
    if counts.shape not in ((len(names),) * 2, (len(names) + 1,) * 2):
        raise WeaksegError(f"A confusion matrix of shape {counts.shape} does not fit {len(names)} class names.")
    if len(names) > MAX_DRAWN_CLASSES:
        pixels = (counts.sum(0) + counts.sum(1))[: len(names)]
        kept = np.sort(np.argsort(-pixels, kind="stable")[:MAX_DRAWN_CLASSES])
        names, kept = [names[place] for place in kept], np.append(kept, np.arange(len(names), len(counts)))
        counts = counts[np.ix_(kept, kept)]
    rows = _drawn_names(names, counts.sum(axis=1))
    columns = _drawn_names(names, counts.sum(axis=0))
    counts = counts[: len(rows), : len(columns)]
    with np.errstate(invalid="ignore"):
        percent = 100 * counts / counts.sum(axis=1, keepdims=True)
    side = max(WIDTH, 1.6 + 0.21 * len(columns))
    figure, axes = _figure(side, side)
    image = axes.imshow(percent, cmap=_blues(), vmin=0, vmax=100, interpolation="none")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=10)
    axes.set_yticks(range(len(rows)), rows, fontsize=10)
    axes.set_xlabel("predicted as")
    axes.set_ylabel("true class")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(rows) <= MAX_NUMBERED_CLASSES:
        for (y, x), value in np.ndenumerate(percent):
            if math.isfinite(value):
                colour = "white" if value > 50 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=10)
    figure.colorbar(image, ax=axes, location="top", label="pixels of the true class (%)", shrink=0.8, aspect=30)
    return _finished(figure, f"Confusion matrix of {len(rows)} classes.")


@_style()
def iou_bars(series: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> Plot:
    """IoU per class, one bar for each series.

    `series` maps what was evaluated to the IoU of each of the `names`, as fractions; None for an absent class, which
    gets no bar. Of many classes, those with the lowest IoU in the first series are drawn, absent ones last.
    """
    if not series:
        raise WeaksegError("There is no IoU to draw.")
    for title, values in series.items():
        if len(values) != len(names):
            raise WeaksegError(f'"{title}" has {len(values)} IoUs, but there are {len(names)} class names.')
    if len(names) > MAX_DRAWN_CLASSES:
        first = next(iter(series.values()))
        order = sorted(range(len(names)), key=lambda place: (first[place] is None, first[place]))
        kept = sorted(order[:MAX_DRAWN_CLASSES])
        names = [names[place] for place in kept]
        series = {title: [values[place] for place in kept] for title, values in series.items()}
    thickness = 0.8 / len(series)
    row = 0.28 if len(series) == 1 else 0.12 + 0.16 * len(series)
    figure, axes = _figure(WIDTH, 1.1 + row * len(names) + 0.25 * len(series) * (len(series) > 1))
    for k, ((title, values), colour) in enumerate(zip(series.items(), itertools.cycle(COLOURS), strict=False)):
        percent = np.array([math.nan if value is None else 100 * value for value in values])
        places = np.arange(len(names)) + (k - (len(series) - 1) / 2) * thickness
        axes.barh(places, np.nan_to_num(percent), 0.9 * thickness, color=colour, label=title)
        for place, value in zip(places, percent, strict=True):
            text = "absent" if math.isnan(value) else f"{value:.1f}"
            axes.text(np.nan_to_num(value) + 1, place, text, va="center", fontsize=10 if len(series) == 1 else 8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 109)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU (%)")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID)
    if len(series) > 1:
        figure.legend(loc="outside upper left")
    return _finished(figure, f"IoU per class: {', '.join(series)}.")


@_style()
def threshold_curve(curves: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Mean IoU over the background score, the best point of each curve marked.

    `curves` maps what was evaluated to `thresholds` and `mean_iou` of the same length (`ThresholdCurve.to_dict`).
    """
    if not curves:
        raise WeaksegError("There is no threshold curve to draw.")
    figure, axes = _figure(WIDTH, 3.6 + 0.25 * len(curves))
    bests = []
    for (title, curve), look in zip(curves.items(), _looks(), strict=False):
        thresholds, percent = np.asarray(curve["thresholds"]), 100 * np.asarray(curve["mean_iou"], np.float64)
        best = int(percent.argmax())
        bests.append(f"{title}: best {percent[best]:.1f} % at {thresholds[best]:g}")
        axes.plot(thresholds, percent, label=bests[-1], markevery=[best], markersize=9, **look)
    axes.set_xlabel("background score")
    axes.set_ylabel("mean IoU (%)")
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID)
    figure.legend(loc="outside upper left")
    return _finished(figure, f"Mean IoU over the background score. {'; '.join(bests)}.")


@_style()
def scores_over_rounds(series: Mapping[str, Mapping[int, float]]) -> Plot:
    """Mean IoU over rounds: `series` maps what was measured to round → mean IoU, as a fraction."""
    if not series:
        raise WeaksegError("There is no score of any round to draw.")
    figure, axes = _figure(WIDTH, 3.4 + 0.25 * len(series))
    for (title, scores), look in zip(series.items(), _looks(), strict=False):
        axes.plot(list(scores), [100 * score for score in scores.values()], label=title, markersize=6, **look)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("round")
    axes.set_ylabel("mean IoU (%)")
    axes.grid(color=GRID)
    figure.legend(loc="outside upper left", ncols=2)
    return _finished(figure, f"Mean IoU over rounds: {', '.join(series)}.")


@_style()
def loss_curves(records: Sequence[Mapping[str, Any]]) -> Plot:
    """The loss and its terms over the updates of the weights.

    `records` are the lines of a training log: `step`, `loss` and the terms by name (see `NOT_LOSSES` for what else may
    be there). A long log is drawn in pieces: the line is their mean, the pale band reaches from least to largest.
    """
    names = dict.fromkeys(key for record in records for key in record if key not in NOT_LOSSES)
    terms = {name: points for name in names if len(points := _values(records, name))}
    if not terms:
        raise WeaksegError("There is no loss to draw: the training log has no line with a finite one.")
    figure, axes = _figure(WIDTH, 3.4 + 0.25 * len(terms))
    for (name, points), look in zip(terms.items(), _looks(), strict=False):
        pieces = np.array_split(points, min(len(points), MAX_POINTS))
        steps, means = np.array([piece.mean(axis=0) for piece in pieces]).T
        least, largest = [piece[:, 1].min() for piece in pieces], [piece[:, 1].max() for piece in pieces]
        axes.fill_between(steps, least, largest, color=look["color"], alpha=0.25, linewidth=0)
        axes.plot(steps, means, label=name, markevery=max(1, len(steps) // 8), markersize=6, **look)
    values = np.concatenate([points[:, 1] for points in terms.values()])
    # Terms of very different size, or a loss that falls far, can only be read on a logarithmic axis.
    if values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    elif values.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.set_xlabel("update")
    axes.set_ylabel("loss")
    axes.grid(color=GRID)
    if len(terms) > 1:
        figure.legend(loc="outside upper left", ncols=2)
    return _finished(figure, f"Training loss over the updates: {', '.join(terms)}.")


def _values(records: Sequence[Mapping[str, Any]], key: str) -> npt.NDArray[np.float64]:
    """The points (N, 2) = (step, value) of a log at which `key` has a finite value."""
    points = [(record["step"], record[key]) for record in records if isinstance(record.get(key), (int, float))]
    values = np.array(points, np.float64).reshape(-1, 2)
    return values[np.isfinite(values[:, 1])]


def _finished(figure: Figure, description: str) -> Plot:
    """A plot whose layout is settled; otherwise every rendering would move things a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return Plot(figure, description)


def _drawn_names(names: Sequence[str], pixels: npt.NDArray[np.float64]) -> list[str]:
    """The names of the rows or columns to draw; the one of "no class" only where it has pixels."""
    return [*names, "no class"] if len(pixels) > len(names) and pixels[-1] else list(names)


def _looks() -> Iterator[dict[str, Any]]:
    """Colour, line and marker of one curve after the other; no two of the first 28 are alike."""
    for line, (colour, marker) in itertools.product(LINES, zip(COLOURS, MARKERS, strict=True)):
        yield {"color": colour, "linestyle": line, "marker": marker}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure (inches) that no other code can see."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _blues() -> Any:
    """White to dark blue; grey for a class without pixels."""
    import matplotlib

    return matplotlib.colormaps["Blues"].with_extremes(bad="#CCCCCC")

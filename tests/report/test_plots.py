from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from weakseg.errors import WeaksegError
from weakseg.report import plots
from weakseg.report.plots import Plot

NAMES = ["background", "cat & dog", "猫", "US$ or $"]
MATRIX = np.array([[90, 10, 0, 0, 0], [5, 10, 0, 0, 5], [0, 0, 0, 0, 0], [1, 0, 0, 3, 0], [0, 0, 0, 0, 0]])


def log(steps: int) -> list[dict[str, float]]:
    return [
        {"step": k, "epoch": k / 100, "loss": 2 + 1 / k, "edge": 1 + 1 / k, "lr": 0.1, "images_per_s": 3}
        for k in range(1, steps + 1)
    ]


DRAWINGS: dict[str, Callable[[], Plot]] = {
    "confusion matrix": lambda: plots.confusion_matrix(MATRIX, NAMES),
    "IoU bars": lambda: plots.iou_bars({"train": [0.9, 0.5, None, 0], "val": [0.8, 0.4, 0.3, 1]}, NAMES),
    "threshold curve": lambda: plots.threshold_curve(
        {"CAM": {"thresholds": [0, 0.1, 0.2], "mean_iou": [0.2, 0.4, 0.4]}}
    ),
    "loss curves": lambda: plots.loss_curves(log(400)),
    "scores over rounds": lambda: plots.scores_over_rounds({"CAM": {0: 0.4, 1: 0.5}, "DeepLab": {0: 0.3, 1: 0.2}}),
}


def texts(plot: Plot) -> list[str]:
    """All texts of the SVG; a text in several spans is put together."""
    root = ElementTree.fromstring(plot.svg())
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
class TestAnyPlot:
    def test_bytes_depend_on_the_numbers_alone(self, draw) -> None:
        one, two = draw(), draw()
        assert one.svg() == two.svg() == one.svg()
        assert one.png() == two.png()

    def test_svg_can_be_embedded_and_is_described(self, draw) -> None:
        plot = draw()
        root = ElementTree.fromstring(plot.svg())
        assert plot.svg().startswith("<svg")
        assert root.get("aria-label") == plot.description
        left, top, width, height = map(float, root.get("viewBox", "").split())
        assert (left, top) == (0, 0)
        assert 0 < width <= 72 * plots.WIDTH
        assert height > 0

    def test_axes_say_what_they_show(self, draw) -> None:
        for axes in draw().figure.axes[:1]:
            assert axes.get_xlabel()
            assert axes.get_ylabel() or axes.get_yticklabels()


def test_confusion_matrix_shows_shares_of_the_true_class() -> None:
    plot = plots.confusion_matrix(MATRIX, NAMES)
    shown = plot.figure.axes[0].images[0].get_array()
    # No pixel's true class is unknown, so that row is left out; some are predicted as no class.
    assert shown.shape == (4, 5)
    np.testing.assert_allclose(shown[0], [90, 10, 0, 0, 0])
    np.testing.assert_allclose(shown[1], [25, 50, 0, 0, 25])
    assert np.ma.getmaskarray(shown)[2].all()
    found = texts(plot)
    assert {"90", "25", "75", "no class", "predicted as", "true class"} <= set(found)
    for name in NAMES:
        assert found.count(name) == 2


def test_confusion_matrix_of_many_classes_has_no_numbers_and_grows() -> None:
    names = [f"class {k}" for k in range(40)]
    plot = plots.confusion_matrix(np.eye(40, dtype=int), names)
    assert plot.figure.get_figwidth() > plots.WIDTH
    assert not plot.figure.axes[0].texts
    assert len(plot.figure.axes[0].get_xticklabels()) == 40


def test_iou_bars_are_as_long_as_the_iou() -> None:
    plot = plots.iou_bars({"train": [0.9, 0.5, None, 0.25]}, NAMES)
    assert [bar.get_width() for bar in plot.figure.axes[0].patches] == [90, 50, 0, 25]
    assert {*NAMES, "90.0", "50.0", "absent", "25.0", "IoU (%)"} <= set(texts(plot))


def test_series_of_bars_have_a_legend_and_do_not_overlap() -> None:
    plot = plots.iou_bars({"train": [0.9] * 4, "val": [0.8] * 4, "test": [0.7] * 4}, NAMES)
    assert {"train", "val", "test"} <= set(texts(plot))
    spans = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in plot.figure.axes[0].patches)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_threshold_curve_marks_the_best_point() -> None:
    curves = {
        "CAM": {"thresholds": [0, 0.1, 0.2], "mean_iou": [0.2, 0.4, 0.4]},
        "SEAM": {"thresholds": [0, 0.1, 0.2], "mean_iou": [0.2, 0.3, 0.55]},
    }
    plot = plots.threshold_curve(curves)
    assert {"CAM: best 40.0 % at 0.1", "SEAM: best 55.0 % at 0.2", "mean IoU (%)"} <= set(texts(plot))
    assert [line.get_markevery() for line in plot.figure.axes[0].lines] == [[1], [2]]
    np.testing.assert_allclose(plot.figure.axes[0].lines[1].get_ydata(), [20, 30, 55])


def test_losses_are_drawn_and_the_rest_of_the_log_is_not() -> None:
    lines = plots.loss_curves(log(50)).figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["loss", "edge"]
    np.testing.assert_array_equal(lines[0].get_xdata(), range(1, 51))
    np.testing.assert_allclose(lines[0].get_ydata(), [2 + 1 / k for k in range(1, 51)])


def test_long_log_becomes_means_of_all_its_values() -> None:
    values = np.random.default_rng(0).random(12_000) + 1
    lines = plots.loss_curves([{"step": k, "loss": v} for k, v in enumerate(values)]).figure.axes[0].lines
    assert len(lines[0].get_xdata()) == plots.MAX_POINTS
    np.testing.assert_allclose(lines[0].get_ydata().mean(), values.mean())


def test_losses_that_are_missing_or_not_finite_are_left_out() -> None:
    records = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": float("nan"), "edge": 1.0},
        {"step": 3, "loss": 1.0, "edge": None, "note": "resumed"},
    ]
    lines = {line.get_label(): line for line in plots.loss_curves(records).figure.axes[0].lines}
    assert lines["loss"].get_xdata().tolist() == [1, 3]
    assert lines["edge"].get_xdata().tolist() == [2]
    assert set(lines) == {"loss", "edge"}


@pytest.mark.parametrize("last, scale", [(2.0, "linear"), (0.01, "log"), (-1.0, "linear")])
def test_loss_axis_is_logarithmic_where_it_has_to_be(last: float, scale: str) -> None:
    plot = plots.loss_curves([{"step": 1, "loss": 4.0}, {"step": 2, "loss": last}])
    assert plot.figure.axes[0].get_yscale() == scale


def test_save_writes_what_the_suffix_says(tmp_path: Path) -> None:
    plot = DRAWINGS["threshold curve"]()
    plot.save(tmp_path / "plots" / "curve.svg")
    plot.save(tmp_path / "plots" / "curve.png")
    assert (tmp_path / "plots" / "curve.svg").read_text(encoding="utf-8") == plot.svg()
    assert (tmp_path / "plots" / "curve.png").read_bytes() == plot.png()
    assert plot.png().startswith(b"\x89PNG")
    with pytest.raises(WeaksegError, match=r"curve\.jpg: a plot is saved as \.svg or \.png"):
        plot.save(tmp_path / "curve.jpg")


def test_matplotlib_is_imported_late_and_pyplot_never() -> None:
    code = (
        "import sys; from weakseg.report import plots; assert 'matplotlib' not in sys.modules;"
        "plots.loss_curves([{'step': 1, 'loss': 1.0}]).png(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_stages_import_for_their_reports_imports_no_pipeline() -> None:
    code = (
        "import sys; from weakseg.report import figures, markup, pictures, plots, tables;"
        "assert not [name for name in sys.modules if name.startswith(('weakseg.pipeline', 'weakseg.methods'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_matplotlib_are_left_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    DRAWINGS["loss curves"]().svg()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plots.confusion_matrix(MATRIX, NAMES[:2]), r"shape \(5, 5\) does not fit 2 class names"),
        (lambda: plots.iou_bars({}, NAMES), "no IoU to draw"),
        (lambda: plots.iou_bars({"val": [0.1]}, NAMES), '"val" has 1 IoUs, but there are 4 class names'),
        (lambda: plots.threshold_curve({}), "no threshold curve to draw"),
        (lambda: plots.scores_over_rounds({}), "no score of any round"),
        (lambda: plots.loss_curves([]), "no loss to draw"),
        (lambda: plots.loss_curves([{"step": 1, "lr": 0.1}]), "no loss to draw"),
    ],
)
def test_nothing_to_draw(draw: Callable[[], Plot], message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        draw()

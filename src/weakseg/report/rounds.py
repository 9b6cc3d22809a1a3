"""What the rounds of a run were worth: the part of its report on stages that are repeated."""

from __future__ import annotations

from collections.abc import Iterator

from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.pipeline.recipe_files import round_of
from weakseg.pipeline.stages.evaluate import scores_of_round
from weakseg.report import pictures
from weakseg.report.figures import Shown, strip
from weakseg.report.folder import RunFolder
from weakseg.report.markup import Markup, element, note, plot
from weakseg.report.plots import scores_over_rounds

IMAGES = 3
"""So many images are followed through the rounds."""


def last_round(run: RunFolder) -> int:
    """The number of the last round of which a stage is finished."""
    return max(map(round_of, run.manifests), default=0)


def rounds(run: RunFolder) -> Iterator[Markup]:
    """The scores over the rounds as a plot, and the maps of some images through the rounds."""
    if series := _series(run):
        yield plot(scores_over_rounds(series), "Mean IoU of what each round made")
    yield from _maps(run)


def _series(run: RunFolder) -> dict[str, dict[int, float]]:
    """What was measured in several rounds (its title in the first and the split): round → mean IoU."""
    series: dict[str, dict[int, float]] = {}
    for name in run.of_kind("evaluate"):
        number = round_of(name)
        for title, score in scores_of_round(read_json(run.root / name / "scores.json")["rows"], number).items():
            series.setdefault(title, {})[number] = score
    return {title: scores for title, scores in series.items() if len(scores) > 1}


def _maps(run: RunFolder) -> Iterator[Markup]:
    """Images with the activation maps of every round."""
    stages = {name: kind for name, kind in run.kinds.items() if run.stages[name]["kind"] == "maps"}
    try:
        classes, parts = run.open_data()
        part = "score" if parts["score"] else "train"
        yield element("h3", "Activation maps through the rounds")
        for sample in pictures.spread(list(parts[part].values()), IMAGES):
            shown = Shown(part, sample, sample.read_image(), classes)
            maps = (figure for name, kind in stages.items() for figure in kind.report_figures(run, name, shown))
            yield strip([shown.photo(), *maps], columns=2 + last_round(run))
    except WeaksegError as error:
        yield note(f"The maps are left out, since the data cannot be read any more: {error}")

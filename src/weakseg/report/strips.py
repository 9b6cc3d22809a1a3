"""The pictures of a run: images in strips with what every stage made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from weakseg.data.dataset import Sample
from weakseg.errors import WeaksegError
from weakseg.labels import VOID, Classes
from weakseg.report import pictures
from weakseg.report.figures import Shown, strip
from weakseg.report.folder import PART_TITLES, RunFolder
from weakseg.report.markup import Markup, element, note

IMAGES_PER_GROUP = 3
"""So many of the best, of the middle and of the worst images of a split are shown."""
UNRANKED_IMAGES = 6
"""So many images are shown where nothing tells good from bad."""
MAX_FIGURES_PER_ROW = 7


def strips(run: RunFolder) -> Iterator[Markup]:
    """Weakly labelled images, then validation images: of each the best, the middle and the worst, if scores tell."""
    if not (any(map(run.leaving, ("superpixels", "maps", "masks"))) or run.scores):
        yield note("No stage has made anything to look at yet.")
        return
    try:
        classes, samples = run.open_data()
    except WeaksegError as error:
        yield note(f"The pictures are left out, since the data cannot be read any more: {error}")
        return
    yield legend(classes)
    yield element("p", "Activation maps reach from 0 (black) to 1 (light yellow).", class_="explanation")
    weak = "score" if run.measured else "train"
    for part in (weak, "val"):
        if samples[part] and (part == weak or any(row["split"] == part for row in run.scores)):
            yield element("h3", f"{PART_TITLES[part]} ({part})")
            yield from _groups(run, part, samples[part], classes)


def legend(classes: Classes) -> Markup:
    """The colours of the classes."""
    labels = [*classes.labels, VOID]
    entries = (
        element("li", element("span", class_="swatch", style=f"background:{colour}"), classes.name(label))
        for label, colour in pictures.css_colours(labels).items()
    )
    return element("ul", *entries, class_="legend", aria_label="Colours of the classes")


def _groups(run: RunFolder, part: str, samples: Mapping[str, Sample], classes: Classes) -> Iterator[Markup]:
    judged = [row for row in run.scores if row["split"] == part and "image_iou" in row]
    if judged:
        yield element("p", f"Ordered by the IoU of {judged[-1]['title']}.", class_="explanation")
        scores = {name: iou for name, iou in judged[-1]["image_iou"].items() if name in samples}
        groups = pictures.ranked(scores, IMAGES_PER_GROUP)
    else:
        groups = {"Some images": pictures.spread(list(samples), UNRANKED_IMAGES)}
    for title, names in groups.items():
        figures = {name: figures_of(run, list(run.kinds), part, samples[name], classes) for name in names}
        widest = max(map(len, figures.values()), default=1)
        lines = math.ceil(widest / MAX_FIGURES_PER_ROW)
        articles = (element("article", element("h5", name), strip(of_image)) for name, of_image in figures.items())
        yield element("div", element("h4", title), *articles, style=f"--columns:{math.ceil(widest / lines)}")


def figures_of(run: RunFolder, stages: Sequence[str], part: str, sample: Sample, classes: Classes) -> list[Markup]:
    """The image, then what some stages made of it, then the ground truth; a note instead if one cannot be read."""
    try:
        shown = Shown(part, sample, sample.read_image(), classes)
        figures = [shown.photo()]
        for name in stages:
            figures += run.kinds[name].report_figures(run, name, shown)
        if sample.mask is not None:
            figures.append(shown.label_map(sample.mask.read(), "ground truth"))
    except WeaksegError as error:
        return [note(f"Left out: {error}")]
    return figures

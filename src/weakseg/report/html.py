"""The report of a run: one HTML file that needs nothing else, neither other files nor scripts."""

from __future__ import annotations

import base64
import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from weakseg import __version__
from weakseg.data.cooccurrence import share_with_other
from weakseg.data.dataset import Sample
from weakseg.data.images import read_image, read_label_map
from weakseg.data.loading import Draw, ReadTags, TrainingImages, generator
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_text
from weakseg.labels import VOID, Classes
from weakseg.methods.cda import PASTING_STREAM, PastedPairs, Pool, Settings
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.fields import TAGS
from weakseg.ops.instances import Instances
from weakseg.pipeline.run import RECIPE_NAME
from weakseg.pipeline.stages.evaluate import prediction_path
from weakseg.pipeline.stages.instances import SCORES_NAME as AP_NAME
from weakseg.pipeline.stages.instances import instances_path
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.stages.masks import mask_path
from weakseg.report import pictures
from weakseg.report.plots import Plot, confusion_matrix, loss_curves, threshold_curve
from weakseg.report.tables import ABSENT, RunFolder, companion_cells, percent, read_lines, score_cells
from weakseg.training import LOG_NAME

REPORT_NAME = "report.html"
IMAGES_PER_GROUP = 3
"""So many of the best, of the middle and of the worst images of a split are shown."""
UNRANKED_IMAGES = 6
"""So many images are shown where nothing tells good from bad."""
MAX_HEAT_MAPS = 3
"""The activation maps of so many classes of one image are shown."""

CROPS_PER_CLASS = 24
PASTED_IMAGES, PASTED_PER_ROW = 12, 4

MAX_MATRIX_CLASSES = 30
"""Of more classes it is only said with which others they are seen most often."""

MAX_FIGURES_PER_ROW = 7
WIDEST_PLOT = 8.0
"""Inches; the text of a wider plot could not be read in half the width of the page."""

PART_TITLES = {"train": "Training images", "score": "Weakly labelled images", "val": "Validation images"}
VOID_ELEMENTS = ("img", "meta")
# Whatever a class or a file is called: this page loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path.

    Raises `WeaksegError` for a folder that is no run or whose files are damaged. Data that have moved cost the pictures
    only.
    """
    path = run / REPORT_NAME
    write_text(path, _page(RunFolder.read(run)))
    return path


class Markup(str):
    """HTML. Any other text is escaped when it becomes a part of it."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str | int) -> Markup:
    """`<tag key="value">content</tag>`; a key may end with `_` where Python has its own meaning for it (`class_`)."""
    keys = (f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items())
    opening = f"<{tag}{''.join(keys)}>"
    return Markup(opening if tag in VOID_ELEMENTS else f"{opening}{join(content)}</{tag}>")


def join(content: Iterable[str]) -> Markup:
    """Texts and markup one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in content))


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, texts: int = 1, **attributes: str
) -> Markup:
    """A table whose first column names the rows; it scrolls in its box where the page is too narrow. The first `texts`
    columns hold words, the others numbers. `attributes` are those of the table itself."""
    kinds = ["text" if place < texts else "number" for place in range(len(header))]
    head = (element("th", cell, scope="col", class_=kind) for cell, kind in zip(header, kinds, strict=True))
    body = []
    for name, *others in rows:
        cells = (_cell(text, kind) for text, kind in zip(others, kinds[1:], strict=True))
        body.append(element("tr", element("th", name, scope="row", class_="text"), *cells))
    content = (element("caption", caption), element("thead", element("tr", *head)), element("tbody", *body))
    return element(
        "div", element("table", *content, **attributes), class_="scroll", role="region", aria_label=caption, tabindex=0
    )


class Share(str):
    """The text of a table's cell with a bar behind it that fills `share` (0 … 1) of the cell."""

    kind: ClassVar[str] = "bar"
    share: float

    def __new__(cls, text: str, share: float) -> Share:
        cell = super().__new__(cls, text)
        cell.share = share
        return cell


class Heat(Share):
    """The text of a cell whose whole ground is the darker the larger `share` is."""

    kind: ClassVar[str] = "heat"


def _cell(text: str, kind: str) -> Markup:
    if isinstance(text, Share):
        return element("td", text, class_=text.kind, style=f"--share:{100 * text.share:.1f}%")
    return element("td", text, class_=kind)


def section(title: str, *content: str) -> Markup:
    """A part of the page with a heading that can be linked to."""
    name = title.lower()
    return element("section", element("h2", title, id=name), *content, aria_labelledby=name)


def note(text: str) -> Markup:
    """Something the reader should know before trusting what is (not) shown."""
    return element("p", text, class_="note")


def plot(drawn: Plot, caption: str) -> Markup:
    """A plot as a picture of its own, so that the names inside do not mix with those of other plots. One with very many
    classes scrolls in its box."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(drawn.svg().encode()).decode()}"
    content = (element("img", src=source, alt=drawn.description), element("figcaption", caption))
    if drawn.figure.get_figwidth() <= WIDEST_PLOT:
        return element("figure", *content, class_="plot")
    return element("figure", *content, class_="plot wide", role="region", aria_label=caption, tabindex=0)


def _page(run: RunFolder) -> Markup:
    sections: dict[str, Callable[[RunFolder], Iterator[Markup]]] = {
        "Scores": _scores,
        "Pictures": _pictures,
        "Classes": _per_class,
        "Training": _training,
        "Data": _data,
        "Run": _run,
    }
    if run.of_kind("pool"):
        sections["Pool"] = _pool
    parts = {name: content(run) for name, content in sections.items()}
    return page(f"{run.recipe['name']}: report", _introduction(run), parts)


def page(title: str, introduction: Iterable[Markup], sections: Mapping[str, Iterable[Markup]]) -> Markup:
    """A whole page: what stands at its head, then its parts, with links to them."""
    links = (element("a", name, href=f"#{name.lower()}") for name in sections)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup((files("weakseg.report") / "report.css").read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element("header", *introduction, element("nav", *links, aria_label="Parts of the report")),
        element("main", *(section(name, *content) for name, content in sections.items())),
        element("footer", element("p", f"Written by weakseg {__version__}.")),
    )
    return Markup(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")


# The head of the page


def _introduction(run: RunFolder) -> Iterator[Markup]:
    yield element("p", "Report of a run", class_="kicker")
    yield element("h1", run.recipe["name"])
    yield element("p", run.recipe["about"], class_="about")
    yield element("p", _summary(run), class_="summary")
    if run.unfinished:
        yield note(run.status())
    yield element("dl", *(fact(name, value) for name, value in _key_numbers(run)), class_="tiles")


def _summary(run: RunFolder) -> str:
    """The result in one sentence."""
    count = f"{run.data['images']['train']} weakly labelled images of {len(run.data['classes'])} classes"
    if not run.scores():
        missing = "it is not finished" if run.unfinished else "there is no ground truth to measure against"
        return f"A run on {count}; no scores, since {missing}."
    last = run.scores()[-1]
    return (
        f"Learning from {count}, {last['title']} reaches a mean IoU of {percent(last['mean_iou'])} % "
        f"on {last['images']} {PART_TITLES[last['split']].lower()}."
    )


def _key_numbers(run: RunFolder) -> Iterator[tuple[str, str]]:
    for split, row in reversed(_last_rows(run).items()):
        yield f"mIoU of {row['title']}, {split}", f"{percent(row['mean_iou'])} %"
    yield "training images", str(run.data["images"]["train"])
    yield "classes", str(len(run.data["classes"]))
    yield "computing time", duration(_total_seconds(run))


def _last_rows(run: RunFolder) -> dict[str, Mapping[str, Any]]:
    """The last row of scores of each split: what the other rows lead to."""
    return {row["split"]: row for row in run.scores()}


def fact(name: str, value: str) -> Markup:
    """A name and its value, for a list of facts."""
    return element("div", element("dt", name), element("dd", value))


# Scores


def _scores(run: RunFolder) -> Iterator[Markup]:
    rows = run.scores()
    if rows:
        yield table(*score_cells(rows), "Mean IoU and boundary F-score in percent", texts=2)
        yield element("p", _explanation(run), class_="explanation")
    else:
        yield note("There are no scores: " + (run.status() or "the data have no ground truth to measure against."))
    yield from _instance_scores(run)


def _instance_scores(run: RunFolder) -> Iterator[Markup]:
    """The average precision of every class, for each stage whose instances could be measured."""
    paths = {name: run.root / name / AP_NAME for name in run.of_kind("instances")}
    measured = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    for name, scores in measured.items():
        values = zip(scores["classes"], scores["instances"], scores["average_precision"], strict=True)
        rows = [[label, str(count), percent(value)] for label, count, value in values if count]
        rows.append(["mean", str(sum(scores["instances"])), percent(scores["mean_average_precision"])])
        caption = f"{name}: average precision of instances in percent, on {scores['images']} images"
        header = ["class", "true instances", f"AP at IoU {scores['min_iou']:g}"]
        yield table(header, rows, caption)


def _explanation(run: RunFolder) -> str:
    """What the scores can be trusted for."""
    images, splits, sentences = run.data["images"], run.data["splits"], []
    if images["score"]:
        sentences.append(f"score: images of “{splits['score']}” whose weak labels were known.")
        if any(stage["threshold"] == "auto" for stage in run.of_kind("masks").values()):
            sentences.append("The threshold is the best one on them, chosen with their ground truth.")
    if images["val"]:
        sentences.append(f"val: images of “{splits['val']}”, from which nothing was learned.")
    if areas := [row["context"]["area"] for row in run.scores() if "context" in row]:
        sentences.append(
            "on context: how much of the activation of a class falls on its context, on images that show it; "
            f"it covers {percent(areas[0])} % of them."
        )
    return " ".join(sentences)


# Classes


def _per_class(run: RunFolder) -> Iterator[Markup]:
    rows = run.scores()
    if not rows:
        yield note("There are no scores of classes.")
        return
    names = ["background", *run.data["classes"]]
    header = ["class", *(f"{row['title']}, {row['split']}" for row in rows)]
    cells = [[name, *(_iou_cell(row["iou"][label]) for row in rows)] for label, name in enumerate(names)]
    yield table(header, cells, "IoU of every class in percent")
    matrices = (
        plot(confusion_matrix(row["matrix"], names), f"What the pixels of each class became: {row['title']}, {split}")
        for split, row in _last_rows(run).items()
    )
    yield element("div", *matrices, class_="plots")


def _iou_cell(iou: float | None) -> str:
    return Share(percent(iou), iou or 0)


# Training


def _training(run: RunFolder) -> Iterator[Markup]:
    drawn = [*_loss_plots(run), *_threshold_plots(run)]
    yield element("div", *drawn, class_="plots") if drawn else note("Nothing was learned yet.")


def _loss_plots(run: RunFolder) -> Iterator[Markup]:
    for name, stage in run.stages.items():
        records = read_lines(run.root / name / LOG_NAME)
        if records:
            so_far = "" if name in run.manifests else " so far"
            yield plot(loss_curves(records), f"{name} ({stage['method']}): {records[-1]['step']} updates{so_far}")


def _threshold_plots(run: RunFolder) -> Iterator[Markup]:
    titles = run.titles("curves")
    used, curves = [], {}
    for name in run.of_kind("masks"):
        choice = read_json(run.root / name / "threshold.json")
        score = (
            "no background score" if choice["threshold"] is None else f"the background score {choice['threshold']:.2f}"
        )
        used.append(f"{name} used {score} ({choice['origin']})")
        if (run.root / name / "curve.json").is_file():
            curves[titles.get(name, name)] = read_json(run.root / name / "curve.json")
    if curves:
        yield plot(threshold_curve(curves), "; ".join(used))
    elif used:
        yield element("p", "; ".join(used))


# Data


def _data(run: RunFolder) -> Iterator[Markup]:
    data, splits = run.data, run.data["splits"]
    parts = [part for part, count in data["images"].items() if count]
    yield element(
        "dl",
        fact("folder", data["root"]),
        fact("layout", data["format"]),
        *(fact(PART_TITLES[part].lower(), f"{data['images'][part]} of “{splits[part]}”") for part in parts),
        class_="facts",
    )
    counts = data["images_with_class"]
    rows = [
        [name, *(str(counts[part][place]) if any(counts[part]) else ABSENT for part in parts)]
        for place, name in enumerate(data["classes"])
    ]
    totals = ["all images", *(str(data["images"][part]) for part in parts)]
    yield table(["class", *parts], [*rows, totals], "Images with each class, by their weak labels")
    if len(data["classes"]) > 1 and "images_with_both" in data:  # old runs do not say
        yield _together(data["classes"], np.array(data["images_with_both"]))


def _together(names: Sequence[str], with_both: npt.NDArray[np.int64]) -> Markup:
    """How often each class is seen with every other, or, where there are too many, with which most often."""
    if len(names) > MAX_MATRIX_CLASSES:
        header, cells = companion_cells(names, with_both)
        return table(header, cells, "With which others each class is seen most often, training images", texts=2)

    def cell(place: int, other: int) -> str:
        if place == other:
            return ""
        return Heat(f"{100 * shares[place, other]:.0f}", shares[place, other]) if with_both[place, place] else ABSENT

    shares, places = share_with_other(with_both), range(len(names))
    rows = [[names[place], *(cell(place, other) for other in places)] for place in places]
    caption = "Of the training images with the class of a row, the percentage that has the class of a column, too"
    return table(["class", *names], rows, caption, class_="matrix")


# The run itself


def _run(run: RunFolder) -> Iterator[Markup]:
    total = _total_seconds(run)
    rows = [_timing(run, name, total) for name in run.stages]
    header = ["stage", "kind", "device", "processes", "time"]
    yield table(header, [*rows, ["total", "", "", "", duration(total)]], "Time of every stage", texts=3)
    if resumed := [name for name, manifest in run.manifests.items() if manifest["resumed"]]:
        yield element("p", f"Interrupted, timed from where it went on: {', '.join(resumed)}.", class_="explanation")
    if reused := [name for name, manifest in run.manifests.items() if "reused_from" in manifest]:
        yield element("p", f"Taken from other runs, timed there: {', '.join(reused)}.", class_="explanation")
    begun, ended = (_times(run, event) for event in ("run", "done"))
    facts = {"seed": [str(run.recipe["seed"])], "begun": begun[:1], "ended": ended[-1:], **_versions(run)}
    yield element("dl", *(fact(name, ", ".join(values)) for name, values in facts.items() if values), class_="facts")
    recipe = (run.root / RECIPE_NAME).read_text(encoding="utf-8")
    yield element("details", element("summary", "All settings of the recipe"), element("pre", element("code", recipe)))


def _timing(run: RunFolder, name: str, total: float) -> list[str]:
    kind = run.stages[name]["kind"]
    if name not in run.manifests:
        return [name, kind, "", "", "to be done again" if name in run.outdated else "not finished"]
    manifest = run.manifests[name]
    seconds = manifest["seconds"]
    bar = Share(duration(seconds), seconds / total if total else 0)
    return [name, kind, manifest["device"], str(manifest["processes"]), bar]


def _total_seconds(run: RunFolder) -> float:
    return sum(manifest["seconds"] for manifest in run.manifests.values())


def _versions(run: RunFolder) -> dict[str, list[str]]:
    """Package → its version, or all of them where the stages were not made by the same."""
    found: dict[str, list[str]] = {}
    for manifest in run.manifests.values():
        for package, version in manifest["versions"].items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return found


def _times(run: RunFolder, event: str) -> list[str]:
    return [record["time"][:16].replace("T", " ") for record in run.log if record["event"] == event]


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


# Pictures


@dataclass(frozen=True)
class LabelMaps:
    """Label maps that the run made, one per image, and how good they are where that is known."""

    title: str
    path: Callable[[Sample], Path]
    iou: Mapping[str, float | None]


def _pictures(run: RunFolder) -> Iterator[Markup]:
    weak = "score" if run.data["images"]["score"] else "train"
    columns = {part: _label_maps(run, part) for part in (weak, "val")}
    maps = [*run.of_kind("maps"), *run.of_kind("walk")]
    if not maps and not any(columns.values()):
        yield note("No stage has made anything to look at yet.")
        return
    try:
        classes, samples = _open_samples(run)
    except WeaksegError as error:
        yield note(f"The pictures are left out, since the data cannot be read any more: {error}")
        return
    yield _legend(classes)
    yield element("p", "Activation maps reach from 0 (black) to 1 (light yellow).", class_="explanation")
    for part in (weak, "val"):
        if samples[part] and (columns[part] or part == weak):
            yield element("h3", f"{PART_TITLES[part]} ({part})")
            yield from _groups(run, part, samples[part], classes, maps if part == weak else [], columns[part])


def _label_maps(run: RunFolder, part: str) -> list[LabelMaps]:
    """What there is to show of the images of a part, in the order of the stages."""
    iou = {row["title"]: row["image_iou"] for row in run.scores() if row["split"] == part and "image_iou" in row}
    titles, found = run.titles("masks"), []
    if part != "val":
        for name in run.of_kind("masks"):
            title = titles.get(name, name)
            found.append(LabelMaps(title, partial(mask_path, run.root / name), iou.get(title, {})))
    if part != "train":
        for name, stage in run.of_kind("evaluate").items():
            for title, source in stage["segmenters"].items():
                folder = run.root / name / "predictions" / source
                found.append(LabelMaps(title, partial(prediction_path, folder), iou.get(title, {})))
    return found


def _open_samples(run: RunFolder) -> tuple[Classes, dict[str, dict[str, Sample]]]:
    """The samples of every part of the run by name; raises `WeaksegError` if the data are not what they were."""
    from weakseg.data.opening import open_dataset

    dataset = open_dataset(Path(run.data["root"]), run.data["format"])
    if list(dataset.classes.names) != run.data["classes"]:
        raise WeaksegError(f"{dataset.root} has other classes than when the run was made.")
    parts = {}
    for part, names in run.data["names"].items():
        known = {sample.name: sample for sample in dataset.split(run.data["splits"][part])} if names else {}
        parts[part] = {name: known[name] for name in names if name in known}
        if len(parts[part]) < len(names):
            raise WeaksegError(f"{dataset.root} lacks {len(names) - len(parts[part])} images of the run.")
    return dataset.classes, parts


def _legend(classes: Classes) -> Markup:
    labels = [*range(1, len(classes) + 1), VOID]
    entries = (
        element("li", element("span", class_="swatch", style=f"background:{colour}"), classes.name(label))
        for label, colour in pictures.css_colours(labels).items()
    )
    return element("ul", *entries, class_="legend", aria_label="Colours of the classes")


def _groups(
    run: RunFolder,
    part: str,
    samples: Mapping[str, Sample],
    classes: Classes,
    maps: Sequence[str],
    columns: Sequence[LabelMaps],
) -> Iterator[Markup]:
    judged = [column for column in columns if column.iou]
    if judged:
        yield element("p", f"Ordered by the IoU of {judged[-1].title}.", class_="explanation")
        scores = {name: iou for name, iou in judged[-1].iou.items() if name in samples}
        groups = pictures.ranked(scores, IMAGES_PER_GROUP)
    else:
        groups = {"Some images": pictures.spread(list(samples), UNRANKED_IMAGES)}
    for title, names in groups.items():
        strips = {name: _strip(run, samples[name], classes, maps, columns) for name in names}
        widest = max(map(len, strips.values()), default=1)
        lines = math.ceil(widest / MAX_FIGURES_PER_ROW)
        articles = (
            element("article", element("h5", name), element("div", *figures, class_="strip"))
            for name, figures in strips.items()
        )
        yield element("div", element("h4", title), *articles, style=f"--columns:{math.ceil(widest / lines)}")


def _strip(
    run: RunFolder, sample: Sample, classes: Classes, maps: Sequence[str], columns: Sequence[LabelMaps]
) -> list[Markup]:
    try:
        return list(_figures(run, sample, classes, maps, columns))
    except WeaksegError as error:
        return [note(f"Left out: {error}")]


def _figures(
    run: RunFolder, sample: Sample, classes: Classes, maps: Sequence[str], columns: Sequence[LabelMaps]
) -> Iterator[Markup]:
    """The image, then what the run made of it, then the ground truth."""
    image = read_image(sample.image)
    tags = ", ".join(classes.name(label) for label in sorted(sample.labels.present()))
    yield _figure(pictures.photo(image), f"image{', tagged ' if tags else ''}{tags}", f"Image {sample.name}")
    for stage, what in _map_titles(run, maps).items():
        maps_of_image = read_maps(run.root / stage, sample)
        yield from _heat_maps(image, maps_of_image, classes, sample.name, what)
    for column in columns:
        labels = read_label_map(column.path(sample))
        iou = column.iou.get(sample.name)
        caption = column.title if iou is None else f"{column.title}: IoU {percent(iou)} %"
        yield _label_figure(image, labels, classes, caption, f"{column.title} of {sample.name}")
    for stage in run.of_kind("instances"):
        path = instances_path(run.root / stage, sample)
        if path.is_file():  # not for validation images
            yield _instances_figure(image, Instances.load(path).numbered(), stage, sample)
    if sample.mask is not None:
        yield _label_figure(image, sample.mask.read(), classes, "ground truth", f"Ground truth of {sample.name}")


def _map_titles(run: RunFolder, stages: Sequence[str]) -> dict[str, str]:
    """What the maps of each stage are called; several of a kind are told apart by the titles of their curves."""
    kinds = {name: "walked map" if run.stages[name]["kind"] == "walk" else "activation map" for name in stages}
    alike = Counter(kinds.values())
    titles = {run.stages[masks]["maps"]: title for masks, title in run.titles("curves").items()}
    return {name: kind if alike[kind] == 1 else f"{kind} ({titles.get(name, name)})" for name, kind in kinds.items()}


def _heat_maps(
    image: npt.NDArray[Any], maps: ActivationMaps, classes: Classes, name: str, what: str
) -> Iterator[Markup]:
    pairs = list(zip(maps.labels.tolist(), maps.upsampled(), strict=True))[maps.has_background :]
    more = len(pairs) - MAX_HEAT_MAPS
    for place, (label, activation) in enumerate(pairs, start=1):
        if place > MAX_HEAT_MAPS:
            return
        caption = f"{what}: {classes.name(label)}"
        if place == MAX_HEAT_MAPS and more > 0:
            caption += f" (and {more} more)"
        yield _figure(
            pictures.heat_map(image, activation), caption, f"{what.capitalize()} of {classes.name(label)}, {name}"
        )


def _label_figure(
    image: npt.NDArray[Any], labels: npt.NDArray[Any], classes: Classes, caption: str, what: str
) -> Markup:
    return _figure(pictures.painted(image, labels), caption, f"{what}: {pictures.shares(labels, classes)}")


def _instances_figure(image: npt.NDArray[Any], numbers: npt.NDArray[Any], stage: str, sample: Sample) -> Markup:
    """Instances, each in a colour of its own, which says nothing about its class."""
    count = f"{numbers.max()} instance{'' if numbers.max() == 1 else 's'}"
    return _figure(pictures.painted(image, numbers), f"{stage}: {count}", f"{stage} of {sample.name}: {count}")


def _figure(pixels: npt.NDArray[Any], caption: str, description: str) -> Markup:
    height, width = pixels.shape[:2]
    picture = element("img", src=pictures.data_uri(pixels), alt=description, width=width, height=height)
    return element("figure", picture, element("figcaption", caption))


# The pool of objects that are pasted, and images with them


def _pool(run: RunFolder) -> Iterator[Markup]:
    try:
        classes, samples = _open_samples(run)
    except WeaksegError as error:
        yield note(f"The pool is left out, since the data cannot be read any more: {error}")
        return
    for name in run.of_kind("pool"):
        pool = Pool.load(run.root / name, classes)
        yield element("h3", f"Crops ({name})")
        yield from _crops(pool, classes)
        for learning, stage in run.of_kind("paste").items():
            if stage["pool"] == name and pool.labels:
                yield element("h3", f"Pasted on images ({learning})")
                yield from _pasted(pool, stage, run.recipe["seed"], list(samples["train"].values()), classes)


def _crops(pool: Pool, classes: Classes) -> Iterator[Markup]:
    if missing := [classes.name(k) for k, names in enumerate(pool.names, start=1) if not names]:
        yield note(f"Without crops, and so never pasted: {', '.join(missing)}.")
    figures = []
    for label in pool.labels:
        names = pool.names[label - 1]
        shown = pictures.spread(names, CROPS_PER_CLASS)
        sheet = pictures.contact_sheet([pool.read(label, name) for name in shown])
        caption = f"{classes.name(label)}: {len(shown)} of {len(names)} crops"
        figures.append(_figure(sheet, caption, f"Crops of {caption}"))
    yield element("div", *figures, class_="strip", style="--columns:3")


def _pasted(
    pool: Pool, stage: Mapping[str, Any], seed: int, samples: Sequence[Sample], classes: Classes
) -> Iterator[Markup]:
    settings = Settings.model_validate(stage["paste"])
    if few := [classes.name(label) for label in pool.labels_below(settings.fewest_crops)]:
        yield note(f"Fewer than {settings.fewest_crops} crops, and so never pasted: {', '.join(few)}.")
    yield element("p", "What the classifier was trained on, before size and place vary.", class_="explanation")
    augmentation = Augmentation.model_validate(stage["augment"])
    images = TrainingImages(samples, [ReadTags(len(classes))], {"tags": TAGS}, augmentation, seed)
    pairs = PastedPairs(images, pool.with_at_least(settings.fewest_crops), settings)
    figures = _pairs(pairs, classes)
    yield element("div", *figures, class_="strip", style=f"--columns:{PASTED_PER_ROW}")


def _pairs(pairs: PastedPairs, classes: Classes) -> Iterator[Markup]:
    """Some images of the first epoch with what was pasted on them."""
    images = pairs.images
    for place in pictures.spread(range(len(images)), PASTED_IMAGES):
        draw = Draw(0, place, place)
        item = images.read(draw)
        pasted = pairs.pasted(item, generator(images.seed, draw, PASTING_STREAM))
        added, old = (
            ", ".join(classes.name(k + 1) for k in np.flatnonzero(present).tolist())
            for present in (pasted["tags"] - item["tags"], item["tags"])
        )
        caption = f"{added or 'nothing'} on {old or 'no class'}"
        yield _figure(pictures.photo(pasted["image"]), caption, f"{caption}, {images.samples[place].name}")

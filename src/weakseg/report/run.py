"""The report of a run: one HTML file that needs nothing else, neither other files nor scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.data.cooccurrence import share_with_other
from weakseg.files import read_json, read_json_lines, write_text
from weakseg.pipeline.run import RECIPE_NAME
from weakseg.pipeline.stage import THRESHOLD_NAME
from weakseg.report.folder import PART_TITLES, RunFolder
from weakseg.report.gallery import links_to, write_gallery
from weakseg.report.markup import Heat, Markup, Share, duration, element, fact, note, page, plot, table
from weakseg.report.plots import confusion_matrix, loss_curves, threshold_curve
from weakseg.report.rounds import last_round, rounds
from weakseg.report.scores import score_cells
from weakseg.report.strips import strips
from weakseg.report.tables import ABSENT, companion_cells, percent
from weakseg.training import LOG_NAME

REPORT_NAME = "report.html"

MAX_MATRIX_CLASSES = 30
"""Of more classes it is only said with which others they are seen most often."""


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path. Pages of all training images
    lie beside it where there is no ground truth.

    Raises `WeaksegError` for a folder that is no run or whose files are damaged. Data that have moved cost the pictures
    only.
    """
    path, folder = run / REPORT_NAME, RunFolder.read(run)
    write_text(path, _page(folder, write_gallery(folder)))
    return path


def _page(run: RunFolder, gallery: Sequence[Path]) -> Markup:
    of_stages: dict[str, Iterator[Markup]] = {}
    for name, kind in run.kinds.items():
        for title, content in kind.report_parts(run, name).items():
            of_stages[title] = chain(of_stages.get(title, ()), content)
    sections = {"Scores": _scores(run)}
    if "Trust" in of_stages:  # before the pictures, since it says which to look at
        sections["Trust"] = of_stages.pop("Trust")
    sections |= {
        "Pictures": chain(links_to(gallery), strips(run)),
        "Classes": _per_class(run),
        "Training": _training(run),
        "Data": _data(run),
        "Run": _run(run),
    }
    if last_round(run):
        sections["Rounds"] = rounds(run)
    for title, content in of_stages.items():
        sections[title] = chain(sections.get(title, ()), content)
    return page(f"{run.recipe['name']}: report", _introduction(run), sections)


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
    if not run.scores:
        missing = "it is not finished" if run.unfinished else "there is no ground truth to measure against"
        return f"A run on {count}; no scores, since {missing}."
    last = run.scores[-1]
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
    return {row["split"]: row for row in run.scores}


# Scores


def _scores(run: RunFolder) -> Iterator[Markup]:
    rows = run.scores
    if rows:
        yield table(*score_cells(rows), "Mean IoU and boundary F-score in percent", texts=2)
        yield element("p", _explanation(run), class_="explanation")
    else:
        yield note("There are no scores: " + (run.status() or "the data have no ground truth to measure against."))
    for name, kind in run.kinds.items():
        yield from kind.report_scores(run, name)


def _explanation(run: RunFolder) -> str:
    """What the scores can be trusted for."""
    images, splits, sentences = run.data["images"], run.data["splits"], []
    if images["score"]:
        sentences.append(f"score: images of “{splits['score']}” whose weak labels were known.")
        if any(stage["threshold"] == "auto" for stage in run.of_kind("masks").values()):
            sentences.append("The threshold is the best one on them, chosen with their ground truth.")
    if images["val"]:
        sentences.append(f"val: images of “{splits['val']}”, from which nothing was learned.")
    if areas := [row["context"]["area"] for row in run.scores if "context" in row]:
        sentences.append(
            "on context: how much of the activation of a class falls on its context, on images that show it; "
            f"it covers {percent(areas[0])} % of them."
        )
    return " ".join(sentences)


# Classes


def _per_class(run: RunFolder) -> Iterator[Markup]:
    rows = run.scores
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
        records = read_json_lines(run.root / name / LOG_NAME)
        if records:
            so_far = "" if name in run.manifests else " so far"
            yield plot(loss_curves(records), f"{name} ({stage['method']}): {records[-1]['step']} updates{so_far}")


def _background(threshold: float | str | None) -> str:
    """The background's score in words: a number, a way to find one for each image, or none."""
    if threshold is None:
        return "no background score"
    return f"{threshold} background scores" if isinstance(threshold, str) else f"the background score {threshold:.2f}"


def _threshold_plots(run: RunFolder) -> Iterator[Markup]:
    titles = run.titles("curves")
    used, curves = [], {}
    for name in run.of_kind("masks"):
        if not (run.root / name / THRESHOLD_NAME).is_file():  # a method's own rule
            continue
        choice = read_json(run.root / name / THRESHOLD_NAME)
        used.append(f"{name} used {_background(choice['threshold'])} ({choice['origin']})")
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

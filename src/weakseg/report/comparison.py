"""The table of a comparison: `compare.json`, `compare.md` and `compare.html`, all from the files of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from weakseg.files import read_json, write_json, write_text
from weakseg.ops.paired import CONFIDENCE, Spread, paired_difference, spread
from weakseg.pipeline.compare import Cell
from weakseg.pipeline.run import RECIPE_NAME
from weakseg.report.folder import RunFolder, read_lines
from weakseg.report.markup import Share, duration, element, join, note, page, table
from weakseg.report.run import REPORT_NAME
from weakseg.report.tables import ABSENT, percent, text_table
from weakseg.training import LOG_NAME
from weakseg.version import __version__

PARTS = ("activation maps", "unrefined masks", "refined maps", "final masks", "segmenter")
"""What is measured in a run, from the first step to the last. The final masks are those that the segmenter learns from;
others are the refined maps as masks if they come from a walk, and unrefined masks if not. Activation maps are measured
at their best threshold."""


@dataclass(frozen=True)
class Measured:
    """The mean IoU of one thing in the runs of one recipe: seed → fraction of 1.

    `part` is one of PARTS, `number` tells those of the same part in one recipe apart, `title` is the recipe's own.
    """

    run: str
    part: str
    number: int
    split: str
    title: str
    seeds: Mapping[int, float]

    @property
    def group(self) -> tuple[int, int, str]:
        """Rows of the same group, in different recipes, are compared."""
        return PARTS.index(self.part), self.number, self.split


@dataclass(frozen=True)
class Row:
    """A line of the table: a recipe's result, and its differences to those of the reference, the first recipe that
    has such a result (None: it is that one)."""

    measured: Measured
    result: Spread
    reference: str | None
    difference: Spread | None


@dataclass(frozen=True)
class Work:
    """What one stage of a recipe took, by seed. `passes` are the images that went through its training, repeated ones
    counted each time; None for stages that learn nothing."""

    run: str
    stage: str
    kind: str
    seconds: Mapping[int, float]
    passes: Mapping[int, int] | None
    epochs: Mapping[int, float] | None
    reused: Sequence[int]


@dataclass(frozen=True)
class Comparison:
    """Everything that the runs of a comparison have to say so far."""

    runs: Sequence[str]
    seeds: Sequence[int]
    data: str
    rows: Sequence[Row]
    work: Sequence[Work]
    unfinished: Mapping[str, str]

    @classmethod
    def read(cls, cells: Sequence[Cell], failed: Mapping[Path, str]) -> Comparison:
        """`failed` says why a run has failed: folder → message."""
        runs = list(dict.fromkeys(cell.recipe.name for cell in cells))
        seeds = sorted({cell.recipe.seed for cell in cells})
        by_run: dict[str, dict[int, RunFolder]] = {run: {} for run in runs}
        data: set[str] = set()
        unfinished: dict[str, str] = {}
        for cell in cells:
            folder = RunFolder.read(cell.folder) if (cell.folder / RECIPE_NAME).is_file() else None
            if folder is None or folder.unfinished or cell.folder in failed:
                unfinished[cell.title] = failed.get(cell.folder, "not finished yet")
            else:
                by_run[cell.recipe.name][cell.recipe.seed] = folder
                data.add(str(folder.data["root"]))
        measured = [result for run, of_seed in by_run.items() for result in _measured(run, of_seed)]
        work = [stage for run, of_seed in by_run.items() for stage in _work(run, of_seed)]
        return cls(runs, seeds, ", ".join(sorted(data)), compared(measured), work, unfinished)

    def to_dict(self) -> dict[str, Any]:
        """The whole comparison for a JSON file; scores are fractions of 1."""
        return {
            "weakseg": __version__,
            "data": self.data,
            "runs": list(self.runs),
            "seeds": list(self.seeds),
            "unfinished": dict(self.unfinished),
            "confidence": CONFIDENCE,
            "rows": [_row_as_dict(row) for row in self.rows],
            "stages": [_work_as_dict(work) for work in self.work],
        }


def write_comparison(out: Path, cells: Sequence[Cell], failed: Mapping[Path, str]) -> Comparison:
    """Write `compare.json`, `compare.md` and `compare.html` into the folder of a comparison, finished or not."""
    comparison = Comparison.read(cells, failed)
    write_json(out / "compare.json", comparison.to_dict())
    write_text(out / "compare.md", _markdown(comparison))
    write_text(out / "compare.html", _page(comparison, out, cells))
    return comparison


def compared(measured: Sequence[Measured]) -> list[Row]:
    """The rows of the table, those that are compared below each other."""
    rows = []
    for group in sorted({result.group for result in measured}):
        same = [result for result in measured if result.group == group]
        for result in same:
            first = result is same[0]
            difference = None if first else paired_difference(result.seeds, same[0].seeds)
            rows.append(Row(result, spread(list(result.seeds.values())), None if first else same[0].run, difference))
    return rows


# What runs say


def _measured(run: str, folders: Mapping[int, RunFolder]) -> Iterator[Measured]:
    found: dict[tuple[str, int, str, str], dict[int, float]] = {}
    for seed, folder in folders.items():
        for key, score in _scores(folder):
            if score is not None:
                found.setdefault(key, {})[seed] = score
    for (part, number, split, title), seeds in found.items():
        yield Measured(run, part, number, split, title, seeds)


def _scores(folder: RunFolder) -> Iterator[tuple[tuple[str, int, str, str], float | None]]:
    """What is measured (part, number, split, title), and its mean IoU."""
    counts: dict[tuple[str, str], int] = {}
    for name, evaluate in folder.of_kind("evaluate").items():
        for row in read_json(folder.root / name / "summary.json"):
            part, split = _part(row, evaluate, folder.stages), row["split"]
            number = counts.get((part, split), 0)
            counts[part, split] = number + 1
            yield (part, number, split, row["title"]), row["mean_iou"]


def _part(row: Mapping[str, Any], evaluate: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> str:
    if "threshold" in row:  # only threshold curves have one
        return "refined maps" if _is_walked(evaluate["curves"][row["title"]], stages) else "activation maps"
    source = evaluate["masks"].get(row["title"])
    if source is None:
        return "segmenter"
    if source == _final_masks(stages):
        return "final masks"
    return "refined maps" if _is_walked(source, stages) else "unrefined masks"


def _is_walked(masks: str, stages: Mapping[str, Mapping[str, Any]]) -> bool:
    return bool(stages[stages[masks]["maps"]]["kind"] == "walk")


def _final_masks(stages: Mapping[str, Mapping[str, Any]]) -> str | None:
    masks = [name for name, stage in stages.items() if stage["kind"] == "masks"]
    learned = [stage["masks"] for stage in stages.values() if stage["kind"] == "segment"]
    return next((name for name in reversed(masks) if name in learned), masks[-1] if masks else None)


def _work(run: str, folders: Mapping[int, RunFolder]) -> Iterator[Work]:
    stages: Mapping[str, Mapping[str, Any]] = next(iter(folders.values())).stages if folders else {}
    for name, stage in stages.items():
        manifests = {seed: folder.manifests[name] for seed, folder in folders.items()}
        reused = [seed for seed, manifest in manifests.items() if "reused_from" in manifest]
        seconds = {seed: manifest["seconds"] for seed, manifest in manifests.items()}
        passes = epochs = None
        if "train" in stage:
            last = {seed: read_lines(folder.root / name / LOG_NAME)[-1] for seed, folder in folders.items()}
            passes = {seed: line["step"] * stage["train"]["batch_size"] for seed, line in last.items()}
            # Of the images that the stage learns from, which may be fewer than the training split has.
            epochs = {seed: stage["train"]["epochs"] or line["epoch"] for seed, line in last.items()}
        yield Work(run, name, stage["kind"], seconds, passes, epochs, reused)


# JSON


def _spread_as_dict(values: Spread) -> dict[str, Any]:
    return {"mean": values.mean, "deviation": values.deviation, "seeds": values.count}


def _row_as_dict(row: Row) -> dict[str, Any]:
    measured, difference = row.measured, None
    if row.reference is not None:
        difference = {"to": row.reference, "seeds": 0}
        if row.difference is not None:
            interval = row.difference.interval()
            difference |= {**_spread_as_dict(row.difference), "interval": None if interval is None else list(interval)}
    return {
        "what": measured.part,
        "number": measured.number,
        "split": measured.split,
        "run": measured.run,
        "title": measured.title,
        "metric": "mean_iou",
        **_spread_as_dict(row.result),
        "by_seed": {str(seed): score for seed, score in measured.seeds.items()},
        "difference": difference,
    }


def _work_as_dict(work: Work) -> dict[str, Any]:
    return {
        "run": work.run,
        "stage": work.stage,
        "kind": work.kind,
        "seconds": {str(seed): seconds for seed, seconds in work.seconds.items()},
        "image_passes": None if work.passes is None else {str(seed): count for seed, count in work.passes.items()},
        "reused_seeds": list(work.reused),
    }


# Tables


Cells = tuple[list[str], list[list[str]]]


def result_cells(comparison: Comparison) -> Cells:
    """Header and cells of the main table, in percent and percentage points."""
    header = ["what", "split", "recipe", "row", "mIoU %", "sd", "difference", "sd of diff.", "95 % interval", "seeds"]
    return header, [_result(row) for row in comparison.rows]


def _result(row: Row) -> list[str]:
    measured, difference = row.measured, row.difference
    if row.reference is None:
        differs = ["reference", "", ""]
    elif difference is None:
        differs = [ABSENT] * 3
    else:
        interval = difference.interval()
        between = ABSENT if interval is None else f"{points(interval[0])} … {points(interval[1])}"
        differs = [points(difference.mean), percent(difference.deviation), between]
    count = str(row.result.count)
    if difference is not None and difference.count != row.result.count:
        count += f", {difference.count} paired"
    mean = Share(percent(row.result.mean), row.result.mean)
    named = [measured.part, measured.split, measured.run, measured.title]
    return [*named, mean, percent(row.result.deviation), *differs, count]


def points(difference: float) -> str:
    """A difference of two fractions of 1 in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _seed_cells(comparison: Comparison) -> Cells:
    header = ["what", "split", "recipe", "row", *(f"seed {seed}" for seed in comparison.seeds)]
    rows = [row.measured for row in comparison.rows]
    return header, [
        [m.part, m.split, m.run, m.title, *(percent(m.seeds.get(seed)) for seed in comparison.seeds)] for m in rows
    ]


def work_cells(comparison: Comparison) -> Cells:
    """Header and cells of the table of times and trainings, with a line of sums for every recipe."""
    cells = []
    for run in comparison.runs:
        stages = [work for work in comparison.work if work.run == run]
        for work in stages:
            passes = ABSENT if work.passes is None else _mean_count(work.passes)
            epochs = ABSENT if work.epochs is None else f"{spread(list(work.epochs.values())).mean:.1f}"
            shared = ", ".join(map(str, work.reused)) or ABSENT
            cells.append([run, work.stage, work.kind, duration(_mean(work.seconds)), passes, epochs, shared])
        if stages:
            total = sum(_mean(work.seconds) for work in stages)
            learned = [work.passes for work in stages if work.passes is not None]
            counts = {seed: sum(passes[seed] for passes in learned) for seed in stages[0].seconds}
            cells.append([run, "all", "", duration(total), _mean_count(counts), "", ""])
    return ["recipe", "stage", "kind", "time", "image passes", "epochs", "shared, seeds"], cells


def _mean(values: Mapping[int, float]) -> float:
    return spread(list(values.values())).mean


def _mean_count(counts: Mapping[int, int]) -> str:
    return f"{round(_mean(counts)):,}".replace(",", " ")  # a narrow space that does not break


def pass_sentence(comparison: Comparison) -> str:
    """Whether the recipes learn from equally many images, kind of stage by kind of stage."""
    sentences = []
    for kind in ("localise", "refine", "segment"):
        counts: dict[str, int] = {}
        for work in comparison.work:
            if work.kind == kind and work.passes is not None:
                counts[work.run] = counts.get(work.run, 0) + round(_mean(work.passes))
        if len(set(counts.values())) == 1:
            sentences.append(f"{kind}: {next(iter(counts.values()))} in every recipe that has it")
        elif counts:
            each = ", ".join(f"{run} {count}" for run, count in counts.items())
            sentences.append(f"{kind}: not equal ({each})")
    return f"Image passes of training: {'; '.join(sentences)}." if sentences else "Nothing was trained."


EXPLANATION = (
    "Differences are in percentage points to the reference, which is the first recipe with such a row: the mean and "
    "the standard deviation of the differences seed by seed. The interval is the paired t interval at 95 % "
    "(mean ± t · sd / √n, n − 1 degrees of freedom) and takes the differences as normally distributed; with few seeds "
    "it is wide, and with one there is none. It covers chance in training only, not the choice of the data. sd: "
    "standard deviation over seeds (n − 1)."
)
PARTS_EXPLANATION = (
    "activation maps: at their best threshold. unrefined masks: from these maps as they are. refined maps: after the "
    "walk, other masks than the final ones. final masks: what the segmenter learns from. score: images whose weak "
    "labels were known; val: images from which nothing was learned."
)
WORK_EXPLANATION = (
    "Times are means over the seeds; those of shared stages were taken where they were done, so that each recipe shows "
    "what it costs alone. Stages that were interrupted are timed from where they went on. Image passes: images that "
    "went through the training (updates × batch size), however many views of them a method makes."
)


def summary_text(comparison: Comparison) -> str:
    """The tables in plain text for the terminal."""
    if not comparison.rows:
        return "No run is finished yet."
    header, rows = result_cells(comparison)
    missing = f"Missing: {'; '.join(comparison.unfinished)}." if comparison.unfinished else ""
    return "\n".join(filter(None, [text_table(header, rows, texts=4), pass_sentence(comparison), missing]))


# Markdown


def _markdown(comparison: Comparison) -> str:
    missing = [f"- {title}: {reason}" for title, reason in comparison.unfinished.items()]
    parts = [
        f"# {_heading(comparison)}",
        f"Data: {_escaped(comparison.data)}. Seeds: {', '.join(map(str, comparison.seeds))}.",
        *(["Missing:\n\n" + "\n".join(map(_escaped, missing))] if missing else []),
        _markdown_table(*result_cells(comparison), texts=4),
        EXPLANATION,
        PARTS_EXPLANATION,
        "## Seed by seed, mIoU %",
        _markdown_table(*_seed_cells(comparison), texts=4),
        "## Time and training",
        _markdown_table(*work_cells(comparison), texts=3),
        pass_sentence(comparison),
        WORK_EXPLANATION,
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    line = ["---" if place < texts else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in cells)} |" for cells in (header, line, *rows))


def _escaped(text: str) -> str:
    for special in "\\|<`*_[":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


# HTML


def _heading(comparison: Comparison) -> str:
    return f"{', '.join(comparison.runs)}: comparison"


def _page(comparison: Comparison, out: Path, cells: Sequence[Cell]) -> str:
    sections = {
        "Result": _result_section(comparison),
        "Seeds": iter([table(*_seed_cells(comparison), "Mean IoU in percent, seed by seed", texts=4)]),
        "Training": _work_section(comparison),
        "Runs": _runs_section(comparison, out, cells),
    }
    return page(_heading(comparison), _introduction(comparison), sections)


def _introduction(comparison: Comparison) -> Iterator[Any]:
    yield element("p", "Comparison", class_="kicker")
    yield element("h1", ", ".join(comparison.runs))
    yield element("p", f"Data: {comparison.data or ABSENT}", class_="about")
    count = len(comparison.runs) * len(comparison.seeds)
    done = count - len(comparison.unfinished)
    yield element("p", f"{done} of {count} runs are finished, {len(comparison.seeds)} seeds each.", class_="summary")
    for title, reason in comparison.unfinished.items():
        yield note(f"Missing: {title}: {reason}")


def _result_section(comparison: Comparison) -> Iterator[Any]:
    if not comparison.rows:
        yield note("No run is finished yet.")
        return
    yield table(*result_cells(comparison), "Mean IoU in percent, differences in percentage points", texts=4)
    yield element("p", EXPLANATION, class_="explanation")
    yield element("p", PARTS_EXPLANATION, class_="explanation")


def _work_section(comparison: Comparison) -> Iterator[Any]:
    yield element("p", pass_sentence(comparison))
    yield table(*work_cells(comparison), "Time and image passes of every stage, means over the seeds", texts=3)
    yield element("p", WORK_EXPLANATION, class_="explanation")


def _runs_section(comparison: Comparison, out: Path, cells: Sequence[Cell]) -> Iterator[Any]:
    for run in comparison.runs:
        links = [
            element("a", f"seed {cell.recipe.seed}", href=quote(str((cell.folder / REPORT_NAME).relative_to(out))))
            for cell in cells
            if cell.recipe.name == run and (cell.folder / REPORT_NAME).is_file()
        ]
        about = next(cell.recipe.about for cell in cells if cell.recipe.name == run)
        yield element("h3", run)
        yield element("p", about, class_="explanation")
        yield element("p", join([f for link in links for f in (link, " ")]) if links else ABSENT)

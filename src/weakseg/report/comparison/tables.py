"""The tables of a comparison, as text, and what is said below them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from weakseg.ops.paired import paired_difference, spread
from weakseg.report.comparison.reading import Comparison, Measured, Row
from weakseg.report.markup import Share, duration
from weakseg.report.tables import ABSENT, Cells, percent, text_table

EXPLANATION = (
    "Differences are in percentage points to the reference, which is the first recipe with such a row: the mean and "
    "the standard deviation of the differences seed by seed. The interval is the paired t interval at 95 % "
    "(mean ± t · sd / √n, n − 1 degrees of freedom) and takes the differences as normally distributed; with few seeds "
    "it is wide, and with one there is none. It covers chance in training only, not the choice of the data. sd: "
    "standard deviation over seeds (n − 1)."
)
PARTS_EXPLANATION = (
    "activation maps: at their best threshold. unrefined masks: from these maps as they are. refined maps: after the "
    "refinement, other masks than the final ones. final masks: what the segmenter learns from. score: images whose "
    "weak labels were known; val: images from which nothing was learned."
)
WORK_EXPLANATION = (
    "Times are means over the seeds; those of shared stages were taken where they were done, so that each recipe shows "
    "what it costs alone. Stages that were interrupted are timed from where they went on. Image passes: images that "
    "went through the training (updates × batch size), however many views of them a method makes."
)


def named(measured: Measured) -> list[str]:
    """The recipe, and what of it was measured: the first two cells of a row."""
    return [measured.run, f"{measured.part}, {measured.split}: {measured.title}"]


def result_cells(comparison: Comparison) -> Cells:
    """Header and cells of the main table, in percent and percentage points; two columns of words come first."""
    header = ["recipe", "what", "mIoU %", "difference", "95 % interval", "sd", "sd of diff.", "seeds"]
    return header, [_result(row) for row in comparison.rows]


def _result(row: Row) -> list[str]:
    difference = row.difference
    if row.reference is None:
        differs, between, deviation = "reference", "", ""
    elif difference is None:
        differs = between = deviation = ABSENT
    else:
        interval = difference.interval()
        between = ABSENT if interval is None else f"{points(interval[0])} … {points(interval[1])}"
        differs, deviation = points(difference.mean), percent(difference.deviation)
    count = str(row.result.count)
    if difference is not None and difference.count != row.result.count:
        count += f", {difference.count} paired"
    mean = Share(percent(row.result.mean), row.result.mean)
    return [*named(row.measured), mean, differs, between, percent(row.result.deviation), deviation, count]


def points(difference: float) -> str:
    """A difference of two fractions of 1 in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def seed_cells(comparison: Comparison) -> Cells:
    """Header and cells of the table of single runs."""
    header = ["recipe", "what", *(f"seed {seed}" for seed in comparison.seeds)]
    of_seeds = [(row.measured, row.measured.mean_iou()) for row in comparison.rows]
    return header, [
        [*named(measured), *(percent(means.get(seed)) for seed in comparison.seeds)] for measured, means in of_seeds
    ]


def class_cells(comparison: Comparison) -> Iterator[tuple[str, Cells]]:
    """For every thing that is measured, such as "segmenter, val", header and cells of a table of classes: the mean IoU
    of each recipe over the seeds, and its difference to the first."""
    for _, group in groupby(comparison.rows, lambda row: row.measured.group):
        rows = list(group)
        header = ["class"]
        for row in rows:
            header += [row.measured.run, *(["difference"] if row.reference else [])]
        first = rows[0].measured
        number = f" ({first.number + 1})" if first.number else ""
        cells = [
            [name, *(cell for row in rows for cell in _of_class(row, label))]
            for label, name in enumerate(comparison.classes)
        ]
        yield f"{first.part}, {first.split}{number}", (header, cells)


def _of_class(row: Row, label: int) -> list[str]:
    values = row.measured.class_iou(label)
    mean = _mean(values) if values else None
    cells: list[str] = [Share(percent(mean), mean or 0)]
    if row.reference is not None:
        difference = paired_difference(values, row.reference.class_iou(label))
        cells.append(ABSENT if difference is None else points(difference.mean))
    return cells


def work_cells(comparison: Comparison) -> Cells:
    """Header and cells of the table of times and trainings, with a line of sums for every recipe."""
    cells = []
    for run in comparison.runs:
        stages = [work for work in comparison.work if work.run == run]
        for work in stages:
            passes = ABSENT if work.passes is None else _mean_count(work.passes)
            epochs = ABSENT if work.epochs is None else f"{_mean(work.epochs):.1f}"
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
    counts: dict[str, dict[str, int]] = {}
    for work in comparison.work:
        if work.passes is not None:
            of_run = counts.setdefault(work.kind, {})
            of_run[work.run] = of_run.get(work.run, 0) + round(_mean(work.passes))
    sentences = [f"{kind}: {_equality(of_run)}" for kind, of_run in counts.items()]
    return f"Image passes of training: {'; '.join(sentences)}." if sentences else "Nothing was trained."


def _equality(counts: Mapping[str, int]) -> str:
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} in every recipe that has it"
    return f"not equal ({', '.join(f'{run} {count}' for run, count in counts.items())})"


def summary_text(comparison: Comparison) -> str:
    """The main table in plain text for the terminal."""
    if not comparison.rows:
        return "No run is finished yet."
    header, rows = result_cells(comparison)
    missing = f"Missing: {'; '.join(comparison.unfinished)}." if comparison.unfinished else ""
    return "\n".join(filter(None, [text_table(header, rows, texts=2), pass_sentence(comparison), missing]))


def heading(comparison: Comparison) -> str:
    """What a comparison is called."""
    return f"{', '.join(comparison.runs)}: comparison"

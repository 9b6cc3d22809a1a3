"""`weakseg compare` on tiny data: the table, what is shared, killed and continued, what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import here, killed_at, process
from tiny import TINY, artifacts, set_options, write_tiny_voc
from weakseg.files import locked

# What differs between any two comparisons, besides what differs between their runs: times, and processes.
PASSING = (".html", ".md", "compare.lock")
SMALL = "affinity.model.backbone={name: small, output_stride: 8, weights: null, frozen_stages: 0}"
REFINED = ("affinity.train={steps: 2, batch_size: 4}", "affinity.augment.crop=96", SMALL)
TITLE = re.compile(r"\[(\d)/(\d)\] (.*), seed (\d)( \(about \d+ min left\))?")


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """`toy-cam` without and with AffinityNet, two seeds."""
    refine = ["--refine", "none,affinitynet", "--seeds", "3,1"]
    return ["compare", "toy-cam", "--data", str(data), "--out", str(out), *refine, *set_options(*TINY, *REFINED), *more]


def lasting(out: Path) -> dict[str, bytes]:
    """All files of a comparison that should not differ from those of another."""
    return {name: content for name, content in artifacts(out).items() if not name.endswith(PASSING)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Data, a finished comparison on them, and what it said. Whoever changes anything works on a copy."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_tiny_voc(folder / "data")
    answer = here(*arguments(data, folder / "out"))
    assert answer.status == 0, answer.err
    return data, folder / "out", answer.out


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    return found


def summary(run: Path) -> dict[tuple[str, str], float]:
    rows = json.loads((run / "scores" / "summary.json").read_text(encoding="utf-8"))
    return {(row["title"], row["split"]): row["mean_iou"] for row in rows}


def test_the_table_is_what_the_runs_measured(whole: tuple[Path, Path, str]) -> None:
    _, out, _ = whole
    found = read(out)
    assert [(row["what"], row["split"], row["run"], row["title"]) for row in found["rows"]] == [
        ("activation maps", "score", "toy-cam", "CAM"),
        ("activation maps", "score", "toy-cam+affinitynet", "CAM"),
        ("unrefined masks", "score", "toy-cam+affinitynet", "CAM + CRF"),
        ("refined maps", "score", "toy-cam+affinitynet", "Walk"),
        ("final masks", "score", "toy-cam", "CAM + CRF"),
        ("final masks", "score", "toy-cam+affinitynet", "Walk + CRF"),
        ("segmenter", "score", "toy-cam", "DeepLab"),
        ("segmenter", "score", "toy-cam+affinitynet", "DeepLab"),
        ("segmenter", "val", "toy-cam", "DeepLab"),
        ("segmenter", "val", "toy-cam+affinitynet", "DeepLab"),
    ]
    for row in found["rows"]:
        scores = {s: summary(out / row["run"] / f"seed-{s}")[row["title"], row["split"]] for s in ("1", "3")}
        assert row["by_seed"] == scores
        assert row["mean"] == pytest.approx(statistics.mean(scores.values()))
        assert row["deviation"] == pytest.approx(statistics.stdev(scores.values()))
        assert row["seeds"] == 2
    before, after = (row for row in found["rows"] if row["what"] == "final masks")
    assert before["difference"] is None
    gains = [after["by_seed"][seed] - before["by_seed"][seed] for seed in ("1", "3")]
    half = 12.7062 * statistics.stdev(gains) / 2**0.5
    assert after["difference"] == {
        "to": "toy-cam",
        "seeds": 2,
        "mean": pytest.approx(statistics.mean(gains)),
        "deviation": pytest.approx(statistics.stdev(gains)),
        "interval": pytest.approx([statistics.mean(gains) - half, statistics.mean(gains) + half], rel=1e-4),
    }
    assert found["unfinished"] == {}


def test_tables_for_programs_are_what_the_runs_measured(whole: tuple[Path, Path, str]) -> None:
    _, out, _ = whole
    lines = {}
    for name in ("compare", "compare-classes"):
        with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            lines[name] = list(csv.DictReader(file))
    rows, seeds = read(out)["rows"], ("1", "3")
    assert {(line["seed"], float(line["mean_iou"])) for line in lines["compare"]} == {
        (seed, row["by_seed"][seed]) for row in rows for seed in seeds
    }
    assert len(lines["compare"]) == 2 * len(rows)
    assert len(lines["compare-classes"]) == 3 * len(lines["compare"])
    scores = json.loads((out / "toy-cam" / "seed-3" / "scores" / "scores.json").read_text())
    (truth,) = (row["iou"] for row in scores["rows"] if (row["title"], row["split"]) == ("DeepLab", "val"))
    chosen = [
        line["iou"]
        for line in lines["compare-classes"]
        if (line["recipe"], line["what"], line["split"], line["seed"]) == ("toy-cam", "segmenter", "val", "3")
    ]
    assert chosen == ["" if iou is None else str(iou) for iou in truth]


def test_image_passes_are_counted(whole: tuple[Path, Path, str]) -> None:
    """Eight images, two epochs, or two updates of four."""
    _, out, said = whole
    passes = {(work["run"], work["stage"]): work["image_passes"] for work in read(out)["stages"]}
    assert passes["toy-cam", "cam"] == passes["toy-cam+affinitynet", "segment"] == {"1": 16, "3": 16}
    assert passes["toy-cam+affinitynet", "affinity"] == {"1": 8, "3": 8}
    assert passes["toy-cam", "maps"] is None
    assert "localise: 16 in every recipe that has it; segment: 16 in every recipe that has it; refine: 8" in said


def test_what_runs_have_in_common_is_done_once(whole: tuple[Path, Path, str], weakseg: Any, tmp_path: Path) -> None:
    data, out, said = whole
    assert said.count("cam: running") == said.count("maps: running") == 2
    for seed in (1, 3):
        for stage, source in (("cam", "cam"), ("maps", "maps"), ("unrefined_masks", "masks")):
            manifest = json.loads((out / f"toy-cam+affinitynet/seed-{seed}" / stage / "manifest.json").read_text())
            assert manifest["reused_from"] == str((out / f"toy-cam/seed-{seed}" / source).resolve())
    recipe = out / "toy-cam+affinitynet" / "seed-3" / "recipe.yaml"
    answer = weakseg("run", recipe, "--data", data, "--out", tmp_path / "alone")
    assert answer.status == 0, answer.err
    assert lasting(tmp_path / "alone") == lasting(out / "toy-cam+affinitynet" / "seed-3")


def test_progress_says_which_run_of_how_many(whole: tuple[Path, Path, str]) -> None:
    lines = [TITLE.fullmatch(line) for line in whole[2].splitlines()]
    assert [match.groups()[:4] for match in lines if match] == [
        ("1", "4", "toy-cam", "3"),
        ("2", "4", "toy-cam+affinitynet", "3"),
        ("3", "4", "toy-cam", "1"),
        ("4", "4", "toy-cam+affinitynet", "1"),
    ]
    assert [bool(match[5]) for match in lines if match] == [False, True, True, True]


def test_pages_for_people(whole: tuple[Path, Path, str]) -> None:
    _, out, said = whole
    html, markdown = ((out / f"compare.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert not re.search(r"""src=["'](?!data:)|<link|<script""", html), "the page needs nothing from anywhere"
    links = re.findall(r'href="([^#"][^"]*)"', html)
    assert len(links) == 4
    assert all((out / link.replace("%2B", "+")).is_file() for link in links)
    mean = next(row["mean"] for row in read(out)["rows"] if row["what"] == "final masks")
    for text in (html, markdown, said):
        assert f"{100 * mean:.1f}" in text
        assert "Walk + CRF" in text
    assert f"| toy-cam | final masks, score: CAM + CRF | {100 * mean:.1f} |" in markdown
    assert "paired t interval" in html
    assert "paired t interval" in markdown


def test_a_finished_comparison_does_nothing_again(
    whole: tuple[Path, Path, str], weakseg: Any, tmp_path: Path, copy_tree: Any
) -> None:
    data, out, _ = whole
    copy = copy_tree(out, tmp_path / "out")
    answer = weakseg(*arguments(data, copy))
    assert answer.status == 0, answer.err
    assert ": running" not in answer.out
    assert lasting(copy) == lasting(out)


def test_a_killed_comparison_goes_on(whole: tuple[Path, Path, str], weakseg: Any, tmp_path: Path) -> None:
    data, expected, _ = whole
    out = tmp_path / "out"
    for run in ("toy-cam/seed-1", "toy-cam/seed-3", "toy-cam+affinitynet/seed-3"):
        shutil.copytree(expected / run, out / run)
    program = killed_at("seed-1/maps/manifest.json", "1", "seed-1/masks/masks/", "3", "compare.json", "4")
    killed = process(*arguments(data, out), program=program)
    assert killed.returncode == 0, killed.stderr
    answer = weakseg(*arguments(data, out))
    assert answer.status == 0, answer.err
    assert ": running" not in answer.out
    found, wanted = lasting(out), lasting(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if wanted[name] != found[name] and name != "compare.json"] == []
    assert read(out)["rows"] == read(expected)["rows"]


def test_two_comparisons_in_one_folder_refuse_each_other(
    whole: tuple[Path, Path, str], weakseg: Any, tmp_path: Path
) -> None:
    with locked(tmp_path / "out" / "compare.lock", "comparison", wait=False):
        answer = weakseg(*arguments(whole[0], tmp_path / "out"))
    assert answer.status == 1
    assert "Error: Another comparison is at work in" in answer.err


def test_a_mistake_in_one_recipe_does_not_stop_the_others(
    whole: tuple[Path, Path, str], weakseg: Any, tmp_path: Path, copy_tree: Any
) -> None:
    data, out, _ = whole
    copy = copy_tree(out, tmp_path / "out")
    lost = "toy-supervised:segment.model.backbone.weights=gone.pth"
    words = ["compare", "toy-supervised", "toy-cam", "--data", data, "--out", copy, "--seeds", "1"]
    answer = weakseg(*words, *set_options(*TINY, lost))
    assert answer.status == 1
    assert answer.err.startswith("Error: ")
    assert len(answer.err.splitlines()) == 2, "one failed"
    assert f"{copy / 'toy-supervised' / 'seed-1'}: The weights gone.pth do not exist." in answer.err
    assert "Missing: toy-supervised, seed 1." in answer.out
    found = read(copy)
    assert list(found["unfinished"]) == ["toy-supervised, seed 1"]
    assert {row["run"] for row in found["rows"]} == {"toy-cam"}
    assert all(row["deviation"] is None for row in found["rows"]), "one seed says nothing of chance"


def test_a_setting_for_one_recipe(whole: tuple[Path, Path, str], weakseg: Any, tmp_path: Path, copy_tree: Any) -> None:
    data, out, _ = whole
    shutil.copytree(out / "toy-cam", tmp_path / "out" / "toy-cam")
    words = ["compare", "toy-cam", "toy-supervised", "--data", data, "--out", tmp_path / "out", "--seeds", "1"]
    answer = weakseg(*words, *set_options(*TINY, "toy-supervised:segment.train.epochs=1"))
    assert answer.status == 0, answer.err
    assert "segment: not equal (toy-cam 16, toy-supervised 8)" in answer.out
    assert "cam: finished before, skipped" in answer.out
    rows = {(row["what"], row["split"], row["run"]): row["difference"] for row in read(tmp_path / "out")["rows"]}
    assert rows["segmenter", "val", "toy-cam"] is None
    assert rows["segmenter", "val", "toy-supervised"]["interval"] is None


@pytest.fixture
def refused(weakseg: Any, tiny_voc: Path, tmp_path: Path) -> Iterator[Any]:
    """What a comparison answers that must fail before it has written anything."""

    def compare(*words: str, data: Path = tiny_voc) -> str:
        answer = weakseg("compare", *words, "--data", data, "--out", tmp_path / "out", *set_options(TINY[-1]))
        assert answer.status == 1
        assert answer.err.startswith("Error: ")
        return str(answer.err)

    yield compare
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy-cam", "camm"], 'There is no recipe "camm". Did you mean "cam"?'),
        (["toy-cam", "cam", "toy-cam"], "The recipe toy-cam is there twice"),
        (["toy-cam", "--refine", "none,afinitynet"], 'There is no recipe "afinitynet". Did you mean "affinitynet"?'),
        (["toy-cam", "--refine", "none,none"], "The refiner none is there twice"),
        (["toy-cam", "--refine", "cam"], 'The recipe "cam" refines nothing'),
        (["toy-cam", "--seeds", "0,1,0"], "The seed 0 is there twice"),
        (["toy-cam", "--seeds", "zero"], "--seeds zero: write numbers from 0 on, such as 0,1,2"),
        (["toy-cam", "--set", "seed=2"], "give the seeds of a comparison with --seeds"),
        (["toy-cam", "--set", "affinity.train.epochs=2"], "no recipe of this comparison has such a stage or setting"),
        (["toy-cam", "--set", "cam:maps.stride=2"], "The stages are: toy-cam: cam, maps, masks, segment, scores"),
        (["toy-cam", "--set", "cam.train.epoch=2"], 'cam.train.epoch: unknown setting. Did you mean "epochs"?'),
        (["toy-cam", "--set", "nonsense"], "write it as key=value"),
    ],
)
def test_what_cannot_be_compared(refused: Any, words: list[str], message: str) -> None:
    assert message in refused(*words)


def test_without_masks_there_is_nothing_to_compare(refused: Any, tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "unmeasurable", masks=False)
    assert "unmeasurable has no masks to measure on, so there is nothing to compare" in refused("toy-cam", data=data)

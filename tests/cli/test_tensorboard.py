"""What TensorBoard reads in a run is what the run's own logs say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from commands import killed_at, process
from tiny import artifacts, set_options

ON = set_options("runtime.tensorboard=true")
Series = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def accumulator() -> Any:
    """TensorBoard's own reader of event files."""
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator


def event_files(root: Path) -> list[Path]:
    return sorted(root.rglob("events.out.tfevents.*"))


def shown(accumulator: Any, stage: Path) -> Series:
    """The scalars in a stage's folder: name → (step, value), in the order of the file."""
    found = accumulator(str(stage), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def logged(stage: Path) -> Series:
    """The same of the stage's log."""
    records = [json.loads(line) for line in (stage / "train.jsonl").read_text().splitlines()]
    names = records[0].keys() - {"step", "epoch"}
    return {name: [(record["step"], pytest.approx(record[name])) for record in records] for name in names}


def test_a_killed_run_shows_each_update_once(accumulator: Any, finished: Any, weakseg: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    program = killed_at("cam/checkpoint", "2", "segment/checkpoint", "3")
    done = process(*finished.command, *ON, "--out", out, program=program)
    assert done.returncode == 0, done.stderr
    answer = weakseg(*finished.command, *ON, "--out", out)
    assert answer.status == 0, answer.err
    for stage in ("cam", "segment"):
        expected = logged(out / stage)
        assert [step for step, _ in expected["loss"]] == [1, 2, 3, 4]
        assert {"lr", "images_per_s"} < expected.keys()
        assert shown(accumulator, out / stage) == expected
    rows = json.loads((out / "scores" / "scores.json").read_text())["rows"]
    scores = {f"mean_iou/{row['title']}, {row['split']}": [(0, pytest.approx(row["mean_iou"]))] for row in rows}
    assert len(scores) == 4
    assert shown(accumulator, out / "scores") == scores
    assert [path.parent.name for path in event_files(out)] == ["cam", "scores", "segment"]
    for path in event_files(out):
        path.unlink()
    assert artifacts(out).keys() == artifacts(finished.run).keys()
    assert (out / "segment/model/model.safetensors").read_bytes() == (
        finished.run / "segment/model/model.safetensors"
    ).read_bytes()


def test_nothing_finished_is_done_again(
    accumulator: Any, finished: Any, weakseg: Any, tmp_path: Path, copy_tree: Any
) -> None:
    out = copy_tree(finished.run, tmp_path / "run")
    assert event_files(out) == []
    answer = weakseg(*finished.command, *ON, "--out", out)
    assert answer.status == 0, answer.err
    assert answer.out.count("finished before, skipped") == 5


ROUNDS = """
extends: {recipe}
rounds:
  count: 1
  stages: [masks, scores]
  changes:
    masks: {{threshold: 0.4}}
    scores:
      curves: {{CAM: null}}
      masks: {{CAM + CRF: null, "CAM + CRF, round {{round}}": masks}}
      segmenters: {{DeepLab: null}}
"""


def test_the_scores_of_rounds_are_points_of_one_curve(
    accumulator: Any, finished: Any, weakseg: Any, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "rounds.yaml", tmp_path / "run"
    recipe.write_text(ROUNDS.format(recipe=finished.run / "recipe.yaml"))
    answer = weakseg("run", recipe, "--data", finished.data, "--out", out, "--reuse", finished.run, *ON)
    assert answer.status == 0, answer.err
    (row,) = json.loads((out / "round-1" / "scores" / "scores.json").read_text())["rows"]
    assert row["title"] == "CAM + CRF, round 1"
    expected = {"mean_iou/CAM + CRF, score": [(1, pytest.approx(row["mean_iou"]))]}
    assert shown(accumulator, out / "round-1" / "scores") == expected


def test_without_the_package_one_sentence_says_what_to_install(finished: Any, tmp_path: Path) -> None:
    """A module that is not TensorBoard hides it, if it is installed."""
    (tmp_path / "tensorboard.py").touch()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = process(*finished.command, *ON, "--out", tmp_path / "run", PYTHONPATH=path)
    assert done.returncode == 1
    assert "runtime.tensorboard" in done.stderr
    assert "pip install 'weakseg[tensorboard]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()

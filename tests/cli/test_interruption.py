"""Killed in the middle of every stage, or stopped, and started again: the same bytes as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from commands import interrupted_at, killed_at, process
from tiny import artifacts, set_options
from weakseg.pipeline.recipe import load_recipe


@pytest.mark.parametrize(
    ("run", "points"),
    [
        (
            "finished_seam",
            [
                ("cam/checkpoint", "2"),
                ("cam/model/model.safetensors", "1"),
                ("maps/maps/", "4"),
                ("cam_masks/curve.json", "1"),
                ("cam_masks/masks/", "3"),
            ],
        ),
        (
            "finished_seam",
            [
                ("affinity/evidence/", "3"),
                ("affinity/checkpoint", "2"),
                ("walk/maps/", "4"),
                ("walked/masks/", "5"),
                ("/masks/masks/", "3"),
            ],
        ),
        (
            "finished_seam",
            [
                ("segment/checkpoint", "3"),
                ("segment/manifest.json", "1"),
                ("scores/predictions/", "5"),
                ("scores/scores.json", "1"),
                ("report.html", "1"),
            ],
        ),
        (
            "finished_pasting",
            [
                ("round-1/pool/crops/", "3"),
                ("round-1/pool/index.json", "1"),
                ("round-1/cam/checkpoint", "2"),
                ("round-1/maps/maps/", "3"),
            ],
        ),
        (
            "finished_context",
            [("round-2/confounders/confounders.npz", "1"), ("round-2/cam/checkpoint", "1")],
        ),
        (
            "finished_icd",
            [
                ("superpixels/superpixels/", "3"),
                ("cam/checkpoint", "2"),
            ],
        ),
        (
            "finished_spml",
            [
                ("embedding/checkpoint", "3"),
                ("pseudo/masks/", "3"),
                ("retrieved/masks/", "4"),
                ("classifier/checkpoint", "1"),
            ],
        ),
    ],
    ids=["localiser", "refiner", "segmenter", "pasting", "context", "icd", "spml"],
)
def test_killed_runs_end_with_the_same_bytes(
    run: str, points: list[tuple[str, str]], tmp_path: Path, request: pytest.FixtureRequest, weakseg: Any
) -> None:
    """The stages before the first one that is killed are taken from the undisturbed run."""
    finished, out = request.getfixturevalue(run), tmp_path / "run"
    stages = list(load_recipe(str(finished.run / "recipe.yaml")).stages)
    first = next(stage for stage in stages if points[0][0].startswith(f"{stage}/"))
    for stage in stages[: stages.index(first)]:
        shutil.copytree(finished.run / stage, out / stage)
    program = killed_at(*itertools.chain.from_iterable(points))
    done = process(*finished.command, "--out", out, program=program)
    assert done.returncode == 0, done.stderr
    answer = weakseg(*finished.command, "--out", out)
    assert answer.status == 0, answer.err
    found, expected = artifacts(out), artifacts(finished.run)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_training_that_is_stopped_says_how_it_goes_on_and_does(
    workers: str, finished: Any, tmp_path: Path, weakseg: Any
) -> None:
    """Ctrl-C while the fourteenth of the sixteen images that the localiser learns from is read."""
    out = tmp_path / "run"
    seldom = set_options("runtime.checkpoint_steps=null", f"runtime.workers={workers}")
    done = process(*finished.command, *seldom, "--out", out, program=interrupted_at("JPEGImages", 14))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert '"cam"' in done.stderr
    assert "same command" in done.stderr
    updates = len((out / "cam" / "train.jsonl").read_text().splitlines())
    assert 1 <= updates <= 4
    with safe_open(out / "cam" / "checkpoint.safetensors", framework="pt") as checkpoint:
        assert checkpoint.metadata()["step"] == str(updates)
    assert not (out / "cam" / "model").exists()
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["event"] == "stopped"
    answer = weakseg(*finished.command, "--out", out)
    assert answer.status == 0, answer.err
    assert len((out / "cam" / "train.jsonl").read_text().splitlines()) == 4
    assert artifacts(out) == artifacts(finished.run)

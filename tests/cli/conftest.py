"""Finished runs to look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from commands import here
from tiny import TINY, TINY_SEAM, set_options, write_tiny_voc


class Finished(NamedTuple):
    """A data set, what `weakseg run` made of it, and the words of that command before `--out`. Whoever changes
    anything works on a copy."""

    data: Path
    run: Path
    command: tuple[str | Path, ...]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The recipe toy-cam."""
    return finish(tmp_path_factory.mktemp("finished"), "toy-cam", TINY)


@pytest.fixture(scope="session")
def finished_seam(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The recipe seam: every kind of stage that maps, walks or learns."""
    return finish(tmp_path_factory.mktemp("finished seam"), "seam", TINY_SEAM)


PASTING = """
extends: toy-cda
name: pasting
about: up to the maps of the second round
rounds: {stages: [cam, maps], changes: {pool: {masks: masks}, cam: {paste: {fewest_crops: 1}}}}
stages: {segment: null, scores: null}
"""


@pytest.fixture(scope="session")
def finished_pasting(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A localiser that learns from pasted objects."""
    folder = tmp_path_factory.mktemp("finished pasting")
    (folder / "pasting.yaml").write_text(PASTING, encoding="utf-8")
    short = (change for change in TINY if not change.startswith("segment"))
    all_objects = ("masks.threshold=0.2", "masks.crf=null", "round-1/pool.smallest=0", "round-1/pool.largest=1")
    settings = (*short, *all_objects, "round-1/cam.train.epochs=1")
    return finish(folder, str(folder / "pasting.yaml"), settings)


CONTEXT = """
extends: toy-conta
name: context
about: up to the maps of the second repeated round
rounds: {stages: [cam, maps, masks], changes: {predicted: null, confounders: {masks: previous/masks}, scores: null}}
stages: {segment: null, scores: null}
"""


@pytest.fixture(scope="session")
def finished_context(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A localiser that sees the context of the round before, twice."""
    folder = tmp_path_factory.mktemp("finished context")
    (folder / "context.yaml").write_text(CONTEXT, encoding="utf-8")
    short = (change for change in TINY if not change.startswith("segment"))
    settings = (*short, "masks.threshold=0.3", "masks.crf=null", "cam.train.epochs=1")
    return finish(folder, str(folder / "context.yaml"), settings)


@pytest.fixture(scope="session")
def finished_icd(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Superpixels, ICD, its two kinds of maps and its seeds."""
    short = (change for change in TINY if not change.startswith(("segment", "maps.scales")))
    settings = (*short, "cam.augment.crop=33", "segment=null")
    return finish(tmp_path_factory.mktemp("finished icd"), "toy-icd", settings)


@pytest.fixture(scope="session")
def finished_spml(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An embedding with its memory, the masks that it spreads and retrieves, and their classifier."""
    stages = ("cam", "embedding", "classifier")
    settings = (
        *(f"{stage}.augment.crop=32" for stage in stages),
        *(f"{stage}.train={{epochs: 1, batch_size: 2, min_steps: null}}" for stage in stages),
        *(f"{stage}.model.{change}" for stage in stages[1:] for change in ("dimensions=4", "dropout=0")),
        "runtime.checkpoint_steps=1",
        "runtime.device=cpu",
    )
    return finish(tmp_path_factory.mktemp("finished spml"), "toy-spml", settings)


def finish(folder: Path, recipe: str, settings: tuple[str, ...]) -> Finished:
    data, run = write_tiny_voc(folder / "data"), folder / "run"
    command = ("run", recipe, "--data", data, *set_options(*settings))
    answer = here(*command, "--out", run)
    assert answer.status == 0, answer.err
    return Finished(data, run, command)

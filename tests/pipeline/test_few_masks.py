"""A few masks among many images: what is chosen on them, and what learns from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny import TINY, write_tiny_voc
from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map, write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.pipeline.choosing import MOST, choose
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.pipeline.stages.masks import Masks
from weakseg.pipeline.stages.segment import ReadLabels
from weakseg.report.run import write_report

MASKED = ("train 2", "train 5", "train 6")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, three of them with masks."""
    root = write_tiny_voc(tmp_path_factory.mktemp("few") / "data", val=0)
    for path in (root / "SegmentationClass").iterdir():
        if path.stem not in MASKED:
            path.unlink()
    return root


def carried_out(data: Path, root: Path, *overrides: str) -> list[str]:
    said: list[str] = []
    run(load_recipe("toy-cam", [*TINY, *overrides]), open_dataset(data), root, said.append)
    return [line.partition(":")[0] for line in said if line.endswith(": running")]


@pytest.fixture(scope="module")
def chosen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chosen") / "run"
    carried_out(data, root, "masks.crf=auto", "segment.true_masks=true")
    return root


def test_the_best_candidate_is_chosen_and_the_first_of_equal_ones(data: Path) -> None:
    samples = [sample for sample in open_dataset(data).split("train") if sample.mask is not None]

    def decide(candidate: str, sample: Sample) -> np.ndarray:
        assert sample.mask is not None
        truth = sample.mask.read()
        return {"nothing": np.zeros_like(truth), "truth": truth, "the same": truth}[candidate]

    choice = choose(samples, 3, ["nothing", "truth", "the same"], decide)
    assert (choice.candidate, choice.images, choice.candidates, choice.best) == ("truth", 3, 3, 1)
    assert 0 < choice.interval[0] <= choice.interval[1]
    assert choose(samples, 3, ["truth", "nothing", "the same"], decide).candidate == "truth"
    many = choose(samples * MOST, 3, ["nothing"], decide)
    assert many.images <= MOST
    assert many.interval == (0, 0)


def test_what_is_better_by_chance_is_not_chosen(data: Path) -> None:
    """Better on two of three images by little, worse on the third: drawn anew, it may as well be worse."""
    samples = [sample for sample in open_dataset(data).split("train") if sample.mask is not None]

    def decide(candidate: int, sample: Sample) -> np.ndarray:
        assert sample.mask is not None
        labels = sample.mask.read().copy()
        place = samples.index(sample)
        labels[: (8, 8, 8)[place] if candidate == 0 else (6, 6, 9)[place]] = 0
        return labels

    choice = choose(samples, 3, [0, 1], decide)
    assert choice.best > choice.usual
    assert choice.interval[0] <= 0 < choice.interval[1]
    assert choice.candidate == 0


def test_threshold_and_crf_are_chosen_together_and_the_report_says_how_surely(chosen: Path, data: Path) -> None:
    origin = read_json(chosen / "masks" / "threshold.json")["origin"]
    assert f"{len(MASKED)} masks" in origin
    assert "interval" in origin
    assert origin in write_report(chosen).read_text(encoding="utf-8")


def test_a_given_threshold_stays(data: Path, chosen: Path, tmp_path: Path) -> None:
    load = load_recipe("toy-cam", [*TINY, "masks.crf=auto", "masks.threshold=0.35"])
    run(load, open_dataset(data), tmp_path / "run", lambda line: None, reuse=[chosen], until="masks")
    choice = read_json(tmp_path / "run" / "masks" / "threshold.json")
    assert choice["threshold"] == 0.35
    assert "best of 4" in choice["origin"]


def test_few_masks_do_not_replace_the_rule_without_masks_by_chance(data: Path, chosen: Path, tmp_path: Path) -> None:
    """The best threshold of three masks has to be surely better than the adaptive one."""
    load = load_recipe("toy-cam", [*TINY, "masks.crf=null"])
    run(load, open_dataset(data), tmp_path / "run", lambda line: None, reuse=[chosen], until="masks")
    choice = read_json(tmp_path / "run" / "masks" / "threshold.json")
    best = read_json(tmp_path / "run" / "masks" / "curve.json")["best_threshold"]
    assert f"{len(MASKED)} masks: the best of 2" in choice["origin"]
    assert choice["threshold"] == ("adaptive" if "is kept" in choice["origin"] else best)


def test_images_with_masks_teach_the_segmenter(data: Path, chosen: Path) -> None:
    for sample in open_dataset(data).split("train"):
        pseudo = read_label_map(chosen / "masks" / "masks" / f"{sample.name}.png")
        expected = sample.mask.read() if sample.mask is not None else pseudo
        np.testing.assert_array_equal(
            ReadLabels(Masks, chosen / "masks", partial=False, true_masks=True)(sample)["labels"], expected
        )
        np.testing.assert_array_equal(ReadLabels(Masks, chosen / "masks", partial=False)(sample)["labels"], pseudo)
    text = write_report(chosen).read_text(encoding="utf-8")
    assert f"ground truth of {len(MASKED)} of 8 images" in text


def test_only_a_segmenter_that_learns_from_masks_depends_on_them(
    data: Path, chosen: Path, tmp_path: Path, copy_tree: object
) -> None:
    copy = copy_tree(data, tmp_path / "data")  # type: ignore[operator]
    changes = ("data.score=null", "masks.crf=null")
    assert "segment" in carried_out(copy, tmp_path / "pseudo", *changes)
    assert "segment" in carried_out(copy, tmp_path / "true", *changes, "segment.true_masks=true")
    write_label_map(copy / "SegmentationClass" / f"{MASKED[0]}.png", np.ones((36, 44), np.uint8))
    assert carried_out(copy, tmp_path / "pseudo", *changes) == []
    assert carried_out(copy, tmp_path / "true", *changes, "segment.true_masks=true") == ["segment", "scores"]


def test_a_mask_that_cannot_be_read_is_told_before_anything_runs(data: Path, tmp_path: Path, copy_tree: object) -> None:
    copy = copy_tree(data, tmp_path / "data")  # type: ignore[operator]
    path = copy / "SegmentationClass" / f"{MASKED[0]}.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(WeaksegError, match=MASKED[0]):
        carried_out(copy, tmp_path / "run", "data.score=null", "segment.true_masks=true")
    assert not (tmp_path / "run" / "cam").exists()

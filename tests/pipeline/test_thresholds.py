"""Thresholds without masks, and CRFs that spare what is small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny import TINY, write_tiny_voc
from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map
from weakseg.data.opening import open_dataset
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import adaptive_threshold, own_threshold
from weakseg.ops.crf_parameters import PARAMETERS
from weakseg.pipeline.inference import decide
from weakseg.pipeline.measures import measure_curve
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run


def maps_of(low: float, high: float, share: float = 0.3) -> ActivationMaps:
    """One class on noise around two values."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random((1, 16, 20)) < share, high, low) + rng.uniform(-0.02, 0.02, (1, 16, 20))
    return ActivationMaps(np.array([1], np.int16), values.clip(0, 1).astype(np.float32), (64, 80))


@given(low=st.floats(0.05, 0.4), gap=st.floats(0.2, 0.5))
def test_the_threshold_of_an_image_lies_between_its_parts(low: float, gap: float) -> None:
    threshold = own_threshold(maps_of(low, low + gap))
    assert threshold is not None
    assert low < threshold < low + gap


def test_what_is_usual_counts_half() -> None:
    maps = maps_of(0.2, 0.8)
    own = own_threshold(maps)
    assert own is not None
    assert adaptive_threshold(maps) == own
    assert adaptive_threshold(maps, 0.9) == pytest.approx((own + 0.9) / 2)
    flat = ActivationMaps(np.array([1], np.int16), np.full((1, 4, 4), 0.3, np.float32), (16, 16))
    assert own_threshold(flat) is None
    assert adaptive_threshold(flat, 0.7) == 0.7


def test_the_curve_finds_high_thresholds(tmp_path: Path) -> None:
    """Beyond 0.59, where those of the papers end."""
    dataset = open_dataset(write_tiny_voc(tmp_path))
    samples = [sample for sample in dataset.split("train") if sample.mask is not None]

    def read(sample: Sample) -> ActivationMaps:
        assert sample.mask is not None
        truth = sample.mask.read()
        labels = np.arange(1, dataset.classes.largest + 1, dtype=np.int16)
        maps = np.where(truth == labels[:, None, None], np.float32(0.9), np.float32(0.75))
        return ActivationMaps(labels, maps, truth.shape, stride=1)

    curve = measure_curve(samples, dataset.classes, read)
    assert 0.75 <= curve.thresholds[curve.best()] < 0.9
    assert curve.mean_iou.max() == pytest.approx(1)


def masks_of(root: Path, data: Path, *changes: str) -> dict[str, np.ndarray]:
    dataset = open_dataset(data)
    run(load_recipe("toy-cam", [*TINY, *changes]), dataset, root, lambda line: None, until="masks")
    return {s.name: read_label_map(root / "masks" / "masks" / f"{s.name}.png") for s in dataset.split("train")}


def test_without_masks_every_image_has_a_threshold_of_its_own(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data", masks=False)
    masks = masks_of(tmp_path / "run", data, "masks.crf=null")
    folder = tmp_path / "run" / "maps" / "maps"
    maps = {name: ActivationMaps.load(folder / f"{name}.npz") for name in masks}
    usual = float(np.mean([own for of_image in maps.values() if (own := own_threshold(of_image)) is not None]))
    for name, mask in masks.items():
        background = adaptive_threshold(maps[name], usual)
        expected = maps[name].upsampled().max(0, initial=0) > np.float32(background)
        assert np.array_equal(mask > 0, expected)
    assert json.loads((tmp_path / "run" / "masks" / "threshold.json").read_text())["threshold"] == "adaptive"


def test_a_crf_that_takes_too_much_away_reaches_less_far(tmp_path: Path) -> None:
    """Of the most that could be asked, it leaves more than with its own reach."""
    data = write_tiny_voc(tmp_path / "data")
    full = masks_of(tmp_path / "full", data, "masks.threshold=0.5", "masks.crf_keeps=null")
    spared = masks_of(tmp_path / "spared", data, "masks.threshold=0.5", "masks.crf_keeps=0.999")
    free = masks_of(tmp_path / "free", data, "masks.threshold=0.5", "masks.crf_keeps=0.001")
    assert {name: mask.tobytes() for name, mask in free.items()} == {n: m.tobytes() for n, m in full.items()}
    events = [json.loads(line) for line in (tmp_path / "spared" / "log.jsonl").read_text().splitlines()]
    (chosen,) = (event for event in events if event["event"] == "crf")
    assert chosen["reach"] < PARAMETERS["deeplab"].bilateral_sxy
    assert sum(map(np.count_nonzero, spared.values())) != sum(map(np.count_nonzero, full.values()))


def test_parameters_by_name_and_as_numbers_decide_alike() -> None:
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (12, 14, 3), np.uint8), rng.random((2, 12, 14)).astype(np.float32)
    labels = np.array([0, 3], np.uint8)
    named = decide(image, scores, labels, "deeplab", torch.device("cpu")).labels
    assert np.array_equal(named, decide(image, scores, labels, PARAMETERS["deeplab"], torch.device("cpu")).labels)
    within = PARAMETERS["deeplab"].within(10)
    assert (within.bilateral_sxy, within.bilateral_srgb) == (10, PARAMETERS["deeplab"].bilateral_srgb)
    assert PARAMETERS["deeplab"].within(1000) == PARAMETERS["deeplab"]

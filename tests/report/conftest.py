"""A small run, written by the code that writes real ones, with names that try to break out of a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from weakseg.data.cooccurrence import images_with_both
from weakseg.data.dataset import Dataset, Sample
from weakseg.data.images import write_label_map
from weakseg.data.voc import read_voc
from weakseg.files import write_json, write_text
from weakseg.ops.activation import ActivationMaps
from weakseg.pipeline.context import write_log
from weakseg.pipeline.measures import measure_curve, measure_masks
from weakseg.pipeline.recipe import Recipe, load_recipe
from weakseg.pipeline.run import DATA_NAME, MANIFEST_NAME, RECIPE_NAME, versions
from weakseg.pipeline.stages.evaluate import Evaluate, prediction_path
from weakseg.pipeline.stages.maps import map_path
from weakseg.pipeline.stages.masks import mask_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CLASSES = ("<b>cat</b> & dog", "\"quoted\" 'fox'", "鸟 😀", "cow")
COLOURS = np.array([(90, 150, 80), (200, 60, 50), (60, 90, 200), (230, 200, 60), (120, 60, 110)], np.uint8)
SIZE = (48, 64)
STAGES = ("cam", "maps", "masks", "segment", "scores")
ODD_NAME = "odd <img src=x> & 'ü'"
LONG_NAME = "_with_a_name_that_has_no_space_to_break_at" * 3


def write_data(root: Path, *, masks: bool = True, train: int = 12, val: int = 10) -> Dataset:
    """A VOC folder with rectangles of four classes; everything follows from the number of the image."""
    tags = {}
    (root / "JPEGImages").mkdir(parents=True)
    for split, count, seed in (("train", train, 0), ("val", val, 1)):
        names = [f"{split}_{number:02}" for number in range(count)]
        names[0] += f" {ODD_NAME}" if split == "train" else LONG_NAME
        for number, name in enumerate(names):
            rng = np.random.default_rng((seed, number))
            labels = np.zeros(SIZE, np.uint8)
            label = number % len(CLASSES) + 1
            y, x = rng.integers(4, 16), rng.integers(4, 24)
            labels[y : y + 24, x : x + 30] = label
            labels[y : y + 24, x + 29] = 255
            noise = rng.integers(-20, 20, (*SIZE, 3))
            image = np.clip(COLOURS[np.where(labels == 255, label, labels)] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
            if masks:
                write_label_map(root / "SegmentationClass" / f"{name}.png", labels)
            tags[name] = [CLASSES[label - 1]]
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(names) + "\n")
    write_json(root / "classes.json", {name: label for label, name in enumerate(CLASSES, start=1)})
    write_json(root / "tags.json", tags)
    return read_voc(root)


def activation_maps(sample: Sample, number: int) -> ActivationMaps:
    """A hill in the middle of the image for every tag."""
    rows, columns = np.mgrid[: SIZE[0] // 4, : SIZE[1] // 4]
    hill = np.exp(-(((rows - 5) / 4) ** 2 + ((columns - 7 - number % 3) / 5) ** 2))
    labels = np.array(sorted(sample.labels.present()), np.int16)
    return ActivationMaps(labels, np.repeat(hill[None], len(labels), 0).astype(np.float32), SIZE, 4)


def label_map(sample: Sample, number: int) -> np.ndarray:
    """A rectangle of the image's class, more or less where it should be."""
    labels = np.zeros(SIZE, np.uint8)
    labels[8 : 30 + number, 10:40] = min(sample.labels.present())
    return labels


def write_run(root: Path, dataset: Dataset, stages: Sequence[str] = STAGES, recipe: Recipe | None = None) -> Path:
    """What a run of the recipe "toy-cam" leaves after the given stages."""
    recipe = recipe or load_recipe("toy-cam")
    masked = all(sample.mask for split in dataset.splits.values() for sample in split)
    train = dataset.split("train")
    score, val = (train, dataset.split("val")) if masked else ([], [])
    parts = {"train": train, "score": score, "val": val}
    write_text(root / RECIPE_NAME, recipe.as_yaml())
    write_json(
        root / DATA_NAME,
        {
            "root": str(dataset.root),
            "format": dataset.format,
            "classes": list(dataset.classes.names),
            "splits": {"train": "train", "score": "train", "val": "val"},
            "images": {part: len(samples) for part, samples in parts.items()},
            "images_with_class": {
                part: [
                    sum(label in sample.labels.present() for sample in samples) for label in range(1, len(CLASSES) + 1)
                ]
                for part, samples in parts.items()
            },
            "images_with_both": images_with_both(train, len(CLASSES)).tolist(),
            "names": {part: [sample.name for sample in samples] for part, samples in parts.items()},
        },
    )
    write_log(root, "run", recipe=recipe.name, processes=1, keys={name: name for name in recipe.stages})
    for name in stages:
        _write_stage(name, root, recipe, dataset, parts)
        stage = recipe.stages[name]
        write_json(
            root / name / MANIFEST_NAME,
            {
                "stage": name,
                "key": name,
                "settings": stage.model_dump(mode="json"),
                "inputs": stage.inputs_of(),
                "seconds": 12.5,
                "resumed": name == "segment",
                "processes": 1,
                "device": "cpu",
                "versions": versions(),
            },
        )
        write_log(root, "stage done", stage=name, seconds=12.5)
    if list(stages) == list(recipe.stages):
        write_log(root, "done")
    return root


def _write_stage(name: str, root: Path, recipe: Recipe, dataset: Dataset, parts: dict[str, Sequence[Sample]]) -> None:
    folder = root / name
    kind = recipe.stages[name].kind
    if kind in ("localise", "segment"):
        lines = [
            {"step": step, "epoch": step / 10, "loss": 2 / step, "lr": 0.1, "images_per_s": 50.0}
            for step in range(1, 161)
        ]
        write_text(folder / "train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    elif kind == "maps":
        for number, sample in enumerate(parts["train"]):
            activation_maps(sample, number).save(map_path(folder, sample))
    elif kind == "masks":
        for number, sample in enumerate(parts["train"]):
            write_label_map(mask_path(folder, sample), label_map(sample, number))
        if parts["score"]:
            maps = {sample.name: activation_maps(sample, n) for n, sample in enumerate(parts["train"])}
            curve = measure_curve(parts["score"], dataset.classes, lambda sample: maps[sample.name]).to_dict()
            write_json(folder / "curve.json", curve)
            write_json(folder / "threshold.json", {"threshold": 0.27, "origin": "best on the score split"})
        else:
            write_json(folder / "threshold.json", {"threshold": 0.3, "origin": "default"})
    else:
        stage = recipe.stages[name]
        assert isinstance(stage, Evaluate)
        rows = _rows(root, folder, stage, dataset, parts)
        write_json(folder / "scores.json", {"classes": ["background", *dataset.classes.names], "rows": rows})


def _rows(
    root: Path, folder: Path, stage: Evaluate, dataset: Dataset, parts: dict[str, Sequence[Sample]]
) -> list[dict[str, Any]]:
    def measured(title: str, split: str, shift: int) -> dict[str, Any]:
        samples = parts[split]
        maps = {sample.name: label_map(sample, number + shift) for number, sample in enumerate(samples)}
        if shift:
            for sample in samples:
                write_label_map(prediction_path(folder / "predictions" / "segment", sample), maps[sample.name])
        scores = measure_masks(samples, dataset.classes, lambda sample: maps[sample.name], title).to_dict()
        return {"title": title, "split": split, "boundary_f": scores["boundary"]["mean_f_score"], **scores}

    if not parts["score"]:
        return []
    curves = {title: json.loads((root / masks / "curve.json").read_text()) for title, masks in stage.curves.items()}
    return [
        *({"title": t, "split": "score", "threshold": c["best_threshold"], **c["best"]} for t, c in curves.items()),
        *(measured(title, "score", 0) for title in stage.masks),
        measured("DeepLab", "score", 2),
        measured("DeepLab", "val", 2),
    ]


RunMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run. Only its report may be written again."""
    root = tmp_path_factory.mktemp("finished")
    return write_run(root / "run", write_data(root / "data"))


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """`make_run(stages=…, masks=…)` writes data and a run on them and returns the folder of the run."""

    def make(*, stages: Sequence[str] = STAGES, masks: bool = True, **settings: Any) -> Path:
        return write_run(tmp_path / "run", write_data(tmp_path / "data", masks=masks), stages, **settings)

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: install Debian's chromium to check the report in it")
    switches = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=chromium, args=[*switches, "--disable-component-update", "--disable-sync"]
        )
        yield started
        started.close()

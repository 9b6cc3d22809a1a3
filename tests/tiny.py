"""A tiny data set, the settings that make a whole recipe run on it in seconds, and what such runs made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from weakseg.data.images import write_label_map
from weakseg.files import write_json, write_text

CLASSES = ("kettle", "spoon")
TINY = (
    "cam.train.epochs=2",
    "cam.train.batch_size=4",
    "cam.train.min_steps=null",
    "cam.augment.crop=32",
    "segment.train.epochs=2",
    "segment.train.batch_size=4",
    "segment.train.min_steps=null",
    "segment.augment.crop=32",
    "maps.scales=[1.0, 0.5]",
    "maps.batch_size=2",
    "runtime.checkpoint_steps=1",
    "runtime.device=cpu",
)
"""Changes that make the recipe toy-cam finish in seconds on the tiny data."""
SMALL = "{name: small, output_stride: 8, weights: null}"
TINY_SEAM = (
    *TINY,
    "cam.augment={crop: 32}",
    *(f"{stage}.model.backbone={SMALL}" for stage in ("cam", "affinity", "segment")),
    "affinity.augment={crop: 48}",
    "affinity.train={epochs: 2, batch_size: 4}",
)
"""The same for the recipe seam."""


def write_tiny_voc(root: Path, train: int = 8, val: int = 4, masks: bool = True) -> Path:
    """Kettles and spoons: textured pictures of two sizes with a rectangle of the class's colour, saliency maps of it,
    and, but for the first two, the context of the class around its upper half."""
    tags = {}
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = f"{split} {number}"
            rng = np.random.default_rng([number, count])
            height, width = (40, 48) if number % 2 else (36, 44)
            labels = np.zeros((height, width), np.uint8)
            top, left = rng.integers(2, 14, 2)
            labels[top : top + 16, left : left + 18] = 1 + number % 2
            colours = np.array([(110, 140, 90), (200, 60, 40), (50, 70, 200)])
            image = np.clip(colours[labels] + rng.integers(-25, 25, (height, width, 3)), 0, 255).astype(np.uint8)
            (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.png")
            if masks:
                write_label_map(root / "SegmentationClass" / f"{name}.png", labels)
                context = np.where(labels, np.uint8(0), np.uint8(1 + number % 2 if number > 1 else 0))
                context[top + 8 :] = 0
                write_label_map(root / "saliency" / f"{name}.png", np.where(labels, 255, 2).astype(np.uint8))
                write_label_map(root / "ContextMask" / f"{name}.png", context)
            tags[name] = [CLASSES[number % 2]]
        names = "".join(f"{split} {number}\n" for number in range(count))
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    write_json(root / "classes.json", {"background": 0, **{name: i for i, name in enumerate(CLASSES, 1)}, "void": 255})
    write_json(root / "tags.json", tags)
    return root


# What differs between any two runs: times, and the paths and processes in logs.
PASSING = {"manifest.json", "train.jsonl", "log.jsonl", "run.lock", "report.html"}


def artifacts(root: Path) -> dict[str, bytes]:
    """All files of a run that should not differ from those of another."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in PASSING)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def set_options(*overrides: str) -> list[str]:
    """The `--set` options of the command line."""
    return [word for override in overrides for word in ("--set", override)]

"""The library in four calls: `run` a recipe, `load` a model, `refine` scores, `evaluate` masks.

They do what the commands of the same names do, with arrays where these have files. A mistake of the caller raises
`WeaksegError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from weakseg import parallel
from weakseg.data.images import read_image
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.methods.store import Model, make_ready
from weakseg.ops.crf_parameters import CRFParameters
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.pipeline import recipe as recipes
from weakseg.pipeline.inference import Inference, Prediction, predict
from weakseg.pipeline.predict import checked_changes, find_model
from weakseg.runtime import RuntimeSettings, start
from weakseg.settings import validate

if TYPE_CHECKING:
    from weakseg.pipeline.measures import MaskScores
    from weakseg.report.folder import RunFolder

Pathlike = str | Path
Device = Literal["auto", "cpu", "cuda"]
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LoadedModel:
    """A trained segmenter or localiser, ready to predict; made by `load`."""

    model: Model
    device: torch.device

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes; number k has the label k + 1, the background 0."""
        return self.model.classes.names

    def predict(self, image: Pathlike | Image, **changes: Any) -> Prediction:
        """What the model sees in an image: a file, or pixels uint8 (H, W, 3), RGB, or (H, W), grey.

        `changes` are settings other than those that the model was evaluated with: `scales`, `mirror`, `crf`, and
        `threshold` for localisers (see `pipeline.inference.Inference`). The result holds `labels` uint8 (H, W), 0
        background, 1 … C, and the `scores` that they come from.
        """
        inference = validate(Inference, {**self.model.inference, **checked_changes(self.model, changes)}, "predict")
        return predict(self.model, as_image(image), inference, self.device)


def load(path: Pathlike, *, device: Device = "auto") -> LoadedModel:
    """The last model that the run in a folder made, a segmenter if there is one, or the model in a model folder."""
    model = find_model(Path(path))
    place = start(validate(RuntimeSettings, {"device": device}, "load")).device
    make_ready(model, place)
    return LoadedModel(model, place)


def run(
    recipe: str | recipes.Recipe,
    data: Pathlike,
    out: Pathlike,
    *,
    changes: Mapping[str, Any] | None = None,
    until: str | None = None,
    reuse: Sequence[Pathlike] = (),
    redo: Sequence[str] = (),
    weights: Pathlike | None = None,
    format: str | None = None,
    announce: Callable[[str], None] = print,
) -> RunFolder:
    """Carry out a recipe (a shipped one by its name, a YAML file by its path) on a data set; finished stages are
    skipped. Returns the run's folder, whose `scores` are the rows of the table; `report.html` lies in it.

    `changes` are settings such as {"cam.train.epochs": 2}; the other arguments are the options of `weakseg run`.
    """
    from weakseg.pipeline.run import run as carry_out
    from weakseg.report.folder import RunFolder
    from weakseg.report.run import write_report

    found = _recipe(recipe, changes or {})
    if weights is not None:
        found = recipes.with_weights(found, str(weights))
    root = Path(out)
    carry_out(
        found, open_dataset(Path(data), format), root, announce, reuse=[Path(o) for o in reuse], redo=redo, until=until
    )
    if parallel.rank() == 0:
        write_report(root)
    return RunFolder.read(root)


def refine(
    image: Pathlike | Image,
    scores: npt.NDArray[Any],
    *,
    crf: str | CRFParameters = "deeplab",
    device: str = "cpu",
) -> npt.NDArray[np.float32]:
    """Probabilities (L, H, W) of L labels at every pixel, pulled to the edges of an image (H, W, 3) by a dense CRF.

    `crf` is the name of a set of parameters (`ops.crf_parameters.PARAMETERS`) or parameters. The result is float32
    (L, H, W), and sums to 1 at every pixel; its largest value is the label. Raises `WeaksegError` for scores outside
    of 0 … 1, logits and logarithms among them, and for another size than the image's.
    """
    pixels, scores = as_image(image), np.asarray(scores)
    if scores.ndim != 3 or scores.shape[1:] != pixels.shape[:2] or scores.dtype.kind not in "fiub":
        raise WeaksegError(
            f"The scores are {scores.dtype} of shape {scores.shape}, expected probabilities of shape "
            f"(labels, {pixels.shape[0]}, {pixels.shape[1]}) for this image."
        )
    lowest, highest = (float(scores.min()), float(scores.max())) if scores.size else (0.0, 0.0)
    if not (lowest >= 0 and highest <= 1):
        raise WeaksegError(
            f"The scores reach from {lowest:g} to {highest:g}, expected probabilities from 0 to 1. "
            "Take the softmax of logits, the exponential of logarithms."
        )
    return dense_crf(pixels, unary_from_probabilities(scores), crf, device)


def evaluate(masks: Pathlike, data: Pathlike, *, split: str = "val", format: str | None = None) -> MaskScores:
    """How good the label maps `masks`/NAME.png are against the ground truth of a split: `confusion` (mIoU, IoU of every
    class), `boundary` (F-score) and `images` (IoU of every image)."""
    from weakseg.report.evaluation import score_folder

    scores, _ = score_folder(Path(masks), open_dataset(data, format), split)
    return scores


def as_image(image: Pathlike | Image) -> Image:
    """Pixels uint8 (H, W, 3) of a file or of an array."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise WeaksegError(
            f"The image is {pixels.dtype} of shape {pixels.shape}, expected uint8 (H, W, 3), RGB, or (H, W), grey. "
            "Give pixels as they were decoded, from 0 to 255."
        )
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))


def _recipe(recipe: str | recipes.Recipe, changes: Mapping[str, Any]) -> recipes.Recipe:
    if isinstance(recipe, recipes.Recipe):
        if changes:
            raise WeaksegError("Changes are for the name or the path of a recipe; change a loaded recipe itself.")
        return recipe
    # JSON is YAML, so that any value comes through as it is.
    return recipes.load_recipe(recipe, [f"{key}={json.dumps(value)}" for key, value in changes.items()])

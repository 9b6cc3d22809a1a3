"""The picture of docs/irnet.md: python docs/irnet_picture.py RUN, a run of the recipe toy-irnet.

Five images of the training split with at least two objects, one a row: image, activation maps, what is sure (void is
white), boundaries, displacements (their direction as colour), walked maps, instances, true instances.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from PIL import Image
from sheet import save_sheet, training_samples, with_white_void

from weakseg.data.images import read_image, read_label_map
from weakseg.files import read_npz
from weakseg.labels import VOID
from weakseg.methods.store import load_model
from weakseg.ops.instances import Instances
from weakseg.pipeline.stages.maps import read_maps
from weakseg.report.pictures import heat_map, painted

ROWS = 5
ENLARGEMENT = 2
"""Of the images before their boundaries are found, as in the recipe."""


def main(run: Path) -> None:
    network = load_model(run / "boundaries" / "model").network
    rows = []
    for sample in training_samples(run):
        assert sample.objects is not None
        objects = read_label_map(sample.objects)
        if len(rows) == ROWS or objects[objects != VOID].max() < 2:
            continue
        image = read_image(sample.image)
        before, after = (read_maps(run / stage, sample).upsampled() for stage in ("maps", "walk"))
        sure = read_npz(run / "boundaries" / "evidence" / f"{sample.name}.npz")["labels"]
        with torch.inference_mode():
            boundary, field = network.relations(image, torch.device("cpu"), ENLARGEMENT)
        found = Instances.load(run / "instances" / "instances" / f"{sample.name}.npz").numbered()
        rows.append(
            [
                image,
                heat_map(image, before.max(0)),
                with_white_void(image, sure),
                heat_map(image, enlarged(boundary.numpy(), image.shape)),
                enlarged(directions(field.numpy()), image.shape),
                heat_map(image, after.max(0)),
                painted(image, found),
                painted(image, objects),
            ]
        )
    save_sheet(rows, "irnet.png", colours=80)


def directions(field: np.ndarray) -> np.ndarray:
    """Displacements (2, h, w) as colours (h, w, 3): the hue is their direction, the saturation their length."""
    angle, length = np.arctan2(*field) / (2 * np.pi) % 1, np.hypot(*field)
    colours = np.stack([angle, length / length.max(), np.ones_like(angle)], axis=-1)
    return np.round(255 * hsv_to_rgb(colours)).astype(np.uint8)


def enlarged(cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values or colours of cells at the size of the image of this shape."""
    return np.asarray(Image.fromarray(cells).resize(shape[1::-1], Image.Resampling.NEAREST))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

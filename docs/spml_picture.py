"""The picture of docs/spml.md: python docs/spml_picture.py RUN, a run of the recipe toy-spml.

Images of the training split with more than one class, one a row: image, partial labels (unlabelled is black, void is
white), clusters of the embedding in their mean colours, the embedding (its three largest principal components over the
images shown, as red, green and blue), retrieved pseudo-labels, prediction, ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sheet import Picture, ground_truth, save_sheet, training_samples, with_white_void

from weakseg.data.images import read_image, read_label_map
from weakseg.labels import UNLABELLED
from weakseg.methods.spml.retrieval import image_clusters
from weakseg.methods.store import load_model
from weakseg.ops.activation import normalise_image
from weakseg.pipeline.stages.masks import mask_path
from weakseg.pipeline.stages.partial import Partial
from weakseg.report.pictures import in_mean_colours, painted

ROWS = 4


@torch.inference_mode()
def main(run: Path) -> None:
    samples = training_samples(run, least_classes=2)[:ROWS]
    images = [read_image(sample.image) for sample in samples]
    network = load_model(run / "embedding" / "model").network.eval()
    embeddings = [network.pixel_embeddings(torch.from_numpy(normalise_image(image))[None])[0] for image in images]
    rows = []
    for sample, image, embedding, colours in zip(samples, images, embeddings, in_colours(embeddings), strict=True):
        labels = Partial.array_of(run / "partial", sample)
        predicted = run / "scores" / "predictions" / "classifier" / f"{sample.name}.png"
        rows.append(
            [
                image,
                np.where((labels == UNLABELLED)[..., None], np.uint8(0), with_white_void(image, labels)),
                in_mean_colours(image, image_clusters(embedding, network.settings.grid).numpy()),
                colours,
                *(painted(image, read_label_map(path)) for path in (mask_path(run / "retrieved", sample), predicted)),
                ground_truth(image, sample),
            ]
        )
    save_sheet(rows, "spml.png", colours=128)


def in_colours(embeddings: list[torch.Tensor]) -> list[Picture]:
    """Unit embeddings (D, H, W) as colours (H, W, 3): their three largest principal components over all of them, each
    from its lowest value, 0, to its highest, 255."""
    pixels = torch.cat([embedding.flatten(1) for embedding in embeddings], dim=1)
    centred = pixels - pixels.mean(1, keepdim=True)
    directions = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -3:].flip(1)
    parts = directions.T @ centred
    low, high = parts.amin(1, keepdim=True), parts.amax(1, keepdim=True)
    shown = (255 * (parts - low) / (high - low)).round().byte().T.numpy()
    ends = np.cumsum([embedding[0].numel() for embedding in embeddings])[:-1]
    return [part.reshape(*e.shape[1:], 3) for part, e in zip(np.split(shown, ends), embeddings, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

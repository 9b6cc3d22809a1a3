"""Measure what is gained by choosing threshold and CRF on a few masks: python docs/few_masks.py RUN [IMAGES].

RUN is the folder of a run of the recipe cam, with its maps finished (`--until maps`), on data whose training images
have masks. Of these, IMAGES (100) are drawn. Again and again a few are taken for known and threshold and CRF are chosen
on them; the mIoU on all others is compared with that of the rule without masks.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from weakseg.data.dataset import Sample
from weakseg.data.images import read_image
from weakseg.ops.background import adaptive_threshold, against_background, own_threshold, usual_threshold
from weakseg.ops.bootstrap import gain_interval, mean_iou
from weakseg.ops.confusion import Confusion
from weakseg.ops.crf_parameters import PARAMETERS
from weakseg.pipeline.inference import decide
from weakseg.pipeline.stages.maps import read_maps
from weakseg.progress import Progress
from weakseg.report.folder import RunFolder
from weakseg.threads import threaded

DRAWS = 150
MASKS = (5, 10, 20)
THRESHOLDS = ("adaptive", 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
CRFS = ("deeplab", None, "affinitynet", "irnet")
CANDIDATES = [(threshold, crf) for threshold in THRESHOLDS for crf in CRFS]
"""The first is the rule without masks."""

Counts = npt.NDArray[np.int64]


def confusions(root: Path, images: int) -> Counts:
    """The confusions (images, candidates, C + 1, C + 1) of all candidates on images that are drawn."""
    classes, parts = RunFolder.read(root).open_data()
    samples = [sample for sample in parts["train"].values() if sample.mask is not None]
    usual = usual_threshold(own_threshold(read_maps(root / "maps", sample)) for sample in samples)
    drawn = [samples[place] for place in sorted(np.random.default_rng(0).permutation(len(samples))[:images])]

    def count(sample: Sample) -> Counts:
        assert sample.mask is not None
        maps, image, truth = read_maps(root / "maps", sample), read_image(sample.image), sample.mask.read()
        upsampled, labels = maps.upsampled(), np.array([0, *maps.labels], np.uint8)
        found = []
        for threshold, crf in CANDIDATES:
            background = adaptive_threshold(maps, usual) if isinstance(threshold, str) else threshold
            confusion = Confusion(len(classes) + 1)
            scores = against_background(upsampled, background)
            mask = decide(image, scores, labels, crf and PARAMETERS[crf], torch.device("cpu")).labels
            confusion.update(truth, mask, sample.name)
            found.append(confusion.matrix)
        return np.stack(found)

    with Progress("masks of all candidates", len(drawn)) as progress:
        counted = []
        for of_image in threaded(count, drawn):
            counted.append(of_image)
            progress.advance()
    return np.stack(counted)


def gains(counted: Counts, masks: int) -> dict[str, npt.NDArray[np.float64]]:
    """How the mIoU on the other images changes, draw by draw, for three ways to choose on so many masks."""
    curve = [place for place, (threshold, crf) in enumerate(CANDIDATES) if crf is None and threshold != "adaptive"]
    with_crf = {place: CANDIDATES.index((CANDIDATES[place][0], "deeplab")) for place in curve}
    rng, found = np.random.default_rng(masks), []
    for _ in range(DRAWS):
        order = rng.permutation(len(counted))
        few, others = counted[order[:masks]], counted[order[masks:]]
        elsewhere, here = mean_iou(others.sum(0)), mean_iou(few.sum(0))
        best = int(here.argmax())
        surely = best if gain_interval(few[:, best], few[:, 0])[0] > 0 else 0
        chosen = (with_crf[curve[int(here[curve].argmax())]], best, surely)
        found.append([elsewhere[place] - elsewhere[0] for place in chosen])
    return dict(zip(("best of the curve", "best candidate", "surely better"), np.array(found).T, strict=True))


def main(run: str, images: str = "100") -> Any:
    """Print the table."""
    counted = confusions(Path(run), int(images))
    scores = mean_iou(counted.sum(0))
    best = CANDIDATES[int(scores.argmax())]
    print(f"{len(counted)} images; without masks {100 * scores[0]:.1f}; the best, {best}, {100 * scores.max():.1f}")
    for masks in MASKS:
        cells = (
            f"{name} {100 * gain.mean():+.1f} (worst tenth {100 * np.quantile(gain, 0.1):+.1f})"
            for name, gain in gains(counted, masks).items()
        )
        print(f"{masks} masks: " + ", ".join(cells))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Multi-scale maps of a batch of photographs against one image and one scale at a time.

    python benchmarks/multi_scale_maps.py [FOLDER OF PHOTOGRAPHS] [--weights mobilenet_v2_imagenet.safetensors]

The network is CAM with a MobileNetV2 at stride 16; scales 1, ½, 1½ and 2, each with its mirror image; 20 classes, of
which 1 to 3 are present. Both sides start from decoded photographs and end with the present classes' maps over their
maxima, at full size. The peer is the straightforward form: each view of each image goes through the network by itself,
without gradients, and the maps of all classes are resized and added. Ours is what the stage `maps` does, images of one
size in a batch. The time does not depend on the weights; without a file of them they are random. Where there is a
CUDA device, it is measured too; photographs and results are in the memory of the CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import measure
from weakseg.methods.cam import CAM
from weakseg.models.norm import fold_norms
from weakseg.models.registry import BackboneSettings
from weakseg.ops.activation import Views, multi_scale_maps, normalise_image, normalise_maps, resize_image

TITLE = "Multi-scale maps: a batch of photographs against one view at a time"
CLASSES, SCALES = 20, (1.0, 0.5, 1.5, 2.0)
TARGETS = {"cpu": 1.3, "cuda": 4.0}
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}  # convolutions on CUDA may round to TF32
Photograph = tuple[np.ndarray, list[int]]  # an image and the classes that are present


def labelled(images: list[np.ndarray]) -> list[Photograph]:
    rng = np.random.default_rng(0)
    labels = [sorted((rng.choice(CLASSES, 1 + i % 3, replace=False) + 1).tolist()) for i in range(len(images))]
    return list(zip(images, labels, strict=True))


def network(weights: Path) -> CAM:
    file = str(weights) if weights.exists() else None
    torch.manual_seed(0)
    return CAM(CAM.Settings(backbone=BackboneSettings(name="mobilenet_v2", output_stride=16, weights=file)), CLASSES)


def one_view_at_a_time(cam: CAM, data: list[Photograph], device: str) -> list[np.ndarray]:
    results = []
    for image, labels in data:
        total = torch.zeros(CLASSES, *image.shape[:2], device=device)
        for scale in SCALES:
            view = torch.from_numpy(normalise_image(resize_image(image, scale)))[None].to(device)
            for mirrored in (False, True):
                with torch.no_grad():
                    maps = cam.activation_maps({"image": view.flip(3) if mirrored else view})
                large = F.interpolate(maps, image.shape[:2], mode="bilinear", align_corners=False)[0]
                total += large.flip(2) if mirrored else large
        present = total[[label - 1 for label in labels]]
        results.append((present / (present.amax((1, 2), keepdim=True) + 1e-5)).cpu().numpy())
    return results


def batches(folded: CAM, data: list[Photograph], device: str) -> list[np.ndarray]:
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, (image, _) in enumerate(data):
        by_size.setdefault(image.shape[:2], []).append(index)
    results: dict[int, np.ndarray] = {}
    for group in by_size.values():
        views, labels = Views.of([data[i][0] for i in group], SCALES, device), [data[i][1] for i in group]
        found = multi_scale_maps(folded.activation_maps, views, labels, device, stride=1)
        for index, maps in zip(group, found, strict=True):
            results[index] = normalise_maps(maps.cpu().numpy(), data[index][1], views.size, 1).maps
    return [results[index] for index in range(len(data))]


def floor(cam: CAM, data: list[Photograph], taken: float) -> str:
    """On a CPU, the convolutions' operations and the rate at which all of ours runs, beside the network alone at one
    scale."""
    image = torch.from_numpy(normalise_image(data[0][0]))[None]
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        cam.activation_maps({"image": image})
    with torch.inference_mode():
        alone = min(measure.seconds(partial(cam.activation_maps, {"image": image})) for _ in range(5))
    one = counter.get_total_flops()
    views = 2 * sum(scale**2 for scale in SCALES)
    pixels = sum(picture.shape[0] * picture.shape[1] for picture, _ in data)
    all_views = one * views * pixels / image[0, 0].numel()
    return (
        f"the convolutions are {all_views / 1e9:,.0f} GFLOP, which ours runs at {all_views / taken / 1e9:.0f} GFLOP/s, "
        f"all else included; the network alone, one view at scale 1, reaches {one / alone / 1e9:.0f}, a product of "
        f"matrices {measure.matrix_rate():.0f}: depthwise convolutions do few operations on each byte"
    )


def compare(cam: CAM, data: list[Photograph], device: str, repeats: int) -> measure.Row:
    cam = cam.to(device)
    folded = copy.deepcopy(cam)
    fold_norms(folded)
    ours, peer = partial(batches, folded, data, device), partial(one_view_at_a_time, cam, data, device)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours(), peer(), strict=True))
    assert difference <= TOLERANCE[device], f"the two sides differ by {difference:g}"
    taken = measure.alternate(ours, peer, repeats)
    return measure.Row(
        f"multi-scale maps, {len(data)} photographs, MobileNetV2, {device.upper()}",
        *(measure.milliseconds(side, len(data)) for side in taken),
        measure.ratios(*taken),
        TARGETS[device],
        f"largest difference {difference:.0e}",
        floor(folded, data, statistics.median(taken[0])) if device == "cpu" else "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?", type=Path, default=measure.PHOTOGRAPHS)
    parser.add_argument("--weights", type=Path, default=measure.SHARED / "weights/mobilenet_v2_imagenet.safetensors")
    parser.add_argument("--images", type=int, default=measure.usually(16, 1))
    parser.add_argument("--repeats", type=int, default=measure.usually(3, 1))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = labelled(measure.photographs(TITLE, arguments.photographs, arguments.images))
    cam = network(arguments.weights).eval()
    sizes = ", ".join(sorted({f"{image.shape[1]} × {image.shape[0]}" for image, _ in data}))
    table = measure.Table(
        TITLE, f"{len(data)} photographs, {sizes}; {arguments.threads} thread(s) of torch; times of one image"
    )
    table.rows.append(compare(cam, data, "cpu", arguments.repeats))
    if torch.cuda.is_available():
        table.rows.append(compare(cam, data, "cuda", arguments.repeats))
        table.remark = f"CUDA is {torch.cuda.get_device_name()}."
    else:
        table.remark = "On CUDA: not measured: no CUDA device."
    measure.publish(table)


if __name__ == "__main__":
    main()

"""How much of a class's activation falls on its context: on what is nearly always in the picture when the class is, and
is not the class. A classifier that cannot tell the two apart looks at both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import judged_labels
from weakseg.ops.activation import ActivationMaps


class OnContext(NamedTuple):
    """Of one map: its class, the sum of its values on the context and everywhere, the pixels of the context and all."""

    label: int
    inside: float
    total: float
    area: int
    pixels: int


def on_context(maps: ActivationMaps, contexts: npt.NDArray[Any]) -> list[OnContext]:
    """The sums over the maps, at the size of the image, of all classes whose context is in the picture.

    `contexts` (H, W) is at every pixel the class whose context is seen there, 0 elsewhere. Raises `WeaksegError` where
    it is not of the image's size.
    """
    if contexts.shape != maps.size:
        raise WeaksegError(
            f"The context mask has {contexts.shape[1]}×{contexts.shape[0]} pixels, "
            f"the image {maps.size[1]}×{maps.size[0]}."
        )
    found = []
    for label, activation in zip(maps.labels.tolist(), maps.upsampled(), strict=True):
        place = contexts == label
        if label and place.any():
            inside, total = (float(values.sum(dtype=np.float64)) for values in (activation[place], activation))
            found.append(OnContext(label, inside, total, int(place.sum()), place.size))
    return found


def context_scores(found: Sequence[OnContext], num_classes: int) -> dict[str, Any]:
    """For a JSON file, from the maps of all images:

    - `share`: sum of the activation on the context / sum of all activation, over all `maps`. It is plain, not divided
      by the area of the context.
    - `area`: pixels of the context / all pixels, over the same maps; the share of a map without any preference.
    - `classes`: the same three for each class 1 … C.

    Shares are null where there is no activation, areas where there are no maps.
    """
    labels = judged_labels(1 + num_classes)[1:]
    of_class = [_scores([part for part in found if part.label == label]) for label in labels]
    return {**_scores(found), "classes": of_class}


def _scores(found: Sequence[OnContext]) -> dict[str, Any]:
    inside, total, area, pixels = (sum(getattr(part, name) for part in found) for name in OnContext._fields[1:])
    share = inside / total if total else None
    return {"share": share, "area": area / pixels if pixels else None, "maps": len(found)}

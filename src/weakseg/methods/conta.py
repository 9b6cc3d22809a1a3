"""CONTA: a localiser that meets every image with the contexts of the whole data set.

Zhang, Zhang, Tang, Hua, Sun, "Causal Intervention for Weakly-Supervised Semantic Segmentation", NeurIPS 2020
(arXiv 2009.12547). Their released code lacks the method; this follows the formulas of the paper.

A classifier of tags learns the context C with the objects: C is a cause of both the image X and, by way of X's own
context M, of what the classifier says of its classes Y. The back-door adjustment lets every image meet every context:

    P(Y | do(X)) = Σ_c P(Y | X, M = f(X, c)) P(c)

The contexts are the class-average masks c_i of the round before (`ConfounderSums`). The sum is taken inside of the
network (normalised weighted geometric mean), so that one pass is enough. With the mask X_m that the segmenter of the
round before gave an image, x the share of foreground in each cell of a grid (h, w), and n classes:

    α = softmax over i of (W₁x)ᵀ(W₂c_i) / √n           W₁, W₂ (n, hw) are learned
    M = Σ_i α_i c_i P(c_i)                             a map (h, w) in the frame of the whole image
    P(Y | do(X)) = Π_i σ(± s_i),  s = f(X, M)

M is one more channel beside the features of a stage ("position"). A convolution of both is the sum of a convolution of
each, so the localiser stays as it is, and a separate weight, 0 at the start, adds what M says to the convolutions that
read these features. At the last stage M adds v_i M to the map of class i, and v_i times the mean of M to its score.
With M = 0 the network is the plain localiser.

What the paper leaves open: x is one channel, without classes, so that it does not tell the tags; c and x are constants,
and W₁, W₂ are learned with the classifier; classes that the tags do not name count as background in a mask.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt, create_model
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg import parallel
from weakseg.errors import WeaksegError
from weakseg.files import read_npz, write_npz
from weakseg.labels import BACKGROUND, VOID, Classes
from weakseg.methods import base
from weakseg.ops.fields import GEOMETRY, ImageField, in_view
from weakseg.ops.resize import cell_areas, cell_counts

LabelMap = npt.NDArray[Any]
Grid = tuple[PositiveInt, PositiveInt]

LAST_STAGE = 5
STD = 0.02
"""Of the normal distribution that W₁ and W₂ start from, as in the released code."""


class Adjustment(base.Settings):
    """Which context a localiser sees, and where. The defaults are the paper's."""

    context: Literal["none", "mask", "conta"] = Field(
        default="conta",
        description="none: the plain localiser; mask: x itself is M, with the mean of M; conta: M of the confounders",
    )
    position: Literal[2, 3, 4, 5, "dense"] = Field(
        default=5, description="the stage whose features M stands beside; dense: 2 to 5 together"
    )
    prior: Literal["uniform", "frequency"] = Field(
        default="uniform", description="P(c); frequency: by the images of each class"
    )
    attention: Literal["learned", "uniform"] = Field(
        default="learned", description="α; uniform: all classes alike, without W₁ and W₂"
    )
    scale: float = Field(default=1.0, gt=0, description="M is multiplied by it; the number of classes undoes 1 / n")
    lr_factor: float = Field(default=10.0, gt=0, description="learning rate of what CONTA adds over lr")

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages whose features M stands beside."""
        return (2, 3, 4, 5) if self.position == "dense" else (self.position,)


# Confounders ----------------------------------------------------------------------------------------------------------


def cleaned(mask: LabelMap, tags: Collection[int]) -> LabelMap:
    """A label map (H, W) whose labels that are not among the tags (1 … C) are background; void stays."""
    return np.where(np.isin(mask, [*tags, VOID]), mask, mask.dtype.type(BACKGROUND))


def foreground_share(mask: LabelMap, tags: Collection[int], grid: Grid) -> npt.NDArray[np.float32]:
    """x (h, w): the share of each cell's pixels that a label map (H, W), once cleaned, gives to any class."""
    inside = ~np.isin(cleaned(mask, tags), (BACKGROUND, VOID))
    return (cell_counts(inside, grid) / cell_areas(_size(mask), grid)).astype(np.float32)


@dataclass(frozen=True)
class Confounders:
    """The class-average masks of a data set: `confounder` float32 (n, h, w) in [0, 1], 0 for a class that no image has,
    `count` int64 (n,), the images that each is an average over, and all `images` that were looked at."""

    confounder: npt.NDArray[np.float32]
    count: npt.NDArray[np.int64]
    images: int

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.confounder.shape[1], self.confounder.shape[2]

    def save(self, path: Path, classes: Classes) -> None:
        """Write an `.npz` file atomically: `confounder`, `count`, `images`, `grid` and the names of the `classes`."""
        write_npz(
            path,
            {
                "confounder": self.confounder,
                "count": self.count,
                "images": np.array(self.images, np.int64),
                "grid": np.array(self.grid, np.int64),
                "classes": np.array(classes.names),
            },
        )

    @classmethod
    def load(cls, path: Path, classes: Classes) -> Confounders:
        """Read what `save` wrote; raises `WeaksegError` for any other file, and for one of other classes."""
        arrays = read_npz(path)
        try:
            names = arrays["classes"].tolist()
            found = cls(arrays["confounder"], arrays["count"], int(arrays["images"]))
            whole = found.confounder.shape == (len(names), *arrays["grid"]) and found.count.shape == (len(names),)
        except (KeyError, TypeError, ValueError, IndexError):
            whole = False
        if not whole:
            raise WeaksegError(f"{path} is no file of confounders. Delete its folder and run the stage again.")
        if names != list(classes.names):
            raise WeaksegError(
                f"{path} has the classes {', '.join(names)}; the data set has {', '.join(classes.names)}. "
                "All rounds of a run need the same."
            )
        return found

    def prior(self, kind: Literal["uniform", "frequency"]) -> npt.NDArray[np.float64]:
        """P(c) (n,): 1 / n for each class, absent ones too, or in proportion to the images of each."""
        n = len(self.count)
        return np.full(n, 1 / n) if kind == "uniform" else self.count / max(1, self.count.sum())

    def mean_foreground(self) -> float:
        """The mean of x over all places of all images: their classes' shares add up to it."""
        return float(self.count @ self.confounder.mean((1, 2), dtype=np.float64)) / max(1, self.images)


@dataclass
class ConfounderSums:
    """The class-average masks as they grow, image by image.

    A share is a whole number over the area of its cell, and there are few areas. Sums of the numbers, area by area, are
    exact, so that neither the order of the images nor how processes share them changes a bit of the result.
    """

    num_classes: int
    grid: Grid
    images: int = 0
    _sums: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tagged, self.predicted = np.zeros((2, self.num_classes), np.int64)

    def add(self, mask: LabelMap, tags: Collection[int]) -> None:
        """Count the label map (H, W) of an image with these tags (1 … C)."""
        self.images += 1
        areas = cell_areas(_size(mask), self.grid)
        for label in sorted(tags):
            inside = mask == label
            self.tagged[label - 1] += 1
            if inside.any():
                self.predicted[label - 1] += 1
                counts = cell_counts(inside, self.grid)
                for area in np.unique(areas).tolist():
                    self._sum(area)[label - 1] += np.where(areas == area, counts, 0)

    def _sum(self, area: int) -> npt.NDArray[np.int64]:
        """The pixels of each class in cells of an area, (n, h, w)."""
        return self._sums.setdefault(area, np.zeros((self.num_classes, *self.grid), np.int64))

    def over_ranks(self) -> ConfounderSums:
        """The sums of all processes."""
        total = ConfounderSums(self.num_classes, self.grid)
        total.images = int(parallel.sum_over_ranks(np.array([self.images]))[0])
        total.tagged, total.predicted = map(parallel.sum_over_ranks, (self.tagged, self.predicted))
        for area in sorted(set().union(*parallel.gather(set(self._sums)))):
            total._sums[area] = parallel.sum_over_ranks(self._sum(area))
        return total

    def confounders(self, average: Literal["tagged", "predicted"] = "tagged") -> Confounders:
        """c_i, the average over all images that are tagged with class i, or over those whose mask shows it, too."""
        count = self.tagged if average == "tagged" else self.predicted
        total = np.zeros((self.num_classes, *self.grid))
        for area in sorted(self._sums):
            total += self._sums[area] / area
        confounder = total / np.maximum(count, 1)[:, None, None]
        return Confounders(confounder.astype(np.float32), count.copy(), self.images)


def _size(mask: LabelMap) -> tuple[int, int]:
    return mask.shape[0], mask.shape[1]


# The context of an image ----------------------------------------------------------------------------------------------


def attention(query: Tensor, keys: Tensor, present: Tensor) -> Tensor:
    """α (N, n) of queries W₁x (N, d) and keys W₂c (n, d), among the classes that are `present` (n,): the softmax of
    their products over √d. All are 0 where no class is present."""
    products = query @ keys.T / math.sqrt(keys.shape[1])
    # The least number rather than -∞, whose softmax without any class would be no number.
    masked = products.masked_fill(~present, torch.finfo(products.dtype).min)
    return masked.softmax(1) * present


def context_map(alpha: Tensor, confounder: Tensor, prior: Tensor) -> Tensor:
    """M (N, hw) = Σ_i α_i c_i P(c_i) of α (N, n), c (n, hw) and P(c) (n,)."""
    return (alpha * prior) @ confounder


class ImageContext(nn.Module):
    """M (N, h, w) of x (N, h, w), and the separate weights that stand beside those of the layers that read M."""

    confounder: Tensor
    present: Tensor
    prior: Tensor
    mask_scale: Tensor

    def __init__(self, settings: Adjustment, grid: Grid, num_classes: int) -> None:
        super().__init__()
        self.settings, self.grid = settings, grid
        cells = math.prod(grid)
        self.register_buffer("confounder", torch.zeros(num_classes, cells))
        self.register_buffer("present", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("prior", torch.zeros(num_classes))
        self.register_buffer("mask_scale", torch.zeros(()))
        self.learned = settings.context == "conta" and settings.attention == "learned"
        if self.learned:
            self.w1, self.w2 = (nn.Parameter(torch.randn(num_classes, cells) * STD) for _ in range(2))
        self.context_weight = nn.ParameterList()

    def weight_beside(self, layer: nn.Conv2d, outputs: int) -> nn.Parameter:
        """A new weight (outputs, 1, kh, kw), 0, for one more input channel of a layer's last outputs."""
        self.context_weight.append(nn.Parameter(torch.zeros(outputs, 1, *layer.kernel_size)))
        return self.context_weight[-1]

    def set_confounders(self, found: Confounders) -> None:
        """Take what a round is adjusted by. Raises `WeaksegError` for another grid."""
        if found.grid != tuple(self.grid):
            raise WeaksegError(f"The confounders have the grid {found.grid}, the localiser expects {self.grid}.")
        self.confounder.copy_(torch.from_numpy(found.confounder).flatten(1))
        self.present.copy_(torch.from_numpy(found.count > 0))
        self.prior.copy_(torch.from_numpy(found.prior(self.settings.prior)))
        uniform = self.present / self.present.sum().clamp(min=1)
        mean = context_map(uniform[None], self.confounder, self.prior).mean()
        self.mask_scale.copy_(mean / max(found.mean_foreground(), 1e-12))

    def attention(self, x: Tensor) -> Tensor:
        """α (N, n) of x (N, h, w)."""
        if not self.learned:
            return attention(x.new_zeros(len(x), 1), x.new_zeros(len(self.present), 1), self.present)
        return attention(x.flatten(1) @ self.w1.T, self.confounder @ self.w2.T, self.present)

    def forward(self, x: Tensor) -> Tensor:
        """M (N, h, w)."""
        with torch.autocast(x.device.type, enabled=False):
            if self.settings.context == "mask":
                maps = self.mask_scale * x
            else:
                maps = context_map(self.attention(x), self.confounder, self.prior).reshape(x.shape)
            return self.settings.scale * maps


# Beside the features of a localiser -----------------------------------------------------------------------------------


class Contextual(base.Localiser):
    """Any localiser with a context map beside the features of a stage; `contextual` mixes it in.

    The names of the localiser's own weights stay, so that its checkpoints fit but for the tensors `conta.…`.
    """

    fields: ClassVar[dict[str, ImageField]] = {"context": ImageField("whole", at_inference=True), "view": GEOMETRY}
    """`context` is x (h, w) of the whole image, `view` the geometry of what is seen of it."""

    def __init__(self, settings: Any, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings, num_classes, load_weights=load_weights)
        self.conta = ImageContext(settings.conta, settings.grid, num_classes)
        self._maps: Tensor | None = None
        self._view: Tensor
        self._places: tuple[int, int]
        self.backbone.register_forward_hook(self._note_places)
        for stage in settings.conta.stages:
            if stage == LAST_STAGE:
                self._add_to(self.class_layer(), num_classes)
            else:
                # The weights of a frozen stage do not learn, but what M adds to its input has to.
                self.backbone.pass_gradients(after=stage)
                for layer in self.backbone.reading(stage):
                    self._add_to(layer, layer.out_channels)

    def _note_places(self, backbone: nn.Module, images: tuple[Tensor], features: list[Tensor]) -> None:
        self._places = (features[-1].shape[2], features[-1].shape[3])

    def _add_to(self, layer: nn.Conv2d, outputs: int) -> None:
        """Let a layer read M beside its features, for its last outputs: a row of the background before them reads none.

        It is added to what the layer gives, so that no dropout of the features drops M."""
        weight = self.conta.weight_beside(layer, outputs)
        classes = layer is self.class_layer()

        def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
            if self._maps is None:
                return None
            places = self._places if classes else (inputs[0].shape[2], inputs[0].shape[3])
            maps = in_view(self._maps[:, None], self._view, places)
            if classes and inputs[0].shape[2:] != maps.shape[2:]:
                maps = maps.mean((2, 3), keepdim=True)  # the layer sees the mean of the features
            added = F.conv2d(maps, weight, None, layer.stride, layer.padding, layer.dilation)
            return output + F.pad(added, (0, 0, 0, 0, output.shape[1] - outputs, 0))

        layer.register_forward_hook(add)

    @contextmanager
    def _with_context(self, batch: base.Batch) -> Iterator[None]:
        """Let all layers see the context of the batch's images meanwhile."""
        if self._maps is not None:
            yield
            return
        self._maps, self._view = self.conta(batch["context"]), batch["view"]
        try:
            yield
        finally:
            self._maps = None

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        with self._with_context(batch):
            return super().losses(batch)  # type: ignore[safe-super]

    def scores(self, batch: base.Batch) -> Tensor:
        with self._with_context(batch):
            return super().scores(batch)  # type: ignore[safe-super]

    def activation_maps(self, batch: base.Batch) -> Tensor:
        with self._with_context(batch):
            return super().activation_maps(batch)  # type: ignore[safe-super]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The localiser's own, and one of what CONTA adds."""
        own = {id(parameter) for parameter in self.conta.parameters()}
        groups = super().param_groups(lr)  # type: ignore[safe-super]
        kept = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        return [*kept, {"params": list(self.conta.parameters()), "lr": lr * self.settings.conta.lr_factor}]


@cache
def contextual(localiser: type[base.Localiser]) -> type[base.Localiser]:
    """The class of a localiser with a context. Its settings are those of the localiser, `conta` and the `grid` of x."""
    settings = create_model(
        "Settings",
        __base__=localiser.Settings,
        conta=(Adjustment, Field(default=Adjustment(), description="which context is seen, and where")),
        grid=(Grid, Field(default=(1, 1), description="rows and columns of x and of the confounders")),
    )
    members = {
        "__module__": __name__,
        "__doc__": f"{localiser.__name__} with a context.",
        "Settings": settings,
        "fields": {**localiser.fields, **Contextual.fields},
    }
    return type(f"Contextual{localiser.__name__}", (Contextual, localiser), members)


AROUND = contextual

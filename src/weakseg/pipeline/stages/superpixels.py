"""Superpixels of the images, for methods that read them. Artifact: one PNG per image (see `data.images`), or where a
folder of such PNGs lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_bytes, read_superpixels, write_superpixels
from weakseg.files import read_json, write_json
from weakseg.methods.base import Image
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.ops.superpixels import Ids
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.stage import Stage
from weakseg.pipeline.superpixels import SuperpixelSettings, ready_backbone, segmented, superpixels_of_many

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

SOURCE_NAME = "source.json"


class Superpixels(SuperpixelSettings, Stage):
    """A graph segmentation whose segments are merged by the features of a backbone (`pipeline.superpixels`)."""

    leaves: ClassVar[str] = "superpixels"
    kind: Literal["superpixels"] = "superpixels"
    backbone: BackboneSettings | None = Field(
        default=None, description="the network whose features are compared; null: segments are not merged"
    )
    folder: str | None = Field(
        default=None,
        description="a folder with a map of superpixels NAME.png of every image, such as ICD's authors published; all "
        "other settings are then without meaning. null: superpixels are made",
    )

    beside: str | None = Field(
        default=None,
        description="a folder beside the images with a map of regions NAME.png, 8-bit grey, of every image, such as "
        "HED-owt-ucm's: used where it is there, so that superpixels are made only where it is not",
    )

    def with_weights(self, weights: str) -> Self:
        if self.backbone is None or self.backbone.weights is None:
            return self
        return self.model_copy(update={"backbone": self.backbone.model_copy(update={"weights": weights})})

    def reads_weak_labels(self) -> bool:
        return False

    def dependencies(self, context: Context) -> list[str]:
        samples = context.weakly_labelled()
        if self.folder is not None:
            return [stamps.images(samples), stamps.files(_path(Path(self.folder), sample) for sample in samples)]
        if (given := self._given(context)) is not None:
            return [stamps.images(samples), stamps.files(_path(given, sample) for sample in samples)]
        found = [stamps.images(samples)]
        if self.backbone is not None:
            found.append(stamps.weights(self.backbone.weights) or str(context.seed))
        return found

    def _given(self, context: Context) -> Path | None:
        """The folder `beside` the images, if it is there."""
        folder = None if self.beside is None else context.dataset.folder / self.beside
        return folder if folder is not None and folder.is_dir() else None

    def prepare(self, context: Context) -> None:
        if self.folder is None and self._given(context) is None and self.backbone is not None:
            build_backbone(self.backbone)

    def run(self, context: Context, folder: Path) -> None:
        given, own = self._given(context), self.folder
        context.log("superpixels", source=str(own or given or "made"))
        if own is None and given is None:
            self._make(context, folder)
        elif parallel.rank() == 0:
            source = given if own is None else Path(own)
            assert source is not None
            write_json(folder / SOURCE_NAME, {"folder": str(source.resolve()), "grey": own is None})

    def _make(self, context: Context, folder: Path) -> None:
        device = context.fabric.device
        torch.manual_seed(context.seed)  # for a backbone without weights
        network = None if self.backbone is None else ready_backbone(self.backbone, device)

        def read(sample: Sample) -> tuple[Image, Ids]:
            image = sample.read_image()
            return image, segmented(image, self, merging=network is not None)

        def write(sample: Sample, ids: Ids) -> None:
            write_superpixels(superpixel_path(folder, sample), ids)

        def through(write: Callable[[Sample, Ids], None], samples: Sequence[Sample]) -> Iterable[object]:
            return superpixels_of_many(samples, read, write, network, self, device)

        title = "superpixels" if self.beside is None else f"superpixels, as there is no folder {self.beside}"
        complete(title, context.weakly_labelled(), partial(superpixel_path, folder), write, through)

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        """The ids (H, W), int32."""
        source = folder / SOURCE_NAME
        if source.exists():
            given = read_json(source)
            read = read_bytes if given.get("grey") else read_superpixels
            return read(_path(Path(given["folder"]), sample)).astype(np.int32)
        return read_superpixels(superpixel_path(folder, sample))

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        from weakseg.report.figures import figure
        from weakseg.report.pictures import in_mean_colours, photo

        if shown.weakly_labelled:
            ids = cls.array_of(run.root / name, shown.sample)
            caption = f"{name}: {len(np.unique(ids))}"
            yield figure(photo(in_mean_colours(shown.image, ids)), caption, f"{caption}, {shown.sample.name}")


def superpixel_path(folder: Path, sample: Sample) -> Path:
    """Where the superpixels of an image lie in the folder of their stage, if it made them."""
    return _path(folder / "superpixels", sample)


def _path(folder: Path, sample: Sample) -> Path:
    return folder / f"{sample.name}.png"


STAGE = Superpixels

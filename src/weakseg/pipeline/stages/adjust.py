"""Train a localiser that sees the context of each image (CONTA). Artifact: a model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from weakseg.data.loading import Reader
from weakseg.errors import WeaksegError
from weakseg.labels import Classes
from weakseg.methods import conta
from weakseg.methods.base import Localiser, Method, find_method, version_of
from weakseg.methods.store import load_model
from weakseg.ops.fields import ImageField
from weakseg.pipeline.context import Context
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.stage import MODEL_FOLDER, Reads
from weakseg.pipeline.stages.confounders import FILE_NAME, Confounders, ReadContext
from weakseg.settings import Settings

if TYPE_CHECKING:
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

SHOWN, WEIGHTS_SHOWN = 8, 3
"""So many images of the report, and so many classes of each."""


class Adjust(Learning):
    """What the stage `localise` does, with a context map of an earlier stage `confounders` beside the features. With
    the context "none" it is the same to the last bit."""

    leaves: ClassVar[str] = "localiser"
    kind: Literal["adjust"] = "adjust"
    method_kind: ClassVar[type[Method]] = Localiser
    confounders: Annotated[str, Reads("confounders")] = Field(
        description="the stage whose class-average masks are the contexts; the masks it read show each image's own"
    )
    adjust: conta.Adjustment = Field(default=conta.Adjustment(), description="which context is seen, and where")

    @property
    def adjusted(self) -> bool:
        """Whether there is a context."""
        return self.adjust.context != "none"

    def method_name(self) -> str:
        return f"conta:{self.method}" if self.adjusted else self.method

    def method_class(self) -> type[Method]:
        return find_method(Localiser, self.method_name())

    def method_settings(self, context: Context) -> Settings:
        if not self.adjusted:
            return super().method_settings(context)
        more = {"conta": self.adjust, "grid": self._confounders(context).grid}
        return self.method_class().Settings.model_validate({**self.model, **more})

    def versions(self) -> list[Any]:
        return [*super().versions(), *version_of(find_method(Localiser, self.method))]

    def given(self) -> list[str]:
        return ["context"] if self.adjusted else []

    def own_readers(self, context: Context, folder: Path) -> list[Reader]:
        if not self.adjusted:
            return []
        source = self._confounders(context)
        return [ReadContext(context.folder(source.masks), source.grid)]

    def at_inference(self, context: Context) -> tuple[dict[str, ImageField], list[Reader]]:
        fields, readers = super().at_inference(context)
        return fields, [*readers, *self.own_readers(context, context.root)]

    def inform(self, network: Method, context: Context) -> None:
        if isinstance(network, conta.Contextual):
            path = context.folder(self.confounders) / FILE_NAME
            network.conta.set_confounders(conta.Confounders.load(path, context.dataset.classes))

    def _confounders(self, context: Context) -> Confounders:
        stage = context.stages[self.confounders]
        assert isinstance(stage, Confounders)
        return stage

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        settings = run.stages[name]["adjust"]
        return {"Rounds": _part(run, name)} if settings["context"] == "conta" else {}


@torch.inference_mode()
def _part(run: RunFolder, name: str) -> Iterator[Markup]:
    """The context maps of some images, and which classes' contexts each was given."""
    from weakseg.report import pictures
    from weakseg.report.figures import figure, strip
    from weakseg.report.markup import element, note

    try:
        classes, parts = run.open_data()
    except WeaksegError as error:
        yield note(f"The contexts of images are left out, since the data cannot be read any more: {error}")
        return
    network = load_model(run.root / name / MODEL_FOLDER).network
    assert isinstance(network, conta.Contextual)
    masks = run.stages[run.stages[name]["confounders"]]["masks"]
    read = ReadContext(run.root / masks, network.settings.grid)
    yield element("h3", f"Contexts of images ({name})")
    yield element(
        "p", "M on the image, over its maximum, and the largest weights α of the classes.", class_="explanation"
    )
    figures = []
    for sample in pictures.spread(list(parts["train"].values()), SHOWN):
        x, image = torch.from_numpy(read(sample)["context"])[None], sample.read_image()
        maps = network.conta(x)
        size = (image.shape[0], image.shape[1])
        whole = F.interpolate(maps[None] / maps.max().clamp(min=1e-12), size, mode="bilinear", align_corners=False)
        caption = _largest(network.conta.attention(x)[0], classes)
        figures.append(figure(pictures.heat_map(image, whole[0, 0].numpy()), caption, f"{sample.name}: {caption}"))
    yield strip(figures, columns=4)


def _largest(weights: Tensor, classes: Classes) -> str:
    """The largest of α (n,) with their classes."""
    best = weights.topk(min(WEIGHTS_SHOWN, len(weights)))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return ", ".join(f"{classes.name(place + 1)} {weight:.3f}" for weight, place in pairs)


STAGE = Adjust

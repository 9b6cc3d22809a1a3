"""Train a classifier from tags that can show where it looks. Artifact: a model folder."""

from __future__ import annotations

from typing import ClassVar, Literal

from weakseg.methods.base import Localiser, Method
from weakseg.pipeline.learning import Learning


class Localise(Learning):
    """The weak labels of the training split, and of no other, are learned from."""

    leaves: ClassVar[str] = "localiser"
    kind: Literal["localise"] = "localise"
    method_kind: ClassVar[type[Method]] = Localiser


STAGE = Localise

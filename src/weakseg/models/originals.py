"""Backbone weights as their authors published them: how a file is recognised, and its names turned into ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weakseg.errors import WeaksegError


@dataclass(frozen=True)
class Renamed:
    """The tensors of a file under our names, and those that are left out because the network has no use for them."""

    state: dict[str, Tensor]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Original:
    """Published weights of one or more `backbones` (names of the registry). `matches` is told all names in a file;
    `read` raises `WeaksegError` for tensors that such a file does not have."""

    name: str
    about: str
    pretraining: str
    backbones: tuple[str, ...]
    matches: Callable[[Collection[str]], bool]
    read: Callable[[Mapping[str, Tensor]], Renamed]


def rename(state: Mapping[str, Tensor], own_name: Callable[[str], str | None], ignored: str) -> Renamed:
    """Every tensor under the name that `own_name` gives it. Names that match the pattern `ignored` are left out.

    Raises `WeaksegError` for a name that is neither, and where two tensors get one name.
    """
    kept, left_out = _without(state, ignored)
    renamed: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        own = own_name(name)
        if own is None:
            raise WeaksegError(f"a tensor of such a file is never called {name}")
        if own in renamed:
            raise WeaksegError(f"two of its tensors would be {own}, one of them {name}")
        renamed[own] = tensor
    return Renamed(renamed, left_out)


def rename_copies(state: Mapping[str, Tensor], own_name: Callable[[str], str | None], ignored: str) -> Renamed:
    """Like `rename`, for a file that holds tensors more than once: those that get one name must be equal."""
    kept, left_out = _without(state, ignored)
    renamed: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        own = own_name(name)
        if own is None:
            raise WeaksegError(f"it has a tensor {name}")
        if not torch.equal(renamed.setdefault(own, tensor), tensor):
            raise WeaksegError(f"its copies of {own} differ, {name} is one of them")
    return Renamed(renamed, left_out)


def _without(state: Mapping[str, Tensor], ignored: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors whose names do not match the pattern `ignored`, and the names that do."""
    left_out = tuple(name for name in state if re.fullmatch(ignored, name))
    return {name: tensor for name, tensor in state.items() if name not in left_out}, left_out


# IRNet's ResNet-50 ----------------------------------------------------------------------------------------------------

_IRNET_COPY = re.compile(r"(?:stage(\d)|backbone\.(\d))\.(\d)\.(.*)")


def irnet_backbone_name(name: str, parts: Mapping[tuple[int, int], str]) -> str | None:
    """Our name of a tensor of the ResNet-50 in one of IRNet's files; None for a name that it does not have.

    Such a file stores every tensor of the backbone three times: under `resnet50.` and under two lists of its stages.
    `parts` are the modules of the network by (stage, place in it).
    """
    if name.startswith("resnet50."):
        return name.removeprefix("resnet50.")
    match = _IRNET_COPY.fullmatch(name)
    if match is None:
        return None
    stage = int(match[1]) if match[1] else int(match[2]) + 1
    part = parts.get((stage, int(match[3])))
    return part and f"{part}.{match[4]}"


# MXNet's ResNet-38 ----------------------------------------------------------------------------------------------------

_MXNET_PARTS = {
    "arg:gamma": "weight",
    "arg:beta": "bias",
    "aux:moving_mean": "running_mean",
    "aux:moving_var": "running_var",
}
_MXNET_CONV = re.compile(r"arg:res(\d)(a|b\d+)_(branch\w+)_weight")
_MXNET_NORM = re.compile(r"(arg|aux):bn(\d)(a|b\d+)_(branch[^_]+)_(gamma|beta|moving_mean|moving_var)")
_MXNET_LAST_NORM = re.compile(r"(arg|aux):bn7_(gamma|beta|moving_mean|moving_var)")


def resnet38_name(name: str) -> str | None:
    """Our name of a tensor in the MXNet file of ResNet-38, None for a name that it does not have.

    Units "a", "b1", "b2", … of stage 4 are the blocks b4, b4_1, b4_2, …
    """
    if name == "arg:conv1a_weight":
        return "conv1a.weight"
    if match := _MXNET_CONV.fullmatch(name):
        return f"{_block(match[1], match[2])}.conv_{match[3]}.weight"
    if match := _MXNET_NORM.fullmatch(name):
        part = _MXNET_PARTS.get(f"{match[1]}:{match[5]}")
        return part and f"{_block(match[2], match[3])}.bn_{match[4]}.{part}"
    if match := _MXNET_LAST_NORM.fullmatch(name):
        part = _MXNET_PARTS.get(f"{match[1]}:{match[2]}")
        return part and f"bn7.{part}"
    return None


def _block(stage: str, unit: str) -> str:
    return f"b{stage}" if unit == "a" else f"b{stage}_{unit[1:]}"


def _read_mxnet_resnet38(state: Mapping[str, Tensor]) -> Renamed:
    return rename(state, resnet38_name, r"arg:linear1000_(weight|bias)")


# Caffe's VGG-16 -------------------------------------------------------------------------------------------------------

_VGG_LAYER = re.compile(r"(conv[1-5]_[1-3]|fc6|fc7)/([01])")


def _vgg16_name(name: str) -> str | None:
    match = _VGG_LAYER.fullmatch(name)
    return match and f"{match[1]}.{('weight', 'bias')[int(match[2])]}"


def _read_caffe_vgg16(state: Mapping[str, Tensor]) -> Renamed:
    renamed = rename(state, _vgg16_name, r"fc8.*")
    vectors = {name: tensor.flatten() for name, tensor in renamed.state.items() if name.endswith("bias")}
    return Renamed(renamed.state | vectors, renamed.ignored)


# MXNet's VGG-16 of ICD ------------------------------------------------------------------------------------------------

_MXNET_VGG_LAYER = re.compile(r"arg:(conv[1-5]_[1-3]|fc6|fc7)_(weight|bias)")


def mxnet_vgg16_name(name: str) -> str | None:
    """Our name of a tensor of the backbone in ICD's MXNet files; None for any other name."""
    match = _MXNET_VGG_LAYER.fullmatch(name)
    return match and f"{match[1]}.{match[2]}"


def _read_mxnet_vgg16(state: Mapping[str, Tensor]) -> Renamed:
    return rename(state, mxnet_vgg16_name, r"arg:fc8.*")


# Caffe's ResNet-101 of DeepLab ----------------------------------------------------------------------------------------

_CAFFE_PARTS = {"1": "shortcut", "2a": "reduce", "2b": "conv3x3", "2c": "increase"}
_CAFFE_UNIT = re.compile(r"(res|bn)(\d)([a-z])(\d*)_branch(1|2[abc])")


def deeplab_layer(name: str) -> str | None:
    """Our name of a layer in DeepLab's Caffe files, the classifiers among them; None for any other name.

    Blocks "a", "b", "c" of a stage are block1, block2, block3; "b1", "b2", … are block2, block3, …
    """
    if name in ("conv1", "bn_conv1"):
        return f"layer1.conv1.{'bn' if name.startswith('bn') else 'conv'}"
    if match := _CAFFE_UNIT.fullmatch(name):
        kind, stage, letter, number, branch = match.groups()
        block = int(number) + 1 if number else "abc".find(letter) + 1
        layer = "conv" if kind == "res" else "bn"
        return f"layer{stage}.block{block}.{_CAFFE_PARTS[branch]}.{layer}" if block else None
    if match := re.fullmatch(r"fc1_voc12_c(\d)", name):
        return f"aspp.c{match[1]}"
    return "fc" if re.fullmatch(r"fc\w*", name) else None


def read_caffe_deeplab(state: Mapping[str, Tensor]) -> Renamed:
    """The tensors of a ResNet-101 of DeepLab with the classifiers in the file, under our names.

    Caffe has a normalisation in two layers: BatchNorm has mean and variance, both times a factor, and Scale the rest.
    The layers of the two other scales of the image share their weights with the first and are left out.
    """
    renamed: dict[str, Tensor] = {}
    ignored = []
    for name, tensor in state.items():
        layer, _, blob = name.partition("/")
        if "res075" in layer or "res05" in layer:
            ignored.append(name)
            continue
        parts: tuple[str, ...] = ("weight", "bias")
        if layer.startswith("scale"):
            layer = "bn" + layer.removeprefix("scale")
        elif layer.startswith("bn"):
            parts = ("running_mean", "running_var", "factor")
        own = deeplab_layer(layer)
        if own is None or not blob.isdigit() or int(blob) >= len(parts):
            raise WeaksegError(f"a tensor of such a file is never called {name}")
        is_filter = parts[int(blob)] == "weight" and not own.endswith(".bn")
        renamed[f"{own}.{parts[int(blob)]}"] = tensor if is_filter else tensor.flatten()
    for name in [name for name in renamed if name.endswith(".factor")]:
        factor = renamed.pop(name)
        for part in ("running_mean", "running_var"):
            statistic = name.removesuffix("factor") + part
            if statistic in renamed and factor.numel() == 1 and factor.item() != 0:
                renamed[statistic] = renamed[statistic] / factor
    return Renamed(renamed, tuple(ignored))


def _read_caffe_deeplab_coco(state: Mapping[str, Tensor]) -> Renamed:
    renamed = read_caffe_deeplab(state)
    classifier = tuple(name for name in renamed.state if name.startswith("fc."))
    backbone = {name: tensor for name, tensor in renamed.state.items() if name not in classifier}
    return Renamed(backbone, renamed.ignored + classifier)


# ResNet-101 of PSPNet -------------------------------------------------------------------------------------------------


def _read_deep_stem_resnet(state: Mapping[str, Tensor]) -> Renamed:
    return rename(state, lambda name: name, r"fc\.(weight|bias)")


ORIGINALS = (
    Original(
        "resnet38-mxnet",
        "MXNet's ResNet-38 (ilsvrc-cls_rna-a1_cls1000_ep-0001.params)",
        "ImageNet",
        ("resnet38",),
        lambda names: "arg:res2a_branch2a_weight" in names and "arg:conv1a_weight" in names,
        _read_mxnet_resnet38,
    ),
    Original(
        "vgg16-caffe",
        "Caffe's VGG-16 with 1024 channels in fc6 and fc7 (vgg16_20M.caffemodel)",
        "ImageNet",
        ("vgg16", "vgg16_affinity", "vgg16_largefov"),
        lambda names: "conv1_1/0" in names and "fc6/0" in names,
        _read_caffe_vgg16,
    ),
    Original(
        "vgg16-mxnet",
        "MXNet's VGG-16 with 1024 channels in fc6 and fc7 (vgg16_20M.params)",
        "ImageNet",
        ("vgg16_icd",),
        lambda names: {"arg:conv1_1_weight", "arg:fc6_weight"} <= set(names) and "arg:icd_bu_weight" not in names,
        _read_mxnet_vgg16,
    ),
    Original(
        "deeplab-coco-caffe",
        "Caffe's ResNet-101 that DeepLab v2 starts from (init.caffemodel)",
        "the masks of MS-COCO",
        ("deeplab_resnet101", "deeplab_resnet101_multi_grid"),
        lambda names: "res2a_branch1/0" in names and not any(name.startswith("fc1_voc12_c") for name in names),
        _read_caffe_deeplab_coco,
    ),
    Original(
        "resnet101-deep-stem",
        "PyTorch's ResNet-101 with a stem of three convolutions (resnet-101-cuhk.pth)",
        "ImageNet",
        ("resnet101_deep_stem",),
        lambda names: {"conv1.6.weight", "layer3.22.conv1.weight"} <= set(names),
        _read_deep_stem_resnet,
    ),
)
"""All published backbone weights that are not read as they are. Torchvision's are: their names are ours."""

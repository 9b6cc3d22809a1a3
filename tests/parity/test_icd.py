"""ICD against its reference (icd.md section 9)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference import agrees
from weakseg.data.images import write_label_map
from weakseg.data.transforms import Augmentation, Crop, View, scaled_size
from weakseg.data.voc import read_voc
from weakseg.labels import VOID
from weakseg.methods.crossentropy import cross_entropy, labelled_pixels
from weakseg.methods.icd import (
    ICD,
    SURE,
    BottomUp,
    ICDSeeds,
    bottom_up_scores,
    classification_loss,
    normalised_target,
    object_side,
    original_name,
    read_published,
    refined,
    seeds_of,
    side_sums,
    top_down_loss,
    updated_means,
    warmup_weight,
)
from weakseg.methods.icd_saliency import ICDSaliencySeeds
from weakseg.models.caffe_input import GreyInput
from weakseg.models.mxnet import read_mxnet
from weakseg.models.registry import BackboneSettings
from weakseg.ops.activation import GREY, ActivationMaps, Views, multi_scale_maps, normalise_image, normalise_maps
from weakseg.ops.confusion import Confusion
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.fields import ImageField
from weakseg.ops.schedule import poly_factor
from weakseg.ops.superpixels import renumbered
from weakseg.optimisation import TrainSettings, build_optimiser
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import parts

Vectors = dict[str, np.ndarray]
CLASSES = 20
SETTINGS = ICD.Settings(backbone=BackboneSettings(name="vgg16_icd", output_stride=8, weights=None))


def tensors(vectors: Vectors, *names: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.from_numpy(vectors[name]).to(dtype) for name in names]


EXACT = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])


@EXACT
def test_bottom_up(parity: Any, dtype: torch.dtype, tolerance: float) -> None:
    vectors = parity("icd/bottom_up")
    features, tags, weight = tensors(vectors, "data", "label", "weight", dtype=dtype)
    agrees(bottom_up_scores(features, weight), vectors["score"], relative=tolerance)
    weight.requires_grad_()
    loss = BottomUp.apply(weight, features, tags)
    loss.backward()
    assert weight.grad is not None
    agrees(weight.grad * len(features), vectors["grad_weight"], relative=tolerance)
    assert loss.item() * len(features) == pytest.approx(float(vectors["loss_sum"]), rel=1e-5)


def test_the_side_of_objects(parity: Any) -> None:
    vectors = parity("icd/accum_resign")
    means = torch.zeros(vectors["mean0"].shape)
    for step in range(int(vectors["steps"])):
        scores, cam, tags = tensors(vectors, f"score{step}", f"cam{step}", f"label{step}")
        means = updated_means(means, torch.cat([side_sums(scores, cam, tags), tags.sum(0)[:, None]], dim=1))
        agrees(means, vectors[f"mean{step}"], relative=1e-5)
        agrees(scores * object_side(means)[:, None, None], vectors[f"out{step}"], relative=0)
    agrees(scores * object_side(means)[:, None, None], vectors["eval_out"], relative=0)


@pytest.mark.cases("icd/sp_refine", "*_score")
@EXACT
def test_superpixels(parity: Any, case: str, dtype: torch.dtype, tolerance: float) -> None:
    vectors = parity("icd/sp_refine")
    scores, tags = tensors(vectors, f"{case}_score", "label", dtype=dtype)
    ids = torch.from_numpy(vectors[f"{case}_superpixel"])
    ours = refined(scores, tags, ids)
    agrees(ours, vectors[f"{case}_out"], relative=1e-5)
    for image, expected in zip(ours, vectors[f"{case}_out"], strict=True):  # one has tiny scores
        agrees(image, expected, relative=1e-5)


def test_top_down(parity: Any) -> None:
    vectors = parity("icd/top_down")
    logits, tags, scores = tensors(vectors, "data", "label", "score")
    logits.requires_grad_()
    agrees(logits.sigmoid(), vectors["sigmoid"], relative=1e-5)
    target = normalised_target(scores)
    agrees(target, vectors["target_norm"], relative=1e-5)
    np.testing.assert_array_equal(target.abs() > SURE, vectors["mask"])
    np.testing.assert_array_equal(target > 0, vectors["target"])
    loss = top_down_loss(logits, scores, tags) * len(logits)
    assert loss.item() == pytest.approx(float(vectors["loss_sum_full"]), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    agrees(gradient, vectors["grad_full"], relative=1e-5)
    warmup = int(vectors["warmup"])
    weights = [warmup_weight(step, warmup) for step in range(len(vectors["scale_per_step"]))]
    np.testing.assert_allclose(weights, vectors["scale_per_step"], rtol=1e-5)
    agrees(weights[0] * gradient, vectors["grad_step0"], relative=1e-5)


def test_classification(parity: Any) -> None:
    vectors = parity("icd/classification")
    logits, tags = tensors(vectors, "logit", "label")
    agrees(logits.sigmoid(), vectors["sigmoid"], relative=1e-6)
    cam = logits[:, :, None, None].clone().requires_grad_()
    loss = classification_loss(cam, tags)
    assert loss.item() == pytest.approx(float(vectors["loss_per_image"].mean()), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss * len(cam), cam)
    agrees(gradient[:, :, 0, 0], vectors["grad_sum"], relative=1e-6)


@pytest.mark.cases("icd/segment_loss", "*_label")
def test_segment_loss(parity: Any, case: str) -> None:
    """The gradient is the mean over labelled cells, times the images, which the authors divide by later."""
    vectors = parity("icd/segment_loss")
    (logits,) = tensors(vectors, "logit")
    labels = torch.from_numpy(vectors[f"{case}_label"]).to(torch.uint8)
    agrees(logits.softmax(1), vectors[f"{case}_prob"], relative=1e-5)
    logits.requires_grad_()
    count = labelled_pixels(labels, logits.shape[-2:], "majority")
    (gradient,) = torch.autograd.grad(cross_entropy(logits, labels, "majority") / count * len(labels), logits)
    agrees(gradient, vectors[f"{case}_grad"], relative=1e-5)


def test_schedules(parity: Any) -> None:
    vectors = parity("icd/schedules")
    names = parity.cases(vectors, "poly_lr_*")
    for name in names:
        epochs = int(name)
        rates = [1e-3 * poly_factor(epoch, epochs, 0.9) for epoch in range(epochs)]
        np.testing.assert_allclose(rates, vectors[f"poly_lr_{name}"], rtol=1e-6)
    for name in parity.cases(vectors, "warmup_*"):
        images, batch = map(int, name.split("_"))
        weights = [warmup_weight(step, 2 * images // batch) for step in range(len(vectors[f"warmup_{name}"]))]
        np.testing.assert_allclose(weights, vectors[f"warmup_{name}"], rtol=1e-6)


@pytest.mark.cases("icd/resize", "in*")
def test_membership_is_corner_aligned_resizing(parity: Any, case: str) -> None:
    """The one-hot maps of ids are resized as any map is; this is how maps are."""
    vectors = parity("icd/resize")
    (given,) = tensors(vectors, f"in{case}")
    size = vectors[f"out{case}"].shape[2:]
    ours = nn.functional.interpolate(given, size, mode="bilinear", align_corners=True)
    agrees(ours, vectors[f"out{case}"], relative=1e-5)


# The loader -----------------------------------------------------------------------------------------------------------


def as_pixels(image: np.ndarray) -> np.ndarray:
    """A normalised image (3, H, W) as the network's input sees it, RGB (H, W, 3)."""
    return (GreyInput()(torch.from_numpy(image)).numpy() + GREY).transpose(1, 2, 0)


def centred(size: tuple[int, ...], side: int) -> list[int]:
    """The upper left corner of the crop of a larger image."""
    return [max(0, length - side) // 2 for length in size]


@pytest.mark.cases("icd/loader", "*.scale")
def test_views(parity: Any, case: str) -> None:
    vectors = parity("icd/loader")
    case_of = {name.removeprefix(f"{case}."): a for name, a in vectors.items() if name.startswith(f"{case}.")}
    image, ids = case_of["image"], case_of["superpixel"]
    for target, scale, mirrored, (top, left), expected in (
        (case_of["target"], case_of["scale"], case_of["mirror"], case_of["top_left"], "out"),
        (vectors["eval_target"], 1.0, False, centred(image.shape[:2], int(vectors["eval_target"])), "eval"),
    ):
        side = int(target)
        augmentation = Augmentation(style="opencv_linear", crop=side, padding="grey")
        size = scaled_size(image.shape[:2], float(scale), "opencv_linear")
        place = Crop(side, int(top), int(left), 0, 0, min(size[0], side), min(size[1], side))
        if mirrored:
            place = place.before_mirroring(size[1])
        view = View(size, place, bool(mirrored))
        difference = np.abs(as_pixels(augmentation.image(image, view)) - case_of[f"{expected}_image"])
        assert difference.mean() <= 0.1
        assert difference.max() <= 1.01
        seen = augmentation.follow(ImageField("ids"), ids, view)
        np.testing.assert_array_equal(renumbered(seen), case_of[f"{expected}_superpixel"])


@pytest.mark.cases("icd/annotation", "xml*")
def test_tags_of_annotations(parity: Any, case: str, tmp_path: Path) -> None:
    vectors = parity("icd/annotation")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    write_label_map(tmp_path / "JPEGImages" / "a.png", np.zeros((4, 5), np.uint8))
    (tmp_path / "Annotations" / "a.xml").write_bytes(vectors[f"xml{case}"].tobytes())
    (tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("a\n")
    (sample,) = parts(read_voc(tmp_path), load_recipe("icd-voc12", ["data.score=null"]))[0]
    assert sorted(sample.labels.present()) == (vectors[f"label{case}"] + 1).tolist()


# The network ----------------------------------------------------------------------------------------------------------


def of_state(network: ICD) -> dict[str, str]:
    """The names of the authors' tensors by ours."""
    heads = ("icd_bu_weight", "feat_bn_gamma", "feat_bn_beta")
    layers = [*network.backbone.state_dict(), *(f"{name}.{part}" for name in HEADS for part in PARTS)]
    originals = [f"arg:{name.replace('.', '_')}" for name in layers] + [f"arg:{name}" for name in heads]
    originals += [f"aux:{name}" for name in ("feat_bn_moving_mean", "feat_bn_moving_var", MEANS)]
    return {str(original_name(name)): name.partition(":")[2] for name in originals}


HEADS, PARTS, MEANS = ("fc8", "fc6_ft", "fc7_ft", "conv_ft"), ("weight", "bias"), "icd_accum_resign_moving_mean"
STATISTICS = {"feat_bn_moving_mean": "feat_bn.running_mean", "feat_bn_moving_var": "feat_bn.running_var"}


def filled(parity: Any, seed: int, gain: float) -> ICD:
    with torch.device("meta"):
        network = ICD(SETTINGS, CLASSES)
    names, state = of_state(network), {}
    for own, value in network.state_dict().items():
        if own.endswith("num_batches_tracked"):
            state[own] = torch.zeros((), dtype=torch.long)
            continue
        name = STATISTICS.get(names[own], names[own])
        shape = tuple(value.shape)
        state[own] = torch.from_numpy(np.asarray(parity.fill.fill(name, shape, seed, gain)))
        if own == "feat_bn.weight":
            state[own] = torch.ones(shape)
    network.load_state_dict(state, assign=True)
    network.backbone.caffe_input = GreyInput()
    network.feat_bn.weight.requires_grad_(False)
    return network.eval()


@pytest.fixture(scope="module")
def icd(parity: Any) -> Callable[[Vectors], ICD]:
    """`icd(vectors)` is a copy of the network of some vectors."""
    original = lru_cache(1)(partial(filled, parity))
    return lambda vectors: copy.deepcopy(original(int(vectors["seed"]), float(vectors["gain"])))


def sampled(values: Tensor) -> np.ndarray:
    flat = values.detach().double().contiguous().flatten()
    return flat[torch.arange(16) * (len(flat) - 1) // 15].numpy()


def taps(network: ICD, images: Tensor) -> dict[str, Tensor]:
    """The inner tensors by the reference's names."""
    found: dict[str, Tensor] = {}
    names = {id(module): name for name, module in network.backbone.named_modules()}
    pools = iter(["pool1", "pool2", "pool3", "pool4", "pool5"])
    x, name = network.backbone.caffe_input(images), ""
    for stage in network.backbone.stages():
        for module in stage:
            x = module(x.clone())  # some modules work in place
            if isinstance(module, nn.Conv2d):
                name = names[id(module)]
            elif isinstance(module, nn.MaxPool2d):
                found[next(pools)] = x
            elif isinstance(module, nn.AvgPool2d):
                found["pool5a"] = x
            elif isinstance(module, nn.ReLU):
                found[f"{name}_relu"] = x
    features = network.feat_bn(found["conv5_3_relu"])
    found |= {"fc8": network.fc8(x), "feat_bn": features, "fc6_ft": network.fc6_ft(features)}
    found["fc7_ft"] = network.fc7_ft(found["fc6_ft"].relu())
    found["icd_bu"] = bottom_up_scores(features, network.icd_bu.weight)
    found["conv_ft"] = network.outputs(images).logits
    return found


def as_batch(images: np.ndarray) -> Tensor:
    """Normalised images of uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([normalise_image(image.transpose(1, 2, 0)) for image in images]))


@torch.no_grad()
@pytest.mark.cases("icd/network_eval", "*.image")
def test_network(parity: Any, icd: Callable[[Vectors], ICD], case: str) -> None:
    vectors = parity("icd/network_eval")
    network = icd(vectors)
    images, tags = as_batch(vectors[f"{case}.image"]), torch.from_numpy(vectors[f"{case}.label"])
    cam, features, logits = network.outputs(images)
    agrees(cam, vectors[f"{case}.cam"], relative=1e-4)
    agrees(logits, vectors[f"{case}.icd_td"], relative=1e-4)
    scores = network.object_scores(features, cam, tags)
    agrees(scores, vectors[f"{case}.icd_bu"], relative=1e-4)
    agrees(
        refined(scores, tags, torch.from_numpy(vectors[f"{case}.superpixel"])),
        vectors[f"{case}.icd_bu_sp"],
        relative=1e-4,
    )
    found = taps(network, images)
    for name in parity.cases(vectors, f"{case}.tap.*"):
        values, expected = found[name].double(), vectors[f"{case}.tap.{name}"]
        largest = expected[2]
        stats = [values.mean(), values.std(correction=0), values.abs().max()]
        agrees(np.array(stats), expected[:3], relative=1e-4, largest=largest)
        agrees(sampled(values), expected[3:], relative=1e-4, largest=largest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.backends.mkldnn.flags(enabled=False)
def test_steps_of_training(parity: Any, icd: Callable[[Vectors], ICD], dtype: torch.dtype) -> None:
    """In float32, four updates magnify the order of the sums, which oneDNN chooses by the kind of CPU."""
    vectors = parity("icd/train_step")
    network = icd(vectors).to(dtype).train()
    network.cam_means.zero_()
    for layer in ("fc6", "fc7"):
        network.get_submodule(f"{layer}_ft").load_state_dict(network.backbone.get_submodule(layer).state_dict())
    network.backbone.caffe_input = nn.Identity()
    network.backbone.drop6.eval()
    network.settings = network.settings.model_copy(update={"dropout": 0.0, "warmup": 1.0})
    steps, warmup = int(vectors["steps"]), int(vectors["warmup"])
    rates = [float(vectors[f"s{step}.lr"]) for step in range(steps)]
    settings = TrainSettings(optimiser="caffe_sgd", lr=rates[0], momentum=0.9, weight_decay=5e-4, steps=steps)
    optimiser = build_optimiser(settings, network.param_groups(rates[0]))
    factors = [group["lr"] / rates[0] for group in optimiser.param_groups]
    own = {original: name for name, original in of_state(network).items()}
    exact = dtype == torch.float64
    loose = partial(agrees, relative=1e-6 if exact else 5e-3)

    begin = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for step in range(steps):
        of_step = {name.removeprefix(f"s{step}."): a for name, a in vectors.items() if name.startswith(f"s{step}.")}
        images, tags = torch.from_numpy(of_step["image"]).to(dtype) - GREY, torch.from_numpy(of_step["label"])
        ids = torch.from_numpy(of_step["superpixel"])
        for group, factor in zip(optimiser.param_groups, factors, strict=True):
            group["lr"] = rates[step] * factor
        optimiser.zero_grad()
        statistics = copy.deepcopy(network.feat_bn.state_dict())
        with torch.no_grad():
            cam, features, logits = network.outputs(images)
            network.begin_update(step, warmup)
            scores = network.object_scores(features, cam, tags)
            loose(cam.mean((2, 3)).sigmoid(), of_step["sigmoid"])
            loose(scores, of_step["icd_bu"])
            loose(logits, of_step["td_logit"])
            loose(refined(scores, tags, ids), of_step["refined"])
        network.feat_bn.load_state_dict(statistics)
        network.begin_update(step, warmup)
        losses = network.losses({"image": images, "tags": tags, "superpixels": ids})
        values = [losses[name].item() for name in ("classification", "bottom_up", "top_down")]
        np.testing.assert_allclose(values, of_step["loss"], rtol=1e-6 if exact else 2e-4)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        network.end_update()
        loose(network.cam_means, of_step["resign_mean"])
        loose(network.feat_bn.running_mean, of_step["bn_mean"])
        loose(network.feat_bn.running_var, of_step["bn_var"])
        for name in parity.cases(of_step, "grad.*"):
            parameter = network.get_parameter(own[name])
            assert parameter.grad is not None
            delta = parameter.detach() - begin[own[name]]
            compared(parameter.grad, of_step[f"grad.{name}"], (1e-6, 1e-6) if exact else (5e-3, 3e-2))
            expected = of_step[f"delta.{name}"]
            if exact:
                compared(delta, expected, (1e-6, 1e-6))
            elif expected[0] >= 1e-4:
                assert delta.norm().item() == pytest.approx(expected[0], rel=1e-2)


def compared(values: Tensor, expected: np.ndarray, tolerances: tuple[float, float]) -> None:
    """The norm, and the sample relative to the largest value."""
    assert values.double().norm().item() == pytest.approx(expected[0], rel=tolerances[0], abs=1e-12)
    agrees(sampled(values), expected[1:], relative=tolerances[1], largest=max(float(values.abs().max()), 1e-12))


# Seeds ----------------------------------------------------------------------------------------------------------------


def enlarged(maps: np.ndarray, canvas: int, size: tuple[int, ...]) -> np.ndarray:
    full = nn.functional.interpolate(torch.from_numpy(maps)[None], (canvas, canvas), mode="bilinear")
    return full[0, :, : size[0], : size[1]].numpy()


def agreeing(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float((ours == theirs).mean())


@pytest.mark.cases("icd/seeds", "*.seed")
def test_seeds(parity: Any, case: str) -> None:
    vectors = parity("icd/seeds")
    case_of = {name.removeprefix(f"{case}."): a for name, a in vectors.items() if name.startswith(f"{case}.")}
    image, size = case_of["image"], case_of["image"].shape[:2]
    cam, scores = (enlarged(case_of[name], int(vectors["infer_size"]), size) for name in ("cam", "icd"))
    labels = (case_of["label"] + 1).astype(np.uint8)
    seeds = seeds_of(cam, scores, labels)
    assert agreeing(seeds, case_of["seed"]) >= 0.999

    maps = ActivationMaps(labels.astype(np.int16), scores, (size[0], size[1]), 1, signed=True)
    rule = ICDSeeds(ICDSeeds.Settings())
    item = {"image": image, "cam": cam}
    assert agreeing(rule.mask(item, maps, labels.tolist(), CLASSES), case_of["crf"]) >= 0.995
    marginals = dense_crf(image, rule.unary(seeds, 1 + CLASSES), "icd")[case_of["crf_channels"]]
    np.testing.assert_allclose(marginals[:, ::4, ::4], case_of["crf_prob"], rtol=0, atol=1e-2)

    with_saliency = ICDSaliencySeeds(ICDSaliencySeeds.Settings())
    for kind in parity.cases(case_of, "sal_*_seed"):
        saliency = case_of[f"sal_{kind}"][None].astype(np.float32) / 255
        mask = with_saliency.mask({**item, "saliency": saliency}, maps, labels.tolist(), CLASSES)
        assert agreeing(mask, case_of[f"sal_{kind}_seed"]) >= 0.999


@torch.no_grad()
@pytest.mark.cases("icd/infer_files", "*.image")
def test_from_images_to_masks(parity: Any, icd: Callable[[Vectors], ICD], case: str) -> None:
    vectors = parity("icd/infer_files")
    network = icd(vectors)
    image, labels = vectors[f"{case}.image"], (vectors[f"{case}.label"] + 1).tolist()
    views, size = Views.of([image], [1.0]), (image.shape[0], image.shape[1])
    made = {}
    for kind in ("cam", "icd"):
        network.options = ICD.Options(maps=kind, signed=True, canvas=int(vectors["infer_size"]))
        low = network.low_resolution_maps(network.on_canvas(as_batch(image.transpose(2, 0, 1)[None])))
        agrees(low[0, [label - 1 for label in labels]], vectors[f"{case}.{kind}"], relative=1e-4)
        (maps,) = multi_scale_maps(network.activation_maps, views, [labels], "cpu", 1, mirror=False)
        made[kind] = normalise_maps(maps.numpy(), labels, size, 1, None)
    item = {"image": image, "cam": made["cam"].upsampled()}
    mask = ICDSeeds(ICDSeeds.Settings()).mask(item, made["icd"], labels, CLASSES)
    assert agreeing(mask, vectors[f"{case}.crf"]) >= 0.99


def test_a_checkpoint_of_the_authors_has_our_names(icd: Callable[[Vectors], ICD], parity: Any) -> None:
    network = icd(parity("icd/network_eval"))
    names = {own: f"{'aux' if 'moving' in name else 'arg'}:{name}" for own, name in of_state(network).items()}
    state = {names[own]: value for own, value in network.state_dict().items() if own in names}
    reading = read_published({**state, "arg:feat_bn_gamma": torch.full((512,), 3.0)})
    assert reading.num_classes == CLASSES
    assert not reading.ignored
    again = ICD(reading.settings, CLASSES, load_weights=False)
    assert not again.load_state_dict(dict(reading.state), strict=False).unexpected_keys
    assert all(torch.equal(value, again.state_dict()[own]) for own, value in network.state_dict().items())


@pytest.mark.parametrize("version", ["v2", "v1", "v0"])
def test_files(parity: Any, version: str, tmp_path: Path) -> None:
    vectors = parity("icd/params_file")
    (tmp_path / "icd.params").write_bytes(vectors[version].tobytes())
    state = read_mxnet(tmp_path / "icd.params")
    assert list(state) == vectors["names"].tolist()
    for number, value in enumerate(state.values()):
        expected = vectors[f"value{number}"]
        assert value.numpy().dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


def test_scores_of_seeds(parity: Any) -> None:
    """The authors leave pixels out that are void in the seeds."""
    vectors = parity("icd/miou")
    confusion = Confusion(len(vectors["iou"]))
    for case in parity.cases(vectors, "gt*"):
        truth, seeds = vectors[f"gt{case}"], vectors[f"pred{case}"]
        confusion.update(np.where(seeds == VOID, VOID, truth), seeds, case)
    np.testing.assert_allclose(confusion.iou(), vectors["iou"], atol=1e-5)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.methods.base import Localiser, MaskRule, find_method
from weakseg.methods.icd import (
    ICD,
    BottomUp,
    ICDSeeds,
    Membership,
    Outputs,
    adaptively_bounded,
    both_branches,
    bottom_up_scores,
    normalised_target,
    refined,
    seeds_of,
    top_down_loss,
    warmup_weight,
)
from weakseg.methods.icd_saliency import ICDSaliencySeeds
from weakseg.models.registry import BackboneSettings
from weakseg.models.vgg import VGG16
from weakseg.ops.activation import ActivationMaps

CLASSES = 3


def build(name: str = "small", **settings: object) -> ICD:
    torch.manual_seed(0)
    backbone = BackboneSettings(name=name, output_stride=8, weights=None)
    return ICD(ICD.Settings(backbone=backbone, width=8, **settings), CLASSES)  # type: ignore[arg-type]


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_ids(*shape: int, count: int = 5, seed: int = 1) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def batch(height: int = 41, width: int = 49) -> dict[str, Tensor]:
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    return {"image": random(2, 3, height, width), "tags": tags, "superpixels": random_ids(2, height, width)}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_are_found_by_their_names() -> None:
    assert find_method(Localiser, "icd") is ICD
    assert find_method(MaskRule, "icd") is ICDSeeds
    assert find_method(MaskRule, "icd_saliency") is ICDSaliencySeeds


# The network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "mobilenet_v2", "resnet18", "vgg16", "vgg16_icd"])
def test_every_backbone_serves(name: str) -> None:
    network = build(name).eval()
    images = random(1, 3, 40, 50)
    with torch.no_grad():
        maps, scores = network.activation_maps({"image": images}), network.scores({"image": images})
    assert maps.shape == (1, CLASSES, 40, 50)
    assert scores.shape == (1, CLASSES)
    assert (maps >= 0).all()
    assert network.feature_stage == (4 if isinstance(network.backbone, VGG16) else 5)


def test_features_of_another_stride_are_refused() -> None:
    with pytest.raises(WeaksegError, match="feature_stage"):
        build(feature_stage=1)


def test_the_second_branch_of_vgg16_starts_as_a_copy_of_the_first() -> None:
    torch.manual_seed(0)
    network = ICD(ICD.Settings(backbone=BackboneSettings(name="vgg16_icd", output_stride=8, weights=None)), CLASSES)
    assert isinstance(network.backbone, VGG16)
    assert torch.equal(network.fc6_ft.weight, network.backbone.fc6.weight)
    assert torch.equal(network.fc7_ft.bias, network.backbone.fc7.bias)
    assert network.fc6_ft.weight.data_ptr() != network.backbone.fc6.weight.data_ptr()
    fast = {id(p) for group in network.param_groups(1.0)[2:] for p in group["params"]}
    assert fast == {id(p) for p in (network.fc8.weight, network.fc8.bias, network.conv_ft.weight)}


def test_everything_that_learns_is_in_one_group_and_biases_do_not_decay() -> None:
    network = build()
    groups = network.param_groups(0.5)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in network.parameters() if p.requires_grad}
    assert not network.feat_bn.weight.requires_grad
    without_decay = {id(p) for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    assert without_decay == {id(p) for name, p in network.named_parameters() if name.endswith("bias")}


def trained_by(network: ICD, term: str) -> set[str]:
    """The parts of the network that a term of the loss trains."""
    network.zero_grad()
    network.losses(batch())[term].backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {name.split(".")[0] for name in trained}


def test_which_term_trains_what() -> None:
    network = build()
    assert trained_by(network, "classification") == {"backbone", "fc8"}
    assert trained_by(network, "bottom_up") == {"icd_bu"}
    assert trained_by(network, "top_down") == {"backbone", "feat_bn", "fc6_ft", "fc7_ft", "conv_ft"}


@pytest.mark.parametrize("tags", [[[0.0, 0.0, 0.0]] * 2, [[1.0, 1.0, 1.0]] * 2])
def test_images_without_a_class_or_with_all_have_finite_losses(tags: list[list[float]]) -> None:
    network = build()
    losses = network.losses({**batch(), "tags": torch.tensor(tags)})
    total(losses).backward()
    assert losses["bottom_up"].item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())
    if not tags[0][0]:
        assert losses["top_down"].item() == 0


def test_one_image_of_one_cell_is_explained() -> None:
    with pytest.raises(WeaksegError, match="statistics"):
        build().losses({**{name: value[:1] for name, value in batch(8, 8).items()}})


def test_reduced_precision_changes_little() -> None:
    network = build()
    exact = network.losses(batch())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network.losses(batch())
    for name in ("classification", "bottom_up"):
        assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.1)
    assert all(value.dtype == torch.float32 for value in rounded.values())


def test_the_loss_warms_up() -> None:
    weights = [warmup_weight(update, 20) for update in range(30)]
    assert weights[0] < 1e-4
    assert weights == sorted(weights)
    assert weights[20:] == [1.0] * 10
    assert warmup_weight(0, 0) == 1.0
    network = build(warmup=0.5, dropout=0.0)
    terms = []
    for update in (0, 9, 10, 19):
        network.begin_update(update, 20)
        network.cam_means.zero_()
        network.feat_bn.reset_running_stats()
        terms.append(network.losses(batch())["top_down"].item())
    assert terms[0] < terms[1] < terms[2]
    assert terms[2] == pytest.approx(terms[3], rel=1e-5)


# Maps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("canvas", [1, 65])
def test_maps_have_the_size_of_the_image_whatever_the_canvas(align_corners: bool, canvas: int) -> None:
    network = build().eval()
    network.options = ICD.Options(signed=True, canvas=canvas, align_corners=align_corners)
    with torch.no_grad():
        assert network.on_canvas(random(2, 3, 30, 44)).shape[2:] == ((65, 65) if canvas == 65 else (33, 49))
        assert network.activation_maps({"image": random(2, 3, 30, 44)}).shape == (2, CLASSES, 30, 44)


@torch.no_grad()
def test_options_choose_the_map_and_its_sign() -> None:
    network = build().eval()
    images = random(1, 3, 41, 49)
    outputs = network.outputs(images)
    network.options = ICD.Options(signed=True, align_corners=True)
    signed = network.activation_maps({"image": images})
    torch.testing.assert_close(signed[..., ::8, ::8], outputs.logits)  # corners lie on corners
    network.options = ICD.Options(maps="cam", signed=True, align_corners=True)
    torch.testing.assert_close(network.activation_maps({"image": images})[..., ::8, ::8], outputs.cam)
    network.options = ICD.Options(align_corners=True)
    torch.testing.assert_close(network.activation_maps({"image": images}), F.relu(signed))
    network.options = ICD.Options(maps="both", align_corners=True)
    torch.testing.assert_close(network.activation_maps({"image": images})[..., ::8, ::8], both_branches(outputs))


def test_both_branches_make_the_map_unless_the_score_is_wide() -> None:
    cam = torch.tensor([[-1.0, 0.0, 1.0, 4.0, 2.0]])
    narrow, wide = torch.tensor([[-3.0, 0.0, 1.0, 5.0, 3.0]]), torch.tensor([[0.0, 6.0, 9.0, 7.0, 10.0]])
    outputs = Outputs(torch.stack([cam, cam])[None], torch.zeros(1, 1, 1, 5), torch.stack([narrow, wide])[None])
    mean, alone = both_branches(outputs)[0, :, 0]
    torch.testing.assert_close(mean, torch.tensor([0.0, 0.0, 0.125, 1.0, 0.5]))
    torch.testing.assert_close(alone, torch.tensor([0.0, 0.0, 0.25, 1.0, 0.5]))


def test_scores_that_are_nowhere_positive_make_no_map() -> None:
    nothing = -torch.ones(1, 2, 3, 3)
    assert not both_branches(Outputs(nothing, nothing, nothing)).any()


# Bottom up ------------------------------------------------------------------------------------------------------------


def energy(weight: Tensor, features: Tensor, tags: Tensor) -> Tensor:
    """L_bu as the paper has it."""
    single = tags * (tags.sum(1, keepdim=True) == 1)
    scores = torch.einsum("kc,nchw->nkhw", F.normalize(weight, dim=1), features)
    return -5 * (single * scores.square().mean((2, 3))).sum() / len(features)


@given(st.integers(0, 1000))
def test_the_gradient_is_that_of_the_energy(seed: int) -> None:
    features, tags = random(3, 6, 4, 5, seed=seed).double(), torch.eye(3).double()
    tags[2] = torch.tensor([1.0, 1.0, 0.0])
    weight = random(3, 6, seed=seed + 1).double().requires_grad_()
    expected = energy(weight, features, tags)
    (gradient,) = torch.autograd.grad(expected, weight)
    loss = BottomUp.apply(weight, features, tags)
    (ours,) = torch.autograd.grad(2 * loss, weight)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, 2 * gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("alone", [True, False])
def test_classes_that_are_never_alone_learn_from_all_their_images_where_asked(alone: bool) -> None:
    features, tags = random(2, 6, 4, 5), torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    weight = random(3, 6, seed=1).requires_grad_()
    BottomUp.apply(weight, features, tags, alone).backward()
    assert weight.grad is not None
    assert weight.grad.abs().amax(1).gt(0).tolist() == [True, not alone, False]


def test_classes_that_are_seldom_alone_are_told_by_the_images_of_earlier_updates() -> None:
    network = build(alone="auto")
    assert network.learned_alone(torch.device("cpu")).all()
    # Of the three classes, the last is never alone.
    tags = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 1]])
    for micro_batch in (tags[:2], tags[2:]):
        network.losses({**batch(), "tags": micro_batch})
        assert network.learned_alone(torch.device("cpu")).all()  # the whole update goes by the same rule
    network.end_update()
    assert network.learned_alone(torch.device("cpu")).tolist() == [True, True, False]

    restored = build(alone="auto")
    restored.load_training_state(network.training_state())
    assert restored.learned_alone(torch.device("cpu")).tolist() == [True, True, False]


def test_descent_finds_the_direction_of_most_energy() -> None:
    features = random(1, 6, 8, 8) * torch.tensor([1.0, 1.0, 4.0, 1.0, 1.0, 1.0])[:, None, None]
    tags = torch.tensor([[1.0]])
    weight = torch.full((1, 6), 0.1, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(BottomUp.apply(weight, features, tags), weight)
        weight.data -= 1e-3 * gradient
    flat = features[0].flatten(1)
    largest = torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -1]
    assert abs((F.normalize(weight, dim=1) @ largest).item()) > 0.999


def test_a_direction_of_zeros_stays_finite() -> None:
    weight = torch.zeros(1, 6, requires_grad=True)
    BottomUp.apply(weight, random(1, 6, 3, 3), torch.ones(1, 1)).backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


# Which side is the object ---------------------------------------------------------------------------------------------


def test_objects_lie_where_cam_is_large_whatever_the_sign_of_the_direction() -> None:
    network = build()
    features = random(2, network.icd_bu.in_features, 5, 6)
    tags = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    scores = bottom_up_scores(features, network.icd_bu.weight)
    for sign in (1, -1):
        network.cam_means.zero_()
        network.begin_update(0, 1)
        cam = F.relu(sign * scores)  # large on one side
        assert torch.equal(network.object_scores(features, cam, tags), (sign * scores).detach())


def test_running_means_move_once_in_an_update_however_it_is_cut() -> None:
    features, cam = random(4, 128, 5, 6), random(4, 3, 5, 6, seed=2)
    tags = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    after = []
    for parts in (1, 2, 4):
        network = build()
        assert network.icd_bu.in_features == 128
        network.cam_means.fill_(0.5)
        network.begin_update(3, 10)
        for piece in torch.arange(4).chunk(parts):
            network.object_scores(features[piece], cam[piece], tags[piece])
        assert torch.equal(network.cam_means, torch.full((3, 2), 0.5)), "an update is not over before its end"
        network.end_update()
        after.append(network.cam_means.clone())
        assert torch.equal(network.cam_means[2], torch.tensor([0.5, 0.5])), "no image shows it"
        assert not torch.equal(network.cam_means[0], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(after[0], after[1])
    torch.testing.assert_close(after[0], after[2])


def test_evaluation_leaves_the_running_means_alone() -> None:
    network = build().eval()
    with torch.no_grad():
        network.losses(batch())
        network.end_update()
    assert torch.equal(network.cam_means, torch.zeros(CLASSES, 2))


# Superpixels ----------------------------------------------------------------------------------------------------------


def one_hot_refined(scores: Tensor, tags: Tensor, superpixels: Tensor) -> tuple[Tensor, float]:
    """`refined` with the one-hot map of all superpixels at the size of the image, as the authors write it, and by how
    much the closest winner has won."""
    results, lead = [], torch.inf
    for score, tag, ids in zip(scores, tags, superpixels, strict=True):
        one_hot = F.one_hot(ids).permute(2, 0, 1)[None].to(scores)
        if ids.shape != score.shape[1:]:
            one_hot = F.interpolate(one_hot, score.shape[1:], mode="bilinear", align_corners=True)
        member = one_hot[0].flatten(1)
        mean = member / member.sum(1, keepdim=True).clamp(min=1e-5)
        v = (score * tag[:, None, None]).flatten(1)
        positive, negative = v.clamp(min=0), v.clamp(max=0)
        mostly = (member @ v.sign().T).amax(1) > 1e-5
        shares = mean @ (positive / positive.amax(0).clamp(min=1e-5)).T
        first, second = shares.topk(2, dim=1).values.unbind(1)
        lead = min(lead, *(first - second)[mostly].tolist(), torch.inf)
        won = F.one_hot(shares.argmax(1), len(v)) * mostly[:, None] * tag
        value = won * (mean @ positive.T) + (1 - won) * (mean @ negative.T)
        results.append((value.T @ member).reshape(score.shape))
    return torch.stack(results), lead


SIDES = st.sampled_from([(9, 65), (5, 33), (8, 60), (7, 7), (1, 17), (6, 1), (4, 31)])


@given(SIDES, SIDES, st.integers(1, 30), st.integers(0, 1000))
def test_scattering_is_the_product_with_the_one_hot_map(
    rows: tuple[int, int], columns: tuple[int, int], count: int, seed: int
) -> None:
    (h, height), (w, width) = rows, columns
    scores = random(2, 4, h, w, seed=seed).double()
    tags = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]]).double()
    ids = random_ids(2, height, width, count=count, seed=seed)
    expected, lead = one_hot_refined(scores, tags, ids)
    assume(lead > 1e-9)  # of equal classes any may win
    torch.testing.assert_close(refined(scores, tags, ids), expected)


@pytest.mark.parametrize(("side", "taps"), [(65, 1), (64, 4), (9, 1)])
def test_only_where_places_lie_between_pixels_they_are_in_several_superpixels(side: int, taps: int) -> None:
    member = Membership.of(random_ids(2, side, side), (9, 9), torch.float64)
    assert len(member.ids) == len(member.weights) == taps
    torch.testing.assert_close(member.weights.sum(0), torch.ones(2 * 81, dtype=torch.float64))


def test_ids_may_be_any_numbers() -> None:
    scores, tags, ids = random(2, 3, 5, 5), torch.tensor([[1.0, 0, 1], [0, 1, 0]]), random_ids(2, 33, 33)
    others = torch.tensor([7, 1 << 40, 3, 70_000, 0])[ids]
    torch.testing.assert_close(refined(scores, tags, ids), refined(scores, tags, others))


def test_a_superpixel_is_positive_for_one_class_at_most() -> None:
    scores = random(3, 4, 9, 9)
    r = refined(scores, torch.ones(3, 4), random_ids(3, 65, 65))
    assert ((r > 0).sum(1) <= 1).all()
    assert (r > 0).any()
    absent = refined(scores, torch.tensor([[1.0, 0, 0, 0]]).expand(3, -1), random_ids(3, 65, 65))
    assert (absent[:, 1:] == 0).all()


# Top down -------------------------------------------------------------------------------------------------------------


def test_targets_reach_from_minus_one_to_one() -> None:
    target = normalised_target(random(2, 3, 6, 7))
    assert torch.equal(target.amax((2, 3)), torch.ones(2, 3))
    assert torch.equal(target.amin((2, 3)), -torch.ones(2, 3))
    assert torch.equal(normalised_target(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


def test_the_loss_looks_at_sure_places_of_present_classes_alone() -> None:
    refined_scores = torch.tensor([[[[1.0, -2.0, 0.1, -0.1]], [[1.0, -2.0, 0.1, -0.1]]]])
    logits = torch.zeros(1, 2, 1, 4, requires_grad=True)
    loss = top_down_loss(logits, refined_scores, torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(2 * np.log(2) / 4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient[0, 0, 0].sign(), torch.tensor([-1.0, 1.0, 0.0, 0.0]))
    assert (gradient[0, 1] == 0).all()


# Seeds ----------------------------------------------------------------------------------------------------------------


def rows(*values: list[float]) -> np.ndarray:
    """Maps (K, 1, W)."""
    return np.array(values, np.float32)[:, None]


def test_seeds_of_one_class() -> None:
    scores = rows([3.0, 0.0, -2.0])
    seeds = seeds_of(scores, scores, np.array([7], np.uint8))
    assert seeds.tolist() == [[7, VOID, 0]]


def test_where_classes_compete_the_product_of_both_scores_decides() -> None:
    #          both: the first     both: the second   one alone   no cam    none
    scores = rows([2.0, 2.0, 2.0, 2.0, -1.0], [2.0, 2.0, -1.0, 2.0, -1.0])
    cam = rows([4.0, 1.0, 1.0, 0.0, -3.0], [1.0, 4.0, 4.0, 0.0, 0.0])
    assert seeds_of(cam, scores, np.array([3, 5], np.uint8)).tolist() == [[3, 5, 3, VOID, 0]]


def test_without_any_object_everything_is_background() -> None:
    scores = np.full((2, 3, 4), -1, np.float32)
    assert (seeds_of(scores, scores, np.array([1, 2], np.uint8)) == 0).all()


@pytest.mark.parametrize(
    ("salient", "expected"),
    [
        ([True, False, True, False], [4, VOID, VOID, 0]),
        ([False, False, False, False], [4, 4, 0, 0]),  # an empty map is not believed
    ],
)
def test_saliency_takes_the_place_of_the_background(salient: list[bool], expected: list[int]) -> None:
    scores = rows([3.0, 2.0, -2.0, -1.0])
    assert seeds_of(scores, scores, np.array([4], np.uint8), np.array([salient])).tolist() == [expected]


def signed_maps(height: int = 12, width: int = 16, labels: tuple[int, ...] = (2,)) -> ActivationMaps:
    scores = np.full((len(labels), height, width), -1.0, np.float32)
    scores[:, :, : width // 2] = 1
    return ActivationMaps(np.array(labels, np.int16), scores, (height, width), 1, signed=True)


def make(rule: Callable[..., MaskRule], maps: ActivationMaps, classes: int = 4) -> np.ndarray:
    image = np.zeros((*maps.size, 3), np.uint8)
    image[:, : maps.size[1] // 2] = 200
    item = {"image": image, "cam": maps.upsampled(), "saliency": image[None, ..., 0] / np.float32(255)}
    settings = find_method(MaskRule, "icd" if rule is ICDSeeds else "icd_saliency").Settings()
    return rule(settings).mask(item, maps, set(maps.labels.tolist()), classes)


@pytest.mark.parametrize("rule", [ICDSeeds, ICDSaliencySeeds])
def test_a_rule_gives_labels_of_the_image_background_and_void(rule: Callable[..., MaskRule]) -> None:
    mask = make(rule, signed_maps())
    assert mask.dtype == np.uint8
    assert (mask[:, :8] == 2).all()
    assert (mask[:, 8:] == 0).all()
    assert (make(rule, signed_maps(labels=())) == 0).all()
    with pytest.raises(WeaksegError, match="signed"):
        make(rule, signed_maps().unsigned())


def test_an_adaptive_boundary_leaves_out_what_is_hardly_positive() -> None:
    maps = signed_maps()
    maps.maps[:, :, :8], maps.maps[:, :, 8:] = 3.0, 0.1  # nothing is negative
    item = {"image": np.zeros((12, 16, 3), np.uint8), "cam": maps.upsampled()}
    made = [
        ICDSeeds(ICDSeeds.Settings(crf=None, boundary=boundary)).mask(item, maps, {2}, 4)
        for boundary in ("zero", "adaptive")
    ]
    assert (made[0] == 2).all()
    assert (made[1][:, :8] == 2).all()
    assert (made[1][:, 8:] == 0).all()


def test_an_adaptive_boundary_does_not_depend_on_the_scale_of_scores() -> None:
    scores = random(2, 1, 12, 16)[:, 0].numpy()
    np.testing.assert_allclose(adaptively_bounded(7 * scores), 7 * adaptively_bounded(scores), rtol=1e-5, atol=1e-6)
    assert adaptively_bounded(np.full((1, 3, 4), -1, np.float32)).max() < 0


def test_the_crf_fills_what_seeds_leave_void() -> None:
    maps = signed_maps()
    maps.maps[:, :, 6:10] = 0
    with_crf = make(ICDSeeds, maps)
    without = ICDSeeds(ICDSeeds.Settings(crf=None)).mask(
        {"image": np.zeros((12, 16, 3), np.uint8), "cam": maps.upsampled()}, maps, {2}, 4
    )
    assert (without[:, 6:10] == VOID).all()
    assert (with_crf[:, :8] == 2).all()
    assert (with_crf[:, 8:] == 0).all()

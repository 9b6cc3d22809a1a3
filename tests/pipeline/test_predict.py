"""Prediction: which files are meant, which model, and what a localiser and a segmenter make of an image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from weakseg.data.images import read_label_map
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json, write_text
from weakseg.labels import Classes
from weakseg.methods.base import Localiser, Segmenter
from weakseg.methods.cam import CAM
from weakseg.methods.deeplab import DeepLab
from weakseg.methods.store import Model, load_model, save_model
from weakseg.models.registry import BackboneSettings
from weakseg.ops.fields import GEOMETRY, Batch, ImageField
from weakseg.ops.resize import shrink_image
from weakseg.ops.windows import SMALLEST_SIDE
from weakseg.pipeline import inference as inference_module
from weakseg.pipeline.inference import Inference, decide, predict, window_side
from weakseg.pipeline.predict import find_model, image_files, predict_files
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import MANIFEST_NAME

CPU = torch.device("cpu")


def new_model(kind: str) -> Model:
    """A random network; the localiser finds every class present, since its classifier adds up what is positive."""
    backbone = BackboneSettings(name="small", weights=None)
    classes = Classes(["kettle", "spoon"])
    torch.manual_seed(0)
    if kind == "localiser":
        localiser = CAM(CAM.Settings(backbone=backbone), 2)
        localiser.classifier.weight.data.abs_()
        return Model("cam", classes, localiser.eval(), {})
    segmenter = DeepLab(DeepLab.Settings(backbone=backbone), 2)
    for classifier in segmenter.aspp.classifiers():
        classifier.weight.data.normal_(std=0.05)
    return Model("deeplab", classes, segmenter.eval(), {})


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, 41, 3), dtype=np.uint8)


def save(path: Path, *, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, format="PNG")
    return path


# Which files


def test_folders_are_searched_and_keep_their_shape(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("b.JPG", "a b/c.d.png", "a b/ä.webp", "text.txt", ".hidden.jpg", ".trash/x.jpg", "._b.jpg"):
        save(photos / name)
    single = save(tmp_path / "single.picture")
    found = image_files([photos, single], tmp_path / "out")
    assert {str(output): file for file, output in found} == {
        "b": photos / "b.JPG",
        "a b/c.d": photos / "a b/c.d.png",
        "a b/ä": photos / "a b/ä.webp",
        "single": single,
    }


def test_what_was_predicted_is_not_predicted_again(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    save(photos / "a.jpg")
    save(photos / "predicted" / "overlays" / "a.png")
    assert [str(output) for _, output in image_files([photos], photos / "predicted")] == ["a"]


def test_naming_a_file_twice_is_no_trouble(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    assert len(image_files([path, path, tmp_path], tmp_path / "out")) == 1


@pytest.mark.parametrize(("first", "second"), [("x/a.jpg", "y/a.jpg"), ("x/a.jpg", "x/a.png")])
def test_two_images_of_one_output_are_refused(tmp_path: Path, first: str, second: str) -> None:
    files = [save(tmp_path / first), save(tmp_path / second)]
    with pytest.raises(
        WeaksegError, match=rf"{files[0]} and {files[1]} would both be written as a\.png\. Rename one\."
    ):
        image_files(files, tmp_path / "out")


def test_nothing_to_predict(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(WeaksegError, match=r"holds no images \(\.jpg, "):
        image_files([tmp_path], tmp_path / "out")
    with pytest.raises(WeaksegError, match=r"gone\.jpg does not exist"):
        image_files([tmp_path / "gone.jpg"], tmp_path / "out")


# Which model


def test_of_a_run_the_segmenter_is_taken_and_before_it_is_there_the_localiser(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"is neither a model folder \(with config\.json\) nor a run"):
        find_model(tmp_path)
    (tmp_path / "recipe.yaml").write_text("extends: cam")
    with pytest.raises(WeaksegError, match=r"recipe\.yaml is not the recipe of a run: it has no stages"):
        find_model(tmp_path)
    write_text(tmp_path / "recipe.yaml", load_recipe("toy-cam").as_yaml())
    with pytest.raises(WeaksegError, match="has not finished any model yet"):
        find_model(tmp_path)
    save_model(tmp_path / "cam" / "model", new_model("localiser"))
    assert find_model(tmp_path).kind == "localiser"
    save_model(tmp_path / "segment" / "model", new_model("segmenter"))
    assert find_model(tmp_path).kind == "segmenter"
    assert find_model(tmp_path / "cam" / "model").kind == "localiser"


def write_run(root: Path, decided: Mapping[str, Any], *changes: str) -> None:
    """What a run of toy-cam leaves of its localiser, maps and masks, as far as a prediction needs it."""
    write_text(root / "recipe.yaml", load_recipe("toy-cam", changes).as_yaml())
    write_json(root / "data.json", {})
    for stage in ("cam", "maps", "masks"):
        write_json(root / stage / MANIFEST_NAME, {"key": ""})
    save_model(root / "cam" / "model", new_model("localiser"))
    write_json(root / "masks" / "threshold.json", decided)


@pytest.mark.parametrize("decided", [{"threshold": 0.37}, {"threshold": "adaptive", "usual": 0.9}])
def test_the_localiser_of_a_run_decides_as_its_masks_did(
    tmp_path: Path, image: np.ndarray, decided: dict[str, Any]
) -> None:
    """A copy of the stage, which lies in no run, goes by the image alone."""
    root, copy = tmp_path / "run", tmp_path / "models" / "copy"
    write_run(root, decided, "maps.scales=[1.0]")
    write_text(tmp_path / "recipe.yaml", "extends: cam\nstages: {segment: null, masks: {crf: null}}")
    shutil.copytree(root / "cam", copy)
    background = []
    for folder in (root, root / "cam" / "model", copy / "model"):
        found = find_model(folder)
        inference = Inference.model_validate(dict(found.inference))
        background.append(float(predict(found, image, inference, CPU).scores[0, 0, 0]))
    own = background[-1]
    expected = decided["threshold"] if decided["threshold"] != "adaptive" else (own + decided["usual"]) / 2
    assert background[:2] == pytest.approx([expected] * 2)


def test_the_localiser_of_a_run_makes_its_maps(tmp_path: Path) -> None:
    """The threshold is that of maps of these scales; where `predict` cannot make such maps, it is not taken."""
    write_run(tmp_path / "run", {"threshold": 0.37}, "maps.scales=[1.0, 0.5]")
    assert find_model(tmp_path / "run").inference == {"scales": [1.0, 0.5], "threshold": 0.37}
    write_run(tmp_path / "seam", {"threshold": 0.37}, "maps.style=seam")
    assert find_model(tmp_path / "seam").inference == {}


def test_masks_of_an_earlier_localiser_decide_nothing(tmp_path: Path) -> None:
    root = tmp_path / "run"
    write_run(root, {"threshold": 0.37})
    event = {"event": "run", "keys": {"cam": "", "maps": "new", "masks": "new"}}
    write_text(root / "log.jsonl", json.dumps(event) + "\n")
    assert find_model(root).inference == {}


# What is predicted


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (67, 101), (32, 32)])
@pytest.mark.parametrize("kind", ["segmenter", "localiser"])
@pytest.mark.parametrize("crf", [None, "deeplab"])
def test_any_size_works(kind: str, size: tuple[int, int], crf: str | None) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = predict(new_model(kind), image, Inference(scales=(1.0, 0.3, 1.5), mirror=True, crf=crf), CPU)
    assert found.labels.shape == size
    assert found.scores.shape == (3, *size)
    np.testing.assert_array_equal(found.score_labels[found.scores.argmax(0)], found.labels)
    if kind == "segmenter" or crf:
        np.testing.assert_allclose(found.scores.sum(0), 1, atol=1e-5)


def test_with_mirroring_the_mirrored_image_gives_the_mirrored_scores(image: np.ndarray) -> None:
    model = new_model("segmenter")

    def difference(mirror: bool) -> float:
        inference = Inference(scales=(1.0, 0.5), mirror=mirror)
        there, back = (predict(model, picture, inference, CPU).scores for picture in (image, image[:, ::-1].copy()))
        return float(np.abs(there - back[..., ::-1]).max())

    assert difference(mirror=True) < 1e-5
    assert difference(mirror=False) > 1e-3


def test_a_network_is_told_how_an_image_lies_in_its_view(image: np.ndarray) -> None:
    class Telling(DeepLab):
        fields: ClassVar[Mapping[str, ImageField]] = {**DeepLab.fields, "view": GEOMETRY}

        def logits(self, batch: Batch) -> Tensor:
            told.append(batch["view"])
            return super().logits(batch)

    told: list[Tensor] = []
    model = new_model("segmenter")
    network = Telling(model.network.settings, 2).eval()
    network.load_state_dict(model.network.state_dict())
    inference = Inference(mirror=True)
    found = predict(replace(model, network=network), image, inference, CPU)
    np.testing.assert_array_equal(found.scores, predict(model, image, inference, CPU).scores)
    assert torch.cat(told).tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_a_localiser_predicts_only_the_classes_that_it_finds(image: np.ndarray) -> None:
    model = new_model("localiser")
    assert set(predict(model, image, Inference(), CPU).score_labels.tolist()) == {0, 1, 2}
    model.network.classifier.weight.data[0] *= -1
    middle = float(np.median(predict(model, image, Inference(), CPU).scores[1]))
    found = predict(model, image, Inference(threshold=middle), CPU)
    assert found.score_labels.tolist() == [0, 2]
    assert set(np.unique(found.labels).tolist()) == {0, 2}
    model.network.classifier.weight.data[1] *= -1
    assert set(np.unique(predict(model, image, Inference(threshold=0, crf="deeplab"), CPU).labels)) == {0}


def test_a_higher_threshold_means_more_background(image: np.ndarray) -> None:
    model = new_model("localiser")
    shares = [(predict(model, image, Inference(threshold=t), CPU).labels == 0).mean() for t in (0.0, 0.5, 0.9, 1.1)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("segmenter", {"threshold": 0.5}, "threshold has no effect on a segmenter; leave it out."),
        ("localiser", {"mirror": False}, "mirror has no effect on a localiser; leave it out."),
        ("segmenter", {"scales": ["one"]}, "inference.scales[0]: expected a number"),
        ("segmenter", {"scales": ["0"]}, "inference.scales[0]: expected a number of 0.01 or more"),
        ("segmenter", {"crf": "deeplob"}, "inference.crf: there is no such set of CRF parameters; known: "),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    picture = save(tmp_path / "a.jpg")
    with pytest.raises(WeaksegError) as caught:
        predict_files(new_model(kind), [picture], tmp_path / "out", changes=changes, device=CPU)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_the_model_was_evaluated_with_is_the_default(tmp_path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    model = new_model("segmenter")
    model = Model(**{**vars(model), "inference": {"scales": [0.5], "mirror": True, "crf": "deeplab"}})
    sentence, count, failures = predict_files(model, [tmp_path / "a.png"], tmp_path / "out", changes={}, device=CPU)
    expected = predict(model, image, Inference(scales=(0.5,), mirror=True, crf="deeplab"), CPU)
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "masks" / "a.png"), expected.labels)
    assert (count, failures) == (1, [])
    assert "refined by dense CRF (deeplab)" in sentence


# The working size


@pytest.mark.parametrize("kind", ["segmenter", "localiser"])
@pytest.mark.parametrize("crf", [None, "deeplab"])
def test_a_large_image_is_seen_as_large_as_those_of_the_training(kind: str, crf: str | None) -> None:
    large = np.random.default_rng(1).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    model = replace(new_model(kind), long_side=42)
    inference = Inference(crf=crf)
    found = predict(model, large, inference, CPU)
    small = shrink_image(large, 42)
    assert small.shape == (30, 42, 3)
    seen = predict(new_model(kind), small, inference, CPU)
    expected = seen.enlarged(small, large, keep_scores=True)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.scores.shape == (len(seen.scores), 150, 210)
    assert len(predict(model, large, inference, CPU, keep_scores=False).scores) == 0


def test_an_image_within_the_working_size_is_left_as_it_is(image: np.ndarray) -> None:
    there, native = replace(new_model("segmenter"), long_side=41), new_model("segmenter")
    np.testing.assert_array_equal(
        predict(there, image, Inference(), CPU).scores, predict(native, image, Inference(), CPU).scores
    )


def test_files_are_predicted_at_their_own_size(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = replace(new_model("segmenter"), long_side=40)
    expected = predict(model, pixels, Inference(), CPU)
    options = {"changes": {}, "device": CPU, "probabilities": True}
    predict_files(model, [tmp_path / "a.png"], tmp_path / "out", **options)
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "masks" / "a.png"), expected.labels)
    assert np.array(Image.open(tmp_path / "out" / "overlays" / "a.png")).shape == pixels.shape
    with np.load(tmp_path / "out" / "scores" / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["scores"], expected.scores.astype(np.float16))


def test_a_model_folder_keeps_the_working_size(tmp_path: Path) -> None:
    save_model(tmp_path / "model", replace(new_model("segmenter"), long_side=352))
    assert load_model(tmp_path / "model").long_side == 352
    config = read_json(tmp_path / "model" / "config.json")
    write_json(tmp_path / "model" / "config.json", {k: v for k, v in config.items() if k != "long_side"})
    assert load_model(tmp_path / "model").long_side is None, "as in folders of earlier versions"
    write_json(tmp_path / "model" / "config.json", {**config, "long_side": "large"})
    with pytest.raises(WeaksegError, match=r"config\.json"):
        load_model(tmp_path / "model")


# Windows


class NearNetwork(torch.nn.Module):
    """Features that no more than a few cells of eight pixels decide, as long as an image is in range of a window."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = torch.nn.Conv2d(3, 6, 8, stride=8), torch.nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(image)))


class NearSegmenter(Segmenter):
    def __init__(self) -> None:
        super().__init__(Segmenter.Settings())
        self.network = NearNetwork()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        raise NotImplementedError

    def logits(self, batch: Batch) -> Tensor:
        return 8 * self.network(batch["image"])


class NearLocaliser(Localiser):
    """Finds class 1 everywhere, and class 2 where the image is very bright."""

    losses, param_groups = NearSegmenter.losses, NearSegmenter.param_groups

    def __init__(self) -> None:
        super().__init__(Localiser.Settings())
        self.network = NearNetwork()

    def scores(self, batch: Batch) -> Tensor:
        bright = batch["image"].mean(1).amax((1, 2)) - 2.2
        return torch.stack([torch.ones_like(bright), bright], 1)

    def activation_maps(self, batch: Batch) -> Tensor:
        return torch.relu(self.network(batch["image"]))[:, :2]


def near_model(kind: str) -> Model:
    network = NearSegmenter() if kind == "segmenter" else NearLocaliser()
    return Model("near", Classes(["kettle", "spoon"]), network.eval(), {})


@pytest.fixture(scope="module")
def panorama() -> np.ndarray:
    """Wider than a window, with sides that cells of features and both scales divide; only the right end is white."""
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 180, (2, 8, 3), dtype=np.uint8).repeat(96, 0).repeat(96, 1)
    image = (colours + rng.integers(0, 20, colours.shape, dtype=np.uint8)).astype(np.uint8)
    image[50:100, -60:-20] = 255
    return image


@pytest.mark.parametrize("kind", ["segmenter", "localiser"])
def test_windows_give_what_the_whole_image_gives(kind: str, panorama: np.ndarray) -> None:
    whole, parts = (
        predict(near_model(kind), panorama, Inference(scales=(1.0, 0.5), mirror=True, window=window), CPU)
        for window in (None, 512)
    )
    assert parts.score_labels.tolist() == whole.score_labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-5)
    assert (parts.labels != whole.labels).mean() < 1e-4
    assert len(np.unique(whole.labels)) == 3


@pytest.mark.parametrize("kind", ["segmenter", "localiser"])
def test_a_crf_in_windows_leaves_no_seam(kind: str, panorama: np.ndarray) -> None:
    whole, parts = (
        predict(near_model(kind), panorama, Inference(crf="deeplab", window=window), CPU).labels
        for window in (None, 512)
    )
    assert (parts != whole).mean() < 0.01
    seam = 384  # where the first window stops deciding
    changes = (parts[:, 1:] != parts[:, :-1]).mean(0)
    expected = (whole[:, 1:] != whole[:, :-1]).mean(0)
    assert abs(changes[seam - 1] - expected[seam - 1]) < 0.05


def test_windows_are_used_where_the_whole_image_would_take_too_much_memory() -> None:
    model, small, large = new_model("segmenter"), (1000, 1000), (8000, 12000)
    assert window_side(model, small, Inference()) is None
    assert window_side(model, large, Inference(window=None)) is None
    assert window_side(model, small, Inference(window=512)) == 512
    side = window_side(model, large, Inference())
    many = replace(model, classes=Classes([f"class {number}" for number in range(250)]))
    assert side is not None
    assert SMALLEST_SIDE <= window_side(many, large, Inference(crf="deeplab")) < side
    assert window_side(model, large, Inference(scales=(2.0,))) < side


def test_of_many_scores_a_crf_is_given_the_labels_that_may_win(
    image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(4)
    likely, unlikely = rng.random((3, 23, 41), np.float32), 0.1 * rng.random((5, 23, 41), np.float32)
    scores = np.concatenate([likely + 0.3, unlikely])[[0, 3, 1, 4, 2, 5, 6, 7]]
    scores /= scores.sum(0)
    labels = np.arange(8, dtype=np.uint8)
    before = decide(image, scores, labels, "deeplab", CPU)
    monkeypatch.setattr(inference_module, "MANY_SCORES", 0)
    found = decide(image, scores, labels, "deeplab", CPU)
    assert found.scores.shape == scores.shape
    assert not found.scores[[1, 3, 5, 6, 7]].any()
    assert (found.labels == before.labels).mean() > 0.97


def test_predict_takes_windows_from_the_changes(tmp_path: Path, panorama: np.ndarray) -> None:
    Image.fromarray(panorama[:64]).save(tmp_path / "a.png")
    model = new_model("segmenter")
    predict_files(model, [tmp_path / "a.png"], tmp_path / "out", changes={"window": 512}, device=CPU)
    expected = predict(model, panorama[:64], Inference(window=512), CPU, keep_scores=False)
    np.testing.assert_array_equal(read_label_map(tmp_path / "out" / "masks" / "a.png"), expected.labels)
    with pytest.raises(WeaksegError, match=r"inference\.window"):
        predict_files(model, [tmp_path / "a.png"], tmp_path / "out", changes={"window": 500}, device=CPU)

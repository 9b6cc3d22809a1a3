from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from weakseg.data.coco import PolygonMask, read_coco
from weakseg.data.findings import Report
from weakseg.errors import WeaksegError
from weakseg.labels import VOID, Box

Save = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")

PERSON, CAT = 1, 2


def edit(root: Path, change: Callable[[dict[str, Any]], None], split: str = "train2014") -> Path:
    """Change the annotation file of a split and return its path."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def problems_of(root: Path) -> list[str]:
    report = Report()
    read_coco(root, report)
    return report.problems


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


# Reading


def test_annotation_files_become_splits(coco: Path) -> None:
    dataset = read_coco(coco)
    assert dataset.format == "coco"
    assert {split: [s.name for s in samples] for split, samples in dataset.splits.items()} == {
        "train": ["train2014_7", "train2014_9"],
        "val": ["val2014_7", "val2014_9"],
    }
    assert dataset.split("val")[0].image == coco / "val2014" / "val2014_7.jpg"


def test_classes_are_the_categories_by_ascending_id(coco: Path) -> None:
    assert read_coco(coco).classes.names == ("person", "cat", "toothbrush")


def test_tags_boxes_and_mask_of_an_image(coco: Path) -> None:
    sample = read_coco(coco).split("train")[0]
    assert sample.labels.tags == {PERSON, CAT}
    assert sample.labels.boxes == (Box(CAT, 1, 1, 7, 5), Box(PERSON, 2, 2, 5, 4))
    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 1:7] = CAT
    expected[2:4, 2:5] = PERSON
    assert sample.mask is not None
    np.testing.assert_array_equal(sample.mask.read(), expected)


def test_an_image_without_annotations_has_no_objects(coco: Path) -> None:
    sample = read_coco(coco).split("train")[1]
    assert sample.labels.tags == frozenset()
    assert sample.mask is not None
    np.testing.assert_array_equal(sample.mask.read(), np.zeros((6, 8), np.uint8))


def test_a_crowd_gives_a_tag_and_void_but_no_box(coco: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        # Columns 0 … 3 of 8, by runs down the columns.
        content["annotations"][1] |= {"iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [0, 24, 24]}}

    edit(coco, change)
    sample = read_coco(coco).split("train")[0]
    assert sample.labels.tags == {PERSON, CAT}
    assert [box.label for box in sample.labels.boxes] == [CAT]
    expected = np.zeros((6, 8), np.uint8)
    expected[:, :4] = VOID
    expected[1:5, 1:7] = CAT
    assert sample.mask is not None
    np.testing.assert_array_equal(sample.mask.read(), expected)


@pytest.mark.parametrize(
    ("bounds", "box"),
    [
        ([2.2, 1.9, 1.0, 2.0], (2, 1, 4, 4)),
        ([-0.5, -0.4, 3, 2], (0, 0, 3, 2)),
        ([6, 4, 2.3, 2.4], (6, 4, 8, 6)),
        ([3, 3, 0, 0], (3, 3, 4, 4)),
    ],
)
def test_boxes_are_widened_to_pixels_and_cut_to_the_image(coco: Path, bounds: list, box: tuple) -> None:
    edit(coco, lambda content: content["annotations"][0].update(bbox=bounds))
    assert read_coco(coco).split("train")[0].labels.boxes[0] == Box(CAT, *box)


def test_an_image_with_a_mere_box_has_no_mask(coco: Path) -> None:
    edit(coco, lambda content: content["annotations"][0].pop("segmentation"))
    samples = read_coco(coco).split("train")
    assert samples[0].mask is None
    assert samples[1].mask is not None
    assert len(samples[0].labels.boxes) == 2


def test_images_may_lie_in_other_usual_places(coco: Path) -> None:
    (coco / "images").mkdir()
    (coco / "train2014").rename(coco / "images" / "train2014")
    for image in (coco / "val2014").iterdir():
        image.rename(coco / "images" / image.name)
    dataset = read_coco(coco)
    assert dataset.split("train")[0].image == coco / "images" / "train2014" / "train2014_7.jpg"
    assert dataset.split("val")[0].image == coco / "images" / "val2014_7.jpg"


def test_one_annotation_file_is_a_data_set(coco: Path) -> None:
    path = coco / "annotations" / "instances_val2014.json"
    assert {split: len(samples) for split, samples in read_coco(path).splits.items()} == {"val": 2}
    path.rename(coco / "val2014" / "_annotations.coco.json")
    dataset = read_coco(coco / "val2014" / "_annotations.coco.json")
    assert read_coco(dataset.root) == dataset
    assert [s.image.name for s in dataset.split("train")] == ["val2014_7.jpg", "val2014_9.jpg"]


def test_two_years_of_a_split_keep_their_full_names(coco: Path) -> None:
    edit(coco, lambda content: None, "val2014").rename(coco / "annotations" / "instances_train2017.json")
    (coco / "val2014").rename(coco / "train2017")
    assert set(read_coco(coco).splits) == {"train2014", "train2017"}


def test_an_extra_list_shares_the_images_of_another_split(coco: Path) -> None:
    content = (coco / "annotations" / "instances_val2014.json").read_text()
    (coco / "annotations" / "instances_minival2014.json").write_text(content)
    dataset = read_coco(coco)
    assert [s.name for s in dataset.split("minival")] == ["val2014_7", "val2014_9"]
    assert dataset.split("minival")[0].image == dataset.split("val")[0].image


def test_names_that_two_splits_use_are_made_unique(coco: Path) -> None:
    for split in ("train2014", "val2014"):
        (coco / split / f"{split}_7.jpg").rename(coco / split / "1.jpg")
        edit(coco, lambda content: content["images"][0].update(file_name="1.jpg"), split)
    names = [s.name for samples in read_coco(coco).splits.values() for s in samples]
    assert names == ["train/1", "train/train2014_9", "val/1", "val/val2014_9"]


# Problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=8), "annotations[0]: there is no image with the id 8."),
        (lambda c: c["annotations"][0].update(category_id=2), "annotations[0]: there is no category with the id 2."),
        (lambda c: c["annotations"][1].pop("bbox"), 'annotations[1]: the key "bbox" is missing.'),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            'annotations[0]: the box "bbox" is four numbers [x, y, width, height], found [1, 2, 3].',
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[8, 1, 2, 2]),
            "annotations[0]: the box (8, 1, 10, 3) (left, top, right, bottom) is empty or lies outside",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[0, 0, -1, 2]),
            "annotations[0]: the box (0, 0, -1, 2) (left, top, right, bottom) is empty",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[float("inf")] * 4),
            'annotations[0]: the box "bbox" is four numbers',
        ),
        (lambda c: c["annotations"][0].update(bbox=["x"] * 4), 'annotations[0]: the box "bbox" is four numbers'),
        (lambda c: c["annotations"][0].update(segmentation=["x"]), "annotations[0]: "),
        (lambda c: c["annotations"].append(None), "annotations[2]: "),
        (lambda c: c["images"][1].pop("height"), 'images[1]: the key "height" is missing.'),
        (lambda c: c["images"][1].update(width=0), 'images[1]: "width" is a number of pixels above 0, found 0.'),
        (
            lambda c: c["images"][1].update(width=10**9),
            'images[1]: "width" is a number of pixels above 0, found 1000000000.',
        ),
        (lambda c: c["images"][1].update(id=7), "images[1]: the id 7 is taken by another image."),
        (lambda c: c["images"][1].update(id=[]), "images[1]: an id is a whole number, found []."),
        (lambda c: c["images"][1].update(file_name="no.jpg"), 'images[1], "no.jpg": there is no such image in '),
        (lambda c: c["images"].append(c["images"][1] | {"id": 5, "width": 9}), "images[2]: the image "),
        (
            lambda c: c["annotations"][0].update(segmentation=[1, 1, 5, 1, 5, 5]),
            'annotations[0]: a "segmentation" is a',
        ),
        (lambda c: c["annotations"][0].update(segmentation="[[1, 1, 5, 1, 5, 5]]"), 'annotations[0]: a "segmentation"'),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5, 1, 5, None]]), "annotations[0]: a polygon is"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 5, 1, 5]]), "annotations[0]: a polygon is a list"),
        (
            lambda c: c["annotations"][0].update(segmentation=[[0, 0, 1e9, 0, 1, 5]]),
            "annotations[0]: a polygon holds coordinates",
        ),
        (lambda c: c["annotations"][0].update(segmentation={"size": [6, 8]}), "annotations[0]: the counts"),
        (lambda c: c["annotations"][0].update(segmentation={"size": [8, 6], "counts": [48]}), "annotations[0]: a run-"),
        (lambda c: c["images"].append(3), "images[2]: "),
    ],
)
def test_a_malformed_entry_is_one_problem_that_names_it(coco: Path, change: Any, message: str) -> None:
    path = edit(coco, change)
    [problem] = problems_of(coco)
    assert problem.startswith(f"{path}, {message}")
    assert not re.search(r"None|unpack|iterable|nan|instance of|could not", problem)


def test_annotations_of_a_missing_image_are_not_reported_again(coco: Path) -> None:
    (coco / "train2014" / "train2014_7.jpg").unlink()
    [problem] = problems_of(coco)
    assert '"train2014_7.jpg": there is no such image in' in problem


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_missing_list_is_an_error(coco: Path, key: str) -> None:
    edit(coco, lambda content: content.pop(key))
    with pytest.raises(
        WeaksegError, match=rf'instances_train2014\.json is no COCO instance file: it has no list "{key}"'
    ):
        read_coco(coco)


@pytest.mark.parametrize("text", ["{", "", "[1]", "null"])
def test_other_json_is_an_error(coco: Path, text: str) -> None:
    (coco / "annotations" / "instances_val2014.json").write_text(text)
    with pytest.raises(WeaksegError, match=r"instances_val2014\.json is (not valid JSON|no COCO instance file)"):
        read_coco(coco)


def test_bad_categories_are_errors(coco: Path) -> None:
    path = edit(coco, lambda content: content["categories"][0].pop("id"))
    with pytest.raises(WeaksegError, match=r'categories\[0\]: a category needs a number "id" and a "name"'):
        read_coco(path)
    edit(coco, lambda content: content.update(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]))
    with pytest.raises(WeaksegError, match=r"categories\[1\]: another category has the same id 1"):
        read_coco(path)
    edit(coco, lambda content: content.update(categories=[{"id": 0, "name": "_background_"}, {"id": 1, "name": "dog"}]))
    with pytest.raises(WeaksegError, match=r"_background_.* is reserved"):
        read_coco(path)


# Harmless oddities


def notes_of(root: Path) -> list[str]:
    report = Report()
    read_coco(root, report)
    assert report.problems == []
    return report.notes


def test_two_categories_of_one_name_are_one_class(coco: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "person"

    path = edit(coco, rename)
    [sample, _] = read_coco(path).split("train")
    assert sample.labels.tags == {1}
    assert {box.label for box in sample.labels.boxes} == {1}
    assert "the same name" in notes_of(path)[0]


def test_ids_and_numbers_may_be_text(coco: Path) -> None:
    before = read_coco(coco).split("train")

    def as_text(content: dict[str, Any]) -> None:
        for entry in (*content["images"], *content["categories"]):
            entry["id"] = str(entry["id"])
        for entry in content["annotations"]:
            entry |= {"image_id": str(entry["image_id"]), "category_id": str(entry["category_id"])}
            entry["bbox"] = [str(side) for side in entry["bbox"]]
            entry["segmentation"] = [[str(side) for side in polygon] for polygon in entry["segmentation"]]

    edit(coco, as_text)
    after = read_coco(coco).split("train")
    for old, new in zip(before, after, strict=True):
        assert old.labels == new.labels
        np.testing.assert_array_equal(old.mask.read(), new.mask.read())  # type: ignore[union-attr]
    ids, numbers = sorted(notes_of(coco))
    assert "numbers are written as text" in ids + numbers
    assert "9 in all" in ids + numbers  # two images, three categories, twice two of annotations


@pytest.mark.parametrize("folders", ["train2014/", "../../media/upload/4/", "C:\\photos\\"])
def test_a_path_of_another_computer_is_tried_by_its_name(coco: Path, folders: str) -> None:
    before = read_coco(coco).split("train")
    edit(coco, lambda c: [image.update(file_name=folders + image["file_name"]) for image in c["images"]])
    assert [s.image for s in read_coco(coco).split("train")] == [s.image for s in before]


@pytest.mark.parametrize("degenerate", [[], [3, 3], [3, 3, 4, 3]])
def test_a_polygon_without_inside_is_left_out(coco: Path, degenerate: list[float]) -> None:
    before = read_coco(coco).split("train")[0]
    path = edit(coco, lambda c: c["annotations"][0]["segmentation"].append(degenerate))
    after = read_coco(coco).split("train")[0]
    assert after.labels == before.labels
    np.testing.assert_array_equal(after.mask.read(), before.mask.read())  # type: ignore[union-attr]
    [note] = notes_of(coco)
    assert note.startswith(f"{path}, annotations[0]: a polygon of fewer than three points")


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e9, 10**400])
def test_a_coordinate_that_no_image_has_is_refused_before_it_is_drawn(coco: Path, place: int, value: float) -> None:
    path = edit(coco, lambda c: c["annotations"][0]["segmentation"][0].__setitem__(place, value))
    with pytest.raises(WeaksegError, match=r"annotations\[0\]: a polygon holds coordinates that are not numbers or"):
        read_coco(path)


def test_an_object_of_degenerate_polygons_alone_keeps_its_tag(coco: Path) -> None:
    edit(coco, lambda c: c["annotations"][1].update(segmentation=[[3, 3, 4, 3]]))
    sample = read_coco(coco).split("train")[0]
    assert sample.labels.tags == {PERSON, CAT}
    assert np.unique(sample.mask.read()).tolist() == [0, CAT]  # type: ignore[union-attr]


def test_an_image_listed_twice_has_the_annotations_of_both_entries(coco: Path) -> None:
    before = read_coco(coco).split("train")[0]

    def again(content: dict[str, Any]) -> None:
        content["images"].append(content["images"][0] | {"id": 5})
        content["annotations"][1]["image_id"] = 5

    path = edit(coco, again)
    after = read_coco(coco).split("train")[0]
    assert after.labels == before.labels
    np.testing.assert_array_equal(after.mask.read(), before.mask.read())  # type: ignore[union-attr]
    [note] = notes_of(coco)
    assert note.startswith(f"{path}, images[2]: an image is listed twice")


def test_equal_problems_are_one(coco: Path) -> None:
    path = edit(coco, lambda c: [a.update(category_id=2) for a in c["annotations"]])
    assert problems_of(coco) == [f"{path}, annotations[0] (and 1 more, 2 in all): there is no category with the id 2."]


def test_splits_of_different_categories_are_an_error(coco: Path) -> None:
    edit(coco, lambda content: content["categories"][2].update(id=91))
    with pytest.raises(WeaksegError, match="have different categories; they must be the same"):
        read_coco(coco)


def test_when_no_image_is_found_the_places_are_named(coco: Path) -> None:
    (coco / "train2014").rename(coco / "elsewhere")
    with pytest.raises(WeaksegError, match=r"None of the 2 images of .*Looked in .*train2014, .*images"):
        read_coco(coco)


def test_a_folder_without_annotations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"has no annotations/instances_\*\.json"):
        read_coco(tmp_path)


# Masks


def test_smaller_objects_lie_on_larger_ones_in_any_order() -> None:
    regions = [(1, rectangle(0, 0, 8, 6)), (2, rectangle(1, 1, 6, 5)), (3, rectangle(2, 2, 4, 4))]
    first = PolygonMask("x", (6, 8), tuple(regions), "").read()
    np.testing.assert_array_equal(first, PolygonMask("x", (6, 8), tuple(regions[::-1]), "").read())
    assert first[0, 0] == 1
    assert first[1, 1] == 2
    assert first[3, 3] == 3


def test_an_object_of_several_polygons_is_their_union() -> None:
    mask = PolygonMask("x", (4, 6), ((5, rectangle(0, 0, 1, 4) + rectangle(4, 0, 6, 4)),), "").read()
    np.testing.assert_array_equal(mask, np.array([[5, 0, 0, 0, 5, 5]] * 4))


@settings(max_examples=40, deadline=None)
@given(shape=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 1)))
def test_both_run_length_codes_give_the_pixels_they_stand_for(shape: np.ndarray) -> None:
    height, width = shape.shape
    compressed = coco_mask.encode(np.asfortranarray(shape))["counts"].decode()
    # Runs down the columns, zeros first.
    column = [0, *shape.T.ravel().tolist(), 2]
    starts = [0] + [i for i in range(1, len(column) - 1) if column[i] != column[i - 1]]
    changes = [i - 1 for i in starts[1:]] + [height * width]
    runs = np.diff([0, *changes]).tolist()
    for counts in (compressed, runs):
        mask = PolygonMask("x", (height, width), ((4, {"size": [height, width], "counts": counts}),), "")
        np.testing.assert_array_equal(mask.read(), shape * 4)


@pytest.mark.parametrize("counts", [[5, 5], [-1, 49], [24.0, 24.0], "oooo0", "PPPPP", "\n", "0\n", "é", 5, None])
def test_a_damaged_run_length_code_is_an_error_that_names_it(coco: Path, counts: object) -> None:
    path = edit(coco, lambda c: c["annotations"][0].update(segmentation={"size": [6, 8], "counts": counts}))
    with pytest.raises(WeaksegError, match=r"instances_train2014\.json, .*the counts of a run-length code"):
        for sample in read_coco(path).split("train"):
            sample.mask.read()  # type: ignore[union-attr]


@settings(max_examples=100, deadline=None)
@given(counts=st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_counts_are_drawn_or_refused(counts: str) -> None:
    mask = PolygonMask("x", (6, 8), ((1, {"size": [6, 8], "counts": counts}),), "")
    try:
        assert mask.read().shape == (6, 8)
    except WeaksegError as error:
        assert "the counts of a run-length code" in str(error)


def test_fingerprint_follows_the_annotation_file(coco: Path) -> None:
    before = read_coco(coco).split("train")[0].mask
    same = read_coco(coco).split("train")[0].mask
    edit(coco, lambda content: content["annotations"][0].update(note="a later version"))
    after = read_coco(coco).split("train")[0].mask
    assert before is not None
    assert same is not None
    assert after is not None
    assert before.fingerprint() == same.fingerprint() != after.fingerprint()


def test_a_data_set_travels_to_another_process(coco: Path) -> None:
    dataset = read_coco(coco)
    assert pickle.loads(pickle.dumps(dataset)) == dataset


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_strange_values_never_give_another_exception(coco: Path, data: st.DataObject) -> None:
    path = coco / "annotations" / "instances_train2014.json"
    before = path.read_text()
    content = json.loads(before)
    entry = data.draw(st.sampled_from([*content["images"], *content["annotations"], *content["categories"]]))
    key = data.draw(st.sampled_from(sorted(entry)))
    entry[key] = data.draw(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})
    )
    try:
        path.write_text(json.dumps(content))
        for sample in read_coco(path, Report()).split("train"):
            if sample.mask is not None:
                sample.mask.read()
    except WeaksegError as error:
        assert "instances_train2014.json" in str(error)
    finally:
        path.write_text(before)

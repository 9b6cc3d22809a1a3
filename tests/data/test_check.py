from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weakseg.data.check import USUAL_LONG_SIDE, check_dataset, require_masks
from weakseg.data.dataset import Dataset, Sample
from weakseg.data.images import write_label_map
from weakseg.data.opening import open_dataset
from weakseg.data.summary import describe
from weakseg.errors import WeaksegError
from weakseg.labels import Classes, WeakLabels
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import description, working_size

Save = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")


@pytest.fixture
def sound(folder: Path) -> Path:
    """A folder with boxes, points, scribbles and masks and nothing wrong."""
    (folder / "labels.csv").unlink()
    label_one(folder, {})
    for name, size in {"one": (6, 8), "deep/two three": (6, 8), "four": (5, 5)}.items():
        write_label_map(folder / "masks" / f"{name}.png", np.ones(size, np.uint8))
    return folder


def label_one(root: Path, one: object) -> None:
    images = {"one": one, "four": {"tags": ["cat"]}, "deep/two three": {"tags": ["cat"], "split": "val"}}
    (root / "labels.json").write_text(json.dumps({"classes": ["cat"], "images": images}))


def write_list(root: Path, split: str, text: str) -> None:
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)


@pytest.mark.parametrize("layout", ["sound", "coco"])
def test_a_sound_data_set_has_no_problems(layout: str, request: pytest.FixtureRequest) -> None:
    report = check_dataset(request.getfixturevalue(layout))
    assert report.problems == []
    assert [note for note in report.notes if "toothbrush" not in note] == []
    assert report.contents[0].startswith("train: 2 images with tags (")


def test_every_problem_is_found_at_once(sound: Path, save_image: Save) -> None:
    label_one(
        sound,
        {
            "boxes": [{"class": "cat", "box": [0, 0, 8, 6]}, {"class": "cat", "box": [9, 0, 10, 6]}],
            "points": [{"class": "cat", "point": [7, 5]}, {"class": "cat", "point": [7, 7]}],
            "scribbles": [{"class": "cat", "points": [[0, 0], [10, 0]]}],
            "tags": ["cow"],
        },
    )
    truncated = save_image(sound / "images" / "truncated.jpg", (64, 64))
    truncated.write_bytes(truncated.read_bytes()[:1500])
    write_label_map(sound / "masks" / "deep" / "two three.png", np.ones((8, 6), np.uint8))
    write_label_map(sound / "masks" / "four.png", np.full((5, 5), 7, np.uint8))
    write_label_map(sound / "masks" / "nobody.png", np.zeros((5, 5), np.uint8))
    one = f'{sound / "labels.json"}, image "one"'
    expected = [
        f"{sound / 'masks' / 'nobody.png'}: the file belongs to no image",
        f'{one}: Unknown class "cow"',
        f"{one}, boxes[1]: the box (9, 0, 10, 6) (left, top, right, bottom) is empty or lies outside",
        f"{one}, points[1]: the point (7, 7) lies outside the image of 6 × 8 pixels (height × width)",
        f"{one}, scribbles[0]: the point (10, 0) lies outside the image of 6 × 8 pixels (height × width)",
        f"{truncated} cannot be decoded",
        f"{sound / 'images' / 'deep' / 'two three.PNG'} has 6 × 8 pixels (height × width), but its mask 8 × 6.",
        f"{sound / 'masks' / 'four.png'} holds values that are no class: 7 (25 pixels)",
    ]
    problems = check_dataset(sound).problems
    assert len(problems) == len(expected)
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), start


@pytest.mark.parametrize(
    "one",
    [
        {"boxes": [{"class": "cat", "box": [0, 0, 1]}]},
        {"boxes": [{"class": "cat", "box": ["9", 0, 10, 6]}]},
        {"boxes": [{"class": "cat", "box": [0, 0, 1, 1], "score": 1}]},
        {"boxes": [{"label": "cat", "box": [0, 0, 1, 1]}]},
        {"points": [{"class": "cat", "point": [0.5, 90]}]},
        {"points": [{"class": "cta", "point": [0, 0]}]},
        {"scribbles": [{"class": "cat", "points": [[0.5, 0.5], [90, 0]]}]},
        {"scribbles": [{"class": "cat", "points": [["0", 0], [1]]}]},
        {"tags": ["cta"]},
        {"tag": ["cat"]},
        {"tags": "cat"},
        None,
    ],
)
@pytest.mark.parametrize("masks", [True, False])
def test_one_mistake_in_the_labels_of_an_image_is_one_message(sound: Path, one: object, masks: bool) -> None:
    if not masks:
        shutil.rmtree(sound / "masks")
    images = {"one": one, "four": {"tags": []}, "deep/two three": {"tags": [], "split": "val"}}
    (sound / "labels.json").write_text(json.dumps({"classes": ["cat", "dog"], "images": images}))
    for name, size in {"four": (5, 5), "deep/two three": (6, 8)}.items() if masks else ():
        write_label_map(sound / "masks" / f"{name}.png", np.zeros(size, np.uint8))
    report = check_dataset(sound)
    assert len(report.problems) == 1
    assert [note for note in report.notes if "converted" not in note] == []


@pytest.mark.parametrize("row", ["one,cat,train,more", "one", "one,cta,", "one,cat,../up", "nobody,cat,"])
def test_one_mistake_in_a_row_is_one_message(tmp_path: Path, row: str) -> None:
    report = check_dataset(label(tmp_path, f"{row}\ntwo,,\n", classes="cat\n"))
    assert (len(report.problems), report.notes) == (1, [])


def test_one_mistake_in_an_annotation_is_one_message(voc: Path) -> None:
    shutil.rmtree(voc / "SegmentationClass")
    shutil.rmtree(voc / "SegmentationClassAug")
    bounds = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>500</xmax><ymax>x</ymax></bndbox>"
    for name in "abcd":
        annotation = f"<annotation><object><name>cat</name>{bounds if name == 'a' else ''}</object></annotation>"
        (voc / "Annotations").mkdir(exist_ok=True)
        (voc / "Annotations" / f"{name}.xml").write_text(annotation)
    report = check_dataset(voc)
    assert len(report.problems) == 1
    assert [note for note in report.notes if "no setting" not in note.lower()] == []


def test_splits_are_checked(voc: Path) -> None:
    write_list(voc, "train", "a\nb\nc\n")
    write_list(voc, "trainval", "a\nb\nc\n")
    write_list(voc, "test", "")
    problems = check_dataset(voc).problems
    assert 'c: the image is in the splits "train" and "val". Remove it from one.' in problems
    assert 'The split "test" is empty.' in problems
    assert len(problems) == 2


# Meaning


def label(root: Path, rows: str, masks: dict[str, list[list[int]]] | None = None, classes: str = "") -> Path:
    """Two images of 6 × 8 pixels, one and two, with a table, and masks of rows that are repeated."""
    for name in ("one", "two"):
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (200, 30, 40)).save(root / "images" / f"{name}.png")
    (root / "labels.csv").write_text("image,tags,split\n" + rows, encoding="utf-8")
    if classes:
        (root / "classes.txt").write_text(classes, encoding="utf-8")
    for name, values in (masks or {}).items():
        write_label_map(root / "masks" / f"{name}.png", np.resize(np.array(values, np.uint8), (6, 8)))
    return root


SOUND = "one,cat,\ntwo,dog,\n"


def test_labels_that_fit_their_masks_give_no_note(tmp_path: Path) -> None:
    root = label(tmp_path, SOUND, {"one": [[0, 1]], "two": [[0, 2, 255]]})
    report = check_dataset(root)
    assert report.problems == report.notes == []
    assert report.contents == [
        "train: 2 images with tags (2), masks (2)",
        "2 classes, with labelled images: cat 1, dog 1",
    ]


def test_masks_of_0_and_255_are_noted_once(tmp_path: Path) -> None:
    [note] = check_dataset(label(tmp_path, SOUND, {"one": [[0, 255]], "two": [[0, 255]]})).notes
    assert "255, which is void" in note


def test_one_mask_of_0_and_255_among_others_is_noted(tmp_path: Path) -> None:
    notes = check_dataset(label(tmp_path, "one,cat,\ntwo,cat,\n", {"one": [[0, 1]], "two": [[0, 255]]})).notes
    assert [note.split(":")[0] for note in notes] == ["two, only in the labels"]


def test_masks_in_another_order_than_the_classes_are_noted(tmp_path: Path) -> None:
    masks = {"one": [[0, 2]], "two": [[0, 1]]}
    [note] = check_dataset(label(tmp_path, SOUND, masks)).notes
    assert note.startswith('one, only in the labels: "cat", only in the mask: "dog" (and 1 more, 2 in all): ')


def test_an_object_that_is_all_void_is_no_contradiction(tmp_path: Path) -> None:
    masks = {"one": [[0, 1, 255]], "two": [[0, 2]]}
    assert check_dataset(label(tmp_path, "one,cat;dog,\ntwo,dog,\n", masks)).notes == []


def test_classes_without_an_image_or_a_mask_are_noted(tmp_path: Path) -> None:
    masks = {"one": [[0, 1]], "two": [[0, 1]]}
    notes = check_dataset(label(tmp_path, "one,cat,\ntwo,cat,\n", masks, "cat\nunicorn\n")).notes
    assert [note for note in notes if "unicorn" not in note] == []
    assert ["masks" in note for note in notes] == [True, False]


@pytest.mark.parametrize("other", ["Cat", "CAT", "c a t", "cat\u200b", "_cat_", "c-a-t", "ｃａｔ"])
def test_classes_of_nearly_the_same_name_are_noted(tmp_path: Path, other: str) -> None:
    [note] = check_dataset(label(tmp_path, f"one,cat,\ntwo,{other},\n")).notes
    assert '"cat"' in note
    assert "\u200b" not in note


@pytest.mark.parametrize("name", ["__ignore__", "Unlabeled", "unknown"])
def test_classes_that_are_hardly_things_are_noted(tmp_path: Path, name: str) -> None:
    [note] = check_dataset(label(tmp_path, f"one,cat,\ntwo,{name},\n")).notes
    assert f'"{name}" is hardly a thing' in note


@pytest.mark.parametrize("name", ["_background_", "Background", "VOID"])
def test_reserved_names_are_reserved_in_any_writing(tmp_path: Path, name: str) -> None:
    [problem] = check_dataset(label(tmp_path, "one,cat,\ntwo,cat,\n", classes=f"{name}\ncat\n")).problems
    assert f'"{name}" is reserved' in problem


@pytest.mark.parametrize("split", ["blue", "Train", "validation"])
def test_a_split_that_no_setting_uses_is_noted(tmp_path: Path, split: str) -> None:
    [note] = check_dataset(label(tmp_path, f"one,cat,\ntwo,dog,{split}\n")).notes
    assert f'"{split}" (1 image)' in note
    assert check_dataset(label(tmp_path, "one,cat,blue\ntwo,dog,blue\n")).notes == []


def test_a_training_split_without_any_object_is_the_only_problem(tmp_path: Path) -> None:
    report = check_dataset(label(tmp_path, "one,,\ntwo,,\n", classes="cat\n"))
    [problem] = report.problems
    assert 'of the split "train" shows any class' in problem
    assert report.notes == []


def test_masks_are_read_before_they_are_needed(tmp_path: Path) -> None:
    samples = open_dataset(label(tmp_path, SOUND, {"one": [[0, 1]], "two": [[0, 7]]})).split("train")
    require_masks(samples[:1])
    with pytest.raises(WeaksegError, match=r"two\.png holds values that are no class: 7"):
        require_masks(samples)


def test_images_of_a_class_are_not_counted_where_all_labels_are_masks(tmp_path: Path) -> None:
    root = label(tmp_path, "", {"one": [[0, 1]], "two": [[0, 1]]}, "cat\nhot dog\n")
    dataset = open_dataset(root)
    assert describe(dataset) == ["train: 2 images with masks (2)", "2 classes, labelled in masks only: cat, hot dog"]
    assert "cat 1, hot dog 0" in describe(open_dataset(label(root, "one,cat,\n")))[-1]


def test_a_run_tells_which_images_it_does_not_use(tmp_path: Path) -> None:
    recipe = load_recipe("toy-cam")
    slipped = description(recipe, open_dataset(label(tmp_path, "one,cat,dog\ntwo,dog,\n")))
    assert slipped[0].startswith("train: 1 image ")
    assert "images not used, by split: dog 1" in slipped
    assert "not used" not in "\n".join(description(recipe, open_dataset(label(tmp_path, SOUND))))


def test_what_a_recipe_does_with_labels_is_told_of_those_there_are(tmp_path: Path) -> None:
    dataset = open_dataset(label(tmp_path, SOUND, {"one": [[0, 1]]}))
    uses = {"tags": "what to learn", "boxes": "their classes alone"}
    lines = describe(dataset, {"train": dataset.split("train"), "val": []}, uses)
    assert lines[:2] == ["train: 2 images with tags (2), masks (1)", "val: 0 images"]
    assert lines[-1] == "tags: what to learn"


# Files


def test_missing_images_and_repeated_names_are_problems(voc: Path, save_image: Save) -> None:
    (voc / "JPEGImages" / "d.jpg").unlink()
    again = save_image(voc / "JPEGImages" / "a.png")
    duplicate, missing = check_dataset(voc).problems
    assert duplicate == f'{again} and a.jpg have the same name "a". Rename one of them.'
    assert missing.endswith(f'train_aug.txt, line 3, "d": there is no such image in {voc / "JPEGImages"}.')


def test_both_masks_of_an_image_are_read(voc: Path, save_mask: Save) -> None:
    save_mask(voc / "SegmentationClass" / "a.png", np.full((6, 8), 77))
    save_mask(voc / "SegmentationClassAug" / "a.png", np.zeros((3, 3)))
    unknown, size = sorted(check_dataset(voc).problems, key=lambda text: "mask" in text)
    assert "SegmentationClass/a.png holds values that are no class: 77 (48 pixels)" in unknown
    assert size.startswith(f"{voc / 'JPEGImages' / 'a.jpg'} has 6 × 8 pixels (height × width), but its mask 3 × 3")


def test_a_coco_image_of_another_size_is_a_problem(coco: Path, save_image: Save) -> None:
    save_image(coco / "val2014" / "val2014_9.jpg", (7, 8))
    [problem] = check_dataset(coco).problems
    assert problem.startswith(
        f"{coco / 'val2014' / 'val2014_9.jpg'} has 7 × 8 pixels (height × width), but its mask 6 × 8"
    )


def test_what_cannot_be_opened_is_the_problem(tmp_path: Path, folder: Path) -> None:
    [problem] = check_dataset(tmp_path / "nowhere").problems
    assert problem.endswith("nowhere does not exist.")
    (folder / "labels.csv").write_text("what,ever\n")
    [problem] = check_dataset(folder).problems
    assert 'the header is "what,ever"' in problem


def test_conversions_are_noted_by_kind(sound: Path, save_image: Save) -> None:
    save_image(sound / "images" / "one.jpg", mode="CMYK")
    save_image(sound / "images" / "deep" / "two three.PNG", mode="L")
    exif = Image.Exif()
    exif[0x0112] = 3
    save_image(sound / "images" / "four.webp", (5, 5), exif=exif)
    report = check_dataset(sound)
    assert report.problems == []
    assert report.notes == [
        "1 image to be converted on reading (CMYK): one",
        "1 image to be converted on reading (EXIF rotation): four",
        "1 image to be converted on reading (greyscale): deep/two three",
    ]


def test_photographs_far_larger_than_recipes_work_at_are_noted(folder: Path, save_image: Save) -> None:
    image = next(path for path in sorted((folder / "images").rglob("*")) if path.is_file())
    assert not any("far larger" in note for note in check_dataset(folder).notes)
    save_image(image, (8, 2 * USUAL_LONG_SIDE + 1))
    assert sum("far larger" in note and "data.long_side" in note for note in check_dataset(folder).notes) == 1
    assert working_size(load_recipe("cam")) == USUAL_LONG_SIDE


def test_notes_count_all_and_name_some(folder: Path, save_image: Save) -> None:
    for index in range(7):
        save_image(folder / "images" / f"more{index}.png")
    report = check_dataset(folder)
    assert report.problems == []
    assert report.notes == [
        '7 images of the split "unlabelled" without any label: more0, more1, more2, more3, more4, …'
    ]


def test_a_few_images_without_masks_are_noted(voc: Path) -> None:
    (voc / "tags.json").write_text(json.dumps({name: ["cat"] for name in "abcd"}))
    assert [note for note in check_dataset(voc).notes if "without a mask" in note] == [
        '1 image of the split "train" without a mask, which others have: b',
        '1 image of the split "train_aug" without a mask, which others have: b',
    ]


def test_progress_counts_every_image_once(voc: Path) -> None:
    calls: list[tuple[int, int]] = []
    check_dataset(voc, on_image=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interrupted_check_stops(voc: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset(voc, on_image=interrupt)


def test_labels_that_contradict_are_named(sound: Path) -> None:
    names = {"classes": ["cat", "cow"]}
    point, stroke = {"class": "cow", "point": [1, 1]}, {"class": "background", "points": [[0, 0], [2, 2]]}
    one = {"tags": ["cat"], "points": [point], "scribbles": [stroke], "boxes": [{"class": "cat", "box": [3, 1, 3, 5]}]}
    (sound / "labels.json").write_text(json.dumps({**names, "images": {"one": one, "four": {"tags": ["cat"]}}}))
    report = check_dataset(sound)
    denied = [note for note in report.notes if "do not name this class" in note]
    assert [note for note in denied if "one, point" in note and "cow" in note] == denied
    assert len(denied) == 1
    assert any("boxes[0]" in note and "no area" in note for note in report.notes)


def test_labels_beside_a_data_set_are_checked(sound: Path) -> None:
    outside, unknown = {"class": "cat", "point": [70, 5]}, {"class": "dragon", "points": [[0, 0]]}
    images = {"one": {"points": [outside]}, "four": {"scribbles": [unknown]}}
    (sound / "points.json").write_text(json.dumps({"images": images}))
    (sound / "boxes.json").write_text(json.dumps({"images": {"one": {"tags": ["cat"]}, "nowhere": {}}}))
    report = check_dataset(sound)
    for place, what in (("points.json", "outside"), ("points.json", "dragon"), ("boxes.json", "tags")):
        assert any(place in problem and what in problem for problem in report.problems), what
    assert any("nowhere" in note for note in report.notes)


def test_of_many_classes_the_most_frequent_are_listed() -> None:
    classes = Classes([f"thing {number}" for number in range(300)])
    samples = [
        Sample(str(n), Path("x.png"), WeakLabels(frozenset({classes.label(f"thing {n}")}))) for n in (2, 254, 299)
    ]
    line = " ".join(describe(Dataset(Path(), "coco", classes, {"train": samples}))[1:])
    for number in (2, 254, 299):
        assert f"thing {number} 1" in line
    assert line.count("thing") == 100
    assert line.endswith(", and 200 others")

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weakseg.data.check import check_dataset
from weakseg.data.findings import Report
from weakseg.data.images import write_label_map

Save = Callable[..., Path]

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")


@pytest.fixture
def sound(folder: Path) -> Path:
    """A folder with boxes, points, scribbles and masks and nothing wrong."""
    (folder / "labels.csv").unlink()
    describe(folder, {})
    for name, size in {"one": (6, 8), "deep/two three": (6, 8), "four": (5, 5)}.items():
        write_label_map(folder / "masks" / f"{name}.png", np.ones(size, np.uint8))
    return folder


def describe(root: Path, one: object) -> None:
    images = {"one": one, "four": {"tags": ["cat"]}, "deep/two three": {"tags": ["cat"], "split": "val"}}
    (root / "labels.json").write_text(json.dumps({"classes": ["cat"], "images": images}))


def write_list(root: Path, split: str, text: str) -> None:
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)


@pytest.mark.parametrize("layout", ["sound", "coco"])
def test_a_sound_data_set_has_no_problems(layout: str, request: pytest.FixtureRequest) -> None:
    assert check_dataset(request.getfixturevalue(layout)) == Report()


def test_every_problem_is_found_at_once(sound: Path, save_image: Save) -> None:
    describe(
        sound,
        {
            "boxes": [{"class": "cat", "box": [0, 0, 8, 6]}, {"class": "cat", "box": [0, 0, 9, 6]}],
            "points": [{"class": "cat", "point": [7, 5]}, {"class": "cat", "point": [7, 6]}],
            "scribbles": [{"class": "cat", "points": [[0, 0], [8, 0]]}],
            "tags": ["cow"],
        },
    )
    truncated = save_image(sound / "images" / "truncated.jpg", (64, 64))
    truncated.write_bytes(truncated.read_bytes()[:1500])
    write_label_map(sound / "masks" / "deep" / "two three.png", np.ones((8, 6), np.uint8))
    write_label_map(sound / "masks" / "four.png", np.full((5, 5), 7, np.uint8))
    write_label_map(sound / "masks" / "nobody.png", np.zeros((5, 5), np.uint8))
    one = f"{sound / 'images' / 'one.jpg'}: "
    outside = "outside the image of 6 × 8 pixels (height × width)."
    expected = [
        f"{sound / 'masks' / 'nobody.png'} belongs to no image",
        f'{sound / "labels.json"}, image "one": Unknown class "cow"',
        f"{one}the box (0, 0, 9, 6) reaches {outside}",
        f"{one}the point (7, 6) lies {outside}",
        f"{one}the scribble point (8, 0) lies {outside}",
        f"{truncated} cannot be decoded",
        f"{sound / 'images' / 'deep' / 'two three.PNG'} has 6 × 8 pixels (height × width), but its mask 8 × 6.",
        f"{sound / 'masks' / 'four.png'} holds values that are no class: 7 (25 pixels)",
    ]
    problems = check_dataset(sound).problems
    assert len(problems) == len(expected)
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), start


def test_splits_are_checked(voc: Path) -> None:
    write_list(voc, "train", "a\nb\nc\n")
    write_list(voc, "trainval", "a\nb\nc\n")
    write_list(voc, "test", "")
    problems = check_dataset(voc).problems
    assert '"c" is in the splits "train" and "val". Remove it from one of them.' in problems
    assert 'The split "test" is empty.' in problems
    assert len(problems) == 2


def test_missing_images_and_repeated_names_are_problems(voc: Path, save_image: Save) -> None:
    (voc / "JPEGImages" / "d.jpg").unlink()
    again = save_image(voc / "JPEGImages" / "a.png")
    duplicate, missing = check_dataset(voc).problems
    assert duplicate == f'{again} and a.jpg have the same name "a". Rename one of them.'
    assert missing.endswith(f'train_aug.txt, line 3: there is no image "d" in {voc / "JPEGImages"}.')


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
    assert "the header is what, ever" in problem


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
    assert check_dataset(voc).notes == [
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

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from weakseg.data.dataset import Sample
from weakseg.data.findings import Report
from weakseg.data.folder import read_folder, runs
from weakseg.data.images import write_label_map
from weakseg.errors import WeaksegError
from weakseg.labels import VOID, Box, Point, Scribble

Save = Callable[..., Path]


def samples_of(root: Path) -> dict[str, Sample]:
    return {sample.name: sample for samples in read_folder(root).splits.values() for sample in samples}


def problems_of(root: Path) -> list[str]:
    report = Report()
    read_folder(root, report)
    return report.problems


@pytest.fixture
def described(folder: Path) -> Callable[..., Path]:
    """Puts a labels.json in the place of the table."""

    def describe(images: Any, **more: Any) -> Path:
        (folder / "labels.csv").unlink(missing_ok=True)
        (folder / "labels.json").write_text(json.dumps({"images": images, **more}))
        return folder

    return describe


# Tables


def test_a_table_gives_tags_and_splits(folder: Path) -> None:
    dataset = read_folder(folder)
    assert dataset.format == "folder"
    assert dataset.classes.names == ("cat", "dog")
    found = {split: {s.name: s.labels.tags for s in samples} for split, samples in dataset.splits.items()}
    assert found == {"train": {"one": {1, 2}, "four": frozenset()}, "val": {"deep/two three": {1, 2}}}
    assert samples_of(folder)["deep/two three"].image == folder / "images" / "deep" / "two three.PNG"


@pytest.mark.parametrize(
    "text",
    [
        "image,tags\none.jpg,cat;dog\n",
        "\ufeffImage , TAGS\r\none.jpg,cat;dog\r\n",
        'tags,image\n"cat| dog",one.jpg',
        "image,tags,split\n\none,;dog;cat;dog,train\n,,\n",
    ],
)
def test_tables_as_programs_write_them(folder: Path, text: str) -> None:
    (folder / "labels.csv").write_text(text, encoding="utf-8", newline="")
    assert samples_of(folder)["one"].labels.tags == {1, 2}


def test_names_with_commas_quotes_and_line_breaks(folder: Path, save_image: Save) -> None:
    name = 'a, "b"\nc'
    save_image(folder / "images" / f"{name}.jpg")
    (folder / "labels.csv").write_text('image,tags\n"a, ""b""\nc.jpg",cat\n')
    assert samples_of(folder)[name].labels.tags == {1}


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("file", ["labels.csv", "labels.json"])
def test_unicode_names_match_in_either_form(folder: Path, save_image: Save, stored: str, typed: str, file: str) -> None:
    name = "Öl été 강아지"
    save_image(folder / "images" / f"{unicodedata.normalize(stored, name)}.jpg")
    written = unicodedata.normalize(typed, f"{name}.jpg")
    (folder / "labels.csv").unlink()
    text = (
        f"image,tags\n{written},cat\n" if file == "labels.csv" else json.dumps({"images": {written: {"tags": ["cat"]}}})
    )
    (folder / file).write_text(text, encoding="utf-8")
    assert samples_of(folder)[unicodedata.normalize("NFC", name)].labels.tags == {1}


@pytest.mark.parametrize(
    "header", ["", "one.jpg,cat", "image;tags", "image,tag", "image,tags,spilt", "image,tags,tags", "image"]
)
def test_a_wrong_header_is_shown_with_the_right_one(folder: Path, header: str) -> None:
    (folder / "labels.csv").write_text(f"{header}\none.jpg,cat\n" if header else "")
    with pytest.raises(
        WeaksegError, match=r"labels\.csv, line 1: the header is .*must be image,tags or image,tags,split"
    ):
        read_folder(folder)


def test_every_bad_row_is_reported_with_its_line(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        "image,tags,split\none.jpg,cat,train\nnone.jpg,cat,\n../one.jpg,cat,\none,dog,\nfour.webp,cat,dog,\n"
        "deep/two three.PNG,cat,../up\n"
    )
    table = folder / "labels.csv"
    hint = 'Names are relative to the folder images, such as "cats/1.jpg".'
    missing, outside, again, columns, split = problems_of(folder)
    assert missing == f'{table}, line 3: there is no image "none.jpg". {hint}'
    assert outside == f'{table}, line 4: there is no image "../one.jpg". {hint}'
    assert again == f'{table}, line 5: the image "one" has labels already, in {table}, line 2.'
    assert columns.startswith(f"{table}, line 6: 4 columns where the header has 3. ")
    assert split.startswith(f"{table}, line 7: split: String should match pattern")


def test_unknown_classes_are_reported_with_the_nearest(folder: Path) -> None:
    (folder / "classes.txt").write_text("\ufeffcat\n\n dog \n", encoding="utf-8")
    (folder / "labels.csv").write_text("image,tags\none.jpg,catt\nfour.webp,cat;dog;bird\n")
    bird, catt = sorted(problems_of(folder), reverse=True)
    assert catt.startswith(f'{folder / "labels.csv"}, line 2: Unknown class "catt". Did you mean "cat"?')
    assert bird.startswith(f'{folder / "labels.csv"}, line 3: Unknown class "bird".')


def test_background_is_no_tag(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,tags\none.jpg,cat;background\n")
    [problem] = problems_of(folder)
    assert problem == f'{folder / "labels.csv"}, line 2: "background" is no tag and has no box; every image has some.'


def test_tables_that_are_no_text_or_no_table(folder: Path) -> None:
    (folder / "labels.csv").write_bytes("image,tags\none,Bär\n".encode("latin1"))
    with pytest.raises(WeaksegError, match=r"labels\.csv is not UTF-8 text \(byte \d+\)\. Save it again as UTF-8"):
        read_folder(folder)
    (folder / "labels.csv").write_text('image,tags\none,"cat" dog\n')
    with pytest.raises(WeaksegError, match=r"labels\.csv, line 2: this is not a valid CSV row"):
        read_folder(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text() | st.text('aonedgt.jp;|,"\n/.').map("image,tags\n{}".format))
def test_any_table_gives_samples_or_clear_problems(folder: Path, text: str) -> None:
    (folder / "labels.csv").write_text(text, encoding="utf-8", newline="")
    (folder / "classes.txt").write_text("one\ndog\n")
    report = Report()
    try:
        dataset = read_folder(folder, report)
    except WeaksegError as error:
        report.problems.append(str(error))
    else:
        assert {s.name for samples in dataset.splits.values() for s in samples} == {"one", "four", "deep/two three"}
    assert all("labels.csv" in problem for problem in report.problems)


# Documents


def test_a_document_gives_every_kind_of_label(described: Callable[..., Path]) -> None:
    root = described(
        {
            "one.jpg": {
                "tags": ["dog"],
                "boxes": [{"class": "cat", "box": [1, 2, 3, 4]}, {"class": "dog", "box": [0.5, 0.2, 2.1, 3.0]}],
                "points": [{"class": "dog", "point": [7.9, 5]}, {"class": "background", "point": [0, 0]}],
                "scribbles": [{"class": "cat", "points": [[1, 2], [3.5, 4]]}],
                "split": "my split",
            },
            "four.webp": {},
            "deep/two three": {"tags": []},
        },
        classes=["dog", "cat"],
    )
    dataset = read_folder(root)
    assert dataset.classes.names == ("dog", "cat")
    [sample] = dataset.split("my split")
    assert sample.labels.tags == {1}
    assert sample.labels.boxes == (Box(2, 1, 2, 3, 4), Box(1, 0, 0, 3, 3))
    assert sample.labels.points == (Point(1, 7, 5), Point(0, 0, 0))
    assert sample.labels.scribbles == (Scribble(2, ((1, 2), (3, 4))),)
    assert sample.labels.present() == {1, 2}
    train = {s.name: s.labels for s in dataset.split("train")}
    assert train["four"].tags is None
    assert train["deep/two three"].tags == frozenset()


def test_without_a_list_all_names_used_are_the_classes(described: Callable[..., Path]) -> None:
    root = described(
        {
            "one": {"tags": ["zebra"], "points": [{"class": "background", "point": [0, 0]}]},
            "four": {
                "boxes": [{"class": "ant", "box": [0, 0, 1, 1]}],
                "scribbles": [{"class": "bee", "points": [[0, 0]]}],
            },
        }
    )
    assert read_folder(root).classes.names == ("ant", "bee", "zebra")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"tag": ["cat"]}, "tag: Extra inputs are not permitted"),
        ({"tags": "cat"}, "tags: Input should be a valid list"),
        ({"tags": [3]}, "tags → 0: Input should be a valid string"),
        ({"tags": ["unicorn"]}, 'Unknown class "unicorn"'),
        ({"boxes": [{"class": "cat", "box": [0, 0, 1]}]}, "boxes → 0 → box: List should have at least 4 items"),
        ({"boxes": [{"class": "cat", "box": [3, 0, 3, 1]}]}, "boxes → 0: Value error, the box is empty"),
        (
            {"boxes": [{"class": "cat", "box": [-1, 0, 3, 1]}]},
            "boxes → 0 → box → 0: Input should be greater than or equal",
        ),
        ({"boxes": [{"class": "background", "box": [0, 0, 1, 1]}]}, '"background" is no tag and has no box'),
        ({"boxes": [{"box": [0, 0, 1, 1]}]}, "boxes → 0 → class: Field required"),
        ({"points": [{"class": "cat", "point": [1]}]}, "points → 0 → point: List should have at least 2 items"),
        ({"points": [{"class": "cat", "point": [1, float("nan")]}]}, "points → 0 → point → 1: Input should be"),
        ({"scribbles": [{"class": "cat", "points": []}]}, "scribbles → 0 → points: List should have at least 1 item"),
        ({"split": ""}, "split: String should match pattern"),
        ([], "Input should be a valid dictionary"),
        (None, "Input should be a valid dictionary"),
    ],
)
def test_a_malformed_entry_is_one_problem_that_names_it(
    described: Callable[..., Path], labels: Any, message: str
) -> None:
    root = described({"one.jpg": labels}, classes=["cat", "dog"])
    [problem] = problems_of(root)
    assert problem.startswith(f'{root / "labels.json"}, image "one.jpg": {message}')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], 'must be an object with "images"'),
        ({"images": []}, 'must be an object with "images"'),
        ({"images": {}, "class": []}, 'unknown key "class"; known are "classes" and "images"'),
        ({"images": {}, "classes": "cat"}, '"classes" must be a list of names'),
        ({"images": {}, "classes": []}, "at least one class"),
        ({"images": {}, "classes": ["cat", "cat"]}, '"cat" is listed twice'),
        ({"images": {}, "classes": ["void"]}, '"void" is reserved'),
    ],
)
def test_a_malformed_document_is_an_error(folder: Path, content: Any, message: str) -> None:
    (folder / "labels.csv").unlink()
    (folder / "labels.json").write_text(json.dumps(content))
    with pytest.raises(WeaksegError, match=rf"labels\.json.*{message}"):
        read_folder(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["tags", "boxes", "box", "points", "point", "scribbles", "class", "split"]), inner
            )
        ),
    )
)
def test_strange_values_never_give_another_exception(described: Callable[..., Path], content: Any) -> None:
    root = described({"one.jpg": content}, classes=["cat"])
    assert all("labels.json" in problem for problem in problems_of(root))


# Classes and files


def test_the_images_may_be_a_link_to_a_folder_elsewhere(folder: Path) -> None:
    (folder / "images").rename(folder / "photographs")
    (folder / "images").symlink_to("photographs", target_is_directory=True)
    assert samples_of(folder)["one"].image == folder / "images" / "one.jpg"


def test_two_sources_of_the_same_thing_are_errors(described: Callable[..., Path]) -> None:
    root = described({"one": {"tags": ["cat"]}}, classes=["cat"])
    (root / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(WeaksegError, match=r'classes\.txt and "classes" in .*labels\.json differ'):
        read_folder(root)
    (root / "labels.csv").write_text("image,tags\none,cat\n")
    with pytest.raises(WeaksegError, match=r"has both labels\.csv and labels\.json"):
        read_folder(root)


def test_a_bad_list_of_classes_is_named(folder: Path) -> None:
    (folder / "classes.txt").write_text("cat\nbackground\n")
    with pytest.raises(WeaksegError, match=r'classes\.txt: "background" is reserved'):
        read_folder(folder)


def test_images_alone_name_no_class(folder: Path) -> None:
    (folder / "labels.csv").unlink()
    with pytest.raises(WeaksegError, match=r"names no class. Give labels\.csv, labels\.json or a classes\.txt"):
        read_folder(folder)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"images holds no images \(\.jpg"):
        read_folder(tmp_path)


def test_two_images_of_one_name_are_a_problem(folder: Path, save_image: Save) -> None:
    save_image(folder / "images" / "one.png")
    [problem] = problems_of(folder)
    assert problem == f'{folder / "images" / "one.png"} and one.jpg have the same name "one". Rename one of them.'


def test_images_that_nothing_mentions_form_a_split_of_their_own(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,tags\none,cat\n")
    splits = {split: [s.name for s in samples] for split, samples in read_folder(folder).splits.items()}
    assert splits == {"train": ["one"], "unlabelled": ["four", "deep/two three"]}


def test_masks_belong_to_images_of_their_name(folder: Path, save_mask: Save) -> None:
    save_mask(folder / "masks" / "deep" / "two three.png", [[0, 1, 2, 255]])
    save_mask(folder / "masks" / "four.png", [[3]])
    samples = samples_of(folder)
    assert samples["one"].mask is None
    mask = samples["deep/two three"].mask
    assert mask is not None
    assert mask.read().tolist() == [[0, 1, 2, 255]]
    with pytest.raises(WeaksegError, match=r"four\.png holds values that are no class: 3 \(1 pixels\)"):
        samples["four"].mask.read()


def test_masks_alone_make_a_data_set_for_full_supervision(folder: Path, save_mask: Save) -> None:
    (folder / "labels.csv").unlink()
    (folder / "classes.txt").write_text("cat\n")
    save_mask(folder / "masks" / "one.png", [[1]])
    splits = {split: [s.name for s in samples] for split, samples in read_folder(folder).splits.items()}
    assert splits == {"train": ["one"], "unlabelled": ["four", "deep/two three"]}


def test_masks_and_scribbles_without_an_image_are_problems(folder: Path, save_mask: Save) -> None:
    mask = save_mask(folder / "masks" / "other.png", [[0]])
    drawing = save_mask(folder / "scribbles" / "one" / "four.png", [[0]])
    assert problems_of(folder) == [
        f"{mask} belongs to no image. Rename it to the image's name, or remove it.",
        f"{drawing} belongs to no image. Rename it to the image's name, or remove it.",
    ]


# Drawn strokes


def test_drawn_strokes_become_scribbles(folder: Path, save_mask: Save) -> None:
    drawing = np.full((5, 5), VOID)
    drawing[1, 1:4] = 2
    drawing[3, 4] = 0
    save_mask(folder / "scribbles" / "four.png", drawing)
    labels = samples_of(folder)["four"].labels
    assert labels.scribbles == (Scribble(2, ((1, 1), (3, 1))), Scribble(0, ((4, 3), (4, 3))))
    assert labels.tags == frozenset()


@settings(max_examples=60)
@given(
    strokes=arrays(
        np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.sampled_from([0, 1, 2, VOID])
    )
)
def test_runs_hold_every_marked_pixel_once(strokes: np.ndarray) -> None:
    drawn = np.full_like(strokes, VOID)
    for scribble in runs(strokes):
        (x0, y), (x1, y1) = scribble.points
        assert y == y1
        assert (drawn[y, x0 : x1 + 1] == VOID).all()
        drawn[y, x0 : x1 + 1] = scribble.label
    np.testing.assert_array_equal(drawn, strokes)


def test_bad_drawings_are_problems(folder: Path, save_image: Save) -> None:
    write_label_map(folder / "scribbles" / "one.png", np.full((6, 8), 9, np.uint8))
    write_label_map(folder / "scribbles" / "four.png", np.full((5, 6), VOID, np.uint8))
    save_image(folder / "scribbles" / "deep" / "two three.png")
    size, unknown, colour = problems_of(folder)
    assert "one.png holds values that are no class: 9 (48 pixels)" in unknown
    assert "two three.png is no label map" in colour
    assert size == f"{folder / 'scribbles' / 'four.png'} has 5 × 6 pixels, its image 5 × 5."

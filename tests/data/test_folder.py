from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

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


def notes_of(root: Path) -> list[str]:
    report = Report()
    read_folder(root, report)
    assert report.problems == []
    return report.notes


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
    "header", ["", "one.jpg,cat", "image tags", "image,tag", "image,tags,label", "image,tags,tags", "image"]
)
def test_a_wrong_header_is_shown_with_the_right_one(folder: Path, header: str) -> None:
    (folder / "labels.csv").write_text(f"{header}\none.jpg,cat\n" if header else "")
    with pytest.raises(
        WeaksegError, match=r"labels\.csv, line 1: the header is .*must be image,tags or image,tags,split"
    ):
        read_folder(folder)


def test_every_bad_row_is_reported_with_its_line(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        "image,tags,split\none.jpg,cat,train\nnone.jpg,cat,\nno/where.jpg,cat,\none,dog,val\nfour.webp,cat,dog,x\n"
        "four.webp\ndeep/two three.PNG,cat,../up\n"
    )
    table = folder / "labels.csv"
    missing, other_split, many, few, split = problems_of(folder)
    assert missing.startswith(f'{table}, line 3, "none.jpg" (and 1 more, 2 in all): there is no such image.')
    assert other_split.startswith(
        f'{table}, line 5: the image is in the split "val" here, and in "train" in {table}, line 2'
    )
    assert many.startswith(f"{table}, line 6: 4 columns where the header has 3. ")
    assert few.startswith(f"{table}, line 7: 1 columns where the header has 3. ")
    assert split.startswith(f"{table}, line 8, split: a split has letters, digits")


@pytest.mark.parametrize(
    "text",
    [
        "image;tags;split\none.jpg;cat|dog;val",
        "image\ttags\tsplit\none.jpg\tcat;dog\tval",
        "sep=;\r\nimage;tags;split\r\none.jpg;cat|dog;val\r\n",
        "split,label,image\nval,cat;dog,one.jpg",
        "id,image,labels,width,split\n7,one.jpg,cat;dog,640,val",
        '"image","tags","split"\n"one.jpg", "cat;dog", "val"',
        "image,tags,split,,\none.jpg,cat;dog,val,,\n",
        "image,tags,split\nC:\\photos\\one.jpg,cat,val\n./one.jpg,dog,val\n",
    ],
)
def test_dialects_of_tables(folder: Path, text: str) -> None:
    (folder / "labels.csv").write_text(text, newline="")
    sample = read_folder(folder).split("val")[0]
    assert (sample.name, sample.labels.tags) == ("one", {1, 2})


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8-sig", "utf-16"])
def test_tables_of_windows(folder: Path, encoding: str) -> None:
    (folder / "labels.csv").write_bytes("image,tags\r\none.jpg,Bär\r\n".encode(encoding))
    assert read_folder(folder).classes.names == ("Bär",)
    assert any("Windows-1252" in note for note in notes_of(folder)) == (encoding == "cp1252")


def test_what_is_left_out_of_a_table_or_put_together_is_noted(folder: Path) -> None:
    (folder / "labels.csv").write_text('image,tags,size\none,"cat,dog",3\none,cat,4\nfour,a/b,\n')
    column, tag, again = notes_of(folder)
    table = folder / "labels.csv"
    assert column == f'{table}: the column "size" is not read.'
    assert tag.startswith(f'{table}, line 2, "cat,dog" (and 1 more, 2 in all): a tag holds a comma')
    assert again == f"{table}, line 3: the image has labels already; the labels were put together."
    assert read_folder(folder).classes.names == ("a/b", "cat", "cat,dog")


def test_a_thousand_equal_mistakes_are_one_problem(folder: Path, save_image: Save) -> None:
    rows = [f"{number}.jpg,grass\n" for number in range(213)]
    for number in range(213):
        (folder / "images" / f"{number}.jpg").touch()
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "labels.csv").write_text("image,tags\n" + "".join(rows))
    [problem] = problems_of(folder)
    assert problem.startswith(f'{folder / "labels.csv"}, line 2 (and 212 more, 213 in all): Unknown class "grass".')


def test_unknown_classes_are_reported_with_the_nearest(folder: Path) -> None:
    (folder / "classes.txt").write_text("\ufeffcat\n\n dog \n", encoding="utf-8")
    (folder / "labels.csv").write_text("image,tags\none.jpg,catt\nfour.webp,cat;dog;bird\n")
    bird, catt = sorted(problems_of(folder), reverse=True)
    assert catt.startswith(f'{folder / "labels.csv"}, line 2: Unknown class "catt". Did you mean "cat"?')
    assert bird.startswith(f'{folder / "labels.csv"}, line 3: Unknown class "bird".')


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "BACK GROUND"])
def test_background_is_no_tag(folder: Path, name: str) -> None:
    (folder / "labels.csv").write_text(f"image,tags\none.jpg,cat;{name}\n")
    [problem] = problems_of(folder)
    assert problem == f'{folder / "labels.csv"}, line 2: "{name}" is no tag and has no box; every image has some.'


def test_tables_that_are_no_text_or_no_table(folder: Path) -> None:
    (folder / "labels.csv").write_bytes(b"image,tags\none,B\x81r\n")
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_document_of_windows(described: Callable[..., Path], encoding: str) -> None:
    root = described({"one": {"tags": ["Bär"]}})
    (root / "labels.json").write_text('{"images": {"one": {"tags": ["Bär"]}}}', encoding=encoding)
    assert read_folder(root).classes.names == ("Bär",)


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ([-0.3, 0, 3, 3], Box(1, 0, 0, 3, 3)),
        ([5, 2.5, 9.5, 7], Box(1, 5, 2, 8, 6)),
        (["1", "2", "3", "4"], Box(1, 1, 2, 3, 4)),
        ([3, 0, 3, 1], Box(1, 3, 0, 4, 1)),
    ],
)
def test_boxes_are_widened_and_cut_as_those_of_other_formats(
    described: Callable[..., Path], box: Any, cut: Box
) -> None:
    root = described({"one": {"boxes": [{"class": "cat", "box": box}]}})
    assert samples_of(root)["one"].labels.boxes == (cut,)
    assert len(notes_of(root)) == 1
    assert all(note.startswith(f'{root / "labels.json"}, image "one", boxes[0]') for note in notes_of(root))


def test_shares_of_the_image_are_noted(described: Callable[..., Path]) -> None:
    box, point = {"class": "cat", "box": [0.1, 0.2, 0.5, 0.9]}, {"class": "cat", "point": [0.5, 0.5]}
    root = described({"one": {"boxes": [box], "points": [point, {"class": "cat", "point": [1, 0]}]}})
    [note] = notes_of(root)
    assert "boxes[0] (and 1 more, 2 in all)" in note
    assert "not shares of the image" in note


def test_points_on_the_edge_are_moved_into_the_image(described: Callable[..., Path]) -> None:
    strokes = [{"class": "cat", "points": [[-0.4, 3], [8, 6]]}]
    root = described({"one": {"scribbles": strokes, "points": [{"class": "cat", "point": [8, 0]}]}})
    labels = samples_of(root)["one"].labels
    assert labels.scribbles == (Scribble(1, ((0, 3), (7, 5))),)
    assert labels.points == (Point(1, 7, 0),)
    [note] = notes_of(root)
    assert "3 in all" in note


def test_several_entries_of_one_image_are_put_together(described: Callable[..., Path]) -> None:
    box = {"class": "dog", "box": [0, 0, 1, 1]}
    root = described({"one": {"tags": ["cat"]}, "one.jpg": {"boxes": [box]}, "images/one.JPG": {"tags": []}})
    assert samples_of(root)["one"].labels.tags == {1}
    assert samples_of(root)["one"].labels.present() == {1, 2}


def test_a_key_that_stands_twice_is_an_error_unless_it_says_the_same(folder: Path) -> None:
    (folder / "labels.csv").unlink()
    (folder / "labels.json").write_text('{"images": {"one": {"tags": ["cat"]}, "one": {"tags": ["cat"]}}}')
    assert samples_of(folder)["one"].labels.tags == {1}
    (folder / "labels.json").write_text('{"images": {"one": {"tags": ["cat"]}, "one": {"tags": ["dog"]}}}')
    with pytest.raises(WeaksegError, match=r'labels\.json: the key "one" stands twice'):
        read_folder(folder)


def test_what_keeps_from_naming_classes_is_the_only_problem(described: Callable[..., Path]) -> None:
    root = described({"one": None})
    with pytest.raises(WeaksegError, match=r'image "one": expected keys with values \(found null\)') as caught:
        read_folder(root)
    assert len(str(caught.value).splitlines()) == 1


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
        ({"tag": ["cat"]}, ', tag: unknown key. Did you mean "tags"? Known: tags, boxes, points, scribbles, split.'),
        ({"tags": "cat"}, ', tags: expected a list (found "cat")'),
        ({"tags": [3]}, ", tags[0]: expected text (found 3)"),
        ({"tags": ["unicorn"]}, ': Unknown class "unicorn"'),
        (
            {"boxes": [{"class": "cat", "box": [0, 0, 1]}]},
            ", boxes[0]: a box is four numbers [left, top, right, bottom], found [0, 0, 1].",
        ),
        (
            {"boxes": [{"class": "cat", "box": [3, 0, 2, 1]}]},
            ", boxes[0]: the box (3, 0, 2, 1) (left, top, right, bottom)",
        ),
        (
            {"boxes": [{"class": "cat", "box": [9, 0, 11, 1]}]},
            ", boxes[0]: the box (9, 0, 11, 1) (left, top, right, bottom)",
        ),
        (
            {"boxes": [{"class": "cat", "box": "all"}]},
            ', boxes[0]: a box is four numbers [left, top, right, bottom], found "',
        ),
        (
            {"boxes": [{"class": "background", "box": [0, 0, 1, 1]}]},
            ', boxes[0]: "background" is no tag and has no box',
        ),
        (
            {"points": [{"class": "cat", "point": [3, 8]}]},
            ", points[0]: the point (3, 8) lies outside the image of 6 × 8",
        ),
        ({"boxes": [{"box": [0, 0, 1, 1]}]}, ", boxes[0].class: the key is missing."),
        (
            {"boxes": [{"label": "cat", "box": [0, 0, 1, 1]}]},
            ', boxes[0].class: the key is missing; unknown: "label".',
        ),
        (
            {"boxes": [{"class": "cat", "box": [0, 0, 1, 1], "score": 1}]},
            ", boxes[0].score: unknown key. Known: class, box.",
        ),
        (
            {"scribbles": [{"class": "cat", "points": [[0, 0]], "point": [0, 0]}]},
            ', scribbles[0].point: unknown key. Did you mean "points"? Known: class, points.',
        ),
        ({"points": [{"class": "cat", "point": [1]}]}, ", points[0]: a point is two numbers [x, y], found [1]."),
        (
            {"points": [{"class": "cat", "point": [1, float("nan")]}]},
            ", points[0]: a point is two numbers [x, y], found NaN.",
        ),
        ({"scribbles": [{"class": "cat", "points": []}]}, ", scribbles[0].points: expected a list of 1 or more"),
        ({"split": ""}, ", split: a split has letters"),
        ([], ": expected keys with values"),
        (None, ": expected keys with values"),
    ],
)
def test_a_malformed_entry_is_one_problem_that_names_it(
    described: Callable[..., Path], labels: Any, message: str
) -> None:
    root = described({"one.jpg": labels}, classes=["cat", "dog"])
    [problem] = problems_of(root)
    assert problem.startswith(f'{root / "labels.json"}, image "one.jpg"{message}')
    assert "Model" not in problem


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
    save_mask(folder / "scribbles" / "one" / "four.png", [[0]])
    assert problems_of(folder) == [
        f"{mask} (and 1 more, 2 in all): the file belongs to no image. Rename it to the image's name, or remove it."
    ]


def test_masks_and_images_of_other_suffixes_are_noted(folder: Path, save_image: Save) -> None:
    save_image(folder / "masks" / "one.jpg")
    (folder / "masks" / "Thumbs.db").touch()
    (folder / "scribbles").mkdir()
    (folder / "scribbles" / "four.bmp").touch()
    (folder / "images" / "raw.cr2").touch()
    images, masks = notes_of(folder)
    assert images.startswith(f"{folder / 'images' / 'raw.cr2'}: the file is not read")
    assert masks.startswith(
        f"{folder / 'masks' / 'one.jpg'} (and 1 more, 2 in all): the file is not read, only .png are"
    )


# Drawn strokes


def test_strokes_that_cover_the_image_are_noted(folder: Path, save_mask: Save) -> None:
    strokes = np.zeros((6, 8), np.uint8)
    strokes[2, 1:5] = 1
    path = save_mask(folder / "scribbles" / "one.png", strokes)
    [note] = notes_of(folder)
    assert note.startswith(f"{path}: the scribbles mark more than 80% of the image; 0, black, is background")
    save_mask(folder / "scribbles" / "one.png", np.where(strokes, strokes, 255))
    assert notes_of(folder) == []


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


def test_the_example_of_the_documentation_is_read_as_it_says(tmp_path: Path) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "labels-json.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    for name in ("cats/1.jpg", "2.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 130)).save(path)
    (tmp_path / "labels.json").write_text(example, encoding="utf-8")
    report = Report()
    first, second = sorted(read_folder(tmp_path, report).split("train"), key=lambda sample: sample.name)[::-1]
    assert report == Report()
    assert first.labels.present() == {1, 2}
    assert first.labels.boxes == (Box(1, 12, 40, 96, 120),)
    assert second.labels.tags == frozenset()

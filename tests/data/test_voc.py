from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weakseg.data.findings import Report
from weakseg.data.voc import VOC_CLASSES, read_voc
from weakseg.errors import WeaksegError
from weakseg.files import write_json
from weakseg.labels import Box, Point

Save = Callable[..., Path]

ANNOTATION = """<annotation>
  <size><width>8</width><height>6</height><depth>3</depth></size>
  <object><name>person</name><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>8</xmax><ymax>6</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>
  </object>
  <object><name>dog</name><difficult>1</difficult>
    <bndbox><xmax>4.6</xmax><xmin>2.2</xmin><ymax>5</ymax><ymin>5</ymin></bndbox>
  </object>
  <object><name>cat</name></object>
</annotation>"""


def annotate(root: Path, name: str, text: str = ANNOTATION) -> None:
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{name}.xml").write_text(text)


def labels_of(root: Path, name: str = "a") -> object:
    return next(s.labels for s in read_voc(root).splits["train_aug"] if s.name == name)


def problems_of(root: Path) -> list[str]:
    report = Report()
    read_voc(root, report)
    return report.problems


def test_lists_become_splits(voc: Path) -> None:
    dataset = read_voc(voc)
    assert dataset.format == "voc"
    assert {split: [s.name for s in samples] for split, samples in dataset.splits.items()} == {
        "train": ["a", "b"],
        "train_aug": ["a", "b", "d"],
        "val": ["c"],
    }
    assert dataset.split("val")[0].image == voc / "JPEGImages" / "c.jpg"


def test_without_classes_json_the_classes_are_those_of_voc(voc: Path) -> None:
    dataset = read_voc(voc)
    assert dataset.classes.names == VOC_CLASSES
    mask = dataset.splits["train"][0].mask
    assert mask is not None
    assert np.unique(mask.read()).tolist() == [0, dataset.classes.label("cat"), 255]


def test_an_aug_list_prefers_the_extra_masks_and_the_others_the_official_ones(voc: Path) -> None:
    splits = read_voc(voc).splits
    found = {(split, s.name): s.mask and s.mask.path.parent.name for split in splits for s in splits[split]}
    assert found == {
        ("train", "a"): "SegmentationClass",
        ("train", "b"): None,
        ("val", "c"): "SegmentationClass",
        ("train_aug", "a"): "SegmentationClassAug",
        ("train_aug", "b"): None,
        ("train_aug", "d"): "SegmentationClassAug",
    }


def test_masks_come_from_the_other_folder_where_the_preferred_has_none(voc: Path) -> None:
    (voc / "SegmentationClass" / "a.png").unlink()
    (voc / "SegmentationClassAug" / "d.png").rename(voc / "SegmentationClass" / "d.png")
    splits = read_voc(voc).splits
    assert splits["train"][0].mask.path.parent.name == "SegmentationClassAug"
    assert splits["train_aug"][2].mask.path.parent.name == "SegmentationClass"


def test_pairs_of_image_and_mask_name_their_own_mask(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "pairs.txt").write_text(
        "/JPEGImages/a.jpg /SegmentationClassAug/d.png\r\n/JPEGImages/b.jpg   /SegmentationClass/c.png\n"
    )
    samples = read_voc(voc).splits["pairs"]
    assert [s.name for s in samples] == ["a", "b"]
    assert [s.mask.path.relative_to(voc).as_posix() for s in samples] == [
        "SegmentationClassAug/d.png",
        "SegmentationClass/c.png",
    ]


def test_names_may_hold_spaces_suffixes_and_any_script(voc: Path, save_image: Save) -> None:
    typed = unicodedata.normalize("NFC", "ein Bär 猫.v2")
    save_image(voc / "JPEGImages" / f"{unicodedata.normalize('NFD', typed)}.jpeg")
    (voc / "ImageSets" / "Segmentation" / "odd.txt").write_text(f"\ufeff{typed}\n\n  b.jpg \n", encoding="utf-8")
    assert [s.name for s in read_voc(voc).splits["odd"]] == [typed, "b"]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text() | st.from_regex(r"(/JPEGImages/[ab./]* ?(/Segmentation\w*/[a.d/png]*)?\n)*", fullmatch=True))
def test_any_text_in_a_list_gives_samples_or_clear_problems(voc: Path, text: str) -> None:
    path = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    path.write_text(text, encoding="utf-8", newline="")
    report = Report()
    samples = read_voc(voc, report).splits["train_aug"]
    assert {s.name for s in samples} <= set("abcd")
    assert all(voc in s.image.parents for s in samples)
    assert all(str(path) in finding for finding in report.problems + report.notes)
    lines = [line for line in text.split("\n") if line.strip()]
    assert len(samples) <= len(lines)
    assert len(samples) == len(lines) or report.problems or report.notes


def test_bad_lines_are_all_reported_at_once(voc: Path) -> None:
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("a\nz\na\n../JPEGImages/b\n/Elsewhere/a.jpg\n/JPEGImages/a.jpg /Masks/a.png\n")
    missing, neither = problems_of(voc)
    assert missing == f'{path}, line 2, "z": there is no such image in {voc / "JPEGImages"}.'
    assert neither.startswith(f'{path}, line 5, "/Elsewhere/a.jpg" (and 1 more, 2 in all): ')
    with pytest.raises(WeaksegError, match=r"has 2 problems:\n- .*line 2"):
        read_voc(voc)


def test_an_image_listed_twice_counts_once(voc: Path) -> None:
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("a\n../JPEGImages/a.jpg\nb\n")
    report = Report()
    assert [s.name for s in read_voc(voc, report).split("train")] == ["a", "b"]
    assert report.problems == []
    assert report.notes == [f'{path}, line 2, "a": the image is listed a second time; it counts once.']
    path.write_text("a\n/JPEGImages/a.jpg /SegmentationClassAug/d.png\n")
    [problem] = problems_of(voc)
    assert problem.startswith(f"{path}, line 2: ")
    assert "another mask" in problem


def test_a_pair_whose_mask_is_missing_is_a_problem(voc: Path) -> None:
    path = voc / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("/JPEGImages/a.jpg /SegmentationClass/../../secret.png\n")
    assert problems_of(voc) == [f'{path}, line 1, "../../secret.png": there is no such mask in SegmentationClass.']


def test_a_list_that_is_no_text_is_an_error(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"a\n\xff\x81")
    with pytest.raises(WeaksegError, match=r"train\.txt is not UTF-8 text \(byte 2\)"):
        read_voc(voc)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
def test_lists_of_windows_are_read(voc: Path, save_image: Save, encoding: str) -> None:
    save_image(voc / "JPEGImages" / "Bär.jpg")
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_bytes("a\r\nBär\r\n".encode(encoding))
    report = Report()
    assert [s.name for s in read_voc(voc, report).split("train")] == ["a", "Bär"]
    assert len(report.notes) == (encoding == "cp1252")


def test_twenty_problems_are_shown_and_the_rest_counted(voc: Path) -> None:
    (voc / "tags.json").write_text(json.dumps({"a": []}))
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("")
    for i in range(33):
        (voc / "JPEGImages" / f"missing{i:02}.jpg").touch()
        (voc / "JPEGImages" / f"missing{i:02}.png").touch()
    with pytest.raises(WeaksegError) as caught:
        read_voc(voc)
    text = str(caught.value)
    assert "has 33 problems" in text
    assert "missing19" in text
    assert "missing20" not in text
    assert "13 more; `weakseg data check` lists them all" in text


def test_a_folder_without_lists_or_images_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"JPEGImages \(found 0\).*ImageSets/Segmentation/\*\.txt \(found 0\)"):
        read_voc(tmp_path)


# Classes


def test_classes_json_gives_names_in_the_order_of_their_values(voc: Path) -> None:
    (voc / "classes.json").write_text(json.dumps({"void": 255, "dog": 12, "cat": 8, "background": 0}))
    dataset = read_voc(voc)
    assert dataset.classes.names == ("cat", "dog")
    mask = dataset.splits["train_aug"][0].mask
    assert mask is not None
    assert np.unique(mask.read()).tolist() == [0, 2, 255]


def test_background_and_void_may_have_other_values(voc: Path, save_mask: Save) -> None:
    (voc / "classes.json").write_text(json.dumps({"cat": 0, "background": 5, "void": 6}))
    save_mask(voc / "SegmentationClass" / "a.png", [[0, 5, 6]])
    mask = read_voc(voc).splits["train"][0].mask
    assert mask is not None
    assert mask.read().tolist() == [[1, 0, 255]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["cat"], "must map each class name to its value"),
        ({"cat": "8"}, "must map each class name to its value"),
        ({"cat": 65536}, "must map each class name to its value"),
        ({"cat": True}, "must map each class name to its value"),
        ({"cat": 3, "dog": 3}, r"\"dog\" and another class have the same value 3"),
        ({"cat": 0}, r"have the same value 0"),
        ({"background": 0}, "at least one class"),
        ({"": 1}, "name is empty"),
    ],
)
def test_bad_classes_are_errors_that_name_the_file(voc: Path, content: object, message: str) -> None:
    (voc / "classes.json").write_text(json.dumps(content))
    with pytest.raises(WeaksegError, match=rf"classes\.json.*{message}"):
        read_voc(voc)


# Weak labels


def test_without_any_source_nothing_is_known_not_even_from_masks(voc: Path) -> None:
    labels = labels_of(voc)
    assert labels.tags is None
    assert not labels.known


def test_context_masks_are_read_as_classes(voc: Path, save_mask: Save) -> None:
    save_mask(voc / "ContextMask" / "b.png", [[8, 0], [0, 3]])
    (voc / "classes.json").write_text('{"cat": 8, "bird": 3, "cow": 12}')
    a, b = read_voc(voc).split("train")
    assert a.context is None
    assert b.context is not None
    assert b.context.read().tolist() == [[2, 0], [0, 1]]


def test_annotations_give_tags_and_boxes_of_whole_objects(voc: Path) -> None:
    annotate(voc, "a")
    labels = labels_of(voc)
    classes = read_voc(voc).classes
    person, dog, cat = (classes.label(name) for name in ("person", "dog", "cat"))
    assert labels.tags == {person, dog, cat}
    # Counted from 1 with the last pixel in the file, from 0 without it here.
    assert labels.boxes == (Box(person, 0, 1, 8, 6), Box(dog, 1, 4, 5, 5))
    assert labels_of(voc, "b").tags is None
    # All dogs are difficult, and the rest is not.
    assert labels.without_difficult().present() == {person, cat}
    assert labels.without_difficult().boxes == labels.boxes[:1]


def test_where_all_is_difficult_nothing_is_left_out(voc: Path) -> None:
    annotate(
        voc,
        "a",
        ANNOTATION.replace("<difficult>0", "<difficult>1").replace("</name></", "</name><difficult>1</difficult></"),
    )
    labels = labels_of(voc)
    assert len(labels.difficult) == 3
    assert labels.without_difficult() == labels


def test_tags_that_are_given_are_never_difficult(voc: Path) -> None:
    annotate(voc, "a")
    (voc / "tags.json").write_text('{"a": ["dog", "cat"]}')
    assert labels_of(voc).difficult == frozenset()


def test_an_annotation_without_objects_means_an_image_without_objects(voc: Path) -> None:
    annotate(voc, "a", "<annotation/>")
    assert labels_of(voc).tags == frozenset()


def test_tags_json_comes_before_cls_labels_before_annotations(voc: Path) -> None:
    for name in "abd":
        annotate(voc, name, "<annotation><object><name>train</name></object></annotation>")
    one_hot = np.zeros(20, np.float32)
    one_hot[[7, 19]] = 1
    np.save(voc / "cls_labels.npy", {"a": one_hot, "b": one_hot, "not here": one_hot}, allow_pickle=True)
    (voc / "tags.json").write_text(json.dumps({"a.jpg": ["dog", "cat"], "nowhere": ["cat"]}))
    classes = read_voc(voc).classes
    assert {classes.name(tag) for tag in labels_of(voc, "a").tags} == {"dog", "cat"}
    assert {classes.name(tag) for tag in labels_of(voc, "b").tags} == {"cat", "tvmonitor"}
    assert {classes.name(tag) for tag in labels_of(voc, "d").tags} == {"train"}


def test_published_vectors_stand_for_mask_values(voc: Path, save_image: Save) -> None:
    (voc / "classes.json").write_text(json.dumps({"cat": 8, "dog": 12}))
    save_image(voc / "JPEGImages" / "2007_000032.jpg")
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n")
    one_hot = np.eye(20, dtype=np.float32)
    np.save(voc / "cls_labels.npy", {2007000032: one_hot[11], "b": one_hot[0]}, allow_pickle=True)
    report = Report()
    assert read_voc(voc, report).splits["train"][0].labels.tags == {2}
    assert report.problems == [f'{voc / "cls_labels.npy"}, image "b": no class has the value 1.']


def test_bad_tags_are_problems_that_name_image_and_class(voc: Path) -> None:
    (voc / "tags.json").write_text(json.dumps({"a": ["dgo"], "b": "cat", "d": [3]}))
    dgo, kind = problems_of(voc)
    assert dgo.startswith(f'{voc / "tags.json"}, image "a": Unknown class "dgo". Did you mean "dog"?')
    assert kind == f'{voc / "tags.json"}, image "b" (and 1 more, 2 in all): the tags must be a list of class names.'
    (voc / "tags.json").write_text("[]")
    with pytest.raises(WeaksegError, match=r"tags\.json must map each image"):
        read_voc(voc)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "is not readable XML"),
        ("", "is not readable XML"),
        ("<annotation><object><name>unicorn</name></object></annotation>", 'Unknown class "unicorn"'),
        ("<annotation><object/></annotation>", 'Unknown class ""'),
        (
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            "not four numbers",
        ),
        (ANNOTATION.replace("<xmin>1<", "<xmin>nan<"), "not four numbers"),
        (ANNOTATION.replace("<xmin>1<", "<xmin>inf<"), "not four numbers"),
        (ANNOTATION.replace("<xmin>1<", "<xmin>99<").replace("<xmax>8<", "<xmax>100<"), "outside the image"),
        (ANNOTATION.replace("<xmax>8<", "<xmax>0<"), "ends before it begins"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', 'the unknown encoding "klingon"'),
        ('<?xml version="1.0" encoding="hex"?><annotation/>', 'the unknown encoding "hex"'),
    ],
)
def test_bad_annotations_are_one_problem_that_names_the_file(voc: Path, text: str, message: str) -> None:
    annotate(voc, "a", text)
    [problem] = problems_of(voc)
    assert str(voc / "Annotations" / "a.xml") in problem
    assert message in problem


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "euc-kr", "utf-16", "iso-8859-1", "utf-8"])
@pytest.mark.parametrize("written", ["gbk", "utf-8"])
def test_annotations_of_other_encodings_are_read(voc: Path, encoding: str, written: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>{ANNOTATION}'
    annotate(voc, "a")
    expected = labels_of(voc)
    (voc / "Annotations" / "a.xml").write_bytes(text.encode(written))
    assert labels_of(voc) == expected
    named = text.replace("<annotation>", "<annotation><owner>猫</owner>").encode("gbk")
    (voc / "Annotations" / "a.xml").write_bytes(named.replace(encoding.encode(), b"gbk"))
    assert labels_of(voc) == expected


def test_boxes_that_begin_at_zero_or_end_outside_are_cut_with_a_note(voc: Path) -> None:
    annotate(voc, "a")
    expected = labels_of(voc)
    annotate(voc, "a", ANNOTATION.replace("<xmin>1<", "<xmin>0<").replace("<xmax>8<", "<xmax>9.2<"))
    report = Report()
    assert read_voc(voc, report).split("train")[0].labels == expected
    assert report.problems == []
    assert report.notes == [
        f"{voc / 'Annotations' / 'a.xml'}: a box reached over the edge of its image and was cut to it."
    ]


def test_background_may_be_written_in_any_way(voc: Path) -> None:
    (voc / "classes.json").write_text('{"_background_": 0, "VOID": 255, "cat": 8}')
    assert read_voc(voc).classes.names == ("cat",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_never_expanded(voc: Path, encoding: str) -> None:
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
    text = f'<!DOCTYPE a [<!ENTITY l0 "cat">{laughs}]><annotation><object><name>&l9;</name></object></annotation>'
    annotate(voc, "a")
    (voc / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    [problem] = problems_of(voc)
    assert "a.xml declares a document type, which no annotation needs; refused" in problem


def test_clicks_beside_the_images_do_not_add_what_tags_deny(tiny_voc: Path) -> None:
    point = {"class": "kettle", "point": [5, 5]}
    images = {"train 0": {"points": [point]}, "train 1": {"points": [point, {"class": "spoon", "point": [9, 9]}]}}
    write_json(tiny_voc / "points.json", {"images": images})
    report = Report()
    first, second = read_voc(tiny_voc, report).split("train")[:2]
    assert first.labels.points == (Point(1, 5, 5),)
    assert second.labels.points == (Point(2, 9, 9),)
    assert second.labels.present() == {2}
    assert sum("kettle" in note for note in report.notes) == 1

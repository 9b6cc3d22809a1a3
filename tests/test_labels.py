"""The vocabulary of labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.errors import WeaksegError
from weakseg.labels import BACKGROUND, UNLABELLED, VOID, Box, Classes, Point, Scribble, WeakLabels, palette, tags_of

names = st.text(st.characters(exclude_categories=("Cs", "Z", "C")), min_size=1, max_size=8)


@given(st.lists(names, min_size=1, max_size=254, unique=True).filter(lambda n: not {"background", "void"} & set(n)))
def test_names_and_labels_are_one_to_one(listed: list[str]) -> None:
    classes = Classes(listed)
    assert len(classes) == len(listed)
    assert [classes.label(name) for name in listed] == list(range(1, len(listed) + 1))
    assert [classes.name(label) for label in range(1, len(listed) + 1)] == listed


def test_background_and_void_are_always_there() -> None:
    classes = Classes(["cat"])
    assert (classes.name(BACKGROUND), classes.name(1), classes.name(VOID)) == ("background", "cat", "void")


@pytest.mark.parametrize("count", [1, 253, 254, 255, 256, 1203])
def test_no_class_has_a_label_that_means_something_else(count: int) -> None:
    classes = Classes([f"c{place}" for place in range(count)])
    assert [classes.name(label) for label in classes.labels] == list(classes.names)
    assert [classes.label(name) for name in classes.names] == list(classes.labels)
    assert len(set(classes.labels)) == count
    assert set(classes.labels).isdisjoint({BACKGROUND, VOID} if count == 254 else {BACKGROUND, VOID, UNLABELLED})
    assert classes.largest == max(classes.labels) == count + 2 * (count > 254)
    assert classes.mirrored() == list(range(1 + classes.largest))
    values = classes.own_values()
    assert [values[place] for place in range(1, count + 1)] == list(classes.labels)
    assert values[65535 if count > 254 else 255] == VOID


def test_a_label_of_no_class_has_a_name_that_says_so() -> None:
    assert Classes(["cat"]).name(7) == "unknown label 7"


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([], "at least one class besides the background"),
        (["cat", "  "], "A class name is empty"),
        (["cat", "background"], '"background" is reserved: background (0) and void (255) are always there'),
        (["void"], '"void" is reserved'),
        (["cat", "dog", "cat"], 'The class "cat" is listed twice'),
        ([f"c{i}" for i in range(40_000)], "40000 classes were given; at most 32000"),
    ],
)
def test_lists_that_are_no_classes(listed: list[str], message: str) -> None:
    with pytest.raises(WeaksegError) as caught:
        Classes(listed)
    assert message in str(caught.value)


def test_an_unknown_class_names_the_nearest_and_all() -> None:
    classes = Classes(["kettle", "spoon"])
    with pytest.raises(
        WeaksegError, match=r'Unknown class "kettel"\. Did you mean "kettle"\? The classes are: kettle, s'
    ):
        classes.label("kettel")
    with pytest.raises(WeaksegError, match=r'Unknown class "zzz"\. The classes are: kettle, spoon\.'):
        classes.label("zzz")


def test_what_is_present_is_all_that_any_label_says() -> None:
    labels = WeakLabels(
        tags=frozenset({1}),
        boxes=(Box(2, 0, 0, 5, 5),),
        points=(Point(3, 1, 1), Point(BACKGROUND, 0, 0)),
        scribbles=(Scribble(4, ((0, 0), (3, 3))), Scribble(BACKGROUND, ((9, 9),))),
    )
    assert labels.present() == {1, 2, 3, 4}


def test_an_image_without_objects_is_not_an_image_without_labels() -> None:
    assert WeakLabels(tags=frozenset()).known
    assert not WeakLabels().known
    assert WeakLabels(points=(Point(BACKGROUND, 0, 0),)).known
    assert WeakLabels(tags=frozenset()).present() == WeakLabels().present() == frozenset()


@given(st.sets(st.integers(0, 255)))
def test_tags_of_a_mask_leave_out_background_and_void(values: set[int]) -> None:
    assert tags_of(values) == {value for value in values if 1 <= value <= 254}


def test_the_palette_is_that_of_pascal_voc() -> None:
    colours = [tuple(palette()[3 * label : 3 * label + 3]) for label in range(256)]
    assert colours[:3] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    assert (colours[15], colours[20], colours[255]) == ((192, 128, 128), (0, 64, 128), (224, 224, 192))
    assert len(set(colours)) == 256

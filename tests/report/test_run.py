"""The report of a run: complete, self-contained, safe from names, and readable in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.data.images import read_image
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json
from weakseg.labels import VOID, Classes
from weakseg.ops.activation import ActivationMaps
from weakseg.pipeline.context import write_log
from weakseg.pipeline.recipe import load_recipe
from weakseg.report import pictures
from weakseg.report.markup import VOID_ELEMENTS, element, plot
from weakseg.report.plots import confusion_matrix
from weakseg.report.run import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

STAGES = ("cam", "maps", "masks", "segment", "scores")
SECTIONS = ["Scores", "Pictures", "Classes", "Training", "Data", "Run"]

RunMaker = Callable[..., Path]


class Page(HTMLParser):
    """The elements of a page: text by tag, attributes by tag. Fails for tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: dict[str, list[dict[str, str | None]]] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.setdefault(tag, []).append(dict(attrs))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def captions(self) -> str:
        return " | ".join(self.texts.get("figcaption", []))

    def notes(self) -> str:
        return " | ".join(self.texts.get("p", []))

    def pictures(self) -> list[str]:
        """The alternative texts of all pictures that are no plots."""
        images = self.attributes.get("img", [])
        return [str(image["alt"]) for image in images if str(image["src"]).startswith("data:image/jpeg")]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(finished_run: Path) -> Path:
    return write_report(finished_run)


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


# What is in the page


def test_a_finished_run_has_all_parts(finished_run: Path, page: Page) -> None:
    assert page.texts["h1"] == ["toy-cam"]
    assert page.texts["h2"] == SECTIONS
    assert page.attributes["html"] == [{"lang": "en"}]
    assert page.attributes["details"], "the settings are folded"
    rows = read_json(finished_run / "scores" / "scores.json")["rows"]
    for row in rows:
        assert f"{100 * row['mean_iou']:.1f}" in page.texts["td"]
    assert "DeepLab reaches a mean IoU of" in page.notes()
    for caption in ("cam (cam): 160 updates", "segment (deeplab): 160 updates", "masks used the background score 0.27"):
        assert caption in page.captions()
    assert "Interrupted, timed from where it went on: segment." in page.notes()
    assert "1 min" in page.texts["td"], "the total of five stages of 12.5 s"


def test_best_middle_and_worst_images_are_shown_with_their_scores(finished_run: Path, page: Page) -> None:
    assert page.texts["h4"] == ["Best", "Middle", "Worst"] * 2
    rows = read_json(finished_run / "scores" / "scores.json")["rows"]
    shown = page.texts["h5"]
    for row, names in ((rows[2], shown[:9]), (rows[3], shown[9:])):
        order = sorted(row["image_iou"], key=lambda name: (-row["image_iou"][name], name))
        assert names[:3] == order[:3]
        assert names[6:] == order[-3:]
        assert f"DeepLab: IoU {100 * row['image_iou'][order[0]]:.1f} %" in page.captions()


def test_every_picture_says_in_words_what_it_shows(page: Page) -> None:
    descriptions = page.pictures()
    assert len(descriptions) == 9 * 5 + 9 * 3  # image, map, pseudo-mask, prediction, truth; image, prediction, truth
    assert any(re.fullmatch(r"Ground truth of val_\d+: .*cat.* 23 %, void 1 %", text) for text in descriptions)
    assert all(image["alt"] for image in page.attributes["img"])


def test_names_cannot_break_out_of_the_page(report: Path, page: Page) -> None:
    text = report.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "<img src=x" not in text
    assert "<b>cat</b> & dog" in page.texts["th"]
    assert "\"quoted\" 'fox'" in page.texts["th"]
    assert "train_00 odd <img src=x> & 'ü'" in page.texts["h5"]
    assert "Image train_00 odd <img src=x> & 'ü'" in page.pictures()


def test_the_page_needs_nothing_else(report: Path, page: Page) -> None:
    assert "script" not in page.attributes
    assert "link" not in page.attributes
    assert all(str(image["src"]).startswith("data:") for image in page.attributes["img"])
    ids = {values["id"] for values in page.attributes["h2"]}
    assert {str(link["href"]) for link in page.attributes["a"]} == {f"#{name}" for name in ids}
    assert report.stat().st_size < 3e6


def test_the_same_run_gives_the_same_bytes(finished_run: Path, report: Path) -> None:
    before = report.read_bytes()
    assert write_report(finished_run).read_bytes() == before


def test_tables_have_captions_and_headers_with_a_scope(page: Page) -> None:
    assert {header["scope"] for header in page.attributes["th"]} == {"row", "col"}
    assert len(page.texts["caption"]) == len(page.attributes["table"])


@given(st.text(), st.text())
def test_any_text_comes_back_from_markup(content: str, value: str) -> None:
    # HTML has no way to write these, and turns them into others.
    for forbidden in "\r\0":
        content, value = content.replace(forbidden, ""), value.replace(forbidden, "")
    page = Page(element("p", content, title=value))
    assert "".join(page.texts.get("p", [])) == content
    assert page.attributes["p"] == [{"title": value}]


def test_a_plot_of_many_classes_scrolls_in_its_own_box() -> None:
    for classes, kind in ((20, "plot"), (81, "plot wide")):
        page = Page(plot(confusion_matrix(np.eye(classes), [f"class {k}" for k in range(classes)]), "all & sundry"))
        assert page.attributes["figure"][0]["class"] == kind
        assert page.texts["figcaption"] == ["all & sundry"]


TOGETHER = [[8, 2, 0, 4], [2, 5, 0, 0], [0, 0, 0, 0], [4, 0, 0, 4]]


def test_a_heat_map_tells_how_often_classes_are_seen_together(make_run: RunMaker) -> None:
    run = make_run(masks=False)
    write_json(run / "data.json", {**read_json(run / "data.json"), "images_with_both": TOGETHER})
    page = page_of(run)
    cells = [str(cell["style"]) for cell in page.attributes["td"] if cell.get("class") == "heat"]
    assert cells == [f"--share:{share:.1f}%" for share in (25, 0, 50, 40, 0, 0, 100, 0, 0)]
    assert [text for text in page.texts["td"] if text in ("25", "50", "40", "100")] == ["25", "50", "40", "100"]
    assert page.texts["td"].count("–") >= 3, "of a class without images nothing is known"


def test_of_many_classes_only_the_most_frequent_companions_are_told(
    make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weakseg.report.run.MAX_MATRIX_CLASSES", 3)
    run = make_run(masks=False)
    write_json(run / "data.json", {**read_json(run / "data.json"), "images_with_both": TOGETHER})
    assert "cow 50 %, \"quoted\" 'fox' 25 %" in page_of(run).texts["td"]


def test_runs_that_did_not_count_pairs_have_a_report(make_run: RunMaker) -> None:
    run = make_run(masks=False)
    data = read_json(run / "data.json")
    del data["images_with_both"]
    write_json(run / "data.json", data)
    assert "that has the class of a column" not in write_report(run).read_text(encoding="utf-8")


def test_activation_on_contexts_has_a_column_where_it_was_measured(make_run: RunMaker) -> None:
    run = make_run()
    assert "on context %" not in page_of(run).texts["th"]
    path = run / "scores" / "scores.json"
    scores = read_json(path)
    scores["rows"][0]["context"] = {"share": 0.1234, "area": 0.0567, "maps": 9}
    write_json(path, scores)
    page = page_of(run)
    assert "on context %" in page.texts["th"]
    assert "12.3" in page.texts["td"]
    assert "on images that show it; it covers 5.7 % of them." in page.notes()


# Runs that are not as they should be


@pytest.mark.parametrize("count", range(len(STAGES)))
def test_an_unfinished_run_says_what_is_missing(make_run: RunMaker, count: int) -> None:
    page = page_of(make_run(stages=STAGES[:count]))
    assert page.texts["h2"] == SECTIONS
    assert f"The run is not finished; missing: {', '.join(STAGES[count:])}." in page.notes()
    assert page.texts["td"].count("not finished") == len(STAGES) - count
    assert ("activation map:" in page.captions()) == (count >= 2)
    assert ("CAM + CRF" in page.captions()) == (count >= 3)
    assert "No stage has made anything to look at yet." in page.notes() or count >= 2


def test_a_stage_at_work_shows_its_losses_so_far(make_run: RunMaker) -> None:
    run = make_run(stages=STAGES[:3])
    (run / "segment").mkdir()
    line = json.dumps({"step": 1, "epoch": 0.1, "loss": 2.0, "lr": 0.1, "images_per_s": 1.0})
    (run / "segment" / "train.jsonl").write_text(f'{line}\n{{"step": 2, "epo')
    assert "segment (deeplab): 1 updates so far" in page_of(run).captions()


def test_epochs_that_were_added_are_told_with_the_setting_that_forgoes_them(make_run: RunMaker) -> None:
    by_hand = (
        "segment.train.epochs=2",
        "segment.train.min_steps=160",
        "cam.train.epochs=16",
        "cam.train.min_steps=160",
    )
    notes = page_of(make_run(recipe=load_recipe("toy-cam", by_hand))).notes()
    assert "16 epochs instead of 2" in notes
    assert "cam: the images are few" not in notes, "its epochs are as many"
    (advice,) = re.findall(r"--set (\S+=null)", notes)
    assert load_recipe("toy-cam", (*by_hand, advice)).stages["segment"].train.min_steps is None


def test_activation_maps_that_are_not_shown_are_counted(make_run: RunMaker) -> None:
    run = make_run(masks=False)
    path = run / "maps" / "maps" / "train_11.npz"
    maps = ActivationMaps.load(path)
    many = np.repeat(maps.maps[:1], 4, axis=0)
    ActivationMaps(np.array([1, 2, 3, 4], np.int16), many, maps.size, maps.stride).save(path)
    captions = page_of(run).texts["figcaption"]
    assert "activation map: 鸟 😀 (and 1 more)" in captions
    assert len([caption for caption in captions if "activation map" in caption]) == 5 + 3


def test_a_run_without_ground_truth_shows_some_images(make_run: RunMaker) -> None:
    page = page_of(make_run(masks=False))
    assert "no ground truth to measure against" in page.notes()
    assert page.texts["h3"] == ["Training images (train)", "masks at other thresholds"]
    assert page.texts["h4"] == ["Some images"]
    assert len(page.texts["h5"]) == 2 * 6, "as the run made them, and at other thresholds"
    assert "activation map" in page.captions()
    assert "ground truth" not in page.captions()
    assert "IoU" not in page.captions()


def test_data_that_moved_leave_a_note_instead_of_pictures(make_run: RunMaker) -> None:
    run = make_run()
    (run.parent / "data").rename(run.parent / "elsewhere")
    page = page_of(run)
    assert "The pictures are left out" in page.notes()
    assert str(run.parent / "data") in page.notes()
    assert page.pictures() == []
    assert page.texts["h2"] == SECTIONS


def test_data_with_other_classes_leave_a_note(make_run: RunMaker) -> None:
    run = make_run()
    path = run / "data.json"
    write_json(path, {**read_json(path), "classes": ["a", "b", "c", "d"]})
    assert "has other classes than when the run was made" in page_of(run).notes()


def test_data_that_lost_images_leave_a_note(make_run: RunMaker) -> None:
    run = make_run()
    split = run.parent / "data" / "ImageSets" / "Segmentation" / "val.txt"
    split.write_text("\n".join(split.read_text().splitlines()[2:]), encoding="utf-8")
    assert "lacks 2 images of the run" in page_of(run).notes()


def test_images_that_left_the_run_are_passed_over(make_run: RunMaker) -> None:
    run = make_run()
    data = read_json(run / "data.json")
    left = page_of(run).texts["h5"][-1]
    data["names"]["val"].remove(left)
    write_json(run / "data.json", data)
    shown = page_of(run).texts["h5"]
    assert left not in shown
    assert len(shown) == 18


def test_one_damaged_image_costs_only_its_own_pictures(make_run: RunMaker) -> None:
    run = make_run()
    best = page_of(run).texts["h5"][-1]
    (run.parent / "data" / "JPEGImages" / f"{best}.png").write_bytes(b"nothing")
    page = page_of(run)
    assert f"Left out: {run.parent / 'data' / 'JPEGImages' / best}.png" in page.notes()
    assert len(page.pictures()) == 9 * 5 + 8 * 3


def test_stages_that_the_run_wants_otherwise_are_not_shown_as_results(make_run: RunMaker) -> None:
    run, again = make_run(), "masks, segment, scores"
    write_log(run, "run", keys={"cam": "cam", "maps": "maps", "masks": "new", "segment": "new", "scores": "new"})
    page = page_of(run)
    assert f"missing: {again} ({again}: made with earlier settings)." in page.notes()
    assert page.texts["td"].count("to be done again") == 3
    assert "There are no scores" in page.notes()


def test_several_localisers_are_told_apart(make_run: RunMaker) -> None:
    recipe = load_recipe("toy-cam")
    maps, masks, segment, scores = (recipe.stages[name] for name in ("maps", "masks", "segment", "scores"))
    measured = {
        "curves": {"CAM": "masks", "SEAM": "seam_masks"},
        "masks": {"CAM + CRF": "masks", "SEAM + CRF": "seam_masks"},
    }
    stages = {
        "cam": recipe.stages["cam"], "maps": maps, "seam_maps": maps, "masks": masks,
        "seam_masks": masks.reading({"maps": "seam_maps"}), "segment": segment,
        "scores": scores.model_copy(update=measured),
    }  # fmt: skip
    page = page_of(make_run(stages=tuple(stages), recipe=replace(recipe, stages=stages)))
    titles = ["CAM", "SEAM", "CAM + CRF", "SEAM + CRF", "DeepLab", "DeepLab"]
    assert [text for text in page.texts["th"] if text in titles] == titles
    (curves,) = (str(image["alt"]) for image in page.attributes["img"] if "Mean IoU over the" in str(image["alt"]))
    assert "CAM: best" in curves
    assert "SEAM: best" in curves
    for caption in ("activation map (CAM): ", "activation map (SEAM): ", "CAM + CRF: IoU", "SEAM + CRF: IoU"):
        assert caption in page.captions()
    assert "masks used the background score 0.27" in page.captions()
    assert "seam_masks used the background score 0.27" in page.captions()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"is not the folder of a run: it has no recipe\.yaml"):
        write_report(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(WeaksegError, match="it has no stages"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


# Pictures


@given(st.dictionaries(st.text(max_size=3), st.none() | st.floats(0, 1), max_size=30), st.integers(1, 4))
def test_ranked_groups_are_ordered_and_disjoint(scores: dict[str, float | None], count: int) -> None:
    groups = pictures.ranked(scores, count)
    names = [name for group in groups.values() for name in group]
    values: list[Any] = [scores[name] for name in names]
    known = [value for value in scores.values() if value is not None]
    assert len(set(names)) == len(names) == min(len(known), 3 * count)
    assert values == sorted(values, reverse=True)
    if known:
        assert (values[0], values[-1]) == (max(known), min(known))


def test_the_middle_images_surround_the_median() -> None:
    groups = pictures.ranked({f"{number:02}": number / 100 for number in range(101)}, 3)
    assert groups["Middle"] == ["51", "50", "49"]


@given(st.lists(st.integers(), unique=True, min_size=1), st.integers(1, 10))
def test_spread_takes_both_ends(names: list[str], count: int) -> None:
    chosen = pictures.spread(names, count)
    assert len(chosen) == min(len(names), count)
    assert chosen[0] == names[0]
    assert chosen == [name for name in names if name in chosen]
    assert count == 1 or chosen[-1] == names[-1]


def test_pictures_keep_their_shape_and_are_never_enlarged() -> None:
    assert pictures.photo(np.zeros((500, 1000, 3), np.uint8)).shape == (144, 288, 3)
    assert pictures.photo(np.zeros((9, 7, 3), np.uint8)).shape == (9, 7, 3)
    assert pictures.photo(np.zeros((1, 5000, 3), np.uint8)).shape == (1, 288, 3)


def test_painted_labels_are_coloured_and_the_background_is_grey() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 10:] = 1
    labels[:, 20:] = 2
    picture = pictures.painted(image, labels).astype(int)
    assert np.ptp(picture[:, :10], axis=2).max() == 0
    assert (picture[:, 10:20, 0] > picture[:, 10:20, 1]).all(), "label 1 is red in the colours of PASCAL VOC"
    assert (picture[:, 20:, 1] > picture[:, 20:, 0]).all(), "label 2 is green"


def test_heat_is_brighter_where_the_activation_is_larger() -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 1))
    picture = pictures.heat_map(np.full((8, 64, 3), 99, np.uint8), ramp)
    brightness = picture.astype(int).sum(axis=2)
    assert (np.diff(brightness) >= 0).all()
    assert brightness[0, -1] > 2 * brightness[0, 0]


def test_shares_name_classes_by_size() -> None:
    labels = np.array([[0, 0, 1, 2, 2, 2, VOID, VOID, 77, 0]], np.uint8)
    assert pictures.shares(labels, Classes(["dog", "cat"])) == "cat 30 %, void 20 %, dog 10 %, unknown label 77 10 %"
    assert pictures.shares(np.zeros((2, 2), np.uint8), Classes(["dog"])) == "only background"


def test_a_data_uri_holds_the_picture(tmp_path: Path) -> None:
    import base64

    image = np.full((30, 40, 3), (200, 100, 50), np.uint8)
    (tmp_path / "picture.jpg").write_bytes(base64.b64decode(pictures.data_uri(image).partition(",")[2]))
    assert np.abs(read_image(tmp_path / "picture.jpg").astype(int) - image).max() <= 4


# In a browser


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)])
def test_the_page_works_in_a_browser(browser: Browser, report: Path, width: int, height: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": height})
    troubles: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("requestfailed", lambda request: troubles.append(request.url))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
    tab.goto(report.as_uri())
    assert troubles == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("h2").all_inner_texts() == SECTIONS
    score = tab.locator("#scores ~ .scroll td").nth(1).bounding_box()  # after the split
    assert score is not None
    assert score["x"] + score["width"] <= width, "the mean IoU is seen without scrolling"
    sizes = tab.eval_on_selector_all("img", "images => images.map(i => i.complete ? i.naturalWidth : 0)")
    assert len(sizes) == 9 * 5 + 9 * 3 + 5
    assert min(sizes) > 0
    tab.close()


def test_the_page_can_be_printed(browser: Browser, report: Path) -> None:
    tab = browser.new_page()
    tab.goto(report.as_uri())
    pdf = tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    tab.close()

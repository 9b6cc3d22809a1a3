"""Runs without ground truth: all images page by page, and masks at other thresholds."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from weakseg.data.images import write_label_map
from weakseg.data.opening import open_dataset
from weakseg.files import read_json, write_json
from weakseg.pipeline.stages.evaluate import prediction_path
from weakseg.pipeline.trust import TRUST_NAME
from weakseg.report.gallery import PAGE_NAME
from weakseg.report.run import write_report

RunMaker = Callable[..., Path]


def pages_of(run: Path) -> list[str]:
    write_report(run)
    paths = sorted(run.glob(PAGE_NAME.format("*")), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [path.read_text(encoding="utf-8") for path in paths]


def shown(page: str) -> list[str]:
    return re.findall(r"<h5>(train_\d+)", page)


@pytest.fixture
def run(make_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on 12 images without ground truth, five to a page."""
    monkeypatch.setattr("weakseg.report.gallery.IMAGES_PER_PAGE", 5)
    return make_run(masks=False)


def test_every_training_image_is_on_one_page(run: Path) -> None:
    pages = pages_of(run)
    names = read_json(run / "data.json")["names"]["train"]
    assert [len(shown(page)) for page in pages] == [5, 5, 2]
    assert sorted(name for page in pages for name in shown(page)) == sorted(name.split()[0] for name in names)
    assert all(page.count("<figcaption>CAM + CRF") == len(shown(page)) for page in pages)
    for number, page in enumerate(pages, start=1):
        links = set(re.findall(r'href="(images-\d\.html)"', page))
        assert links == {f"images-{other}.html" for other in (1, 2, 3) if other != number}
        assert 'href="report.html"' in page
        assert "<script" not in page
    report = (run / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'href="(images-\d\.html)"', report)) == {f"images-{number}.html" for number in (1, 2, 3)}


def test_the_least_trusted_come_first(run: Path) -> None:
    names = read_json(run / "data.json")["names"]["train"]
    order = np.random.default_rng(0).permutation(len(names))
    of_class = {"trust": 0.5, "fit": 0.5, "contrast": 1, "covered": 0.2}
    found = {
        name: {"trust": rank / 20, "classes": {"1": of_class}} for name, rank in zip(names, order.tolist(), strict=True)
    }
    write_json(run / "masks" / TRUST_NAME, found)
    expected = [name.split()[0] for name in sorted(names, key=lambda name: found[name]["trust"])]
    assert [name for page in pages_of(run) for name in shown(page)] == expected


def test_the_segmenters_result_is_beside_the_pseudo_mask(run: Path) -> None:
    before = pages_of(run)[0].count("<img")
    for sample in open_dataset(run.parent / "data").split("train"):
        path = prediction_path(run / "scores" / "predictions" / "segment", sample)
        write_label_map(path, np.ones((48, 64), np.uint8))
    first = pages_of(run)[0]
    assert first.count("<img") == before + 5
    assert first.count("DeepLab") >= 5


def test_pages_that_are_not_needed_any_more_go(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(pages_of(run)) == 3
    monkeypatch.setattr("weakseg.report.gallery.IMAGES_PER_PAGE", 100)
    assert len(pages_of(run)) == 1
    shutil.rmtree(run.parent / "data")
    assert pages_of(run) == []


def test_ground_truth_makes_pages_needless(make_run: RunMaker) -> None:
    assert pages_of(make_run()) == []


def test_the_command_for_a_threshold_is_one(run: Path) -> None:
    pages_of(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    (command,) = re.findall(r"<code>(weakseg run .*?)</code>", text)
    words = shlex.split(command)
    assert words[:2] == ["weakseg", "run"]
    assert words[words.index("--out") + 1] == str(run)
    assert words[words.index("--set") + 1] == "masks.threshold=0.3"
    captions = re.findall(r"<figcaption>threshold (0\.\d\d)", text)
    assert captions == ["0.15", "0.30", "0.45"] * 6

"""Progress where nobody watches a terminal: plain lines on standard error."""

from __future__ import annotations

import re

import pytest

from weakseg import progress
from weakseg.progress import Progress, Steps

Capture = pytest.CaptureFixture[str]


def lines(capsys: Capture) -> list[str]:
    out, err = capsys.readouterr()
    assert out == "", "results go to standard output, progress does not"
    return err.splitlines()


def test_the_last_line_says_what_was_done_and_how_fast(capsys: Capture) -> None:
    with Progress("predicting", 3) as shown:
        for _ in range(3):
            shown.advance(loss=0.12345)
    (line,) = lines(capsys)
    assert re.fullmatch(r"predicting: 3/3 images  [\d.]+ images/s  loss 0\.1235", line), line


def test_lines_come_now_and_then_with_the_time_left(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with Progress("training", 100, "steps") as shown:
        for _ in range(10):
            shown.advance()
    found = lines(capsys)
    assert 2 <= len(found) < 10
    assert all(re.fullmatch(r"training: \d+/100 steps  [\d.]+ steps/s  \d+:\d\d left", line) for line in found), found


def test_a_resumed_work_starts_where_it_was_and_its_rate_is_that_of_now(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("training", 100, done=90) as shown:
        now[0] = 2.0
        shown.advance(4)
        assert shown.rate == 2
    assert lines(capsys) == ["training: 94/100 images  2.0 images/s  0:03 left"]


def test_no_more_is_counted_than_there_is(capsys: Capture) -> None:
    with Progress("x", 2) as shown:
        shown.advance(5)
    assert lines(capsys)[0].startswith("x: 2/2 images")


def test_a_failure_is_not_told_as_an_end(capsys: Capture) -> None:
    with pytest.raises(RuntimeError), Progress("x", 2):
        raise RuntimeError
    assert lines(capsys) == []


def test_each_step_has_its_own_line(capsys: Capture) -> None:
    with Steps("MB", scale=1e6) as steps:
        for done in (0, 1_000_000, 3_000_000):
            steps.show("downloading", done, 3_000_000)
        steps.show("unpacking", 2_000_000, 2_000_000)
    first, second = lines(capsys)
    assert first.startswith("downloading: 3/3 MB")
    assert second.startswith("unpacking: 2/2 MB")


def test_steps_without_any_work_are_silent(capsys: Capture) -> None:
    with Steps("images"):
        pass
    assert lines(capsys) == []

"""Scores in plain text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from weakseg.errors import WeaksegError
from weakseg.files import read_json, read_json_lines
from weakseg.pipeline.context import write_log
from weakseg.report.scores import score_cells, scores_table
from weakseg.report.tables import percent, text_table

RunMaker = Callable[..., Path]


def test_a_finished_run_has_a_row_for_everything_measured(finished_run: Path) -> None:
    header, _, *lines = scores_table(finished_run).splitlines()
    assert header.split() == ["what", "split", "mIoU", "%", "boundary", "F", "%", "threshold", "images"]
    rows = read_json(finished_run / "scores" / "scores.json")["rows"]
    assert len(lines) == len(rows) == 4
    for line, row in zip(lines, rows, strict=True):
        boundary = f"{100 * row['boundary_f']:.1f}" if "boundary_f" in row else "–"
        threshold = f"{row['threshold']:.2f}" if "threshold" in row else "–"
        numbers = [f"{100 * row['mean_iou']:.1f}", boundary, threshold, str(row["images"])]
        assert line.split() == [*row["title"].split(), row["split"], *numbers]


def test_both_means_are_there_where_they_differ(finished_run: Path) -> None:
    rows = [dict(row) for row in read_json(finished_run / "scores" / "scores.json")["rows"]]
    rows[0] |= {"mean_iou": 0.5, "mean_iou_present": 0.75}
    header, cells = score_cells(rows)
    assert header[2:4] == ["mIoU %, all classes", "mIoU %, classes that occur"]
    assert cells[0][2:4] == ["50.0", "75.0"]


def test_a_run_without_ground_truth_says_so(make_run: RunMaker) -> None:
    assert scores_table(make_run(masks=False)) == (
        "The run has no scores, since its data have no ground truth to measure against."
    )


def test_an_unfinished_run_says_what_is_missing(make_run: RunMaker) -> None:
    run = make_run(stages=("cam", "maps"))
    assert scores_table(run) == "The run is not finished; missing: masks, segment, scores."


def test_scores_of_earlier_settings_are_not_shown(make_run: RunMaker) -> None:
    run = make_run()
    write_log(run, "run", keys={"cam": "cam", "maps": "maps", "masks": "masks", "segment": "new", "scores": "new"})
    again = "segment, scores"
    assert scores_table(run) == f"The run is not finished; missing: {again} ({again}: made with earlier settings)."


def test_a_run_that_has_lost_its_log_still_has_its_scores(make_run: RunMaker) -> None:
    run = make_run()
    (run / "log.jsonl").unlink()
    assert "DeepLab" in scores_table(run)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match="is not the folder of a run"):
        scores_table(tmp_path / "nothing")
    (tmp_path / "recipe.yaml").write_text("stages: [")
    with pytest.raises(WeaksegError, match=r"recipe\.yaml is not valid YAML"):
        scores_table(tmp_path)


def test_columns_are_aligned_whatever_the_script() -> None:
    lines = text_table(["class", "n"], [["鸟", "1"], ["a long name", "1000"], ["", "–"]]).splitlines()
    assert len({cell_len(line) for line in lines}) == 1
    assert lines[2].endswith("     1")
    assert lines[3] == "a long name  1000"


def test_percent_has_one_decimal() -> None:
    assert [percent(score) for score in (0, 0.12345, 1, None)] == ["0.0", "12.3", "100.0", "–"]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert read_json_lines(log) == []
    log.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_json_lines(log) == [{"a": 1}, {"a": 2}]
    log.write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(WeaksegError, match=r"log\.jsonl is damaged"):
        read_json_lines(log)

"""Two processes under torchrun do what one does."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tiny import TINY, set_options

# What differs between any two runs: times, and the number of processes.
PASSING = {"manifest.json", "train.jsonl", "log.jsonl", "run.lock", "report.html"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two_processes(
    process: Any, data: Path, out: Path, *settings: str, command: tuple[str, ...] = ("run", "toy")
) -> Any:
    """`weakseg run toy`, or another command, under torchrun."""
    port = f"--master-port={free_port()}"
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", port)
    arguments = (*command, "--data", data, "--out", out, *set_options(*TINY, *settings))
    return process("-m", "weakseg", *arguments, module=torchrun, GLOO_SOCKET_IFNAME="lo")


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def losses(stage: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (stage / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone_then_two(finished: Any, process: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in which two processes go on after the classifier that one process has trained."""
    root = tmp_path_factory.mktemp("two") / "run"
    shutil.copytree(finished.run / "cam", root / "cam")
    done = in_two_processes(process, finished.data, root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report: ") == 1, "only the first process speaks"
    return root


def test_the_work_is_shared(alone_then_two: Path) -> None:
    manifests = {path.parent.name: json.loads(path.read_text()) for path in alone_then_two.glob("*/manifest.json")}
    assert {name: manifest["processes"] for name, manifest in manifests.items()} == {
        "cam": 1, "maps": 2, "masks": 2, "segment": 2, "scores": 2,
    }  # fmt: skip


def test_the_same_maps_and_masks_to_the_last_bit(alone_then_two: Path, finished: Any) -> None:
    assert files(alone_then_two) == files(finished.run)
    same = [
        name
        for name in sorted(files(finished.run))
        if name.startswith(("cam/", "maps/", "masks/")) and Path(name).name not in PASSING
    ]
    assert len(same) >= 8 + 8 + 2
    assert [n for n in same if (alone_then_two / n).read_bytes() != (finished.run / n).read_bytes()] == []


def test_the_same_scores_of_the_same_masks(alone_then_two: Path, finished: Any) -> None:
    """Counts are summed over the processes, so the rows that the segmenter has no part in are equal."""

    def rows(root: Path) -> list[dict[str, Any]]:
        found = json.loads((root / "scores" / "scores.json").read_text())["rows"]
        return [row for row in found if row["title"] != "DeepLab"]

    assert rows(alone_then_two) == rows(finished.run)


def test_training_in_two_processes_has_the_loss_curve_of_one(alone_then_two: Path, finished: Any) -> None:
    one, two = losses(finished.run / "segment"), losses(alone_then_two / "segment")
    assert len(one) == 4
    assert two == pytest.approx(one, abs=1e-4)


def test_one_process_goes_on_after_two(
    alone_then_two: Path, finished: Any, weakseg: Any, tmp_path: Path, copy_tree: Any
) -> None:
    root = copy_tree(alone_then_two, tmp_path / "run")
    answer = weakseg("run", "toy", "--data", finished.data, "--out", root, *set_options(*TINY))
    assert answer.status == 0, answer.err
    assert answer.out.count("finished before, skipped") == 5


def test_the_classifier_learns_the_same_in_two_processes(finished: Any, process: Any, tmp_path: Path) -> None:
    done = in_two_processes(process, finished.data, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "run") == files(finished.run)
    assert losses(tmp_path / "run" / "cam") == pytest.approx(losses(finished.run / "cam"), abs=1e-4)


def test_a_mistake_stops_all_processes_with_one_message(process: Any, tiny_voc: Path, tmp_path: Path) -> None:
    done = in_two_processes(process, tiny_voc, tmp_path / "run", "cam.train.batch_size=3")
    assert done.returncode != 0
    assert "A batch of 3 images cannot be shared equally by 2 processes" in done.stderr
    assert "choose a batch size that 2 divides." in done.stderr


def test_a_comparison_in_two_processes(process: Any, tiny_voc: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "out", ("compare", "toy", "toy-supervised", "--seeds", "2")
    done = in_two_processes(process, tiny_voc, out, command=command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[2/2] toy-supervised, seed 2") == 1, "only the first process speaks"
    assert done.stdout.count("Comparison: ") == 1
    manifest = json.loads((out / "toy-supervised" / "seed-2" / "segment" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    table = json.loads((out / "compare.json").read_text())
    assert table["unfinished"] == {}
    assert {row["run"] for row in table["rows"]} == {"toy", "toy-supervised"}

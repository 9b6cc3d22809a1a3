"""Scalars for TensorBoard, which an extra brings: event files beside the logs whose numbers they repeat."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weakseg.errors import WeaksegError

PATTERN = "events.out.tfevents.*"
"""What TensorBoard finds event files by; it looks for new names only, so that each file has one of its own."""
PLACES = ("step", "epoch")
"""What says where a record belongs, rather than what was found there."""


def require_tensorboard() -> None:
    """Raise `WeaksegError` where the package that writes event files is not installed."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        raise WeaksegError(
            "runtime.tensorboard is true, but the package tensorboard is not installed. Install it with "
            "`pip install 'weakseg[tensorboard]'`, or set runtime.tensorboard=false."
        ) from None


class EventFile:
    """An event file in a folder, in place of those that are there: they may lack what a killed process was about to
    write, and hold what comes again after its last checkpoint."""

    # Not through `torch.utils.tensorboard`, whose thread prints a traceback when the disk is full.

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        for old in folder.glob(PATTERN):
            old.unlink()
        self._file = (folder / PATTERN.replace("*", f"{time.time():.0f}.weakseg")).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the numbers of a record at its `step`."""
        values = [{"tag": name, "simple_value": value} for name, value in record.items() if name not in PLACES]
        self._write(step=record["step"], summary={"value": values})

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()

"""What a data set has, in numbers: images, labels, and which classes are seen together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weakseg.data.cooccurrence import images_with_both, share_with_other
from weakseg.data.dataset import Dataset
from weakseg.files import write_json
from weakseg.report.tables import companion_cells, text_table


def summarise(dataset: Dataset, split: str, out: Path | None = None) -> str:
    """The splits, and of one of them the images of every class and the classes most often with it, as text.

    With `out`, a JSON file gets all numbers: `images_with_both` (C, C), images with the classes of both row and column,
    and `share_with_other` (C, C), P(class of the column | class of the row), null where the row's class has no images.
    Raises `WeaksegError` for an unknown split.
    """
    samples, names = dataset.split(split), dataset.classes.names
    with_both = images_with_both(samples, dataset.classes.largest)
    splits = {
        name: {
            "images": len(members),
            "with_weak_labels": sum(sample.labels.known for sample in members),
            "with_masks": sum(sample.mask is not None for sample in members),
        }
        for name, members in dataset.splits.items()
    }
    if out is not None:
        shares = [[share if images else None for share in row] for images, row in _rows(with_both)]
        values: dict[str, Any] = {"root": str(dataset.root), "format": dataset.format, "classes": list(names)}
        values |= {"splits": splits, "split": split, "images_with_both": with_both.tolist(), "share_with_other": shares}
        write_json(out, values)
    counts = [[name, *map(str, has.values())] for name, has in splits.items()]
    lines = [text_table(["split", "images", "with weak labels", "with masks"], counts), ""]
    if any(sample.labels.known for sample in samples):
        lines.append(f'Classes of the split "{split}", and with which others they are seen most often:')
        lines.append(text_table(*companion_cells(names, with_both), texts=2))
    else:
        lines.append(f'No image of the split "{split}" has weak labels, by which classes are counted.')
    return "\n".join(lines)


def _rows(with_both: Any) -> Any:
    """For each class, its images and the shares of them with each class."""
    return zip(with_both.diagonal().tolist(), share_with_other(with_both).tolist(), strict=True)

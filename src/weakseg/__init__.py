"""weakseg: cheap labels in, pixel masks and a trained segmenter out.

    import weakseg

    weakseg.run("cam", "photos", "runs/photos")
    model = weakseg.load("runs/photos")
    labels = model.predict("holiday.jpg").labels

Nothing heavy is imported before one of these is used (see `weakseg.library`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weakseg.errors import WeaksegError
from weakseg.version import __version__

if TYPE_CHECKING:
    from weakseg.library import LoadedModel, evaluate, load, refine, run

__all__ = ["LoadedModel", "WeaksegError", "__version__", "evaluate", "load", "refine", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from weakseg import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

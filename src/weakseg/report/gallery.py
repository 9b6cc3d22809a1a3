"""All training images of a run without ground truth, page by page beside its report, the least trusted first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from weakseg.errors import WeaksegError
from weakseg.files import write_text
from weakseg.progress import Progress
from weakseg.report.figures import strip
from weakseg.report.folder import RunFolder
from weakseg.report.markup import Markup, element, page
from weakseg.report.strips import figures_of, legend
from weakseg.report.tables import percent
from weakseg.report.trust import judged
from weakseg.threads import threaded

IMAGES_PER_PAGE = 48
PAGE_NAME = "images-{}.html"
COLUMNS = 4


def write_gallery(run: RunFolder) -> list[Path]:
    """Write the pages, and return their paths; none where there is ground truth, which the report orders images by,
    where there are no pseudo-masks yet, or where the data have moved. Pages of an earlier report are deleted."""
    order = _order(run)
    groups = [order[start : start + IMAGES_PER_PAGE] for start in range(0, len(order), IMAGES_PER_PAGE)]
    paths = [run.root / PAGE_NAME.format(number) for number in range(1, len(groups) + 1)]
    for old in set(run.root.glob(PAGE_NAME.format("*"))) - set(paths):
        old.unlink()
    if not order:
        return []
    with Progress("pages of the report", len(order)) as progress:
        for path, group in zip(paths, groups, strict=True):
            write_text(path, _page(run, group, path, paths))
            progress.advance(len(group))
    return paths


def links_to(pages: Sequence[Path], here: Path | None = None) -> Iterator[Markup]:
    """Links to all pages, without one to the page that they are on."""
    if pages:
        links = (
            element("strong", str(number)) if path == here else element("a", str(number), href=path.name)
            for number, path in enumerate(pages, start=1)
        )
        spaced = (part for link in links for part in (" ", link))
        yield element("p", "All training images, the least trusted first, page", *spaced)


def _order(run: RunFolder) -> list[tuple[str, float | None]]:
    """The names of the training images and the trust in their last pseudo-masks, where it is known, that come first."""
    stages = run.leaving("masks")
    if run.measured or not stages:
        return []
    try:
        names = run.open_data()[1]["train"]
    except WeaksegError:  # the report says so
        return []
    trust = {image.name: image.trust for image in judged(run, stages[-1]) if image.name in names}
    return [*trust.items(), *((name, None) for name in names if name not in trust)]


def _page(run: RunFolder, group: Sequence[tuple[str, float | None]], here: Path, pages: Sequence[Path]) -> Markup:
    classes, samples = run.open_data()
    stages = [name for name, kind in run.kinds.items() if kind.leaves == "masks" or name in run.of_kind("evaluate")]

    def article(image: tuple[str, float | None]) -> Markup:
        name, trust = image
        title = name if trust is None else f"{name}: trust {percent(trust)} %"
        figures = figures_of(run, stages, "train", samples["train"][name], classes)
        return element("article", element("h5", title), strip(figures, COLUMNS))

    links = list(links_to(pages, here))
    introduction = [
        element("p", element("a", "Report of the run", href="report.html"), class_="kicker"),
        element("h1", run.recipe["name"]),
        *links,
    ]
    images = [legend(classes), *threaded(article, group), *links]
    return page(f"{run.recipe['name']}: images", introduction, {"Images": images})

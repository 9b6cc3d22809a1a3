"""HTML, piece by piece: elements, tables, plots, and the page around them. Nothing here knows of runs."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import ClassVar

from weakseg.report.plots import Plot
from weakseg.version import __version__

WIDEST_PLOT = 8.0
"""Inches; the text of a wider plot could not be read in half the width of the page."""

VOID_ELEMENTS = ("img", "meta")
# Whatever a class or a file is called: this page loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """HTML. Any other text is escaped when it becomes a part of it."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str | int) -> Markup:
    """`<tag key="value">content</tag>`; a key may end with `_` where Python has its own meaning for it (`class_`)."""
    keys = (f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items())
    opening = f"<{tag}{''.join(keys)}>"
    return Markup(opening if tag in VOID_ELEMENTS else f"{opening}{join(content)}</{tag}>")


def join(content: Iterable[str]) -> Markup:
    """Texts and markup one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in content))


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str, texts: int = 1, **attributes: str
) -> Markup:
    """A table whose first column names the rows; it scrolls in its box where the page is too narrow. The first `texts`
    columns hold words, the others numbers. `attributes` are those of the table itself."""
    kinds = ["text" if place < texts else "number" for place in range(len(header))]
    head = (element("th", cell, scope="col", class_=kind) for cell, kind in zip(header, kinds, strict=True))
    body = []
    for name, *others in rows:
        cells = (_cell(text, kind) for text, kind in zip(others, kinds[1:], strict=True))
        body.append(element("tr", element("th", name, scope="row", class_="text"), *cells))
    content = (element("caption", caption), element("thead", element("tr", *head)), element("tbody", *body))
    return element(
        "div", element("table", *content, **attributes), class_="scroll", role="region", aria_label=caption, tabindex=0
    )


class Share(str):
    """The text of a table's cell with a bar behind it that fills `share` (0 … 1) of the cell."""

    kind: ClassVar[str] = "bar"
    share: float

    def __new__(cls, text: str, share: float) -> Share:
        cell = super().__new__(cls, text)
        cell.share = share
        return cell


class Heat(Share):
    """The text of a cell whose whole ground is the darker the larger `share` is."""

    kind: ClassVar[str] = "heat"


def _cell(text: str, kind: str) -> Markup:
    if isinstance(text, Share):
        return element("td", text, class_=text.kind, style=f"--share:{100 * text.share:.1f}%")
    return element("td", text, class_=kind)


def section(title: str, *content: str) -> Markup:
    """A part of the page with a heading that can be linked to."""
    name = title.lower()
    return element("section", element("h2", title, id=name), *content, aria_labelledby=name)


def note(text: str) -> Markup:
    """Something the reader should know before trusting what is (not) shown."""
    return element("p", text, class_="note")


def plot(drawn: Plot, caption: str) -> Markup:
    """A plot as a picture of its own, so that the names inside do not mix with those of other plots. One with very many
    classes scrolls in its box."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(drawn.svg().encode()).decode()}"
    content = (element("img", src=source, alt=drawn.description), element("figcaption", caption))
    if drawn.figure.get_figwidth() <= WIDEST_PLOT:
        return element("figure", *content, class_="plot")
    return element("figure", *content, class_="plot wide", role="region", aria_label=caption, tabindex=0)


def fact(name: str, value: str) -> Markup:
    """A name and its value, for a list of facts."""
    return element("div", element("dt", name), element("dd", value))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def page(title: str, introduction: Iterable[Markup], sections: Mapping[str, Iterable[Markup]]) -> Markup:
    """A whole page: what stands at its head, then its parts, with links to them."""
    links = (element("a", name, href=f"#{name.lower()}") for name in sections)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup((files("weakseg.report") / "report.css").read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element("header", *introduction, element("nav", *links, aria_label="Parts of the report")),
        element("main", *(section(name, *content) for name, content in sections.items())),
        element("footer", element("p", f"Written by weakseg {__version__}.")),
    )
    return Markup(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")

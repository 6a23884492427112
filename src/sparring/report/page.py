"""The report as a list of sections, rendered as Markdown (for GitHub) and as one web page that needs nothing else."""

import base64
import io
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from PIL import Image

from sparring.report import escape, table
from sparring.report.table import Table

SHARE = re.compile(r"([01]\.\d{3})(?: ± [\d.]+)? \[")  # as table.with_interval prints an accuracy


@dataclass(frozen=True)
class Figure:
    """A figure, drawn as vector/<name>.svg.

    photos: whether it shows images. A dark page recolours lines and letters, but must not recolour images.
    """

    name: str
    caption: str
    photos: bool = False


@dataclass(frozen=True)
class Gallery(Figure):
    """A figure in whose place the web page lets the reader pick an image and an attack.

    images: a dict for each image, with `label`, `clean` (a data: URI), `said` (structure → its answer on the clean
    image) and `attacked`: a dict for each of `attacks`, with `image`, `change` (data: URIs), `note` and `said`.
    """

    attacks: Sequence[str] = ()
    images: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Thumbnails(Figure):
    """A figure in whose place the web page has single images.  rows: heading → images, as (data: URI, text below)."""

    rows: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Folded:
    """Paragraphs in Markdown that the reader opens by a click on their title."""

    title: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A section of the report.

    parts: paragraphs in Markdown, tables, figures and folded paragraphs, in the order in which they are read.
    """

    title: str
    parts: Sequence[str | Table | Figure | Folded]

    @property
    def tables(self) -> list[Table]:
        return [part for part in self.parts if isinstance(part, Table)]

    @property
    def figures(self) -> list[Figure]:
        return [part for part in self.parts if isinstance(part, Figure)]


def markdown(title: str, sections: Sequence[Section], pictures: Collection[str]) -> str:
    """Render the sections as one Markdown page.

    pictures: the names of the figures that are shown, from figures/<name>.png; for any other a line names the web page.
    """
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        for part in section.parts:
            if isinstance(part, Table):
                parts.append(table.markdown(part))
            elif isinstance(part, Figure):
                picture = f"![{part.caption}](figures/{part.name}.png)"
                parts.append(picture if part.name in pictures else f"*Figure in `index.html`:* {part.caption}")
            elif isinstance(part, Folded):
                parts += [f"<details><summary>{part.title}</summary>", *part.paragraphs, "</details>"]
            else:
                parts.append(part)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def html(title: str, sections: Sequence[Section], figures: Path) -> str:
    """Render the sections as one web page; nothing is loaded from elsewhere, and the page itself forbids it.

    figures: the folder with the figures' SVG files.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # structures stay in their order
    reader = MarkdownIt("commonmark", {"html": False})
    contents = [
        {"title": section.title, "anchor": _anchor(section.title)}
        | {"parts": [_part(part, reader, figures) for part in section.parts]}
        for section in sections
    ]
    return environment.get_template("page.html").render(title=title, sections=contents) + "\n"


def _printable(value: Any) -> Any:
    """Replace in a text the characters that HTML or UTF-8 does not have, which autoescape lets pass."""
    return escape.printable(value, "\n") if type(value) is str else value


def isolated(name: str) -> str:
    """Wrap a name that may run from right to left, so that it does not change the direction of the text beside it."""
    turns = {"R", "AL", "AN", "RLE", "RLO", "LRE", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}
    return f"\u2068{name}\u2069" if any(unicodedata.bidirectional(character) in turns for character in name) else name


def png(image: np.ndarray) -> str:
    """Encode an image (H, W, 3), in levels from 0 to 255, as a data: URI of a PNG. Floats are rounded."""
    levels = np.clip(np.rint(image.astype(float)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG", compress_level=9)
    return _uri("image/png", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _part(part: str | Table | Figure | Folded, reader: MarkdownIt, figures: Path) -> dict[str, Any]:
    if isinstance(part, Table):
        frames = [
            {"heading": heading, "columns": [str(name) for name in frame.columns], "rows": _cells(frame)}
            for heading, frame in part.wide.items()
        ]
        notes = [reader.render(note) for note in part.notes]
        caption = reader.renderInline(part.caption)
        latex = table.latex(part)
        return {"kind": "table", "label": part.label, "caption": caption} | {
            "frames": frames,
            "notes": notes,
            "latex": latex,
        }
    if isinstance(part, Gallery):
        data = {"attacks": list(part.attacks), "images": list(part.images)}
        return {"kind": "gallery", "name": part.name, "caption": part.caption, "data": data}
    if isinstance(part, Thumbnails):
        return {"kind": "thumbnails", "caption": part.caption, "rows": part.rows}
    if isinstance(part, Figure):
        drawing = (figures / f"{part.name}.svg").read_bytes()
        width = re.search(rb'<svg[^>]* width="([\d.]+pt)"', drawing)
        return {"kind": "figure", "caption": part.caption, "photos": part.photos} | {
            "picture": _uri("image/svg+xml", drawing),
            "width": width[1].decode() if width else "100%",
        }
    if isinstance(part, Folded):
        return {"kind": "folded", "title": part.title, "html": "".join(map(reader.render, part.paragraphs))}
    return {"kind": "text", "html": reader.render(part)}


def _cells(frame: pd.DataFrame) -> list[list[dict[str, str]]]:
    """Return for each cell its text and, where it is an accuracy, the length of the bar behind it."""
    rows = []
    for values in frame.astype(str).itertuples(index=False):
        cells = []
        for name, text in zip(frame.columns, values, strict=True):
            accuracy = None if "minus" in str(name) else SHARE.match(text)
            cells.append({"text": text, "share": accuracy[1] if accuracy else ""})
        rows.append(cells)
    return rows

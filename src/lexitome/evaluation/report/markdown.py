"""A `Document` in Markdown: the same sections, tables and words as the page, with links to small pictures beside it.

GitHub's dialect. Everything stays under `MOST_PICTURES`, so that a report of all datasets can be committed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lexitome.evaluation.report.blocks import (
    MARKS,
    Block,
    Cell,
    Column,
    Document,
    Facts,
    Gallery,
    Legend,
    Mark,
    Notice,
    Picture,
    Prose,
    Section,
    Table,
    Tile,
    Tiles,
)
from lexitome.evaluation.report.overlays import shrink

FIGURES, PICTURES = "figures", "pictures"
"""Folders beside the file."""
MOST_PICTURES = 550_000
"""Bytes of all examples together; they are made smaller where there are many."""


@dataclass(frozen=True)
class Page:
    """Text, and the example pictures it links to: path relative to the text -> bytes. Figures it links to are stored
    by whoever writes the page, as `FIGURES`/NAME.png."""

    text: str
    pictures: dict[str, bytes]


def render_markdown(document: Document) -> Page:
    shots = [s for section in document.sections for b in section.blocks if isinstance(b, Gallery) for s in b.shots]
    most = MOST_PICTURES // max(1, len(shots))
    pictures: dict[str, bytes] = {}
    links: dict[str, str] = {}
    for shot in shots:
        data, kind = shrink(shot.png, most)
        links[shot.name] = f"{PICTURES}/{shot.name}.{'jpg' if kind == 'jpeg' else kind}"
        pictures[links[shot.name]] = data
    contents = "".join(f"- [{_text(s.title)}](#{_anchor(s.title)})\n" for s in document.sections)
    parts = [
        f"# {_text(document.title)}\n",
        f"{_text(document.subtitle)}\n",
        " · ".join(_text(fact) for fact in document.facts) + "\n",
        contents,
        *(_section(section, links) for section in document.sections),
    ]
    return Page("\n".join(parts), pictures)


def _section(section: Section, links: dict[str, str]) -> str:
    return "\n".join([f"## {_text(section.title)}\n", *(_block(block, links) for block in section.blocks)])


def _block(block: Block, links: dict[str, str]) -> str:
    match block:
        case Table():
            return _table(block)
        case Tiles():
            return "".join(_tile(tile) for tile in block.tiles)
        case Prose():
            return f"{_text(block.text)}\n"
        case Notice():
            return f"> {'**Warning.** ' if block.level == 'warning' else ''}{_text(block.text)}\n"
        case Facts():
            title = f"### {_text(block.title)}\n\n" if block.title else ""
            return title + "".join(f"- {_text(name)}: {_text(value)}\n" for name, value in block.pairs)
        case Picture():
            return (
                f"### {_text(block.title)}\n\n![{_text(block.title)}]({FIGURES}/{block.name}.png)\n\n"
                f"{_text(block.caption)}\n"
            )
        case Legend():
            return "".join(f"- outline in #{''.join(f'{v:02x}' for v in rgb)}: {name}\n" for name, rgb in block.entries)
        case Gallery():
            return _gallery(block, links)


def _tile(tile: Tile) -> str:
    return f"- {_text(tile.label)}{_marks(tile.number.marks)}: **{_text(tile.number.text)}** ({_text(tile.detail)})\n"


def _table(block: Table) -> str:
    head = [_text(column.title) + _marks(column.marks) for column in block.columns]
    rules = ["---" if column.kind == "words" else "--:" for column in block.columns]
    rows = [[_cell(cell, column) for cell, column in zip(row, block.columns, strict=True)] for row in block.rows]
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rules, *rows))
    return f"{_text(block.caption)}\n\n{lines}" if block.caption else lines


def _cell(cell: Cell, column: Column) -> str:
    text = _text(cell.text) or "–"
    return (f"*{text}*" if column.kind == "published" and cell.text else text) + _marks(cell.marks)


def _marks(marks: Sequence[Mark]) -> str:
    words = [f"**{MARKS[mark][0]}**" if mark == "oracle" else f"*{MARKS[mark][0]}*" for mark in marks]
    return "".join(f" {word}" for word in words)


def _gallery(block: Gallery, links: dict[str, str]) -> str:
    """A table of one row of pictures and one of captions: side by side on every screen that renders Markdown."""
    captions = []
    for shot in block.shots:
        marks = _marks(shot.marks)
        captions.append(f"**{_text(shot.title)}**{marks}<br>{_text(shot.caption)}")
    pictures = [f"![{_text(shot.title)}]({links[shot.name]})" for shot in block.shots]
    rows: Sequence[Sequence[str]] = (pictures, ["---"] * len(pictures), captions)
    lines = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return f"### {_text(block.title)}\n\n{lines}"


def _text(text: str) -> str:
    """One line in which nothing but code spans is markup."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    escaped = [part if part.startswith("`") else re.sub(r"([\\*_<>#\[\]])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", "\\|")


def _anchor(title: str) -> str:
    """As GitHub makes it from a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")

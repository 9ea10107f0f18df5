"""A `Document` as one HTML page that needs nothing else: no font, script, picture or style from anywhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import Any

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
    Shot,
    Table,
    Tile,
    Tiles,
)
from lexitome.evaluation.report.figures import THEME
from lexitome.evaluation.report.overlays import shrink
from lexitome.evaluation.report.page_style import SCRIPT, STYLE

MOST_PICTURES = 6_000_000
"""Bytes of all examples of a page together; beyond, they are made smaller."""
_FILTERED = 12
"""Tables with more rows than this get a field to filter them."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page may not load anything, and a browser sees to it."""
_LONG = 36
"""Characters from which a cell is broken into lines."""
_BAR = (72, 14)


def render_html(document: Document) -> str:
    """The whole page. Every word from data is escaped."""
    shots = [s for section in document.sections for b in section.blocks if isinstance(b, Gallery) for s in b.shots]
    most = MOST_PICTURES // max(1, len(shots))
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in document.facts)
    contents = "".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in document.sections)
    sections = "\n".join(_section(section, most) for section in document.sections)
    title, subtitle = escape(document.title), escape(document.subtitle)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header><div class="head"><div class="name"><b>{title}</b><span>{subtitle}</span></div>
<ul class="facts">{facts}</ul>
<button class="theme" type="button" aria-label="Switch between light and dark">&#9680;</button></div></header>
<div class="page">
<nav aria-label="Contents"><p>Contents</p><ol>{contents}</ol></nav>
<main>
<h1>{title}</h1>
<p class="lead">{subtitle}</p>
{sections}
<footer>Made by Lexitome. This file is complete: it loads nothing and sends nothing.</footer>
</main>
</div>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(section: Section, most: int) -> str:
    parts = []
    for kind, some in groupby(section.blocks, key=type):
        text = "\n".join(_block(block, most) for block in some)
        parts.append(f'<div class="galleries">{text}</div>' if kind is Gallery else text)
    blocks = "\n".join(parts)
    return f'<section id="{section.name}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block, most: int) -> str:
    if isinstance(block, Gallery):
        return _gallery(block, most)
    renderers: dict[type, Callable[[Any], str]] = {
        Table: _table, Tiles: _tiles, Prose: _prose, Notice: _notice, Facts: _facts, Picture: _picture,
        Legend: _legend,
    }  # fmt: skip
    return renderers[type(block)](block)


def _inline(text: str) -> str:
    """Escaped, with `words` between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _prose(block: Prose) -> str:
    return f"<p>{_inline(block.text)}</p>"


def _notice(block: Notice) -> str:
    return f'<div class="notice {block.level}" role="note"><p>{_inline(block.text)}</p></div>'


def _facts(block: Facts) -> str:
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{_inline(value)}</dd>" for name, value in block.pairs)
    title = f"<h3>{escape(block.title)}</h3>" if block.title else ""
    return f'<div class="card facts-card">{title}<dl>{pairs}</dl></div>'


def _marks(marks: Sequence[Mark]) -> str:
    return "".join(
        f'<span class="mark {mark}" title="{escape(MARKS[mark][1])}">{escape(MARKS[mark][0])}</span>' for mark in marks
    )


def _tiles(block: Tiles) -> str:
    return f'<div class="tiles">{"".join(_tile(tile) for tile in block.tiles)}</div>'


def _tile(tile: Tile) -> str:
    number = tile.number
    oracle = " oracle" if "oracle" in number.marks else ""
    value, _, rest = number.text.partition(" ")
    return (
        f'<div class="tile{oracle}"><div class="label">{escape(tile.label)} {_marks(number.marks)}</div>'
        f'<div class="value">{escape(value)} <small>{escape(rest)}</small></div>'
        f"{interval_bar(number, tile.scale, width=240)}"
        f'<div class="detail">{escape(tile.detail)}</div></div>'
    )


def interval_bar(cell: Cell, scale: tuple[float, float], width: int = _BAR[0]) -> str:
    """A small SVG: the interval as a band on a line from one end of the scale to the other, the mean as a dot.

    Values beyond the scale are drawn at its end. Nothing without a number.
    """
    if not isinstance(cell.value, float | int):
        return ""
    height, margin = _BAR[1], 4.0

    def x(value: float) -> float:
        share = (value - scale[0]) / (scale[1] - scale[0])
        return round(margin + (width - 2 * margin) * min(1.0, max(0.0, share)), 1)

    middle = height / 2
    low, high = cell.bounds or (cell.value, cell.value)
    band = f'<rect class="band" x="{x(low)}" y="3" width="{round(max(x(high) - x(low), 1), 1)}" height="8" rx="2"/>'
    return (
        f'<svg class="ci-bar" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path class="track" d="M{margin} {middle}H{width - margin}"/>{band if cell.bounds else ""}'
        f'<circle class="dot" cx="{x(float(cell.value))}" cy="{middle}" r="3"/></svg>'
    )


def _table(block: Table) -> str:
    head = "".join(_head(column) for column in block.columns)
    rows = "\n".join(_row(row, block.columns) for row in block.rows)
    filtered = '<input type="search" placeholder="Filter rows" aria-label="Filter rows">'
    field = filtered if len(block.rows) > _FILTERED else ""
    bar = f'<div class="bar"><p>{_inline(block.caption)}</p>{field}</div>' if block.caption or field else ""
    return (
        f'<div class="card">{bar}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div></div>"
    )


_CLASSES = {"words": "words", "number": "right", "interval": "interval", "published": "right quoted"}


def _head(column: Column) -> str:
    hint = f' title="{escape(column.hint)}"' if column.hint else ""
    return (
        f'<th scope="col" class="{_CLASSES[column.kind]}" data-kind="{column.kind}"{hint}>'
        f'<button type="button">{escape(column.title)}{_marks(column.marks)}</button></th>'
    )


def _row(row: Sequence[Cell], columns: Sequence[Column]) -> str:
    oracle = ' class="oracle"' if any("oracle" in cell.marks for cell in row) else ""
    cells = "".join(
        _cell(cell, column, first=i == 0) for i, (cell, column) in enumerate(zip(row, columns, strict=True))
    )
    return f"<tr{oracle}>{cells}</tr>"


def _cell(cell: Cell, column: Column, *, first: bool) -> str:
    key = "" if cell.value is None and column.kind != "words" else str(cell.text if cell.value is None else cell.value)
    hint = f' title="{escape(cell.hint)}"' if cell.hint else ""
    if cell.text == "":
        inner = '<span class="none">–</span>'
    elif column.kind == "interval":
        number, _, rest = cell.text.partition(" ")
        inner = (
            f'<span class="est">{interval_bar(cell, column.scale)}<span class="num">{escape(number)}</span>'
            f'<span class="ci">{escape(rest)}</span>{_marks(cell.marks)}</span>'
        )
    else:
        # Names with underscores may be broken after them, so that they need not widen the column.
        inner = re.sub(r"_(?=\w)", "_<wbr>", _inline(cell.text)) + _marks(cell.marks)
    tag, look = ('th scope="row"' if first else "td"), _CLASSES[column.kind]
    if column.kind in ("words", "published") and len(cell.text) > _LONG:
        look += " long"
    return f'<{tag} class="{look}" data-v="{escape(key)}"{hint}>{inner}</{tag.split()[0]}>'


def _picture(block: Picture) -> str:
    return (
        f'<figure class="card plot"><h3>{escape(block.title)}</h3>'
        f'<div class="wide">{themed(block.svg, block.name)}</div>'
        f"<figcaption>{_inline(block.caption)}</figcaption></figure>"
    )


def themed(svg: str, name: str) -> str:
    """An SVG file as part of the page: without its XML preamble, its colours those of the page, and its names its own,
    since two figures may not share an id."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    points = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    svg = svg.replace("<svg", f'<svg style="min-width:{1.1 * points:.0f}px;max-width:{1.6 * points:.0f}px"', 1)
    svg = re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{name}-", svg)
    for variable, rgb in THEME.items():
        svg = svg.replace(rgb, f"var(--{variable})")
    return svg


def _legend(block: Legend) -> str:
    entries = "".join(
        f'<li><i style="border-color:#{"".join(f"{value:02x}" for value in rgb)}"></i>{escape(words)}</li>'
        for words, rgb in block.entries
    )
    return f'<ul class="legend">{entries}</ul>'


def _gallery(block: Gallery, most: int) -> str:
    shots = "".join(_shot(shot, most) for shot in block.shots)
    return f'<div class="card gallery"><h3>{escape(block.title)}</h3><div class="shots">{shots}</div></div>'


def _shot(shot: Shot, most: int) -> str:
    data, kind = shrink(shot.png, most)
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    alt = escape(f"{shot.title}, {shot.caption}: outlines of reference and prediction")
    return (
        f'<figure><img decoding="async" src="{source}" alt="{alt}"><b>{escape(shot.title)}{_marks(shot.marks)}</b>'
        f"<figcaption>{_inline(shot.caption)}</figcaption></figure>"
    )

"""What a report consists of, before anybody decides how it looks: sections of blocks, which `html` and `markdown` both
render. That is why the two say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Mark = Literal["oracle", "published", "union", "untaught", "external"]
"""Words beside a cell that change how it must be read."""
MARKS: dict[Mark, tuple[str, str]] = {
    "oracle": (
        "ORACLE",
        "The prompt was taken from the reference, which no user has.",
    ),
    "published": ("published", "Quoted from a paper, not measured here."),
    "union": ("union", "A union of labels that the files do not name; left out of every mean."),
    "untaught": ("not taught", "The model was not taught this concept under any name."),
    "external": ("external", "Another hospital, scanner or observer; never used to choose anything."),
}
"""Word on the badge, and what it means."""

Kind = Literal["words", "number", "interval", "published"]


@dataclass(frozen=True)
class Cell:
    """One field of a table.

    Args:
        text: as it is read.
        value: what sorting and drawing use; None sorts last.
        bounds: the interval around `value`, in its unit.
        hint: shown on hovering.
    """

    text: str
    value: float | str | None = None
    bounds: tuple[float, float] | None = None
    marks: tuple[Mark, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """Args:
    kind: "published" columns hold quoted numbers and are marked as a whole.
    scale: the values at the left and right end of a drawn interval.
    oracle: all of its numbers are of oracle prompts; where rows differ in that, their cells say so instead.
    """

    title: str
    kind: Kind = "number"
    hint: str = ""
    scale: tuple[float, float] = (0.0, 100.0)
    oracle: bool = False

    @property
    def marks(self) -> tuple[Mark, ...]:
        oracle: tuple[Mark, ...] = ("oracle",) if self.oracle else ()
        return (*oracle, "published") if self.kind == "published" else oracle


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Tile:
    """One number that sums a run up, with its interval (both in the unit of `scale`) and what it is the mean of."""

    label: str
    number: Cell
    detail: str
    scale: tuple[float, float] = (0.0, 100.0)


@dataclass(frozen=True)
class Tiles:
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Prose:
    """A paragraph; `like this` is code."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something that must not be overlooked."""

    text: str
    level: Literal["note", "warning"] = "note"


@dataclass(frozen=True)
class Facts:
    """Names and values, for machines and for the careful."""

    pairs: tuple[tuple[str, str], ...]
    title: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure. `svg` holds colours of `figures.THEME`, which a page may exchange for its own."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Legend:
    """What a colour (8-bit sRGB) of the examples stands for."""

    entries: tuple[tuple[str, tuple[int, int, int]], ...]


@dataclass(frozen=True)
class Shot:
    """One example: a PNG and what stands below it."""

    png: bytes
    name: str
    title: str
    caption: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Examples of one dataset side by side, worst first."""

    title: str
    shots: tuple[Shot, ...]


Block = Table | Tiles | Prose | Notice | Facts | Picture | Legend | Gallery


@dataclass(frozen=True)
class Section:
    """`name` is the anchor, a word of a-z and hyphens."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """Args:
    facts: short ones for the header: what ran, on how much, when.
    """

    title: str
    subtitle: str
    facts: tuple[str, ...]
    sections: tuple[Section, ...] = field(default=())


def compact(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Without those that have nothing to say."""
    return tuple(section for section in sections if section.blocks)

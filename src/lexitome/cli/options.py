"""How prompts are typed on the command line, and the values they become."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Series = Annotated[
    str | None, typer.Option("--series", metavar="N", help="Which series of a DICOM folder: its number or UID.")
]
Frame = Annotated[
    int | None, typer.Option("--frame", min=1, metavar="N", help="Which page, frame, time point or echo, from 1.")
]
FixSlices = Annotated[
    bool, typer.Option("--fix-slices", help="Resample uneven or sheared slices instead of refusing them.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


class Format(StrEnum):
    """Formats that masks are written in; the value is what the user types."""

    nifti = "nifti"
    nrrd = "nrrd"
    mha = "mha"
    png = "png"
    dicom_seg = "dicom-seg"
    dicom_rtstruct = "dicom-rtstruct"


class SegmentType(StrEnum):
    """How DICOM SEG stores masks: `binary` opens in older viewers, `labelmap` is smaller and ten times quicker."""

    binary = "binary"
    labelmap = "labelmap"


class Policy(StrEnum):
    """Which of SAM3's answers is the mask: its best object, all good ones, or its map of everything that fits."""

    best = "best"
    union = "union"
    semantic = "semantic"
    semantic_presence = "semantic-presence"


PolicyOption = Annotated[
    Policy | None,
    typer.Option(
        "--policy",
        metavar="POLICY",
        help="SAM3: which answer is the mask: best, union, semantic or semantic-presence. By default as trained.",
    ),
]
Side = Annotated[
    int | None,
    typer.Option("--side", min=1, metavar="PIXELS", help="SAM3: size at which it looks; 560 is quicker than 1008."),
]


class Precision(StrEnum):
    """Of SAM3's computation."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="SAM3: float32, bfloat16, int8 (quickest, less exact), or auto: bfloat16 where the processor has it.",
    ),
]


@dataclass(frozen=True)
class Corners:
    """A box as typed: (x0, y0, x1, y1) or (x0, y0, x1, y1, z0, z1), voxel coordinates."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Click:
    """A point as typed: (x, y) or (x, y, z), voxel coordinates, on what is wanted or on what is not."""

    values: tuple[float, ...]
    inside: bool = True


def parse_box(typed: str) -> Corners:
    """`x0,y0,x1,y1[,z0,z1]`.

    Raises:
        ValueError: other than four or six finite numbers.
    """
    values = _numbers(typed.split(","))
    if len(values) not in (4, 6):
        raise ValueError(f"{typed!r} is not x0,y0,x1,y1 or x0,y0,x1,y1,z0,z1")
    return Corners(values)


def parse_point(typed: str) -> Click:
    """`x,y[,z][,+|-]`: the sign says whether the thing is there (default) or is not.

    Raises:
        ValueError: other than two or three finite numbers.
    """
    parts = [part.strip() for part in typed.split(",")]
    sign = parts.pop() if parts[-1] in ("+", "-") else "+"
    values = _numbers(parts)
    if len(values) not in (2, 3):
        raise ValueError(f"{typed!r} is not x,y or x,y,z, with an optional ,+ or ,- at the end")
    return Click(values, inside=sign == "+")


def _numbers(parts: list[str]) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        raise ValueError(f"{','.join(parts)!r} holds something that is not a number") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{','.join(parts)!r} holds a number that is not finite")
    return values


@dataclass(frozen=True)
class Ask:
    """What to find in an input, and which part of the input to look at."""

    texts: tuple[str, ...] = ()
    boxes: tuple[Corners, ...] = ()
    points: tuple[Click, ...] = ()
    series: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Job:
    """One input and the folder its results go to."""

    source: Path
    folder: Path
    ask: Ask


@dataclass(frozen=True)
class Settings:
    """What holds for all jobs of a run; `format` None means what is natural for the input."""

    format: Format | None = None
    combined: bool = False
    segment_type: SegmentType = SegmentType.binary
    preview: bool = False
    stats: bool = False
    instances: bool = False
    flips: bool | None = None
    model: str = "compact"
    policy: Policy | None = None
    side: int | None = None
    precision: str | None = None
    threads: int | None = None
    fix_slices: bool = False
    overwrite: bool = True

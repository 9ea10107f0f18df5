"""A look at a dataset before a recipe is planned: how large, how thin, how many, and how far apart in millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lexitome.data.cases import read_case
from lexitome.data.dataset import Case, Dataset
from lexitome.data.intensity import views_of

SAMPLE = 24
"""Cases that are looked at."""
SQUARE = 1.05
"""Pixels whose sides differ by more than this factor are made square before shapes are measured."""


@dataclass(frozen=True)
class Spacing:
    """Medians over the cases that say how large their voxels are, in millimetres.

    Attributes:
        pixel: the longer side of a pixel of a slice.
        gap: from slice to slice (of a single picture: what its file says).
        smallest, largest: diameter of a disc as large as the smallest and the largest target are in a slice; 0 where
            nothing is drawn.
        narrowest: width of the narrowest target.
    """

    pixel: float
    gap: float
    smallest: float = 0.0
    largest: float = 0.0
    narrowest: float = 0.0


@dataclass(frozen=True)
class Look:
    """What a sample of a dataset's cases looks like.

    Attributes:
        slices: cut from a case, along every axis that it is cut along; the mean.
        across: voxels, the median of the longer side of a slice.
        width: of the narrowest target, as a fraction of the picture's longer side in square pixels.
        parts: connected parts of a target in a picture, the mean of the target that has most.
        compactness: of those parts, weighted by area.
        spacing: None where no case says it.
        cubic: share of the cases that are cut along all three axes (`data.intensity.views_of`).
    """

    cases: int
    slices: float
    across: int
    width: float
    parts: float
    compactness: float
    spacing: Spacing | None = None
    cubic: float = 0.0


@dataclass(frozen=True)
class Shape:
    """A target in one picture, see `Look`."""

    width: float
    parts: int
    compactness: float


@dataclass(frozen=True)
class Extent:
    """A target in one slice in millimetres: diameter of a disc of its area, and how wide it is where it is narrow."""

    diameter: float
    width: float


@dataclass(frozen=True)
class CaseLook:
    """One case: its targets by name, `extents` only where `spacing` (mm along slice, row, column) is known."""

    slices: int
    across: int
    directions: int
    spacing: tuple[float, float, float] | None
    shapes: dict[str, Shape]
    extents: dict[str, Extent]


def look_at(dataset: Dataset) -> Look:
    """Read up to `SAMPLE` cases, evenly spread."""
    chosen = np.linspace(0, len(dataset.cases) - 1, min(SAMPLE, len(dataset.cases))).round().astype(int)
    seen = [look_at_case(dataset.cases[i], dataset) for i in chosen]
    found = {t.name: [case.shapes[t.name] for case in seen if t.name in case.shapes] for t in dataset.targets}
    drawn = [shapes for shapes in found.values() if shapes]
    most = max(drawn, key=lambda shapes: np.mean([s.parts for s in shapes]), default=[Shape(1.0, 0, 1.0)])
    return Look(
        cases=len(dataset.cases),
        slices=float(np.mean([case.slices for case in seen])),
        across=int(np.median([case.across for case in seen])),
        width=min((float(np.mean([s.width for s in shapes])) for shapes in drawn), default=1.0),
        parts=float(np.mean([s.parts for s in most])),
        compactness=float(np.mean([s.compactness for s in most])),
        spacing=_typical(seen),
        cubic=float(np.mean([case.directions > 1 for case in seen])),
    )


def look_at_case(case: Case, dataset: Dataset) -> CaseLook:
    """The first direction that a case is cut in decides what its targets look like."""
    volume, codes = read_case(case)
    views = views_of(volume)
    planes = views[0].apply(codes)
    gap, high, wide = (volume.spacing[2 - axis] for axis in views[0].order)
    pixel = (high, wide) if volume.spacing_known else (1.0, 1.0)
    shapes, extents = {}, {}
    for target in dataset.targets:
        shown = np.isin(planes, target.codes)
        plane = shown[int(shown.sum((1, 2)).argmax())]
        if plane.any():
            shape = shapes[target.name] = shape_of(square(plane, pixel))
            field = max(plane.shape[0] * pixel[0], plane.shape[1] * pixel[1])
            disc = 2 * float(np.sqrt(plane.sum() * pixel[0] * pixel[1] / np.pi))
            extents[target.name] = Extent(disc, shape.width * field)
    return CaseLook(
        slices=sum(codes.shape[view.order[0]] for view in views),
        across=max(codes.shape[axis] for view in views for axis in view.order[1:]),
        directions=len(views),
        spacing=(gap, high, wide) if volume.spacing_known else None,
        shapes=shapes,
        extents=extents if volume.spacing_known else {},
    )


def square(mask: NDArray[np.bool_], pixel: tuple[float, float]) -> NDArray[np.bool_]:
    """The mask with the shorter side of its pixels along rows and columns; `pixel`: height and width of a pixel."""
    if max(pixel) <= SQUARE * min(pixel):
        return mask
    rows, columns = (
        (np.arange(round(n * size / min(pixel))) * min(pixel) / size).astype(int).clip(0, n - 1)
        for n, size in zip(mask.shape, pixel, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def shape_of(mask: NDArray[np.bool_]) -> Shape:
    """(Y, X), not empty, square pixels. A band of width w and length l has the area l w and twice l of border."""
    labels, count = ndimage.label(mask)
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    border = np.bincount(labels[mask & ~ndimage.binary_erosion(mask)], minlength=count + 1)[1:]
    roundness = np.minimum(4 * np.pi * area / np.maximum(border, 1) ** 2, 1.0)
    width = 2.0 * area.sum() / max(border.sum(), 1) / max(mask.shape[0], mask.shape[1])
    return Shape(float(width), count, float(np.average(roundness, weights=area)))


def _typical(seen: Sequence[CaseLook]) -> Spacing | None:
    known = [case.spacing for case in seen if case.spacing is not None]
    if not known:
        return None
    gap, pixel = np.median([(slices, max(rows, columns)) for slices, rows, columns in known], axis=0)
    found: dict[str, list[Extent]] = {}
    for case in seen:
        for name, extent in case.extents.items():
            found.setdefault(name, []).append(extent)
    discs = [float(np.mean([e.diameter for e in extents])) for extents in found.values()]
    widths = [float(np.mean([e.width for e in extents])) for extents in found.values()]
    smallest, largest, narrowest = min(discs, default=0.0), max(discs, default=0.0), min(widths, default=0.0)
    return Spacing(float(pixel), float(gap), smallest, largest, narrowest)

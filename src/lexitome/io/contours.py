"""Outlines of a mask as closed polygons, holes included."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""(N, 2) vertices (x, y) in voxel coordinates; the last is joined to the first and not repeated."""

_Polygons = tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]


def outlines(mask: NDArray[np.bool_]) -> list[Ring]:
    """Polygons of one slice (Y, X), one for each region; a region's holes are joined to its outline by keyholes.

    Marching squares at half-voxel precision: an edge between two voxels is crossed in the middle, so every voxel
    centre lies on the right side and filling the polygons (even-odd) recovers the mask exactly.
    """
    import contourpy

    if not mask.any():
        return []
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = rows[0], columns[0]
    crop = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # One voxel of background all round closes the outlines of structures that touch the image border.
    field = np.pad(crop, 1).astype(np.float64)
    generator = contourpy.contour_generator(z=field, name="serial", fill_type=contourpy.FillType.OuterOffset)
    # OuterOffset gives, for each polygon, its points and where each of its rings begins.
    points, offsets = cast(_Polygons, generator.filled(0.5, 2.0))
    shift = np.array([left - 1, top - 1], dtype=np.float64)
    return [_polygon(p, o, field) + shift for p, o in zip(points, offsets, strict=True)]


def _polygon(points: NDArray[np.float64], offsets: NDArray[np.uint32], field: NDArray[np.float64]) -> Ring:
    """One outer ring and its holes, as contourpy gives them (each ring repeats its first point), as one ring."""
    rings = [points[start : end - 1] for start, end in pairwise(offsets.tolist())]
    return _drop_collinear(_keyhole(rings, field) if len(rings) > 1 else rings[0])


def _keyhole(rings: list[Ring], field: NDArray[np.float64]) -> Ring:
    """Join the holes `rings[1:]` to the outline `rings[0]` by channels of no width.

    From its leftmost vertex a hole is joined to the first boundary on its left, along a row of voxel centres, where
    marching squares has put a vertex. A channel is walked once in each direction, so it changes no inside, and it
    never crosses another boundary.
    """
    vertices = {(x, y): (r, v) for r, ring in enumerate(rings) for v, (x, y) in enumerate(ring.tolist())}
    splices: list[list[tuple[int, Ring]]] = [[] for _ in rings]
    # What a hole meets on its left begins further left than itself, so from right to left each hole is complete
    # (all that hangs on it is spliced in) before it is spliced into another.
    for index in sorted(range(1, len(rings)), key=lambda i: -rings[i][:, 0].min()):
        ring = rings[index]
        start = int(ring[:, 0].argmin())
        x, y = ring[start]
        wall = np.flatnonzero(field[int(y), : int(x) + 1] < 0.5)[-1] + 0.5
        owner, anchor = vertices[(float(wall), float(y))]
        loop = _splice(ring, splices[index])
        first = int(np.flatnonzero((loop == ring[start]).all(axis=1))[0])
        loop = np.roll(loop, -first, axis=0)
        splices[owner].append((anchor, np.concatenate([loop, loop[:1]])))
    return _splice(rings[0], splices[0])


def _splice(ring: Ring, splices: list[tuple[int, Ring]]) -> Ring:
    """Insert closed loops after the given vertices, coming back to the vertex after each loop."""
    pieces, begin = [], 0
    for vertex, loop in sorted(splices, key=lambda splice: splice[0]):
        pieces += [ring[begin : vertex + 1], loop]
        begin = vertex
    return np.concatenate([*pieces, ring[begin:]])


def _drop_collinear(ring: Ring) -> Ring:
    """Remove vertices on straight runs; turns, and the ends of keyholes (where the path reverses), stay."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    forward = (before * after).sum(axis=1) > 0
    return ring[~(forward & (np.abs(cross) < 1e-9))]

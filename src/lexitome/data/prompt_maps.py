"""Spatial prompts as maps (3, S/4, S/4): inside the box, near positive points, near negative points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STRIDE = 4
POINT_SIGMA = 2.0  # in map pixels


def box_map(shape: tuple[int, int], boxes: Sequence[tuple[float, float, float, float]]) -> NDArray[np.float32]:
    """(S/4, S/4): 1 inside any (x0, y0, x1, y1), in map pixels; at least one pixel for each box."""
    plane = np.zeros(shape, dtype=np.float32)
    for x0, y0, x1, y1 in boxes:
        left, top = int(np.clip(round(x0), 0, shape[1] - 1)), int(np.clip(round(y0), 0, shape[0] - 1))
        plane[top : max(round(y1), top + 1), left : max(round(x1), left + 1)] = 1.0
    return plane


def point_map(shape: tuple[int, int], points: Sequence[tuple[float, float]]) -> NDArray[np.float32]:
    """(S/4, S/4): a Gaussian bump of height 1 at each (x, y), in map pixels."""
    plane = np.zeros(shape, dtype=np.float32)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    for x, y in points:
        bump = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * POINT_SIGMA**2))
        plane = np.maximum(plane, bump.astype(np.float32))
    return plane


def draw_map(mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A prompt a user could have given for one connected part of `mask` (S, S), and the mask it asks for.

    Half of the time a box, its sides moved by up to a tenth; else one to three points inside and maybe one outside.
    """
    from scipy import ndimage  # a fifth of a second that only training has to wait for

    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:].astype(np.float64)
    chosen = parts == 1 + int(rng.choice(count, p=sizes / sizes.sum()))
    shape = (mask.shape[0] // STRIDE, mask.shape[1] // STRIDE)
    rows, columns = np.nonzero(chosen)
    maps = np.zeros((3, *shape), dtype=np.float32)
    if rng.random() < 0.5:
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)
        sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
        x0, y0, x1, y1 = (box + rng.uniform(-0.1, 0.1, 4) * sides) / STRIDE
        maps[0] = box_map(shape, [(x0, y0, x1, y1)])
        return maps, chosen
    inside = rng.integers(len(rows), size=int(rng.integers(1, 4)))
    maps[1] = point_map(shape, [((columns[i] + 0.5) / STRIDE - 0.5, (rows[i] + 0.5) / STRIDE - 0.5) for i in inside])
    if rng.random() < 0.4:
        x, y = rng.uniform(0, mask.shape[1]), rng.uniform(0, mask.shape[0])
        if not chosen[int(y), int(x)]:
            maps[2] = point_map(shape, [(x / STRIDE - 0.5, y / STRIDE - 0.5)])
    return maps, chosen

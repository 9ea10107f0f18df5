"""Spatial prompts as maps (4, S/4, S/4): inside the box, near positive points, near negative points, mask so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRIDE = 4
BOX, INSIDE, OUTSIDE, MASK = range(4)
CHANNELS = 4
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


@dataclass(frozen=True, eq=False)
class Place:
    """Where a user pointed, and what that asks for: ``maps`` (4, S/4, S/4), ``mask`` (S, S) bool."""

    maps: NDArray[np.float32]
    mask: NDArray[np.bool_]


def draw_place(mask: NDArray[np.bool_], rng: np.random.Generator) -> Place:
    """A spatial prompt that a user could have given for the target `mask` (S, S), not empty.

    Half of the time a box around one connected part or around all of them, its sides moved by about a twentieth; it
    asks for the parts that lie in it. Else points: up to three in one part and maybe one beside it. A fifth of all
    prompts is a correction instead: a wrong mask so far, with or without points where it is wrong.
    """
    from scipy import ndimage  # a fifth of a second that only training has to wait for

    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:].astype(np.float64)
    one = parts == 1 + int(rng.choice(count, p=sizes / sizes.sum()))
    kind = rng.random()
    if kind < 0.5:
        return _draw_box(parts, sizes, one if rng.random() < 0.5 else mask, rng)
    if kind < 0.8:
        return _draw_points(one, rng)
    return _draw_correction(one if rng.random() < 0.5 else mask, rng)


def no_place(side: int) -> NDArray[np.float32]:
    """The map of a query that points nowhere."""
    return np.zeros((CHANNELS, side // STRIDE, side // STRIDE), dtype=np.float32)


def _draw_box(
    parts: NDArray[np.int32], sizes: NDArray[np.float64], around: NDArray[np.bool_], rng: np.random.Generator
) -> Place:
    rows, columns = np.nonzero(around)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)
    lengths = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    x0, y0, x1, y1 = box + np.clip(rng.normal(0, 0.05, 4), -0.15, 0.15) * lengths
    inside = np.zeros(parts.shape, dtype=bool)
    inside[max(0, round(y0)) : max(1, round(y1)), max(0, round(x0)) : max(1, round(x1))] = True
    held = np.bincount(parts[inside], minlength=len(sizes) + 1)[1:]
    asked = np.concatenate([[False], held >= 0.5 * sizes])[parts]
    maps = no_place(parts.shape[0])
    maps[BOX] = box_map(maps.shape[1:], [(x0 / STRIDE, y0 / STRIDE, x1 / STRIDE, y1 / STRIDE)])
    return Place(maps, asked if asked.any() else around)


def _draw_points(one: NDArray[np.bool_], rng: np.random.Generator) -> Place:
    maps = no_place(one.shape[0])
    maps[INSIDE] = _bumps(one, int(rng.integers(1, 4)), rng)
    if rng.random() < 0.4 and not one.all():
        maps[OUTSIDE] = _bumps(~one, 1, rng)
    return Place(maps, one)


def _draw_correction(mask: NDArray[np.bool_], rng: np.random.Generator) -> Place:
    """A mask with errors as the prompt, and in two of three cases a point in what is missing or too much."""
    from scipy import ndimage

    wrong = _spoil(mask, rng)
    if not wrong.any() or (wrong == mask).all():  # nothing left, or no error: drawn too wide instead
        wrong = ndimage.binary_dilation(mask, iterations=max(1, round(0.1 * math.sqrt(mask.sum()))))
    maps = no_place(mask.shape[0])
    maps[MASK] = wrong.reshape(maps.shape[1], STRIDE, maps.shape[2], STRIDE).mean((1, 3))
    missing, excess = mask & ~wrong, wrong & ~mask
    if rng.random() < 0.67:
        if missing.sum() >= excess.sum() and missing.any():
            maps[INSIDE] = _bumps(missing, 1, rng)
        elif excess.any():
            maps[OUTSIDE] = _bumps(excess, 1, rng)
    return Place(maps, mask)


def _spoil(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask as a careless tool would draw it: moved, cut by a line, or with a disc too much or too little."""
    side = mask.shape[0]
    rows, columns = np.nonzero(mask)
    size = math.sqrt(len(rows))
    y, x = np.ogrid[:side, :side]
    at = int(rng.integers(len(rows)))
    kind = rng.random()
    if kind < 0.3:
        shift = rng.normal(0, 0.15 * size, 2).round().astype(int)
        return np.roll(mask, tuple(shift), (0, 1))
    if kind < 0.6:
        angle = rng.uniform(0, 2 * math.pi)
        return mask & ((x - columns[at]) * math.cos(angle) + (y - rows[at]) * math.sin(angle) < 0.25 * size)
    disc = (x - columns[at]) ** 2 + (y - rows[at]) ** 2 < (rng.uniform(0.2, 0.6) * size) ** 2
    return mask & ~disc if kind < 0.8 else mask | np.roll(disc, int(0.4 * size), int(rng.integers(2)))


def _bumps(where: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    rows, columns = np.nonzero(where)
    chosen = rng.integers(len(rows), size=count)
    shape = (where.shape[0] // STRIDE, where.shape[1] // STRIDE)
    return point_map(shape, [((columns[i] + 0.5) / STRIDE - 0.5, (rows[i] + 0.5) / STRIDE - 0.5) for i in chosen])

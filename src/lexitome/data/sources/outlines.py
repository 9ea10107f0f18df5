"""Outlines to masks: the run lengths and polygons of COCO annotations.

Run lengths go down the columns and begin with background; as text they are numbers of 5-bit digits, lowest first, each
from the third on relative to the one two before it (the format of `maskApi` in cocodataset/cocoapi).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FIRST_DIGIT, _DIGIT_BITS, _MORE, _SIGN = 48, 5, 0x20, 0x10


def runs_from_text(text: str | bytes) -> list[int]:
    """Lengths of the runs in compressed COCO text.

    Raises:
        ValueError: the text ends in the middle of a number, or holds a character that is no digit.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text.encode() if isinstance(text, str) else text:
        digit = character - _FIRST_DIGIT
        if not 0 <= digit < 64:
            raise ValueError(f"{chr(character)!r} is no digit of run lengths")
        number |= (digit & 0x1F) << shift
        shift += _DIGIT_BITS
        if digit & _MORE:
            continue
        if digit & _SIGN:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError("run lengths end in the middle of a number")
    return runs


def mask_from_runs(runs: list[int], height: int, width: int) -> NDArray[np.bool_]:
    """(height, width) mask of alternating runs, background first, column by column.

    Raises:
        ValueError: the runs do not add up to the picture.
    """
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"run lengths do not add up to {width} x {height} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def fill_polygon(mask: NDArray[np.bool_], corners_xy: NDArray[np.floating]) -> None:
    """Set the pixels of (Y, X) `mask` whose centre lies inside the polygon (even-odd rule).

    Args:
        corners_xy: (N, 2) corners; pixel (0, 0) covers [0, 1) x [0, 1).
    """
    height, width = mask.shape
    low = np.clip(np.floor(corners_xy.min(0)).astype(int), 0, (width, height))
    high = np.clip(np.ceil(corners_xy.max(0)).astype(int) + 1, 0, (width, height))
    if (high <= low).any():
        return
    # Every edge that crosses the line through a row's centres changes inside to outside from there to the right.
    crossings = np.zeros((high[1] - low[1], high[0] - low[0] + 1), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(corners_xy, np.roll(corners_xy, -1, axis=0), strict=True):
        first, last = np.ceil(np.sort((y0, y1)) - 0.5).astype(int)
        rows = np.arange(max(first, low[1]), min(last, high[1]))
        if rows.size:
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            columns = np.clip(np.ceil(x - 0.5).astype(int) - low[0], 0, crossings.shape[1] - 1)
            crossings[rows - low[1], columns] += 1
    inside = crossings.cumsum(axis=1)[:, :-1] % 2 == 1
    mask[low[1] : high[1], low[0] : high[0]] |= inside

"""Slices made one body: probabilities of neighbouring slices support each other, specks go.

Thresholds were chosen on the validation parts of the 3D training sets.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

SMOOTHING = (0.25, 0.5, 0.25)
SMALLEST_PART = 0.1
"""Connected parts below this fraction of the largest are dropped (one organ, one body)."""


def smooth_slice(
    probability: NDArray[np.floating], index: int, pointed: Collection[int] = frozenset()
) -> NDArray[np.float32]:
    """One of (slice, row, column) probabilities, averaged with its neighbours along the slice axis, edges repeated.

    Slice by slice, since a volume of them in float32 would fill the memory.

    Args:
        pointed: slices on which the user pointed at it. Where they end, they are repeated like edges: that the next
            slice was not asked about, or does not show it, says nothing against a click.
    """
    last = len(probability) - 1
    if last < 2:
        return probability[index].astype(np.float32)
    near = [min(max(index + step, 0), last) for step in (-1, 0, 1)]
    near = [index if index in pointed and other not in pointed else other for other in near]
    parts = zip(SMOOTHING, (probability[other] for other in near), strict=True)
    return np.asarray(sum(weight * part.astype(np.float32) for weight, part in parts), dtype=np.float32)


def drop_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the 3D connected parts (26 neighbours) of at least `SMALLEST_PART` of the largest one's size."""
    from scipy import ndimage  # here, so that 2D images do not wait for it

    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return mask
    parts, count = ndimage.label(mask[boxes[0]], structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    sizes = part_sizes(parts, count)
    sizes[0] = 0
    kept = np.zeros_like(mask)
    kept[boxes[0]] = (sizes >= SMALLEST_PART * sizes.max())[parts]
    return kept


def part_sizes(parts: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """(count + 1,) pixels of each id of a label map (Z, ...), plane by plane: counting takes 8 bytes a pixel."""
    return sum((np.bincount(plane.ravel(), minlength=count + 1) for plane in parts), np.zeros(count + 1, np.int64))

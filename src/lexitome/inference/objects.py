"""One mask, many objects: told apart by their centres in a picture, by being connected in a volume.

In a picture every pixel of the mask points at the centre of its object and goes to the peak of the centre heat that is
nearest to where it points (Cheng et al. 2020, Panoptic-DeepLab, section 3.3); objects that touch are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lexitome.inference.consistency import part_sizes

OFFSET_UNIT = 16.0
"""Offsets are given in this many pixels of their map (`models.compact.OFFSET_UNIT`, which is behind torch)."""
PEAK_HEAT = 0.3
"""A peak is a centre from this heat. To be chosen on validation data."""
PEAK_RADIUS = 2
"""Two centres are at least this far apart, in pixels of the heat map."""
SMALLEST_OBJECT = 0.1
"""A part of the mask that has no peak is an object of its own from this fraction of the median object's size."""
MOST_OBJECTS = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True, eq=False)
class CentreMaps:
    """What the centre head says of one query about one picture.

    Args:
        heat: (h, w) float32, probability that an object's centre is here.
        offsets: (2, h, w) float32, the way (y, x) from here to the centre of the object, in units of `OFFSET_UNIT`.
    """

    heat: NDArray[np.float32]
    offsets: NDArray[np.float32]


def separate(mask: NDArray[np.bool_], centres: CentreMaps) -> NDArray[np.uint16]:
    """(H, W) ids of the objects in a mask (H, W) of any size, 1 and up without gaps; 0 outside, nowhere else."""
    if not mask.any():
        return np.zeros(mask.shape, np.uint16)
    from scipy import ndimage  # a fifth of a second that a picture without objects need not wait for

    parts, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(centres.heat.shape, mask.shape, strict=True)
    )
    small = mask[np.ix_(rows, columns)]
    y, x = _peaks(centres.heat, small)
    if len(y) == 0:
        return _number(parts)
    inside = np.nonzero(mask)
    ids = np.zeros(mask.shape, np.int32)
    ids[inside] = _nearest_peak(y, x, small.shape)[_votes(centres.offsets, small, inside, mask.shape)]
    sizes = np.bincount(parts.ravel())
    alone = sizes >= SMALLEST_OBJECT * np.median(np.bincount(ids[inside])[1:])
    alone[[0, *parts[rows[y], columns[x]]]] = False
    lonely = alone[parts]
    ids[lonely] = parts[lonely] + len(y)
    return _number(ids)


def connected(mask: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """(Z, Y, X) ids of the parts of a mask that touch at least at a corner."""
    found = np.zeros(mask.shape, np.uint16)
    if not mask.any():
        return found
    from scipy import ndimage

    for box in ndimage.find_objects(mask.view(np.uint8)):  # one at most; labels take twice the memory of `found`
        found[box] = _number(ndimage.label(mask[box], structure=np.ones((3,) * mask.ndim))[0])
    return found


def _peaks(heat: NDArray[np.float32], inside: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the local maxima inside the mask; of a plateau one pixel."""
    from scipy import ndimage

    hot = np.where(inside, heat, 0)
    highest = ndimage.maximum_filter(hot, size=2 * PEAK_RADIUS + 1, mode="constant")
    plateaus, count = ndimage.label((hot == highest) & (hot >= PEAK_HEAT), structure=np.ones((3, 3)))
    _, first = np.unique(plateaus, return_index=True)
    y, x = np.unravel_index(first[-count:] if count else first[:0], heat.shape)
    return y, x


def _nearest_peak(y: NDArray[np.intp], x: NDArray[np.intp], shape: tuple[int, ...]) -> NDArray[np.int32]:
    """(h, w): which peak, from 1, is nearest to each pixel."""
    number = np.zeros(shape, np.int32)
    number[y, x] = np.arange(1, len(y) + 1)
    return np.asarray(number[_nearest(number > 0)])


def _nearest(marked: NDArray[np.bool_]) -> tuple[NDArray[np.int32], ...]:
    """Row and column (h, w) of the marked pixel that is nearest to each."""
    from scipy import ndimage

    return tuple(ndimage.distance_transform_edt(~marked, return_distances=False, return_indices=True))


def _votes(
    offsets: NDArray[np.float32], small: NDArray[np.bool_], inside: tuple[NDArray[np.intp], ...], shape: tuple[int, ...]
) -> tuple[NDArray[np.intp], ...]:
    """Where the pixels `inside` a mask of `shape` (H, W) point at: rows and columns of the heat map.

    Offsets mean something inside the mask only (`small` (h, w), never empty), so the edge takes those from within.
    """
    from PIL import Image

    found, within = [], _nearest(small)
    for axis, way in enumerate(offsets):
        size = way.shape[axis]
        here = np.expand_dims(np.arange(size, dtype=np.float32), 1 - axis)
        votes = (here + OFFSET_UNIT * way)[within]
        there = np.asarray(Image.fromarray(votes).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
        found.append(np.clip(np.rint(there[inside]), 0, size - 1).astype(np.intp))
    return tuple(found)


def _number(ids: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Ids made 1, 2, ... in order; of more than `MOST_OBJECTS` objects the largest."""
    sizes = part_sizes(ids, int(ids.max()))
    sizes[0] = 0
    if np.count_nonzero(sizes) > MOST_OBJECTS:
        sizes[np.argsort(sizes)[:-MOST_OBJECTS]] = 0
    numbers = np.where(sizes > 0, np.cumsum(sizes > 0), 0).astype(np.uint16)
    return numbers[ids]

"""Distances between the surfaces of two masks, and overlap of the bands along them.

There is a surface element at every corner of the voxel grid around which the 8 voxels (4 pixels) disagree, as in
Nikolov et al., "Clinically applicable segmentation of head and neck anatomy" (JMIR 2021). Unlike theirs it does not lie
at the corner but where the surface passes it, see `element_kinds`; why is said in docs/metrics.md. Everything outside
the array is outside the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lexitome.evaluation.metrics.geometry import Matrix, voxel_size
from lexitome.evaluation.metrics.nearest import distances_to_nearest
from lexitome.evaluation.metrics.overlap import Mask

Floats = NDArray[np.float64]
ROUNDING = 1e-9
"""Three voxels of 0.7 mm lie within 2.1 mm, whatever 3 * 0.7 is in binary."""
_NEAR = 4.0
"""Voxels within which most elements of a mask that is nearly right find the other surface."""
_DENSE = 16
"""One corner in so many makes a surface dense."""


@dataclass(frozen=True, eq=False)
class Elements:
    """The surface of one mask.

    Args:
        codes: for each corner of the grid which voxels around it are set, one bit each; one longer than the mask on
            each axis.
        corners: (n, d) those with an element, in array order; corner i lies half a voxel before the centre of voxel i.
        places: (n, d) where the elements are, in the unit of lengths.
        sizes: (n,) areas in 3D, lengths in 2D.
    """

    codes: NDArray[np.uint8]
    corners: NDArray[np.int64]
    places: Floats
    sizes: Floats


@dataclass(frozen=True, eq=False)
class Distances:
    """From every element of one surface to the nearest of the other, sorted, and the sizes of the elements."""

    of_prediction: Floats
    of_reference: Floats
    predicted_sizes: Floats
    reference_sizes: Floats


def elements(mask: Mask, matrix: Matrix) -> Elements:
    """The surface of a mask (Z, Y, X) or (Y, X).

    Args:
        matrix: (d, d), see `geometry.metric_matrix`.
    """
    codes, corners = corners_of(mask)
    kinds = codes[tuple(corners.T)]
    normals, offsets = element_kinds(mask.ndim)
    faces = np.linalg.det(matrix) * np.linalg.inv(matrix).T  # takes areas in voxels, as vectors, to areas in the world
    sizes = np.linalg.norm(normals @ faces.T, axis=1)
    places = corners @ matrix.T + (offsets @ matrix.T).take(kinds, axis=0)
    return Elements(codes, corners, places, sizes[kinds])


def corners_of(mask: Mask) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The corners of the grid around which voxels disagree, see `Elements.codes` and `Elements.corners`."""
    codes = np.pad(mask, 1).view(np.uint8)
    for axis in range(mask.ndim):
        before = tuple(slice(-1) if other == axis else slice(None) for other in range(mask.ndim))
        after = tuple(slice(1, None) if other == axis else slice(None) for other in range(mask.ndim))
        codes = codes[before] | codes[after] << 2**axis
    return codes, np.argwhere((codes > 0) & (codes < 2**2**mask.ndim - 1))


def element_kinds(dims: int) -> tuple[Floats, Floats]:
    """For each of the 2^(2^d) ways in which the voxels around a corner can be set: (., d) normal vector of the surface,
    as long as it is large, and (., d) its place from the corner; in voxels.

    Around a corner meet 2^(d-1) pairs of voxels along each axis, and between them as many parts of faces, each half a
    voxel wide. The component of the normal along an axis is the area of the parts between voxels that differ, so that
    flat surfaces along the axes and their diagonals get their true area. The place is the mean of the points half way
    between the centres of two voxels that differ.
    """
    codes = np.arange(2**2**dims)
    bits = codes[:, None] >> np.arange(2**dims) & 1
    set_around = bits.reshape(len(codes), *(2,) * dims)  # bits count the first axis of the mask fastest
    set_around = set_around.transpose(0, *range(dims, 0, -1))
    normals, offsets = np.zeros((2, len(codes), dims))
    differing = np.zeros(len(codes))
    for axis in range(dims):
        steps = np.diff(set_around, axis=axis + 1)
        differ = np.abs(steps).reshape(len(codes), -1)
        direction = np.where(steps.reshape(len(codes), -1).sum(1) < 0, -1, 1)  # matters with sheared axes only
        normals[:, axis] = direction * differ.mean(1)
        where = np.indices(steps.shape[1:]).reshape(dims, -1).T - 0.5
        where[:, axis] = 0
        offsets += differ @ where
        differing += differ.sum(1)
    return normals, offsets / np.maximum(differing, 1)[:, None]


def distances_between(prediction: Mask, reference: Mask, matrix: Matrix) -> Distances:
    """Both masks of one shape, (Z, Y, X) or (Y, X), neither empty; any crop that holds both gives the same."""
    ours, theirs = elements(prediction, matrix), elements(reference, matrix)
    near = _NEAR * voxel_size(matrix) ** (1 / len(matrix))
    there, sizes_there = _sorted(_to_nearest(ours, theirs, near), ours.sizes)
    back, sizes_back = _sorted(_to_nearest(theirs, ours, near), theirs.sizes)
    return Distances(there, back, sizes_there, sizes_back)


def _to_nearest(start: Elements, goal: Elements, near: float) -> Floats:
    """(n,) exact distances from the elements of `start`; without a search where both surfaces are the same."""
    distances = np.zeros(len(start.corners))
    where = tuple(start.corners.T)
    apart = np.flatnonzero(start.codes[where] != goal.codes[where])
    if len(apart):
        distances[apart] = distances_to_nearest(start.places.take(apart, axis=0), goal.places, near)
    return distances


def _sorted(distances: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(distances)
    return distances[order], sizes[order]


def surface_dice(distances: Distances, tolerance: float) -> float:
    """The share of both surfaces that lies within `tolerance` of the other one (NSD)."""
    limit = tolerance * (1 + ROUNDING)
    near = [
        sizes[: np.searchsorted(values, limit, side="right")].sum()
        for values, sizes in (
            (distances.of_prediction, distances.predicted_sizes),
            (distances.of_reference, distances.reference_sizes),
        )
    ]
    return float(sum(near) / (distances.predicted_sizes.sum() + distances.reference_sizes.sum()))


def hausdorff(distances: Distances, share: float = 1.0) -> float:
    """The least distance within which `share` of either surface has the other one: of two directions the larger."""
    return max(
        _quantile(distances.of_prediction, distances.predicted_sizes, share),
        _quantile(distances.of_reference, distances.reference_sizes, share),
    )


def _quantile(values: Floats, sizes: Floats, share: float) -> float:
    reached = np.cumsum(sizes)
    position = int(np.searchsorted(reached, share * reached[-1] * (1 - ROUNDING)))
    return float(values[min(position, len(values) - 1)])


def average_distance(distances: Distances) -> float:
    """Mean over both surfaces together, by size (ASSD)."""
    total = distances.of_prediction @ distances.predicted_sizes + distances.of_reference @ distances.reference_sizes
    return float(total / (distances.predicted_sizes.sum() + distances.reference_sizes.sum()))


def boundary_iou(prediction: Mask, reference: Mask, matrix: Matrix, width: float) -> float:
    """IoU of the bands of both masks along their own surface (Cheng et al., CVPR 2021), neither mask empty.

    Args:
        width: voxels of the mask whose centre is no further than this from an element of its surface are in the band,
            and so are all that touch the surface.
    """
    bands = [inner_band(mask, matrix, width) for mask in (prediction, reference)]
    return float(np.count_nonzero(bands[0] & bands[1]) / np.count_nonzero(bands[0] | bands[1]))


def inner_band(mask: Mask, matrix: Matrix, width: float) -> Mask:
    """The part of the mask along its surface, in its own shape."""
    steps = _steps_within(matrix, width)
    margin = np.abs(steps).max(axis=0) + 1
    shape = np.add(mask.shape, 2 * margin)
    band = np.zeros(shape, dtype=bool)
    corners = corners_of(mask)[1]
    flat = np.ravel_multi_index(tuple((corners + margin).T), tuple(shape))
    line, offsets = band.reshape(-1), steps @ np.array(band.strides)
    if len(flat) < line.size // _DENSE:
        for offset in offsets:
            line[flat + offset] = True
    else:  # a mask full of holes: whole arrays are quicker than lists
        marked, first, last = np.zeros_like(line), flat[0], flat[-1] + 1
        marked[flat] = True
        for offset in offsets:
            line[first + offset : last + offset] |= marked[first:last]
    inside = tuple(slice(m, m + n) for m, n in zip(margin, mask.shape, strict=True))
    return band[inside] & mask


def _steps_within(matrix: Matrix, width: float) -> NDArray[np.int64]:
    """(n, d) from a corner to the voxels whose centres are within `width` of it, and to those that touch it."""
    reach = np.ceil(width * np.linalg.norm(np.linalg.inv(matrix), axis=1)).astype(int) + 1
    steps = np.stack(np.meshgrid(*(np.arange(-r, r) for r in reach), indexing="ij"), axis=-1).reshape(-1, len(matrix))
    near = np.linalg.norm((steps + 0.5) @ matrix.T, axis=1) <= width * (1 + ROUNDING)
    touching = ((steps == 0) | (steps == -1)).all(axis=1)
    return steps[near | touching]

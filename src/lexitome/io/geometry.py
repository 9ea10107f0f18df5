"""Geometry that readers share: shear, polar decomposition, orthogonal grids, orientation codes.

Affines are (4, 4), voxel (x, y, z, 1) to world mm; the functions hold in RAS+ and in LPS+ alike, unless they say so.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.volume import Source, Volume

NO_SHEAR = 1e-5
"""Largest |cosine| between two axes that is rounding of stored direction cosines: 5 micrometres over 500 mm."""

SMALL_SHEAR = 1e-3
"""Largest |cosine| that is repaired without moving any voxel by more than about half a millimetre over 500 mm."""

AXIS_NAMES = ("LR", "PA", "IS")


def shear(affine: NDArray[np.float64]) -> float:
    """The largest |cosine| of the angle between two voxel axes: 0 for an orthogonal grid."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def orthogonalised(affine: NDArray[np.float64], grid: tuple[int, int, int]) -> NDArray[np.float64]:
    """The nearest affine with orthogonal axes (polar decomposition), same spacing, same centre of the image.

    Args:
        grid: (Z, Y, X).
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    centre = (np.array(grid[::-1]) - 1) / 2
    result = np.eye(4)
    result[:3, :3] = left @ right * spacing
    result[:3, 3] = affine[:3, 3] + (affine[:3, :3] - result[:3, :3]) @ centre
    return result


def settle_shear(path: Path, volume: Volume, *, resample: bool) -> Volume:
    """Makes the voxel axes orthogonal, or refuses; says what it did in `Volume.fixes`.

    Args:
        resample: whether a clearly sheared image may be interpolated onto an orthogonal grid.
    """
    amount = shear(volume.affine)
    if amount <= NO_SHEAR:
        return volume
    if amount < SMALL_SHEAR:
        note = f"axes were {np.degrees(np.arcsin(amount)):.4f} degrees off square: replaced by the nearest square axes"
        return replace(volume, affine=orthogonalised(volume.affine, volume.grid), fixes=(*volume.fixes, note))
    degrees = np.degrees(np.arcsin(min(amount, 1.0)))
    if not resample:
        raise InputError(
            path,
            f"the slices are sheared by {degrees:.2f} degrees (gantry tilt or a non-orthogonal affine)",
            "Use --fix-slices to resample onto a square grid.",
        )
    return resample_square(volume, note=f"resampled onto a square grid: the axes were sheared by {degrees:.2f} degrees")


def resample_square(volume: Volume, note: str) -> Volume:
    """Linear interpolation onto an orthogonal grid that covers the whole image; new voxels take the lowest value.

    The x and y axes of the image keep x exactly and y up to the shear; z is their normal. Per-slice headers no longer
    belong to a slice and are dropped.
    """
    from scipy.ndimage import affine_transform

    axes = volume.affine[:3, :3]
    unit_x = axes[:, 0] / np.linalg.norm(axes[:, 0])
    across = axes[:, 1] - unit_x * (axes[:, 1] @ unit_x)
    unit_y = across / np.linalg.norm(across)
    unit_z = np.cross(unit_x, unit_y)
    unit_z *= np.sign(unit_z @ axes[:, 2])
    directions = np.stack([unit_x, unit_y, unit_z], axis=1)
    spacing = np.abs(np.einsum("ij,ij->j", directions, axes))
    ends = np.array(list(itertools.product(*((0, size - 1) for size in volume.grid[::-1]))), dtype=np.float64)
    corners = (volume.to_world(ends) - volume.affine[:3, 3]) @ directions
    low = corners.min(axis=0)
    size_xyz = np.ceil((corners.max(axis=0) - low) / spacing - 1e-6).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = volume.affine[:3, 3] + directions @ low
    to_source = np.linalg.inv(volume.affine) @ affine
    flipped = to_source[:3, :3][::-1, ::-1]
    planes = [
        affine_transform(
            channel.astype(np.float32),
            flipped,
            offset=to_source[:3, 3][::-1],
            output_shape=tuple(size_xyz[::-1]),
            order=1,
            mode="constant",
            cval=float(channel.min()),
        )
        for channel in volume.array
    ]
    array = np.stack(planes)
    if volume.array.dtype.kind in "iu":
        array = np.rint(array).astype(volume.array.dtype)
    fixes = (*volume.fixes, note)
    return replace(volume, array=array, affine=affine, source=without_headers(volume.source), fixes=fixes)


def interpolate_slices(array: NDArray[np.generic], offsets: NDArray[np.float64], count: int) -> NDArray[np.generic]:
    """(C, Z, Y, X) slices at uneven, increasing `offsets` (Z,) to `count` slices evenly spread from first to last."""
    result = np.empty((array.shape[0], count, *array.shape[2:]), dtype=array.dtype)
    for index, place in enumerate(np.linspace(offsets[0], offsets[-1], count)):
        above = int(np.clip(np.searchsorted(offsets, place), 1, len(offsets) - 1))
        weight = (place - offsets[above - 1]) / (offsets[above] - offsets[above - 1])
        values = array[:, above - 1] * (1.0 - weight) + array[:, above] * weight
        result[:, index] = np.rint(values) if array.dtype.kind in "iu" else values
    return result


def orientation_code(affine_ras: NDArray[np.float64]) -> str:
    """Where the x, y and z voxel axes point, e.g. "LPS" for a plain axial DICOM series (R/L, A/P, S/I).

    For an oblique image, the assignment of voxel axes to patient axes with the largest total cosine.
    """
    axes = affine_ras[:3, :3] / np.linalg.norm(affine_ras[:3, :3], axis=0)
    best = max(itertools.permutations(range(3)), key=lambda world: sum(abs(axes[w, v]) for v, w in enumerate(world)))
    return "".join(AXIS_NAMES[world][int(axes[world, voxel] > 0)] for voxel, world in enumerate(best))


def planar_affine(spacing_xyz: tuple[float, float, float]) -> NDArray[np.float64]:
    """RAS+ affine of an image with known spacing but no orientation: ITK's default, identity in LPS+."""
    x, y, z = spacing_xyz
    return np.diag([-x, -y, z, 1.0])


def without_headers(source: Source) -> Source:
    """For interpolated images, whose slices are no longer those of the source."""
    return replace(source, headers=(), frames=())

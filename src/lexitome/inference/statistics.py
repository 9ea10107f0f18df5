"""Numbers about findings: how large, where, how bright, cut off by the image border or not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import Volume

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601 weights of R, G and B."""

_MEASURED = {1: "value", 3: "luminance"}


def statistics(segmentation: Segmentation) -> dict[str, Any]:
    """A JSON-able table, one entry for each finding under ``findings``.

    Sizes come from the affine's determinant in float64, so oblique and sheared grids are right. Each finding has
    exactly one size: ``volume_ml`` or ``volume_voxels`` (3D), ``area_mm2`` or ``area_px`` (2D), in voxels and pixels
    where the spacing is unknown. ``centroid_world`` is RAS+ mm and given only where spacing is known;
    ``centroid_voxel`` is (x, y, z), ``bounding_box`` first and last voxel inclusive, as a `Box` takes them.
    ``intensity`` is of the image's own values, of the luminance (BT.601) for RGB, of the first channel otherwise.
    ``components`` counts pieces that touch at least at a corner, ``objects`` what the model tells apart (None where it
    does not, see `Finding.instances`). What an empty mask does not have is None.
    """
    volume = segmentation.volume
    return {
        "grid_zyx": list(volume.grid),
        "spacing_xyz": list(volume.spacing),
        "unit": volume.unit,
        "modality": volume.modality,
        "intensity_of": _MEASURED.get(volume.array.shape[0], "first channel"),
        "findings": [_describe(finding, volume) for finding in segmentation.findings],
    }


def size(mask: NDArray[np.bool_], volume: Volume) -> tuple[str, float]:
    """The one size of a mask (Z, Y, X): ("volume_ml" | "volume_voxels" | "area_mm2" | "area_px", value)."""
    voxels = int(np.count_nonzero(mask))
    if not volume.spacing_known:
        return ("area_px" if volume.is_2d else "volume_voxels"), voxels
    axes = volume.affine[:3, :3]
    if volume.is_2d:
        return "area_mm2", voxels * float(np.linalg.norm(np.cross(axes[:, 0], axes[:, 1])))
    return "volume_ml", voxels * abs(float(np.linalg.det(axes))) / 1000.0


def _describe(finding: Finding, volume: Volume) -> dict[str, Any]:
    code = finding.concept.code if finding.concept is not None else None
    key, amount = size(finding.mask, volume)
    entry: dict[str, Any] = {
        "name": finding.name,
        "concept": finding.concept.name if finding.concept is not None else None,
        "code": {"value": code.value, "scheme": code.scheme, "meaning": code.meaning} if code else None,
        "found": finding.found,
        "presence": float(finding.presence),
        "score": float(finding.score),
        "voxels": int(np.count_nonzero(finding.mask)),
        "objects": finding.objects,
        key: amount,
    }
    return entry | (_shape(finding.mask, volume) if finding.found else _NOTHING)


_NOTHING: dict[str, Any] = {
    "components": 0,
    "centroid_world": None,
    "centroid_voxel": None,
    "bounding_box": None,
    "touches_border": None,
    "intensity": None,
}


def _shape(mask: NDArray[np.bool_], volume: Volume) -> dict[str, Any]:
    from scipy import ndimage

    # All below happens inside the bounding box: findings are often small and volumes large.
    box = tuple(
        slice(int(hit[0]), int(hit[-1]) + 1)
        for hit in (np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    )
    inside = mask[box]
    counts = [inside.sum(axis=axes, dtype=np.float64) for axes in ((0, 1), (0, 2), (1, 2))]
    (z, y, x), total = box, float(np.count_nonzero(inside))
    centroid = np.array(
        [first.start + float(np.arange(len(n)) @ n) / total for first, n in zip((x, y, z), counts, strict=True)]
    )
    _, components = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    return {
        "components": int(components),
        "centroid_world": volume.to_world(centroid).tolist() if volume.spacing_known else None,
        "centroid_voxel": centroid.tolist(),
        "bounding_box": {axis: [s.start, s.stop - 1] for axis, s in (("x", x), ("y", y), ("z", z))},
        "touches_border": _touches(box, volume),
        "intensity": _intensity(volume.array[(slice(None), *box)][:, inside]),
    }


def _touches(box: tuple[slice, ...], volume: Volume) -> dict[str, bool]:
    """Whether the structure may go on beyond the image: past an edge of the slices, or past the first or last slice.

    A 2D image has no neighbours in z, so there only the edges count.
    """
    at_end = [s.start == 0 or s.stop == length for s, length in zip(box, volume.grid, strict=True)]
    return {"in_plane": at_end[1] or at_end[2], "z_ends": at_end[0] and not volume.is_2d}


def _intensity(channels: NDArray[np.generic]) -> dict[str, float] | None:
    """Of (channel, N) samples; NaN and infinity are left out."""
    samples = LUMINANCE @ channels.astype(np.float64) if len(channels) == 3 else channels[0].astype(np.float64)
    samples = samples[np.isfinite(samples)]
    if samples.size == 0:
        return None
    return {
        "mean": float(samples.mean()),
        "std": float(samples.std()),
        "min": float(samples.min()),
        "max": float(samples.max()),
        "median": float(np.median(samples)),
    }

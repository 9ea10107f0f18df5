"""The geometry report behind `lexitome check`: what was read and where it lies. Holds nothing about the patient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lexitome.io.dicom_files import SeriesInfo
from lexitome.io.dicom_planes import slice_gaps
from lexitome.io.geometry import orientation_code, shear
from lexitome.volume import Volume


def describe(volume: Volume, series: Sequence[SeriesInfo]) -> dict[str, object]:
    """JSON-able facts; lengths in `unit`, world coordinates RAS+, bounds at the outer faces of the voxels."""
    channels, slices, rows, columns = volume.array.shape
    faces = itertools.product(*((-0.5, size - 0.5) for size in (columns, rows, slices)))
    corners = volume.to_world(np.array(list(faces)))
    placed = volume.spacing_known
    gaps = slice_gaps(volume.source.headers) if not volume.source.frames else []
    return {
        "format": volume.source.format,
        "shape": {"channels": channels, "z": slices, "y": rows, "x": columns},
        "dtype": str(volume.array.dtype),
        "modality": volume.modality,
        "unit": volume.unit,
        "spacing": {axis: round(size, 6) for axis, size in zip("xyz", volume.spacing, strict=True)},
        "orientation": orientation_code(volume.affine) if placed else None,
        "handedness": "right" if np.linalg.det(volume.affine[:3, :3]) > 0 else "left",
        "shear": round(shear(volume.affine), 9),
        "affine_ras": volume.affine.tolist(),
        "world_bounds_ras": {"min": corners.min(axis=0).tolist(), "max": corners.max(axis=0).tolist()},
        "value_range": [float(volume.array.min()), float(volume.array.max())],
        "slice_gaps_mm": {"min": min(gaps), "max": max(gaps)} if gaps else None,
        "series": [
            {
                "uid": info.uid,
                "number": info.number,
                "modality": info.modality,
                "description": info.description,
                "slices": info.slices,
                "rows": info.rows,
                "columns": info.columns,
            }
            for info in series
        ],
        "fixes": list(volume.fixes),
    }

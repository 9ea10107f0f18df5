"""`Volume`: an image and the place it has in the world. Arrays never travel without their geometry.

Frames of reference
-------------------
* Array axes are ``(channel, z, y, x)``; a 2D image has z = 1, a colour image has 3 channels (RGB).
* *Voxel coordinates* are ``(x, y, z)``: column, row, slice; integers are voxel centres.
* *World coordinates* are millimetres in RAS+ (x grows to the patient's Right, y to Anterior,
  z to Superior), as in NIfTI. DICOM and ITK use LPS+: the first two world axes negated.
* An image without spatial tags has ``spacing_known=False``: its affine is the identity in ITK's frame and all
  lengths are pixels, never millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Converts a 4x4 affine or homogeneous point between the LPS+ (DICOM, ITK) and RAS+ (NIfTI) frames, both ways."""

PIXEL_AFFINE = LPS_TO_RAS.copy()
"""The affine of an image without spatial tags: what ITK and 3D Slicer assume for a PNG, written in RAS+."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where a volume came from, and what a writer needs to refer back to it.

    ``headers`` are the DICOM datasets (pixel data removed), one for each z of the array, in array order; for a
    multi-frame object the one header repeats and ``frames`` holds the 1-based frame number of each z.
    """

    path: str = ""
    format: str = "array"
    series_uid: str = ""
    headers: tuple[object, ...] = ()
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a grid.

    Args:
        array: (C, Z, Y, X), any real dtype; intensities in the units of the source (HU for CT).
        affine: (4, 4) float64, voxel (x, y, z, 1) to world RAS+ mm.
        modality: DICOM-style word ("CT", "MR", "US", "XC", ...) or "" where unknown.
        spacing_known: False where the source carries no spatial tags; lengths are then pixels.
        source: identity of the input.
        fixes: one sentence for every change that reading made to the input, for the report.
    """

    array: NDArray[np.generic]
    affine: NDArray[np.float64]
    modality: str = ""
    spacing_known: bool = True
    source: Source = field(default_factory=Source)
    fixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim != 4:
            raise ValueError(f"Volume.array must be (C, Z, Y, X), got shape {self.array.shape}")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
            raise ValueError("Volume.affine must be an invertible, finite 4x4 matrix")
        affine = affine.copy()
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(Z, Y, X)."""
        return self.array.shape[1], self.array.shape[2], self.array.shape[3]

    @property
    def is_2d(self) -> bool:
        return self.array.shape[1] == 1

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along (x, y, z), in `unit`."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def unit(self) -> str:
        return "mm" if self.spacing_known else "px"

    def to_world(self, voxels_xyz: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 3) voxel coordinates (x, y, z) to (..., 3) world coordinates, RAS+."""
        return np.asarray(voxels_xyz, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, world_ras: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 3) world coordinates, RAS+, to (..., 3) voxel coordinates (x, y, z)."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(world_ras, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def with_array(self, array: NDArray[np.generic]) -> Volume:
        """The same place, other values; the grid must not change."""
        if array.shape[1:] != self.array.shape[1:]:
            raise ValueError(f"with_array keeps the grid {self.grid}, got {array.shape[1:]}")
        return replace(self, array=array)

    def with_fixes(self, *fixes: str) -> Volume:
        return replace(self, fixes=self.fixes + fixes)

"""From voxel steps to lengths, for every affine: anisotropic, oblique, sheared, or none at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
ROUNDING = 1e-6
"""Shear below this share of a voxel is what 32-bit direction cosines leave, and is taken for none."""


def metric_matrix(affine: NDArray[np.floating] | None, dims: int) -> Matrix:
    """(d, d) matrix that takes steps in array order, (z, y, x) or (y, x), to vectors as long as in the world.

    It is the affine without its rotation (the R of a QR decomposition): diagonal, with the voxel size, where the axes
    are at right angles, however oblique; triangular, and still exact, where they are sheared.

    Args:
        affine: (4, 4), voxel (x, y, z) to world in mm; None where there is no spacing, lengths are then in pixels.
        dims: 3, or 2 for the plane of a single slice: its thickness does not matter then.

    Raises:
        ValueError: the affine is no finite (4, 4) matrix, or flattens an axis.
    """
    if affine is None:
        return np.eye(dims)
    whole = np.asarray(affine, dtype=np.float64)
    if whole.shape != (4, 4) or not np.isfinite(whole).all():
        raise ValueError("the affine must be a finite 4x4 matrix")
    columns = whole[:3, :3][:, dims - 1 :: -1]
    triangle = np.linalg.qr(columns)[1]
    triangle *= np.where(np.diag(triangle) < 0, -1.0, 1.0)[:, None]
    sides = np.linalg.norm(triangle, axis=0)
    if not sides.all() or np.linalg.det(triangle / sides) < ROUNDING:
        raise ValueError("the affine flattens an axis: it has no inverse")
    sheared = np.abs(triangle / sides) > ROUNDING
    return np.where(sheared, triangle, 0.0)


def voxel_size(matrix: Matrix) -> float:
    """Volume of a voxel, or area of a pixel, in the unit of the matrix to the power of its dimensions."""
    return float(abs(np.linalg.det(matrix)))

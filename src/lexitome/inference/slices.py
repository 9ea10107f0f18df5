"""Which slices of a volume a picture shows, and how they hang; and grey values for the screen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from lexitome.segmentation import Segmentation
from lexitome.volume import Volume

_ORIENTED = ("CT", "MR", "PT", "NM")
"""Modalities whose 2D images have a patient orientation worth marking."""

_SAMPLES = 500_000
"""Enough for percentiles."""


@dataclass(frozen=True)
class Slice:
    """One plane of a (Z, Y, X) array, as it is shown.

    Args:
        title: what a reader calls it, "Axial 84 / 182".
        axes: voxel axes (0 = x, 1 = y, 2 = z) that run across, run down, and are cut.
        flips: whether the first and the second of them are mirrored for display.
        index: position on the cut axis.
        size: width and height of the plane in mm, or in pixels where spacing is unknown.
        letters: patient directions at the left, top, right and bottom edge, "" where unknown.
    """

    title: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]
    index: int
    size: tuple[float, float]
    letters: tuple[str, str, str, str] = ("", "", "", "")

    def of(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """(Z, Y, X) to (H, W)."""
        across, down, cut = (2 - axis for axis in self.axes)
        plane = np.take(array, self.index, axis=cut)
        if down > across:
            plane = plane.T
        return plane[:: -1 if self.flips[1] else 1, :: -1 if self.flips[0] else 1]


def planar_slice(volume: Volume) -> Slice:
    """The only slice of a 2D image, the way it is stored."""
    _, rows, columns = volume.grid
    dx, dy, _ = volume.spacing
    right, bottom = _letter(volume.affine[:3, 0]), _letter(volume.affine[:3, 1])
    letters = (_OPPOSITE[right], _OPPOSITE[bottom], right, bottom)
    known = volume.spacing_known and volume.modality in _ORIENTED
    return Slice(
        f"{columns} x {rows} px",
        (0, 1, 2),
        (False, False),
        0,
        (columns * dx, rows * dy),
        letters if known else ("", "", "", ""),
    )


def three_slices(segmentation: Segmentation) -> tuple[Slice, Slice, Slice]:
    """Axial, coronal and sagittal, nearest to the voxel axes, through the fullest part of the largest finding.

    Radiological: the patient's right is on the viewer's left, anterior up (axial) or left (sagittal).
    """
    volume = segmentation.volume
    axis_of, sign = _nearest_axes(volume.affine)
    at = _focus(segmentation)
    shape = volume.grid[::-1]
    slices = []
    # World axes (0 = R, 1 = A, 2 = S) across, down and cut; all run against their positive direction.
    for name, across, down, cut in (("Axial", 0, 1, 2), ("Coronal", 0, 2, 1), ("Sagittal", 1, 2, 0)):
        axes = (axis_of[across], axis_of[down], axis_of[cut])
        size = (shape[axes[0]] * volume.spacing[axes[0]], shape[axes[1]] * volume.spacing[axes[1]])
        letters = ("RAS"[across], "RAS"[down], "LPI"[across], "LPI"[down])
        title = f"{name} {at[axes[2]] + 1} / {shape[axes[2]]}"
        flips = (sign[across] > 0, sign[down] > 0)
        slices.append(
            Slice(title, axes, flips, at[axes[2]], size, letters if volume.spacing_known else ("", "", "", ""))
        )
    return slices[0], slices[1], slices[2]


def window_of(segmentation: Segmentation) -> tuple[float, float]:
    """Intensities shown as black and white.

    8-bit images are shown as they are; CT in Hounsfield units in the lung window if the largest finding is full of
    air, else in the soft tissue window; all others from the 0.5th to the 99.5th percentile of what is not background.
    """
    array = segmentation.volume.array
    if array.dtype == np.uint8:
        return 0.0, 255.0
    flat = array.reshape(-1)
    samples = flat[:: max(1, flat.size // _SAMPLES)].astype(np.float64)
    samples = samples[np.isfinite(samples)]
    if samples.size == 0:
        return 0.0, 1.0
    if segmentation.volume.modality == "CT" and np.percentile(samples, 5) < -200:
        found = max(segmentation.findings, key=lambda f: np.count_nonzero(f.mask), default=None)
        airy = found is not None and found.found and np.median(array[0][found.mask]) < -400
        return (-1350.0, 150.0) if airy else (-160.0, 240.0)
    tissue = samples[samples > samples.min()]
    low, high = np.percentile(tissue if tissue.size else samples, [0.5, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0


def to_screen(volume: Volume, part: Slice, window: tuple[float, float]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of one slice."""
    channels = 3 if volume.array.shape[0] == 3 else 1
    planes = np.stack([part.of(volume.array[c]) for c in range(channels)], axis=-1).astype(np.float64)
    low, high = window
    grey = np.clip(np.nan_to_num((planes - low) / (high - low)), 0.0, 1.0) * 255.0
    return np.broadcast_to(np.rint(grey), (*grey.shape[:2], 3)).astype(np.uint8)


_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def _letter(direction: NDArray[np.float64]) -> str:
    axis = int(np.abs(direction).argmax())
    return "RAS"[axis] if direction[axis] > 0 else "LPI"[axis]


def _nearest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """For each world axis R, A, S: the voxel axis (x, y, z) nearest to it, and the sign of its direction."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(permutations(range(3)), key=lambda order: sum(abs(cosines[w, v]) for w, v in enumerate(order)))
    return best, tuple(float(np.sign(cosines[w, v])) or 1.0 for w, v in enumerate(best))


def _focus(segmentation: Segmentation) -> tuple[int, int, int]:
    """Voxel (x, y, z) to cut at: where the largest finding is fullest along each axis, else the centre."""
    found = [finding for finding in segmentation.findings if finding.found]
    if not found:
        z, y, x = segmentation.volume.grid
        return x // 2, y // 2, z // 2
    mask = max(found, key=lambda f: np.count_nonzero(f.mask)).mask
    x, y, z = (int(mask.sum(axis=axes).argmax()) for axes in ((0, 1), (0, 2), (1, 2)))
    return x, y, z

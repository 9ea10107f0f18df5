"""From a `Volume` in any units and orientation to the 8-bit RGB slices a network sees, and back.

One function serves training and inference, so that they cannot drift apart:

* CT in Hounsfield units is windowed (`SOFT_TISSUE` or `LUNG`, the windows of the training data);
* colour and 8-bit images are taken as they are;
* everything else is stretched between the 0.5 and 99.5 percentile of the volume.

Slices are cut along the axis nearest to inferior-superior, or along the thickest axis where one is more than twice as
thick as the others, and turned as a radiologist looks at them: patient right at image left, anterior (or superior) up.
An image without spatial tags is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lexitome.volume import Volume

Window = tuple[float, float]
SOFT_TISSUE: Window = (-125.0, 275.0)
LUNG: Window = (-1000.0, 400.0)
PERCENTILES = (0.5, 99.5)

# World axis (RAS+) and sign that should increase along (slice, row, column) of the picture, by slicing plane.
_AXIAL = ((2, 1), (1, -1), (0, -1))
_CORONAL = ((1, 1), (2, -1), (0, -1))
_SAGITTAL = ((0, 1), (2, -1), (1, -1))


@dataclass(frozen=True)
class View:
    """How slices are cut: a permutation of (z, y, x) to (slice, row, column), then flips of those axes."""

    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()

    def apply(self, array_zyx: NDArray[np.generic]) -> NDArray[np.generic]:
        """(Z, Y, X) to (slice, row, column)."""
        return np.flip(array_zyx.transpose(self.order), self.flips)

    def undo(self, slices: NDArray[np.generic]) -> NDArray[np.generic]:
        """(slice, row, column) back to (Z, Y, X)."""
        return np.flip(slices, self.flips).transpose(np.argsort(self.order))


def choose_view(volume: Volume) -> View:
    """The slicing plane and orientation for a volume; the identity for 2D images and unknown spacing."""
    if volume.is_2d or not volume.spacing_known:
        return View()
    world_of = _closest_world_axes(_cosines(volume))
    spacing = np.array(volume.spacing)
    thickest = int(spacing.argmax())
    is_thick = spacing[thickest] > 2 * np.delete(spacing, thickest).max()
    plane_of = {2: _AXIAL, 1: _CORONAL, 0: _SAGITTAL}
    return _view_of(volume, plane_of[world_of[thickest]] if is_thick else _AXIAL)


CUBIC = 2.0
"""Voxels whose longest side is at most this many times their shortest are cut along every axis."""


def views_of(volume: Volume) -> list[View]:
    """`choose_view`, then for a volume of nearly cubic voxels the two other planes, hung as a radiologist would."""
    first = choose_view(volume)
    if volume.is_2d or not volume.spacing_known or max(volume.spacing) > CUBIC * min(volume.spacing):
        return [first]
    planes = [_view_of(volume, plane) for plane in (_AXIAL, _CORONAL, _SAGITTAL)]
    return [first, *(view for view in planes if view.order[0] != first.order[0])]


def _view_of(volume: Volume, plane: tuple[tuple[int, int], ...]) -> View:
    cosines = _cosines(volume)
    world_of = _closest_world_axes(cosines)
    voxel_axes = [world_of.index(world) for world, _ in plane]
    flips = tuple(i for i, (world, sign) in enumerate(plane) if cosines[world, voxel_axes[i]] * sign < 0)
    order = tuple(2 - axis for axis in voxel_axes)  # voxel axis x is array axis 2
    return View((order[0], order[1], order[2]), flips)


def _cosines(volume: Volume) -> NDArray[np.float64]:
    """World directions (rows R, A, S) of the voxel axes x, y, z (columns)."""
    return volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)


def _closest_world_axes(cosines: NDArray[np.float64]) -> list[int]:
    """For voxel axes x, y, z the world axis each runs along, every world axis used once."""
    from itertools import permutations

    best = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[i], i]) for i in range(3)))
    return list(best)


def is_hounsfield(volume: Volume) -> bool:
    """True for CT values: the source says CT, or does not say and the values reach air (-500) as only CT's do."""
    array = volume.array
    if volume.array.shape[0] != 1 or array.dtype == np.uint8 or volume.modality not in ("CT", ""):
        return False
    return bool(array.min() <= -500 and array.max() >= 0) or volume.modality == "CT"


def with_neighbours(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey (slice, row, column, 3) pictures to the same shape, the channels now the slice before, the slice, the slice
    after (the first and the last slice repeated)."""
    grey = pictures[..., 0]
    before, after = np.concatenate([grey[:1], grey[:-1]]), np.concatenate([grey[1:], grey[-1:]])
    return np.stack([before, grey, after], axis=-1)


def to_pictures(volume: Volume, window: Window | None = None, view: View | None = None) -> NDArray[np.uint8]:
    """(slice, row, column, 3) uint8 pictures of the volume.

    Args:
        window: (low, high) in the volume's units; by default what the module docstring says (soft tissue for CT).
        view: how to cut, by default `choose_view`.
    """
    view = view or choose_view(volume)
    if volume.array.shape[0] == 3 and volume.array.dtype == np.uint8:
        return np.stack([view.apply(channel) for channel in volume.array], axis=-1)
    if window is None and is_hounsfield(volume):
        window = SOFT_TISSUE
    channels = _stretch(volume.array[:3], window)  # together, or colours would shift
    pictures = [view.apply(channel) for channel in channels]
    return np.stack(pictures if len(pictures) == 3 else pictures[:1] * 3, axis=-1).astype(np.uint8)


def _stretch(values: NDArray[np.generic], window: Window | None) -> NDArray[np.uint8]:
    """Values of any shape and dtype to uint8; 8-bit values without a window stay as they are."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if window is None and values.dtype == np.uint8:
        return values.astype(np.uint8)
    if window is None:
        step = max(1, values.size // 2_000_000)  # percentiles of a regular sample: exact enough, bounded time
        low, high = np.percentile(values.reshape(-1)[::step].astype(np.float64), PERCENTILES)
        if high <= low:  # almost all one value, e.g. a small bright object on an empty background
            low, high = float(values.min()), float(values.max())
    else:
        low, high = window
    scale = 255.0 / max(high - low, 1e-12)
    return np.clip((values.astype(np.float32) - low) * scale, 0, 255).round().astype(np.uint8)

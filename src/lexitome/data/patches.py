"""Patches of slices to train on: where to look, how it is turned and changed. Needs torch, and MONAI for the tones.

One affine map takes a slice to the patch: spacing, zoom, rotation and mirroring at once, so that values are
interpolated once. Probabilities and ranges are those of nnU-Net's trainer, which MedDINOv3 uses unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.data.shelves import Shelf
from lexitome.errors import InputError

Mirror = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Augmentation:
    """
    Args:
        rotation: degrees, to either side.
        zoom: least and most.
        turned, zoomed: probabilities.
        mirror: of both axes, each in half of the patches. "auto": as the set permits (`data.traits`), never where a
            target names a side; nnU-Net does it always.
        tones: noise, blur, brightness, contrast, low resolution and gamma, with nnU-Net's probabilities and ranges.
        shift: of pictures that are seen as a whole, the deviation in shares of their side.
    """

    rotation: float = 180.0
    turned: float = 0.2
    zoom: tuple[float, float] = (0.7, 1.4)
    zoomed: float = 0.2
    mirror: Mirror = "auto"
    tones: bool = True
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise InputError("augmentation.zoom", f"{self.zoom} is no range", "Write e.g. 0.7,1.4.")


PLAIN = Augmentation(turned=0.0, zoomed=0.0, mirror="never", tones=False)


@dataclass(frozen=True)
class Layout:
    """How a slice becomes patches.

    Args:
        side: of the square patch in pixels.
        spacing: mm of a row and a column of the patch; None shows every slice as a whole, whatever its form.
        depth: neighbouring slices of a patch; 1 for networks in 2D.
    """

    side: int
    spacing: tuple[float, float] | None = None
    depth: int = 1

    def step(self, size: Sequence[int], spacing: tuple[float, float] | None) -> tuple[float, float]:
        """Rows and columns of the slice for a row and a column of the patch.

        Args:
            size: (h, w) of the slice.
            spacing: of the slice, in the unit of the layout's.
        """
        if self.spacing is None or spacing is None:
            return size[0] / self.side, size[1] / self.side
        return self.spacing[0] / spacing[0], self.spacing[1] / spacing[1]

    def grid(self, size: Sequence[int], spacing: tuple[float, float] | None) -> tuple[int, int]:
        """(H, W) of a whole slice as the network sees it."""
        rows, columns = self.step(size, spacing)
        return max(1, round(size[0] / rows)), max(1, round(size[1] / columns))


@dataclass(frozen=True)
class Place:
    """Where a patch lies: the middle in continuous rows and columns of the slice (a pixel is 1 wide, the first begins
    at 0), `step` as `Layout.step` gives it, and how it is changed."""

    middle: tuple[float, float]
    step: tuple[float, float]
    angle: float = 0.0
    zoom: float = 1.0
    flips: tuple[bool, bool] = (False, False)

    def matrix(self, size: Sequence[int], side: int) -> Tensor:
        """(2, 3) from x, y of the patch to x, y of a slice of size (h, w), both -1 to 1 from edge to edge."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        reach = side / 2 / self.zoom
        down, across = (-reach if flip else reach for flip in self.flips)
        (h, w), (row, column) = size, self.step
        return torch.tensor([
            [2 / w * column * cos * across, -2 / w * column * sin * down, 2 * self.middle[1] / w - 1],
            [2 / h * row * sin * across, 2 / h * row * cos * down, 2 * self.middle[0] / h - 1],
        ])  # fmt: skip


def draw_place(
    shelf: Shelf,
    row: int,
    layout: Layout,
    augmentation: Augmentation,
    rng: np.random.Generator,
    shown: Sequence[int] = (),
) -> Place:
    """
    Args:
        shown: codes of which one pixel has to be in the middle, or as near to it as the slice allows; none for
            anywhere.
    """
    size, spacing = shelf.picture(row).shape[1:], shelf.spacing(row)
    step = layout.step(size, spacing)
    aim = None
    if shown and layout.spacing is not None:
        pixels = np.argwhere(np.isin(shelf.codes(row), shown))
        aim = pixels[rng.integers(len(pixels))] + 0.5 if len(pixels) else None
    middle = []
    for axis in range(2):
        half = layout.side * step[axis] / 2
        if layout.spacing is None:
            middle.append(size[axis] * (0.5 + augmentation.shift * float(rng.normal())))
        elif size[axis] <= 2 * half:
            middle.append(size[axis] / 2)
        elif aim is None:
            middle.append(float(rng.uniform(half, size[axis] - half)))
        else:
            middle.append(float(np.clip(aim[axis], half, size[axis] - half)))
    angle = math.radians(rng.uniform(-1, 1) * augmentation.rotation) if rng.random() < augmentation.turned else 0.0
    zoom = float(rng.uniform(*augmentation.zoom)) if rng.random() < augmentation.zoomed else 1.0
    draws = rng.random(2) < 0.5
    flips = (bool(draws[0]) and _upside_down(shelf, augmentation), bool(draws[1]) and is_mirrored(shelf, augmentation))
    return Place((middle[0], middle[1]), step, angle, zoom, flips)


def is_mirrored(shelf: Shelf, augmentation: Augmentation) -> bool:
    """Whether left and right are swapped in some of the patches."""
    return augmentation.mirror == "always" or (augmentation.mirror == "auto" and shelf.traits.mirror)


def _upside_down(shelf: Shelf, augmentation: Augmentation) -> bool:
    return augmentation.mirror == "always" or (augmentation.mirror == "auto" and shelf.traits.rotate)


def take(shelf: Shelf, row: int, place: Place, layout: Layout) -> tuple[Tensor, NDArray[np.uint8]]:
    """The patch and its codes: (C, side, side) float32 in the units of the shelf and (side, side); with a depth (C, Z,
    side, side) and (Z, side, side) of the slices around it, those beyond the end of the volume nobody judged.

    Outside of the slice is its lowest value, and background.
    """
    if layout.depth == 1:
        return _cut(shelf, row, place, layout.side)
    stem = shelf.rows[row].stem
    pictures, codes = [], []
    for index in range(row - layout.depth // 2, row - layout.depth // 2 + layout.depth):
        inside = 0 <= index < len(shelf.rows) and shelf.rows[index].stem == stem
        picture, labels = _cut(shelf, index if inside else row, place, layout.side)
        pictures.append(picture)
        codes.append(labels if inside else np.full_like(labels, UNKNOWN_CODE))
    return torch.stack(pictures, 1), np.stack(codes)


def _cut(shelf: Shelf, row: int, place: Place, side: int) -> tuple[Tensor, NDArray[np.uint8]]:
    picture = torch.from_numpy(np.ascontiguousarray(shelf.picture(row)).astype(np.float32))[None]
    labels = torch.from_numpy(shelf.codes(row).astype(np.float32))[None, None]
    size = picture.shape[-2:]
    grid = F.affine_grid(place.matrix(size, side)[None], [1, 1, side, side], align_corners=False)
    if max(place.step) > 1:  # coarser than the slice: smoothed first, as where users are answered
        coarse = [max(1, round(length / max(1, step))) for length, step in zip(size, place.step, strict=True)]
        picture = F.interpolate(picture, coarse, mode="bilinear", antialias=True)
    low = picture.amin((-2, -1), keepdim=True)
    seen = F.grid_sample(picture - low, grid, "bilinear", "zeros", align_corners=False) + low
    codes = F.grid_sample(labels, grid, "nearest", "zeros", align_corners=False)
    return seen[0], codes[0, 0].numpy().astype(np.uint8)


def change_tones(picture: Tensor, seed: int) -> Tensor:
    """A normalised (C, *S) picture, changed as nnU-Net's trainer changes intensities; slices of a stack alike.

    Raises:
        InputError: MONAI is not installed.
    """
    try:
        from monai import transforms as monai
    except ImportError as error:
        raise InputError("augmentation.tones", "needs monai", "Type: pip install monai") from error
    tones = monai.Compose([
        monai.RandGaussianNoise(prob=0.1, std=0.1),
        monai.RandGaussianSmooth((0.5, 1.0), (0.5, 1.0), prob=0.1),
        monai.RandScaleIntensity(factors=0.25, prob=0.15),
        monai.RandScaleIntensityFixedMean(factors=0.25, prob=0.15, preserve_range=True),
        monai.RandSimulateLowResolution(prob=0.125, upsample_mode="bilinear", zoom_range=(0.5, 1.0)),
        monai.RandAdjustContrast(prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
        monai.RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
    ])  # fmt: skip
    tones.set_random_state(seed)
    flat = picture.reshape(-1, *picture.shape[-2:])
    return tones(flat).as_subclass(Tensor).float().reshape(picture.shape)

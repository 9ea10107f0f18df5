"""From volumes, and from decoded pictures, to the squares that a frozen encoder sees. Needs torch.

    imagenet, hu_meddino, zscore    as `data.normalisation` has them
    half                            8 bit to -1..1: SAM3, EfficientNet-Lite
    rgb255                          8 bit as it is; slices between their neighbours, as the compact model was trained

Squares without keeping the aspect, bicubic with antialiasing. A policy of Hounsfield units needs them: of CT that was
stored as 8 bit they come back through the window that the set tells, and what is not CT is brought to mean 0 and
deviation 1, each picture by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.cache import CachedDataset
from lexitome.data.intensity import choose_view, is_hounsfield, to_pictures, with_neighbours
from lexitome.data.normalisation import Normalisation
from lexitome.errors import InputError
from lexitome.volume import Volume

INTENSITIES = ("imagenet", "hu_meddino", "zscore", "half", "rgb255")
STACKED = "rgb255"
_AT_ONCE = 8
"""Slices that are cut and resized together."""


def check_intensity(intensity: str) -> None:
    """
    Raises:
        InputError: there is no such policy, or it needs numbers that only a segmenter's plan has.
    """
    if intensity not in INTENSITIES:
        remedy = f"Type --intensity with one of {', '.join(INTENSITIES)}."
        raise InputError("--intensity", f"features cannot be had with {intensity!r}", remedy)


def said(intensity: str) -> str:
    """What is recorded with features: a policy of Hounsfield units may have met pictures without them."""
    return "hu_meddino, zscore where there are no HU" if intensity == "hu_meddino" else intensity


def squares(volume: Volume, intensity: str, side: int) -> Iterator[NDArray[np.float32]]:
    """(3, S, S) of every slice, in the order of `intensity.choose_view`."""
    view = choose_view(volume)
    if intensity == "hu_meddino" and is_hounsfield(volume):
        planes = Normalisation("hu_meddino").prepare(volume, view)
        for begin in range(0, len(planes), _AT_ONCE):
            part = torch.from_numpy(np.ascontiguousarray(planes[begin : begin + _AT_ONCE], np.float32))
            yield from _resized(part, side).expand(-1, 3, -1, -1).numpy()
        return
    pictures = to_pictures(volume, None, view)
    if intensity == STACKED and not volume.is_2d and volume.array.shape[0] == 1:
        pictures = with_neighbours(pictures)
    for begin in range(0, len(pictures), _AT_ONCE):
        yield from _of_8_bit(pictures[begin : begin + _AT_ONCE], intensity, side)


def cached_square(cached: CachedDataset, row: int, intensity: str, side: int) -> NDArray[np.float32]:
    """(3, S, S) of a decoded picture; a slice between its neighbours is seen alone, but for the compact model."""
    picture = cached.images[row]
    if cached.rows[row].stacked and intensity != STACKED:
        picture = np.repeat(picture[..., 1:2], 3, axis=2)
    window = cached.dataset.window or cached.dataset.applied_window
    if intensity == "hu_meddino" and window is not None and cached.dataset.family == "ct":
        low, high = window
        units = low + np.asarray(picture[..., 0], np.float32) * ((high - low) / 255)
        return _of_hounsfield(units, side)
    return next(iter(_of_8_bit(picture[None], intensity, side)))


def _of_hounsfield(units: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """(H, W) to (3, S, S)."""
    scaled = torch.from_numpy(Normalisation("hu_meddino").scaled(units))
    return _resized(scaled[None, None], side)[0].expand(3, -1, -1).numpy()


def _of_8_bit(pictures: NDArray[np.uint8], intensity: str, side: int) -> NDArray[np.float32]:
    """(n, H, W, 3) to (n, 3, S, S)."""
    planes = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    if intensity in ("zscore", "hu_meddino"):  # first, or rounding would become the pattern of a flat picture
        return _resized(Normalisation("zscore").finish(planes, is_8_bit=True), side).numpy()
    values = _resized(planes.float(), side).clamp(0, 255)
    if intensity == "imagenet":
        return Normalisation("imagenet").finish(values, is_8_bit=True).numpy()
    return (values if intensity == STACKED else values / 127.5 - 1).numpy()


def _resized(planes: Tensor, side: int) -> Tensor:
    if planes.shape[-2:] == (side, side):
        return planes
    return F.interpolate(planes, (side, side), mode="bicubic", antialias=True, align_corners=False)

"""Cases whose annotation is one label map, or two, in files beside the image: the folder form and nnU-Net's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexitome import io
from lexitome.data.dataset import MOST_CODES, UNKNOWN_CODE, Grid, Target
from lexitome.errors import InputError
from lexitome.io.checks import refusing
from lexitome.io.formats import format_of
from lexitome.volume import Volume

EXTRA_SHIFT = 16
"""A label of the second map is stored as 16 x label in the combined code `first + 16 x second`."""
_HALF = 127


@dataclass(frozen=True)
class LabelMaps:
    """Files of one case.

    Args:
        images: one file, or one for each channel.
        masks: the label map, and perhaps a second one (times `EXTRA_SHIFT`); None stands for an empty map.
        ids: map of object ids; `counts` says that the dataset has such maps, though this case may have none.
        binary: any value stands for label 1 (in 8 bit: any above 127 if there are such).
        ignore: the label that means "not judged".
        frames: how many channels are stacked in one file.
        modality: DICOM word to set where the dataset knows it.
    """

    images: tuple[Path, ...]
    masks: tuple[Path | None, ...] = ()
    ids: Path | None = None
    counts: bool = False
    binary: bool = False
    ignore: int | None = None
    frames: int = 1
    modality: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.images, *(path for path in (*self.masks, self.ids) if path is not None))

    def volume(self) -> Volume:
        if self.frames > 1:
            channels = [io.read(self.images[0], frame=number + 1) for number in range(self.frames)]
        else:
            channels = [io.read(path) for path in self.images]
        first = channels[0]
        for path, other in zip(self.images, channels, strict=False):
            if other.grid != first.grid:
                cause = f"its grid {other.grid} differs from the first channel's {first.grid}"
                raise InputError(path, cause, "Resample all channels to one grid.")
        array = np.concatenate([channel.array for channel in channels]) if len(channels) > 1 else first.array
        return replace(first, array=array, modality=first.modality or self.modality)

    def codes(self, grid: Grid) -> NDArray[np.uint8]:
        codes = np.zeros(grid, dtype=np.uint8)
        unknown = np.zeros(grid, dtype=bool)
        for path, shift in zip(self.masks, (1, EXTRA_SHIFT), strict=False):
            if path is not None:
                labels = self._labels(path, grid)
                unknown |= labels == UNKNOWN_CODE
                codes += np.where(labels == UNKNOWN_CODE, 0, labels) * np.uint8(shift)
        codes[unknown] = UNKNOWN_CODE
        return codes

    def _labels(self, path: Path, grid: Grid) -> NDArray[np.uint8]:
        values = _on_grid(path, read_label_map(path), grid)
        return to_binary(values) if self.binary else to_labels(path, values, self.ignore)

    def instances(self, grid: Grid, target: Target | None) -> NDArray[np.uint16] | None:
        if not self.counts:
            return None
        if self.ids is None:
            return np.zeros(grid, dtype=np.uint16)
        values = _on_grid(self.ids, read_label_map(self.ids), grid)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise InputError(self.ids, "ids of objects are not in 0..65535", "Renumber them from 1.")
        ids = values.astype(np.uint16)
        return ids if target is None else np.where(np.isin(self.codes(grid), target.codes), ids, np.uint16(0))


def _on_grid(path: Path, values: NDArray[np.generic], grid: Grid) -> NDArray[np.generic]:
    if values.shape != grid:
        cause = f"mask grid {values.shape} differs from the image's {grid}"
        raise InputError(path, cause, "Redraw the mask, or resample it by nearest neighbour.")
    return values


def read_label_map(path: Path) -> NDArray[np.generic]:
    """(Z, Y, X) values as stored. Of a palette image these are the indices, of a colour image grey levels.

    Raises:
        InputError: cannot be read, or has colours, which are no labels.
    """
    if format_of(path) == "raster":
        with refusing(path, "decoding the mask"), Image.open(path, formats=["PNG", "JPEG", "TIFF"]) as image:
            if image.mode in ("P", "1"):  # `io.read` would turn indices into the colours that they stand for
                return np.array(image).astype(np.uint8)[None]
    array = io.read(path).array
    if (array != array[:1]).any():
        remedy = "Save one grey value for each label: 0 background, 1, 2, ... as in the list of labels."
        raise InputError(path, "is a colour picture, not a map of labels", remedy)
    return array[0]


def to_binary(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """0 and 1 of a mask of one thing, in whatever values it was drawn; smoothed edges are cut at half."""
    top = values.max()
    if values.dtype.kind == "f":
        return np.greater(values, top / 2 if top > 0 else 0).astype(np.uint8)
    smoothed = values.dtype == np.uint8 and top > _HALF
    return np.greater(values, _HALF if smoothed else 0).astype(np.uint8)


def to_labels(path: Path, values: NDArray[np.generic], ignore: int | None = None) -> NDArray[np.uint8]:
    """Label values as uint8, `ignore` as `UNKNOWN_CODE`.

    Raises:
        InputError: values that cannot be labels; says what they look like.
    """
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        odd = float(values[values != np.rint(values)].flat[0])
        raise InputError(
            path, f"holds {odd:g}, which is no label: the mask was smoothed", "Resample it by nearest neighbour."
        )
    settled = values.astype(np.int64) if values.dtype != np.uint8 else values
    if ignore is not None:
        settled = np.where(settled == ignore, UNKNOWN_CODE, settled)
        judged = settled[settled != UNKNOWN_CODE]
    else:
        judged = settled
    if judged.size and (judged.min() < 0 or judged.max() > MOST_CODES):
        raise InputError(path, *_what_values_look_like(np.unique(judged)))
    return settled.astype(np.uint8)


def _what_values_look_like(values: NDArray[np.integer]) -> tuple[str, str]:
    """(cause, remedy) for label values outside 0..`MOST_CODES`."""
    if set(values.tolist()) <= {0, 255}:
        return "holds 0 and 255, not label ids", "Save 0 and 1 (or give --concept NAME and no dataset.json)."
    if len(values) > 32:
        return f"holds {len(values)} different values, as a picture does", "Save the label map itself, not as JPEG."
    if values.min() >= 0 and not (values % 257).any():
        return f"holds {values[-1]}: 8-bit labels stretched to 16 bit", "Divide the values by 257 and save again."
    return f"holds label {values[-1] if values[-1] > MOST_CODES else values[0]}", f"Renumber labels to 1..{MOST_CODES}."

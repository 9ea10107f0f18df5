"""Pictures without labels, for pretraining: of annotated sets (their labels unused), folders of images, and slices
straight from NIfTI and DICOM volumes.

What is kept of a picture has one of two units (`Units`): 8-bit pictures as the other models see them, or Hounsfield
units. Annotated sets come from their decoded cache (`data.cache`) as 8-bit pictures; anything else is read once and
kept below the cache folder as one file for each input: slices (N, H, W) or colours (N, H, W, 3), at most `side` pixels
long, without those that show nothing. Files are named by what they were made from, so that interrupted reading goes on.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.dataset import Dataset
from lexitome.data.intensity import SOFT_TISSUE, choose_view, is_hounsfield, to_pictures
from lexitome.data.normalisation import DEVIATION, HU_MEDDINO, MEAN
from lexitome.data.sources.find import find_sets
from lexitome.data.trained_on import KEPT_SLICES, Hashes, evenly, hashes_of_pictures
from lexitome.data.traits import traits_of
from lexitome.errors import InputError
from lexitome.io import find_inputs, list_series, read
from lexitome.io.atomic import replacing
from lexitome.io.locks import holding
from lexitome.volume import Volume

HELD_OUT = 20
"""One of so many inputs of a folder without splits is kept for validation."""
_NOTHING = 0.01
"""Deviation, as a share of the range of values, below which a slice shows nothing."""


@dataclass(frozen=True)
class Units:
    """What the values of kept pictures mean, and the range that they are cut to.

    Args:
        mean, deviation: of each channel, as shares of the range: what a network is given is (x - mean) / deviation.
    """

    name: str
    low: float
    high: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


_LOW, _HIGH, _HU_MEAN, _HU_DEVIATION = HU_MEDDINO
PICTURES = Units("8-bit pictures", 0.0, 255.0, MEAN, DEVIATION)
HOUNSFIELD = Units("Hounsfield units", _LOW, _HIGH, ((_HU_MEAN - _LOW) / (_HIGH - _LOW),) * 3,
                   (_HU_DEVIATION / (_HIGH - _LOW),) * 3)  # fmt: skip
UNITS = {"imagenet": PICTURES, "hu_meddino": HOUNSFIELD}
"""By the intensity policies that pretraining knows: what needs statistics of a set or of a volume is not among them."""


class Pictures(Protocol):
    """Pictures of one origin, for training and for validation."""

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str:
        """As the set says it; an empty word where nobody has said."""
        ...

    def count(self, *, held_out: bool = False) -> int: ...

    def picture(self, index: int, *, held_out: bool = False) -> NDArray[np.float32]:
        """(1 or 3, H, W) in 0..1 of the range of the units; grey pictures have one channel."""
        ...

    def hashes(self) -> Hashes:
        """(K, WORDS) of what is seen, as `data.trained_on` remembers it; at most `KEPT_SLICES` of an input."""
        ...


@dataclass(frozen=True, eq=False)
class CachedPictures:
    """The training part of an annotated set; its validation part is held out, its test part is not seen at all."""

    cached: CachedDataset
    rows: tuple[tuple[int, ...], tuple[int, ...]]
    """Numbers of the pictures of both parts."""

    @staticmethod
    def of(cached: CachedDataset) -> CachedPictures:
        train, val = (tuple(i for i, row in enumerate(cached.rows) if row.split == part) for part in ("train", "val"))
        return CachedPictures(cached, (train, val))

    @property
    def name(self) -> str:
        return self.cached.dataset.name

    @property
    def licence(self) -> str:
        return self.cached.dataset.licence

    def count(self, *, held_out: bool = False) -> int:
        return len(self.rows[held_out])

    def picture(self, index: int, *, held_out: bool = False) -> NDArray[np.float32]:
        row = self.rows[held_out][index]
        stored = self.cached.images[row]
        if self.cached.rows[row].stacked:  # of the neighbours of a slice a model for single pictures sees nothing
            stored = stored[..., 1:2]
        return _in_range(stored, PICTURES)

    def hashes(self) -> Hashes:
        by_stem: dict[str, list[int]] = {}
        for part in self.rows:
            for row in part:
                by_stem.setdefault(self.cached.rows[row].stem, []).append(row)
        chosen = [rows[i] for rows in by_stem.values() for i in evenly(len(rows), KEPT_SLICES)]
        plain = (self.cached.images[row] for row in chosen)
        shown = (p[..., 1:2].repeat(3, -1) if self.cached.rows[row].stacked else p
                 for row, p in zip(chosen, plain, strict=True))  # fmt: skip
        return hashes_of_pictures(shown)


@dataclass(frozen=True, eq=False)
class Decoded:
    """Inputs that `decode` has kept."""

    name: str
    units: Units
    files: tuple[tuple[Path, ...], tuple[Path, ...]]
    """For training and held out."""
    ends: tuple[tuple[int, ...], tuple[int, ...]]
    """Pictures up to and with each of the files."""
    licence: str = ""

    def count(self, *, held_out: bool = False) -> int:
        return self.ends[held_out][-1] if self.ends[held_out] else 0

    def picture(self, index: int, *, held_out: bool = False) -> NDArray[np.float32]:
        ends = self.ends[held_out]
        number = bisect_right(ends, index)
        planes = np.load(self.files[held_out][number], mmap_mode="r")
        plane = planes[index - (ends[number - 1] if number else 0)]
        return _in_range(plane if plane.ndim == 3 else plane[..., None], self.units)

    def hashes(self) -> Hashes:
        return hashes_of_pictures(
            self._shown(planes[i])
            for part in self.files for file in part for planes in [np.load(file, mmap_mode="r")]
            for i in evenly(len(planes), KEPT_SLICES)
        )  # fmt: skip

    def _shown(self, plane: NDArray[np.generic]) -> NDArray[np.uint8]:
        """(H, W, 3) as `to_pictures` makes it."""
        if self.units == HOUNSFIELD:
            low, high = SOFT_TISSUE
            plane = np.clip((plane.astype(np.float32) - low) * 255 / (high - low), 0, 255).round().astype(np.uint8)
        grey = plane if plane.ndim == 3 else plane[..., None]
        return np.broadcast_to(grey, (*grey.shape[:2], 3)).astype(np.uint8)


@dataclass(frozen=True)
class Item:
    """One input to decode. ``unit``: inputs of one unit are held out together."""

    label: str
    files: tuple[Path, ...]
    unit: str
    split: str
    read: Callable[[], Volume]


def open_pictures(
    data: Sequence[str | Path], cache: Path, *, intensity: str, side: int, say: Callable[[str], None]
) -> list[Pictures]:
    """Every picture that the folders hold; what is not decoded yet is decoded.

    Args:
        data: annotated sets, folders of such, or files and folders of images and volumes.
        intensity: a key of `UNITS`.
        side: longest side of what is decoded here. Caches of annotated sets have their own.

    Raises:
        InputError: a folder holds nothing that can be used, or the units do not fit.
    """
    if intensity not in UNITS:
        raise InputError("--set intensity", f"{intensity!r} is unknown here", f"Choose {' or '.join(UNITS)}.")
    units = UNITS[intensity]
    found: list[Pictures] = []
    for path in map(Path, data):
        if not ((path / "dataset.json").exists() or any(path.glob("*/dataset.json"))):
            say(f"reading      {path}")
            found.append(decode(path.name or "pictures", items_below(path), cache, units, side, say=say))
            continue
        for dataset in find_sets([path]):
            say(f"reading      {dataset.name}")
            if units == PICTURES:
                found.append(CachedPictures.of(open_cache(dataset, cache, traits=traits_of(dataset))))
            else:
                decoded = decode(dataset.name, items_of(dataset), cache, units, side, say=say)
                found.append(replace(decoded, licence=dataset.licence))
    if not sum(each.count() for each in found):
        raise InputError(", ".join(map(str, data)), "holds no picture to learn from", "Name a folder with more images.")
    return found


def items_of(dataset: Dataset) -> list[Item]:
    """Images of an annotated set, without its test part."""
    return [
        Item(case.stem, (case.image,), case.unit, case.split, case.content.volume)
        for case in dataset.cases if case.split != "test"
    ]  # fmt: skip


def items_below(root: Path) -> list[Item]:
    """Images, volumes and DICOM series in a folder and its subfolders. One of `HELD_OUT` files, or folders of DICOM, is
    held out, chosen by its name; none where there is but one.

    Raises:
        InputError: there is none.
    """
    items = []
    for path in find_inputs([root]):
        name = path.relative_to(root).as_posix() if path != root else path.name
        series = list_series(path) if path.is_dir() else ()
        files = tuple(sorted(file for file in path.iterdir() if file.is_file())) if path.is_dir() else (path,)
        uids: list[str | None] = [each.uid for each in series]
        for uid in uids or [None]:
            label = name if uid is None else f"{name}, series {uid}"
            items.append(Item(label, files, name, _part_of(name), partial(read, path, series=uid)))
    splits = {item.split for item in items}
    if splits == {"val"}:
        return [Item(i.label, i.files, i.unit, "train", i.read) for i in items]
    if splits == {"train"} and len({item.unit for item in items}) > 1:
        last = min({item.unit for item in items}, key=_digest)
        return [Item(i.label, i.files, i.unit, "val" if i.unit == last else "train", i.read) for i in items]
    return items


def _part_of(name: str) -> str:
    return "val" if int(_digest(name)[:8], 16) % HELD_OUT == 0 else "train"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def decode(
    name: str, items: Sequence[Item], cache: Path, units: Units, side: int, *, say: Callable[[str], None]
) -> Decoded:
    """Read what is not kept yet; of several processes one does, the others wait. What cannot be read is left out and
    said; it is tried again next time.

    Raises:
        InputError: nothing can be read, or a volume has other units.
    """
    kept: tuple[list[Path], list[Path]] = ([], [])
    failed: list[InputError] = []
    with holding(cache / f".{name}-pictures.lock", wait=True):
        for item in items:
            try:
                place = cache / f"{name}-pictures" / f"{_identity(item, units, side)}.npy"
                if not place.exists():
                    planes = _planes(item, units, side)
                    with replacing(place) as temporary, temporary.open("wb") as file:
                        np.save(file, planes)
                kept[item.split == "val"].append(place)
            except InputError as error:
                failed.append(error)
    if failed and not any(kept):
        raise failed[0]
    if failed:
        say(f"left out     {len(failed)} of {len(items)} that cannot be used, such as {failed[0]}")
    ends = [tuple(accumulate(_length(file) for file in part)) for part in kept]
    return Decoded(name, units, (tuple(kept[0]), tuple(kept[1])), (ends[0], ends[1]))


def _identity(item: Item, units: Units, side: int) -> str:
    """Changes with the files, the units and the size."""
    seen = []
    for file in item.files:
        try:
            found = file.stat()
        except OSError as error:
            raise InputError(file, f"cannot be read ({error.strerror})", "Check the name and permissions.") from error
        seen.append((file.name, found.st_size, found.st_mtime_ns))
    return _digest(repr((item.label, seen, units.name, side)))[:20]


def _length(file: Path) -> int:
    with file.open("rb") as opened:
        version = np.lib.format.read_magic(opened)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return int(header(opened)[0][0])


def _planes(item: Item, units: Units, side: int) -> NDArray[np.generic]:
    """(N, H, W) or (N, H, W, 3): uint8 pictures, or int16 Hounsfield units."""
    volume = item.read()
    if units == HOUNSFIELD:
        if not is_hounsfield(volume):
            remedy = "Give CT as DICOM or NIfTI, or train with --set intensity=imagenet."
            raise InputError(item.files[0], "holds no Hounsfield units", remedy)
        slices = choose_view(volume).apply(volume.array[0]).clip(units.low, units.high)
        planes = [_shrunk(plane, side).round().astype(np.int16) for plane in slices]
    else:
        pictures = to_pictures(volume)
        if not (pictures[..., :1] == pictures).all():
            shrunk = [np.stack([_shrunk(p[..., c], side) for c in range(3)], -1) for p in pictures]
        else:
            shrunk = [_shrunk(picture[..., 0], side) for picture in pictures]
        planes = [plane.clip(0, 255).round().astype(np.uint8) for plane in shrunk]
    least = _NOTHING * (units.high - units.low)
    showing = [plane for plane in planes if plane.std() >= least]
    return np.stack(showing) if showing else np.zeros((0, *planes[0].shape), planes[0].dtype)


def _shrunk(plane: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    """(H, W), at most `side` long."""
    height, width = plane.shape
    values = np.ascontiguousarray(plane, dtype=np.float32)
    if max(height, width) <= side:
        return values
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def _in_range(picture: NDArray[np.generic], units: Units) -> NDArray[np.float32]:
    """(H, W, C) in units to (1 or 3, H, W) in 0..1."""
    if picture.shape[-1] == 3 and (picture[..., :1] == picture).all():
        picture = picture[..., :1]
    values = (picture.astype(np.float32) - np.float32(units.low)) / np.float32(units.high - units.low)
    return np.ascontiguousarray(values.transpose(2, 0, 1)).clip(0, 1)

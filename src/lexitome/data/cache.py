"""Decoded pictures on disk, so that training reads memory instead of JPEGs.

One folder for each dataset: `images.npy` (N, S, S, 3) uint8, `codes.npy` (N, S, S) uint8 (`folder.EXTRA_SHIFT`),
`instances.npy` (N, S, S) uint16 where objects are told apart, and `rows.json` with the identity of each row. The
three channels of a volume's picture are the slice and its neighbours (`intensity.with_neighbours`), and volumes with
nearly cubic voxels are cut along all three axes. Written once, under a temporary name until complete; opened as
memory maps. Of several processes that want the same one, one decodes and the others wait. `files.json` says which files
were read, so that what was made of files that have changed since can go.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexitome.data.cases import read_case, read_instances
from lexitome.data.dataset import Case, Dataset
from lexitome.data.hashing import stamp
from lexitome.data.intensity import to_pictures, views_of, with_neighbours
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import CACHE_SIDE, SetTraits, traits_of
from lexitome.errors import InputError
from lexitome.io.locks import holding

FILES = "files.json"
"""In the folder of a dataset: which files were read."""


@dataclass(frozen=True)
class Row:
    """Identity of one cached picture. ``present`` lists the codes that occur in its mask; ``stacked`` says that its
    channels are neighbouring slices, ``axis`` which voxel axis (0 = z) they were cut along."""

    stem: str
    slice: int
    unit: str
    split: str
    present: tuple[int, ...]
    unknown: tuple[int, ...]
    axis: int = 0
    stacked: bool = False

    @staticmethod
    def from_json(entry: dict) -> Row:
        return Row(**{**entry, "present": tuple(entry["present"]), "unknown": tuple(entry["unknown"])})


@dataclass(frozen=True, eq=False)
class CachedDataset:
    dataset: Dataset
    traits: SetTraits
    images: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    instances: NDArray[np.uint16] | None
    rows: tuple[Row, ...]


def open_cache(
    dataset: Dataset, folder: Path, *, traits: SetTraits | None = None, side: int | None = None
) -> CachedDataset:
    """The cache of a dataset below `folder`, built on first use and again when its files change.

    Args:
        traits: what is known about the set, by default `traits_of` it.
        side: of the pictures, by default what the traits ask for.

    Raises:
        InputError: a case cannot be read, or the cache cannot be written.
    """
    traits = traits or traits_of(dataset)
    side = side or CACHE_SIDE[traits.size]
    place = folder / f"{dataset.name}-{side}-{_fingerprint(dataset, traits)}"
    if not place.exists():
        with holding(place.with_name(f".{place.name}.lock"), wait=True):
            if not place.exists():
                clear_outdated(dataset, folder)
                _build(dataset, traits, place, side)
    rows = tuple(Row.from_json(entry) for entry in json.loads((place / "rows.json").read_text()))
    images, codes = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("images", "codes"))
    objects = place / "instances.npy"
    instances = np.load(objects, mmap_mode="r") if objects.exists() else None
    return CachedDataset(dataset, traits, images, codes, instances, rows)


def open_sets(data: Path, cache: Path) -> list[CachedDataset]:
    """Every annotated folder below `data`, cached."""
    return [open_cache(load_dataset(d), cache) for d in sorted(data.iterdir()) if (d / "dataset.json").exists()]


def _fingerprint(dataset: Dataset, traits: SetTraits) -> str:
    """Eight digits that change when a file, the split, or the way of cutting changes."""
    digest = hashlib.sha256(repr((dataset.window, traits.slice_step)).encode())
    digest.update(b"" if traits.neighbours else b"alone")
    for case in dataset.cases:
        digest.update(repr((case.stem, case.unit, case.split, sorted(case.unknown_labels), *_reading(case))).encode())
        for path in case.files:
            digest.update(repr(stamp(path)).encode())
    return digest.hexdigest()[:8]


def _reading(case: Case) -> list[tuple[str, int | str]]:
    """How the files of a case are read where that is not the usual way, such as which label means "not judged"."""
    content = case.content
    if not is_dataclass(content):
        return []
    values = [(entry.name, getattr(content, entry.name), entry.default) for entry in fields(content)]
    return [(name, value) for name, value, usual in values if isinstance(value, int | str) and value != usual]


def files_read(dataset: Dataset) -> str:
    """What `FILES` holds, beside pictures made of a dataset: path to `stamp`, as JSON."""
    return json.dumps({str(path.absolute()): stamp(path) for case in dataset.cases for path in case.files})


def clear_outdated(dataset: Dataset, folder: Path) -> None:
    """Remove caches of a dataset of that name that nobody can ask for again, since a file they were made of has
    changed. Those of files that are gone are left alone: a disk may only be unplugged."""
    for place in folder.glob(f"{glob.escape(dataset.name)}-*"):
        try:
            read = json.loads((place / FILES).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # of an earlier version, or of somebody else
            continue
        now = ((stamp(Path(path)), then and tuple(then)) for path, then in read.items())
        if any(found is not None and found != then for found, then in now):
            shutil.rmtree(place, ignore_errors=True)


def _build(dataset: Dataset, traits: SetTraits, place: Path, side: int) -> None:
    images, codes, instances, rows = [], [], [], []
    read = files_read(dataset)
    for case in dataset.cases:
        for picture, mask, objects, row in _pictures_of(case, dataset, traits):
            images.append(np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)))
            codes.append(_nearest(mask, side))
            if objects is not None:
                instances.append(_nearest(objects, side))
            rows.append(replace(row, present=tuple(int(c) for c in np.unique(codes[-1]) if c)))
    arrays = {"images": images, "codes": codes, **({"instances": instances} if instances else {})}
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        for name, planes in arrays.items():
            np.save(temporary / f"{name}.npy", np.stack(planes))
        (temporary / "rows.json").write_text(json.dumps([asdict(row) for row in rows]))
        (temporary / FILES).write_text(read, encoding="utf-8")
        os.replace(temporary, place)
    except OSError as error:
        if not place.exists():  # else another process was as quick, where the file system knows no locks
            remedy = "Free some space, or name another place with --cache."
            raise InputError(place, f"cannot be written ({error.strerror or error})", remedy) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


Picture = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16] | None, Row]


def _pictures_of(case: Case, dataset: Dataset, traits: SetTraits) -> Iterator[Picture]:
    """(H, W, 3) picture, (H, W) codes, (H, W) instance ids or None, and identity of each slice of a case."""
    volume, codes = read_case(case)
    objects = read_instances(case, volume)
    stacked = traits.neighbours and not volume.is_2d and volume.array.shape[0] == 1
    for view in views_of(volume):
        pictures = to_pictures(volume, dataset.window, view)
        pictures = with_neighbours(pictures) if stacked else pictures
        masks = np.ascontiguousarray(view.apply(codes))
        ids = None if objects is None else np.ascontiguousarray(view.apply(objects))
        for index in range(0, len(pictures), traits.slice_step):
            row = Row(case.stem, index, case.unit, case.split, (), tuple(sorted(case.unknown_labels)), view.order[0],
                      stacked)  # fmt: skip
            yield pictures[index], masks[index], None if ids is None else ids[index].astype(np.uint16), row


def _nearest(plane: NDArray[np.generic], side: int) -> NDArray:
    """(H, W) to (side, side) by the nearest pixel, in any integer type."""
    rows, columns = (((np.arange(side) + 0.5) * n / side).astype(int) for n in plane.shape)
    return plane[np.ix_(rows, columns)]

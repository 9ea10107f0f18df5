"""Annotated slices to train on, one after the other: decoded pictures of one size (`data.cache`), or the slices of
volumes in their own resolution and precision, on disk.

`open_slices` writes one folder for each dataset: `STEM.npy` (slice, C, row, column) and `STEM.codes.npy` (slice, row,
column) of each volume as `Normalisation.prepare` gives it, and `rows.json` when all are there. What was written before
an interruption is kept. Nothing is resampled: whoever draws a patch looks at the slice in the spacing that it wants, so
that several resolutions share one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cache import FILES, CachedDataset, Row, clear_outdated, files_read
from lexitome.data.cases import read_case
from lexitome.data.dataset import Case, Dataset
from lexitome.data.hashing import stamp
from lexitome.data.intensity import choose_view
from lexitome.data.normalisation import Normalisation
from lexitome.data.traits import SetTraits
from lexitome.io.atomic import replacing
from lexitome.io.locks import holding


class Shelf(Protocol):
    """Slices of one dataset. Neighbours in `rows` with the same stem are neighbours in the volume."""

    @property
    def dataset(self) -> Dataset: ...

    @property
    def traits(self) -> SetTraits: ...

    @property
    def rows(self) -> Sequence[Row]: ...

    def picture(self, row: int) -> NDArray[np.generic]:
        """(C, h, w): uint8, or normalised float16."""
        ...

    def codes(self, row: int) -> NDArray[np.uint8]:
        """(h, w)."""
        ...

    def spacing(self, row: int) -> tuple[float, float] | None:
        """mm of a row and of a column; None where lengths mean nothing."""
        ...


@dataclass(frozen=True, eq=False)
class CachedShelf:
    """The decoded pictures of a dataset."""

    cached: CachedDataset

    @property
    def dataset(self) -> Dataset:
        return self.cached.dataset

    @property
    def traits(self) -> SetTraits:
        return self.cached.traits

    @property
    def rows(self) -> Sequence[Row]:
        return self.cached.rows

    def picture(self, row: int) -> NDArray[np.generic]:
        return np.moveaxis(np.asarray(self.cached.images[row]), -1, 0)

    def codes(self, row: int) -> NDArray[np.uint8]:
        return np.asarray(self.cached.codes[row])

    def spacing(self, row: int) -> None:
        return None


@dataclass(frozen=True, eq=False)
class SliceShelf:
    """Slices of volumes as they are.

    Args:
        spacings: mm of a row and a column, by stem; None where it is unknown.
    """

    dataset: Dataset
    traits: SetTraits
    rows: tuple[Row, ...]
    folder: Path
    spacings: dict[str, tuple[float, float] | None]
    opened: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def picture(self, row: int) -> NDArray[np.generic]:
        return np.asarray(self._open(f"{self.rows[row].stem}.npy")[self.rows[row].slice])

    def codes(self, row: int) -> NDArray[np.uint8]:
        return np.asarray(self._open(f"{self.rows[row].stem}.codes.npy")[self.rows[row].slice])

    def spacing(self, row: int) -> tuple[float, float] | None:
        return self.spacings[self.rows[row].stem]

    def _open(self, name: str) -> NDArray[np.generic]:
        if name not in self.opened:
            self.opened[name] = np.load(self.folder / name, mmap_mode="r")
        return self.opened[name]


def open_slices(
    dataset: Dataset,
    folder: Path,
    normalisation: Normalisation,
    traits: SetTraits,
    say: Callable[[str], None] = lambda line: None,
) -> SliceShelf:
    """The slices of a dataset below `folder`, written on first use and again when its files change.

    Raises:
        InputError: a case cannot be read, has no Hounsfield units where the policy needs them, or the disk is full.
    """
    place = folder / f"{dataset.name}-slices-{_digest(dataset, normalisation)}"
    if not (place / "rows.json").exists():
        with holding(place.with_name(f".{place.name}.lock"), wait=True):
            if not (place / "rows.json").exists():
                clear_outdated(dataset, folder)
                _build(dataset, place, normalisation, say)
    stored = json.loads((place / "rows.json").read_text(encoding="utf-8"))
    rows = tuple(Row.from_json(entry) for entry in stored["rows"])
    spacings = {stem: None if mm is None else (float(mm[0]), float(mm[1])) for stem, mm in stored["spacings"].items()}
    return SliceShelf(dataset, traits, rows, place, spacings)


def _build(dataset: Dataset, place: Path, normalisation: Normalisation, say: Callable[[str], None]) -> None:
    rows: list[Row] = []
    spacings: dict[str, tuple[float, float] | None] = {}
    with replacing(place / FILES) as temporary:
        temporary.write_text(files_read(dataset), encoding="utf-8")
    for number, case in enumerate(dataset.cases, start=1):
        say(f"slices       {dataset.name}: {case.stem} ({number} of {len(dataset.cases)})")
        codes, spacings[case.stem], axis = _stored(case, place, normalisation)
        for index, plane in enumerate(codes):
            present = tuple(int(code) for code in np.unique(plane) if code)
            hidden = tuple(sorted(case.unknown_labels))
            rows.append(Row(case.stem, index, case.unit, case.split, present, hidden, axis))
    with replacing(place / "rows.json") as temporary:
        text = json.dumps({"rows": [asdict(row) for row in rows], "spacings": spacings})
        temporary.write_text(text, encoding="utf-8")


def _stored(
    case: Case, place: Path, normalisation: Normalisation
) -> tuple[NDArray[np.uint8], tuple[float, float] | None, int]:
    """Write a case unless it is there; its codes (slice, row, column), the spacing within a slice if it is known, and
    the axis of slices."""
    volume, codes = read_case(case)
    view = choose_view(volume)
    cut = np.ascontiguousarray(view.apply(codes)).astype(np.uint8)
    if not (place / f"{case.stem}.codes.npy").exists():  # which is written last
        for name, array in ((f"{case.stem}.npy", normalisation.prepare(volume, view)), (f"{case.stem}.codes.npy", cut)):
            with replacing(place / name) as temporary:
                np.save(temporary, np.ascontiguousarray(array))
    mm = volume.spacing[::-1]
    within = (mm[view.order[1]], mm[view.order[2]])
    return cut, within if volume.spacing_known else None, view.order[0]


def _digest(dataset: Dataset, normalisation: Normalisation) -> str:
    """Eight digits that change when a file, the split or the normalisation changes."""
    digest = hashlib.sha256(repr(normalisation).encode())
    for case in dataset.cases:
        digest.update(repr((case.stem, case.unit, case.split, sorted(case.unknown_labels))).encode())
        digest.update(repr(case.content).encode())
        for path in case.files:
            digest.update(repr(stamp(path)).encode())
    return digest.hexdigest()[:8]

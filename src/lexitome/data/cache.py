"""Decoded pictures on disk, so that training reads memory instead of JPEGs.

One folder for each dataset: `images.npy` (N, S, S, 3) uint8, `codes.npy` (N, S, S) uint8 (`folder.EXTRA_SHIFT`) and
`rows.json` with the identity of each row. Written once, under a temporary name until complete; opened as memory maps.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexitome.data.cases import read_case
from lexitome.data.folder import Dataset
from lexitome.data.intensity import choose_view, to_pictures

SLICE_STEP = {"hippocampus_msd_mr3d": 3, "la_atrium_mr3d": 2, "openkbp_hn_ct3d": 2}
"""Neighbouring slices of a volume are near-duplicates: training takes every n-th; evaluation never uses the cache."""


@dataclass(frozen=True)
class Row:
    """Identity of one cached picture. ``present`` lists the codes that occur in its mask."""

    stem: str
    slice: int
    unit: str
    split: str
    present: tuple[int, ...]
    unknown: tuple[int, ...]

    @staticmethod
    def from_json(entry: dict) -> Row:
        return Row(**{**entry, "present": tuple(entry["present"]), "unknown": tuple(entry["unknown"])})


@dataclass(frozen=True, eq=False)
class CachedDataset:
    dataset: Dataset
    images: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    rows: tuple[Row, ...]


def open_cache(dataset: Dataset, folder: Path, side: int) -> CachedDataset:
    """The cache of a dataset below `folder`, built on first use."""
    place = folder / f"{dataset.name}-{side}"
    if not place.exists():
        _build(dataset, place, side)
    rows = tuple(Row.from_json(entry) for entry in json.loads((place / "rows.json").read_text()))
    images, codes = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("images", "codes"))
    return CachedDataset(dataset, images, codes, rows)


def _build(dataset: Dataset, place: Path, side: int) -> None:
    images, codes, rows = [], [], []
    for case in dataset.cases:
        volume, reference = read_case(case)
        pictures = to_pictures(volume, dataset.window)
        masks = np.ascontiguousarray(choose_view(volume).apply(reference))
        step = SLICE_STEP.get(dataset.name, 1)
        for index in range(0, len(pictures), step):
            images.append(np.asarray(Image.fromarray(pictures[index]).resize((side, side), Image.Resampling.BILINEAR)))
            codes.append(np.asarray(Image.fromarray(masks[index]).resize((side, side), Image.Resampling.NEAREST)))
            present = tuple(int(c) for c in np.unique(codes[-1]) if c)
            rows.append(Row(case.stem, index, case.unit, case.split, present, tuple(sorted(case.unknown_labels))))
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    np.save(temporary / "images.npy", np.stack(images))
    np.save(temporary / "codes.npy", np.stack(codes))
    (temporary / "rows.json").write_text(json.dumps([asdict(row) for row in rows]))
    os.replace(temporary, place)

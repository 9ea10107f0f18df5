"""Small annotated sets with everything that an evaluation can meet, and an answerer that misbehaves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lexitome.evaluation.answering import About, Answer, Kind
from lexitome.prompts import Box, Point, Query
from lexitome.volume import Volume

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

AFFINE = np.diag([-2.0, -2.0, 4.0, 1.0])


def write_eval_sets(root: Path) -> Path:
    """`external/organs`: 2D, two labels and their union, one absent at times; `external/cells`: objects told apart, and
    an ignored stripe; `external/scans`: volumes of a liver, with spacing."""
    folder = root / "external"
    organs, cells, ids, scans = {}, {}, {}, {}
    for i in range(4):
        mask = np.zeros((40, 50), np.uint8)
        mask[disc(50, 15 + i, 14, 8)[:40]] = 1
        if i % 2:
            mask[disc(50, 22, 36, 6)[:40]] = 2
        organs[f"p{i}_a"] = painted(mask, i), mask
    for i in range(2):
        cell_ids = np.zeros((40, 40), np.uint16)
        for number, (y, x) in enumerate(((10, 10), (10, 28), (28, 18)), start=1):
            cell_ids[disc(40, y, x, 6)] = number
        cell_mask = (cell_ids > 0).astype(np.uint8)
        cell_mask[36:] = 9
        cells[f"c{i}"], ids[f"c{i}"] = (painted(cell_mask % 9, i), cell_mask), cell_ids
        blob = np.zeros((6, 30, 32), np.uint8)
        blob[1:5, 8:20, 10:24] = 1
        scans[f"s{i}"] = painted(blob, i), blob
    save_set(folder / "organs", organs, {1: "left kidney", 2: "right kidney"}, "CT")
    save_set(folder / "cells", cells, {1: "nuclei"}, "fluorescence microscopy", instances=ids, ignore_label=9)
    save_set(folder / "scans", scans, {1: "liver"}, "CT", affine=AFFINE, dims=3)
    return folder


@dataclass(frozen=True)
class Bright:
    """Finds what is brighter than 60, within the boxes that it is given; asked for `spoiled` it fails as told."""

    spoiled: str = ""
    how: str = "raise"
    name: str = "bright"
    takes: frozenset[Kind] = frozenset({"text", "label", "box", "point"})

    def provenance(self) -> dict[str, Any]:
        return {"spoiled": self.spoiled, "how": self.how, "licence": "CC0", "trained_on": ["cells"]}

    def begin(self, volume: Volume, about: About, /) -> BrightSession:
        if self.how == "begin" and about.case == self.spoiled:
            raise RuntimeError("no memory\nfor this image")
        return BrightSession(self, volume)


@dataclass(frozen=True)
class BrightSession:
    owner: Bright
    volume: Volume

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        return [self._one(query) for query in queries]

    def _one(self, query: Query) -> Answer:
        mask = self.volume.array[0] > 60
        inside = np.zeros_like(mask)
        for place in query.spatial:
            if isinstance(place, Box):
                z = slice(None) if place.z0 is None else slice(round(place.z0), round(place.z1 or 0) + 1)
                inside[z, round(place.y0) : round(place.y1) + 1, round(place.x0) : round(place.x1) + 1] = True
            elif isinstance(place, Point):
                inside[round(place.z), max(0, round(place.y) - 9) : round(place.y) + 10,
                       max(0, round(place.x) - 9) : round(place.x) + 10] |= place.inside  # fmt: skip
        mask = mask & inside if query.spatial else mask
        if query.name == self.owner.spoiled:
            if self.owner.how == "raise":
                raise ValueError("cannot say")
            if self.owner.how == "shape":
                return Answer(mask[:, 1:])
            if self.owner.how == "nan":
                return Answer(mask, probability=np.full(mask.shape, np.nan))
            if self.owner.how == "logits":
                return Answer(mask, probability=np.where(mask, 3.0, -3.0))
        return Answer(mask, 0.9 if mask.any() else 0.1, mask.astype(np.float16),
                      taught=None if query.text is None else query.name == "liver")  # fmt: skip

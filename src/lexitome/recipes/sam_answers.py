"""SAM as an `evaluation.answering.Answerer` that takes boxes only; volumes slice by slice of the array, each slice that
the box spans with the same box."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lexitome.data.intensity import View, to_pictures
from lexitome.evaluation.answering import About, Answer, Kind
from lexitome.evaluation.baselines import voxels_of
from lexitome.models.sam_boxes import SamBoxes, load_sam
from lexitome.prompts import Box, Query
from lexitome.volume import Volume


@dataclass(frozen=True, eq=False)
class SamAnswerer:
    """Several boxes of one query are united. It does not know words: those of a query are not looked at."""

    sam: SamBoxes
    name: str = "sam"
    takes: frozenset[Kind] = frozenset({"box"})

    def provenance(self) -> dict[str, Any]:
        return {
            "name": self.name, "kind": "sam", "weights_sha256": self.sam.sha256, "side": self.sam.side,
            "licence": "Apache-2.0", "trained_on": ["SA-1B"],
        }  # fmt: skip

    def begin(self, volume: Volume, about: About, /) -> SamSession:
        return SamSession(self.sam, volume, to_pictures(volume, None, View()))


@dataclass(frozen=True, eq=False)
class SamSession:
    """Args:
    pictures: (Z, Y, X, 3), the volume as networks see it.
    """

    sam: SamBoxes
    volume: Volume
    pictures: NDArray[np.uint8]
    _embedded: dict[int, Tensor] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        return [self._one(query) for query in queries]

    def _one(self, query: Query) -> Answer:
        boxes = [place for place in query.spatial if isinstance(place, Box)]
        likely = np.zeros(self.volume.grid, dtype=np.float32)
        for box in boxes:
            slices = range(*voxels_of(box)[0].indices(len(self.pictures)))
            edges = np.array([[box.x0, box.y0, box.x1 + 1, box.y1 + 1]])
            for z in slices:
                found, _ = self.sam.decode(self._embedding(z), self.volume.grid[1:], edges)
                likely[z] = np.maximum(likely[z], found[0])
        return Answer(likely >= 0.5, probability=likely)

    def _embedding(self, z: int) -> Tensor:
        """Of one slice, computed once: it is nearly all of the work."""
        with self._lock:
            if z not in self._embedded:
                self._embedded[z] = self.sam.embed(self.pictures[z])
            return self._embedded[z]


def sam_answerer(folder: str | Path, name: str = "sam") -> SamAnswerer:
    """
    Args:
        folder: Hugging Face weights, see `models.sam_boxes.load_sam`.

    Raises:
        InputError: it holds no SAM.
    """
    return SamAnswerer(load_sam(folder), name)

"""`Segmentation`: the answer, one `Finding` for each query, on the image's own grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lexitome.concepts import Concept
from lexitome.volume import Volume


@dataclass(frozen=True, eq=False)
class Finding:
    """What was found for one query.

    Args:
        name: the prompt as typed.
        mask: (Z, Y, X) bool on the volume's grid; all False where not found.
        presence: probability in [0, 1] that the target is in the image at all.
        score: mean mask probability inside the mask, 0 where empty.
        concept: the coded concept the words resolved to, None where uncoded or no words were given.
        notes: sentences the user should see, e.g. "untrained concept: result is a guess".
        instances: (Z, Y, X) ids of the objects in the mask, 1 and up without gaps, 0 outside; None where the model
            cannot tell objects of this kind apart.
        probability: (Z, Y, X) that a voxel belongs to the target, before presence was asked and specks were dropped;
            None where nobody asked for it.
    """

    name: str
    mask: NDArray[np.bool_]
    presence: float
    score: float
    concept: Concept | None = None
    notes: tuple[str, ...] = ()
    instances: NDArray[np.uint16] | None = None
    probability: NDArray[np.float16] | None = None

    @property
    def found(self) -> bool:
        return bool(self.mask.any())

    @property
    def objects(self) -> int | None:
        """How many objects there are, None where they are not told apart."""
        return None if self.instances is None else int(self.instances.max(initial=0))


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Findings on the grid of `volume` (which carries affine, source and fixes).

    ``provenance`` holds what a report needs: model, weights hash, licence, versions, device, seconds per stage.
    """

    volume: Volume
    findings: tuple[Finding, ...]
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for finding in self.findings:
            if finding.mask.shape != self.volume.grid or finding.mask.dtype != np.bool_:
                raise ValueError(f"mask of {finding.name!r} must be bool {self.volume.grid}, got {finding.mask.shape}")
            ids = finding.instances
            if ids is not None and (ids.shape != self.volume.grid or ids.dtype != np.uint16):
                raise ValueError(f"instances of {finding.name!r} must be uint16 {self.volume.grid}, got {ids.shape}")

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def label_map(self) -> tuple[NDArray[np.uint16], int]:
        """(Z, Y, X) uint16, finding i painted as i + 1, smaller structures over larger ones; and the number of
        voxels claimed by more than one finding (they keep only one label, so a caller must say so)."""
        labels = np.zeros(self.volume.grid, dtype=np.uint16)
        claims = np.zeros(self.volume.grid, dtype=np.uint16)
        order = sorted(range(len(self.findings)), key=lambda i: -int(self.findings[i].mask.sum()))
        for index in order:
            labels[self.findings[index].mask] = index + 1
            claims += self.findings[index].mask
        return labels, int((claims > 1).sum())

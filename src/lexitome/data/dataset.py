"""What every form of annotated data becomes: a `Dataset` of `Case`s, and the `Target`s that can be asked of it.

The reference of a case is one integer *code* for each pixel. 0 is background, `UNKNOWN_CODE` a pixel that nobody
judged; a target is the union of codes. Where labels overlap, the overlap has a code of its own which several targets
list, so that one map keeps them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lexitome.volume import Volume

SPLITS = ("train", "val", "test")
UNKNOWN_CODE = 255
"""A pixel that may show anything: neither a target nor background. No target lists it."""
MOST_CODES = 254

Grid = tuple[int, int, int]
Level = Literal["error", "warning", "hint"]


@dataclass(frozen=True)
class Target:
    """One thing that can be asked of a dataset: the union of `codes`. ``labels`` are the ids of the set's own labels
    that it is made of, which `Case.unknown_labels` refers to."""

    name: str
    synonyms: tuple[str, ...]
    codes: tuple[int, ...]
    labels: tuple[int, ...]
    derived: bool = False
    """True for a union that the files do not name ("kidneys" of "left kidney" and "right kidney")."""


class Content(Protocol):
    """Where the pixels of a case are; a small value that can be pickled."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read for the case, the image first."""
        ...

    def volume(self) -> Volume: ...

    def codes(self, grid: Grid) -> NDArray[np.uint8]:
        """(Z, Y, X) codes; InputError if the annotation does not fit the grid of the image."""
        ...

    def instances(self, grid: Grid, target: Target | None) -> NDArray[np.uint16] | None:
        """(Z, Y, X) ids of objects, 0 for none; None if the dataset does not tell objects apart."""
        ...


@dataclass(frozen=True)
class Case:
    """One image and its annotation. ``unit`` is the subject, video or section that must not be split."""

    stem: str
    unit: str
    split: str
    content: Content
    unknown_labels: frozenset[int] = field(default_factory=frozenset)
    """Labels that were not annotated in this case: unknown, never background."""

    @property
    def image(self) -> Path:
        return self.content.files[0]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.content.files


@dataclass(frozen=True)
class Finding:
    """Something about a dataset that its user should know, and what to do about it. ``where`` names all the places."""

    level: Level
    topic: str
    cause: str
    remedy: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    name: str
    root: Path
    title: str
    modality: str
    family: str
    anatomy: str
    dims: int
    licence: str
    source: str
    window: tuple[float, float] | None
    """CT window (HU) still to be applied to the stored values."""
    applied_window: tuple[float, float] | None
    """CT window (HU) that was applied before the pictures were stored as 8 bit."""
    targets: tuple[Target, ...]
    cases: tuple[Case, ...]
    form: str = "folder"
    findings: tuple[Finding, ...] = ()
    """What reading the lists (not the pixels) showed: how subjects were told apart, files that belong to nothing."""


_FAMILIES = (
    ("dental", "dental-xray"), ("x-ray", "xray"), ("xray", "xray"), ("radiograph", "xray"), ("fundus", "fundus"),
    ("oct", "oct"), ("dermoscopy", "dermoscopy"), ("colonoscopy", "endoscopy"), ("endoscopy", "endoscopy"),
    ("blood smear", "blood-smear"), ("brightfield", "brightfield"), ("fluorescence", "fluorescence"),
    ("histopathology", "histology"), ("electron", "electron-microscopy"), ("ultrasound", "ultrasound"), ("mri", "mr"),
    ("pet", "pet"), ("ct", "ct"), ("photograph", "photo"),
)  # fmt: skip
_MR_CHANNELS = frozenset({"t1", "t2", "t1w", "t2w", "t1ce", "t1c", "t1gd", "t1-gd", "flair", "adc", "dwi", "mr", "dce"})
UNKNOWN_FAMILY = "unknown"


def family_of(modality: str) -> str:
    """The modality family that a description names ("Chest X-ray" -> "xray"), `UNKNOWN_FAMILY` if none."""
    lowered = modality.lower()
    found = next((family for word, family in _FAMILIES if word in lowered), None)
    if found is None and _MR_CHANNELS & set(lowered.replace(",", " ").split()):
        return "mr"
    return found or UNKNOWN_FAMILY

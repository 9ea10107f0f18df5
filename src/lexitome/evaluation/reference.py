"""A test case as annotated, and what is asked about it: its own concepts, and some that it surely lacks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cases import read_case, read_instances
from lexitome.data.dataset import UNKNOWN_CODE, Case, Dataset, Target
from lexitome.data.negatives import GENERIC, MAY_SHOW
from lexitome.data.sources.find import find_sets
from lexitome.models.catalog import CATALOG
from lexitome.volume import Volume

EXTERNAL = "external"
"""Sets below a folder of this name are no one's training data: all their cases are test cases."""
ALL = "all"


@dataclass(frozen=True, eq=False)
class Reference:
    """(Z, Y, X) masks of the targets that were looked for in a case, their objects, and where somebody judged; None
    for everywhere."""

    volume: Volume
    targets: tuple[Target, ...]
    masks: tuple[NDArray[np.bool_], ...]
    objects: tuple[NDArray[np.uint16] | None, ...]
    judged: NDArray[np.bool_] | None


def read_reference(case: Case, targets: Sequence[Target]) -> Reference:
    """Of those `targets` that were looked for in this case.

    Raises:
        InputError: a file cannot be read, or image and annotation do not fit.
    """
    volume, codes = read_case(case)
    own = tuple(target for target in targets if not set(target.labels) & case.unknown_labels)
    masks = tuple(np.isin(codes, target.codes) for target in own)
    objects = tuple(read_instances(case, volume, target) for target in own)
    judged = codes != UNKNOWN_CODE
    return Reference(volume, own, masks, objects, None if judged.all() else judged)


def absent_concepts(dataset: Dataset, case: Case, count: int, seed: int) -> list[str]:
    """`count` concepts (fewer where there are fewer) that the case surely does not show though other pictures of its
    modality do, so that presence is asked about both kinds.

    They are drawn from what the built-in model was taught, whichever model is asked and whichever sets are given, so
    that runs can be compared. Only for sets whose content has been looked through (`data.negatives.MAY_SHOW`).
    """

    def rank(name: str) -> bytes:
        return hashlib.sha256("\0".join((str(seed), dataset.name, case.stem, name, "absent")).encode()).digest()

    return sorted(_surely_absent(dataset), key=rank)[:count]


def _surely_absent(dataset: Dataset) -> list[str]:
    if dataset.name not in MAY_SHOW:
        return []
    own = {word for target in dataset.targets for word in (target.name, *target.synonyms)}
    blocked = MAY_SHOW[dataset.name] | GENERIC | own
    return [name for name, families in _pool() if dataset.family in families and name not in blocked]


@lru_cache(maxsize=1)
def _pool() -> tuple[tuple[str, tuple[str, ...]], ...]:
    card = CATALOG.get("compact")
    return () if card is None else tuple((c.words, c.families) for c in card.trained_concepts)


_TUBE = re.compile(r"vessel|vascula|arter|vein|veins$|airway|bronch|tubul|neurite|catheter|guide ?wire|membrane")
_SECTIONS = frozenset({"ct", "mr", "pet", "ultrasound"})


def is_tubular(target: str, dataset: Dataset) -> bool:
    """Whether its centre line says something: thin and long by its name, and not cut across, as vessels are in a slice
    of the body."""
    return bool(_TUBE.search(target.lower())) and not (dataset.dims == 2 and dataset.family in _SECTIONS)


def test_sets(
    paths: Sequence[Path], *, seed: int = 0, concept: str = "", unit_pattern: str | None = None
) -> list[Dataset]:
    """Every dataset that the folders are or hold; those below a folder called `EXTERNAL` with all cases for testing.

    Raises:
        InputError: see `data.sources.find.find_sets`.
    """
    found = find_sets(paths, seed=seed, concept=concept, unit_pattern=unit_pattern, nested=True)
    return [as_external(dataset) if is_external(dataset) else dataset for dataset in found]


def is_external(dataset: Dataset) -> bool:
    return dataset.root.parent.name == EXTERNAL


def as_external(dataset: Dataset) -> Dataset:
    return replace(dataset, cases=tuple(replace(case, split="test") for case in dataset.cases))


def cases_of(dataset: Dataset, split: str, limit: int | None = None) -> list[Case]:
    """The cases of a part (`ALL` for every one), in their order.

    Args:
        limit: keep so many, drawn by the hash of their names: the same ones whatever else is asked.
    """
    cases = [case for case in dataset.cases if split in (ALL, case.split)]
    if limit is None or len(cases) <= limit:
        return cases

    def rank(case: Case) -> bytes:
        return hashlib.sha256(f"{dataset.name}\0{case.stem}".encode()).digest()

    kept = {case.stem for case in sorted(cases, key=rank)[:limit]}
    return [case for case in cases if case.stem in kept]


def data_hash(cases: Iterable[Case]) -> str:
    """SHA-256 over the names and contents of images and masks, first 16 characters. Folders do not matter."""
    digest = hashlib.sha256()
    for case in cases:
        for path in case.files:
            digest.update(path.name.encode() + (_sha256(path) if path.is_file() else b"missing"))
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

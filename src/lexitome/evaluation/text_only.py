"""Text-only evaluation of a model on annotated folders: Dice where the target is there, presence where it is not.

One row for each (case, target). The model is given words and nothing else; the mask is the one a user gets, after
presence threshold and slice consistency, at the image's own resolution.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cases import read_case
from lexitome.data.folder import Case, Dataset, Target
from lexitome.data.negatives import surely_absent
from lexitome.inference.segmenter import Segmenter
from lexitome.prompts import Query, Text


@dataclass(frozen=True)
class Row:
    """One question and its answer. ``dice`` is nan where the target is absent from the reference."""

    dataset: str
    stem: str
    unit: str
    target: str
    derived: bool
    present: bool
    presence: float
    found: bool
    dice: float
    seconds: float


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|) in voxels; 1 where both are empty, so 0 for anything found where nothing is."""
    total = int(prediction.sum()) + int(reference.sum())
    return 2.0 * int((prediction & reference).sum()) / total if total else 1.0


def evaluate_dataset(
    segmenter: Segmenter, dataset: Dataset, others: Sequence[Dataset], *, seed: int = 0
) -> Iterator[Row]:
    """Rows of the test cases: every annotated target, and as many surely absent ones as there are present ones.

    Args:
        others: the sets from which absent concepts of the same modality are drawn (the training sets).
    """
    near = surely_absent(dataset, others, same_family=True)
    for case in dataset.cases:
        if case.split == "test":
            yield from _evaluate_case(segmenter, dataset, case, near, seed)


def _evaluate_case(segmenter: Segmenter, dataset: Dataset, case: Case, near: list[Target], seed: int) -> Iterator[Row]:
    volume, codes = read_case(case)
    own = [t for t in dataset.targets if not set(t.labels) & case.unknown_labels]
    references = [np.isin(codes, t.codes) for t in own]
    count = sum(bool(r.any()) for r, t in zip(references, own, strict=True) if not t.derived)
    digest = hashlib.sha256(f"{seed}:{dataset.name}:{case.stem}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = [near[int(i)] for i in rng.choice(len(near), min(len(near), max(1, count)), replace=False)] if near else []
    began = time.perf_counter()
    queries = [Query(Text(t.name)) for t in own + drawn]
    answer = segmenter.decode(segmenter.encode(volume), queries)
    seconds = (time.perf_counter() - began) / len(queries)
    references += [np.zeros(volume.grid, dtype=bool)] * len(drawn)
    for target, reference, finding in zip(own + drawn, references, answer.findings, strict=True):
        present = bool(reference.any())
        score = dice(finding.mask, reference) if present else float("nan")
        yield Row(dataset.name, case.stem, case.unit, target.name, target.derived, present,
                  finding.presence, finding.found, score, seconds)  # fmt: skip


@dataclass(frozen=True)
class PresenceResult:
    """Presence on a balanced list of (image, present) and (image, absent concept of the same modality) pairs."""

    pairs: int
    sensitivity: float
    specificity: float
    auc: float

    @property
    def balanced_accuracy(self) -> float:
        return (self.sensitivity + self.specificity) / 2


def presence_result(rows: Sequence[Row], seed: int = 0) -> PresenceResult:
    """Balanced by drawing, set by set, as many pairs of the more frequent kind as there are of the other."""
    rng = np.random.default_rng(seed)
    chosen: list[Row] = []
    for name in sorted({row.dataset for row in rows}):
        kinds = [
            [r for r in rows if r.dataset == name and not r.derived and r.present is kind] for kind in (True, False)
        ]
        count = min(len(kind) for kind in kinds)
        for kind in kinds:
            chosen += [kind[int(i)] for i in rng.choice(len(kind), count, replace=False)] if count else []
    present = np.array([r.presence for r in chosen if r.present])
    absent = np.array([r.presence for r in chosen if not r.present])
    found = [np.mean([r.found for r in chosen if r.present is kind]) for kind in (True, False)]
    wins = (present[:, None] > absent[None]).mean() + 0.5 * (present[:, None] == absent[None]).mean()
    return PresenceResult(len(chosen), float(found[0]), float(1 - found[1]), float(wins))


def data_hash(dataset: Dataset) -> str:
    """SHA-256 over the names and contents of the test images and masks, first 16 characters."""
    digest = hashlib.sha256()
    for case in dataset.cases:
        if case.split == "test":
            for path in (case.image, case.mask, case.extra_mask):
                if path is not None:
                    digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]

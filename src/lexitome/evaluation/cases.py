"""Ask a model about annotated test cases: by words, then by words and one box, about one encoded image.

One row for each (case, target, protocol). The mask is the one a user gets, after presence threshold and slice
consistency, at the image's own resolution. Boxes come from the reference: an oracle, and called so wherever shown.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cases import read_case, read_instances
from lexitome.data.dataset import UNKNOWN_CODE, Case, Dataset, Target
from lexitome.data.negatives import surely_absent
from lexitome.evaluation.measures import dice, drawn_box, matched_objects, seeded
from lexitome.inference.prompting import GUESS
from lexitome.inference.segmenter import Encoded, Segmenter
from lexitome.prompts import Query, Text
from lexitome.segmentation import Finding
from lexitome.volume import Volume

Protocol = Literal["text", "text+box"]
TEXT: Protocol = "text"
TEXT_AND_BOX: Protocol = "text+box"


@dataclass(frozen=True)
class Row:
    """One question and its answer.

    Args:
        derived: the target is a union that the files do not name.
        dice: None where the target is absent from the reference.
        objects: (found, in the reference, matched), see `measures.matched_objects`; None where the reference or the
            model does not tell objects apart.
        trained: whether the model was taught the concept, under any name.
        seconds: of the whole case by the number of its queries; one thread.
    """

    dataset: str
    stem: str
    unit: str
    target: str
    derived: bool
    present: bool
    presence: float
    found: bool
    dice: float | None
    seconds: float
    protocol: Protocol = TEXT
    objects: tuple[int, int, int] | None = None
    trained: bool = True

    @staticmethod
    def from_json(entry: dict) -> Row:
        return Row(**{**entry, "objects": None if entry["objects"] is None else tuple(entry["objects"])})


@dataclass(frozen=True, eq=False)
class Reference:
    """A test case as annotated: (Z, Y, X) masks of its targets, and where somebody judged."""

    volume: Volume
    targets: tuple[Target, ...]
    masks: tuple[NDArray[np.bool_], ...]
    objects: tuple[NDArray[np.uint16] | None, ...]
    judged: NDArray[np.bool_]


def read_reference(case: Case, targets: Sequence[Target]) -> Reference:
    """Of those `targets` that were looked for in this case.

    Raises:
        InputError: a file cannot be read.
    """
    volume, codes = read_case(case)
    own = tuple(target for target in targets if not set(target.labels) & case.unknown_labels)
    masks = tuple(np.isin(codes, target.codes) for target in own)
    objects = tuple(read_instances(case, volume, target) for target in own)
    return Reference(volume, own, masks, objects, codes != UNKNOWN_CODE)


def evaluate_case(
    segmenter: Segmenter, dataset: Dataset, case: Case, others: Sequence[Dataset], seed: int = 0
) -> list[Row]:
    """Rows of every annotated target and of as many surely absent ones as there are present ones; in 2D images, of
    every present target again with a box.

    Args:
        others: the sets from which absent concepts of the same modality are drawn.
    """
    reference = read_reference(case, dataset.targets)
    count = sum(bool(m.any()) for m, t in zip(reference.masks, reference.targets, strict=True) if not t.derived)
    near = surely_absent(dataset, others, same_family=True)
    rng = seeded(seed, dataset.name, case.stem)
    drawn = [near[int(i)] for i in rng.choice(len(near), min(len(near), max(1, count)), replace=False)] if near else []
    asked = (*reference.targets, *drawn)
    began = time.perf_counter()
    queries = [Query(Text(target.name)) for target in asked]
    encoded = segmenter.encode(reference.volume, queries)
    findings = segmenter.decode(encoded, queries).findings
    seconds = (time.perf_counter() - began) / max(len(asked), 1)
    empty = np.zeros(reference.volume.grid, dtype=bool)
    masks = (*reference.masks, *(empty for _ in drawn))
    objects = (*reference.objects, *(None for _ in drawn))
    rows = [
        _row((dataset, case, target), finding, mask, ids, reference.judged, (TEXT, seconds))
        for target, finding, mask, ids in zip(asked, findings, masks, objects, strict=True)
    ]
    if reference.volume.is_2d:
        rows += _with_boxes(segmenter, encoded, (dataset, case), reference, seed)
    return rows


def _with_boxes(
    segmenter: Segmenter, encoded: Encoded, about: tuple[Dataset, Case], reference: Reference, seed: int
) -> list[Row]:
    dataset, case = about
    present = [i for i, mask in enumerate(reference.masks) if mask.any()]
    queries = []
    for i in present:
        name = reference.targets[i].name
        rng = seeded(seed, dataset.name, case.stem, name)
        queries.append(Query(Text(name), (drawn_box(reference.masks[i][0], rng),)))
    if not queries:
        return []
    began = time.perf_counter()
    findings = segmenter.decode(encoded, queries).findings
    seconds = (time.perf_counter() - began) / len(queries)
    return [
        _row((dataset, case, reference.targets[i]), finding, reference.masks[i], reference.objects[i],
             reference.judged, (TEXT_AND_BOX, seconds))
        for i, finding in zip(present, findings, strict=True)
    ]  # fmt: skip


def _row(
    about: tuple[Dataset, Case, Target], finding: Finding, mask: NDArray[np.bool_], ids: NDArray[np.uint16] | None,
    judged: NDArray[np.bool_], asked: tuple[Protocol, float],
) -> Row:  # fmt: skip
    dataset, case, target = about
    present, (protocol, seconds) = bool(mask.any()), asked
    objects = None
    if ids is not None and finding.instances is not None and present:
        objects = matched_objects(finding.instances, ids)
    return Row(
        dataset.name, case.stem, case.unit, target.name, target.derived, present, float(finding.presence),
        finding.found, dice(finding.mask & judged, mask) if present else None, seconds, protocol, objects,
        GUESS not in finding.notes,
    )  # fmt: skip


def data_hash(dataset: Dataset) -> str:
    """SHA-256 over the names and contents of the test images and masks, first 16 characters."""
    digest = hashlib.sha256()
    for case in dataset.cases:
        if case.split == "test":
            for path in case.files:
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]

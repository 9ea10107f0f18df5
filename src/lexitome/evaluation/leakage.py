"""Was the model taught the pictures that it is tested on? Compares the hashes that a model carries
(`data.trained_on`) with those of the test images, whatever their names and folders.

A near picture of another subject is rare but not impossible: every pair is reported with its distance, and cases are
named, never removed. What cannot be told (no hashes in the model, a case that cannot be read) is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lexitome.data.dataset import Case, Dataset
from lexitome.data.trained_on import (
    ASKED_SLICES,
    BITS,
    THREADS,
    WORDS,
    Hashes,
    TrainedOn,
    fingerprints,
    hashes_of_case,
    near,
)
from lexitome.errors import InputError
from lexitome.evaluation.reference import cases_of

__all__ = ["MOST_BITS", "LeakageReport", "Pair", "SetReport", "check", "fingerprints"]

MOST_BITS = 40
"""Of 256. Chosen on training and validation images of 17 sets (benchmarks/leakage.py): pictures of different subjects
are 46 bits apart or more, but for three pairs that show one subject under two names. Copies at JPEG quality 30, 1.6
times as large, squeezed, or with a gamma of 0.6 or 1.6 are found in 98.7 % or more; halved ones in 79 %, since the
smallest volumes are in it; those of which a window cut much of the grey levels away in 61 to 90 %."""


@dataclass(frozen=True)
class Pair:
    """A test case that looks like a training picture.

    Args:
        trained_on: the set that the training picture is from.
        bits: by which the hashes differ, the fewest of all pairs of their slices; 0 means the same at a glance.
        slices: of the case that are this near to some picture of the set.
    """

    dataset: str
    case: str
    trained_on: str
    bits: int
    slices: int


@dataclass(frozen=True)
class SetReport:
    """Args:
    cases: that were looked at.
    affected: of these, those with a near training picture.
    unreadable: cases whose image cannot be read.
    taught: the model was taught the set of this name; its test part may still be clean.
    """

    dataset: str
    cases: int
    affected: int
    unreadable: tuple[str, ...]
    taught: bool


@dataclass(frozen=True)
class LeakageReport:
    """JSON-able. ``checked`` is False where the model carries no hashes: then only names are compared.

    Args:
        pictures: of training that the test images were compared with.
        most_bits, bits: a pair differs in at most `most_bits` of `bits`.
        summary: all of it in one sentence.
    """

    checked: bool
    summary: str
    affected: int
    cases: int
    pictures: int
    most_bits: int
    bits: int
    sets: tuple[SetReport, ...]
    pairs: tuple[Pair, ...]


def check(
    training: TrainedOn | None,
    datasets: Sequence[Dataset],
    *,
    split: str = "test",
    taught: Sequence[str] = (),
    most_bits: int = MOST_BITS,
    progress: Callable[[int], None] | None = None,
) -> LeakageReport:
    """
    Args:
        training: `TrainedOn.of_model(card.files)`; None where a model does not say.
        taught: names of the sets that the model was taught, where it says only that.
        progress: told how many cases are done.
    """
    names = {*taught, *(training.datasets if training else ())}
    sets: list[SetReport] = []
    pairs: list[Pair] = []
    done = 0
    for dataset in datasets:
        cases = cases_of(dataset, split)
        if training is None:
            sets.append(SetReport(dataset.name, 0, 0, (), dataset.name in names))
            continue
        found: list[Pair] = []
        unreadable: list[str] = []
        for case, hashes in _read(dataset, cases):
            done += 1
            if progress:
                progress(done)
            if hashes is None:
                unreadable.append(case.stem)
            else:
                found += _pairs_of(dataset, case, hashes, training, most_bits)
        affected = len({pair.case for pair in found})
        looked = len(cases) - len(unreadable)
        sets.append(SetReport(dataset.name, looked, affected, tuple(unreadable), dataset.name in names))
        pairs += found
    pictures = 0 if training is None else len(training.hashes)
    cases_seen, affected = sum(s.cases for s in sets), sum(s.affected for s in sets)
    summary = _in_words(training is not None, sets, pictures)
    ordered = tuple(sorted(pairs, key=lambda pair: (pair.bits, pair.dataset, pair.case)))
    return LeakageReport(
        training is not None, summary, affected, cases_seen, pictures, most_bits, BITS, tuple(sets), ordered
    )


def _read(dataset: Dataset, cases: Sequence[Case]) -> Iterator[tuple[Case, Hashes | None]]:
    def hashes(case: Case) -> Hashes | None:
        try:
            return hashes_of_case(case, dataset.window, ASKED_SLICES)
        except (InputError, OSError):  # the runner says why, in the rows of the case
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        yield from zip(cases, pool.map(hashes, cases), strict=True)


def _pairs_of(dataset: Dataset, case: Case, hashes: Hashes, training: TrainedOn, most_bits: int) -> list[Pair]:
    """One for each training set that has near pictures."""
    bits: dict[int, int] = {}
    slices: dict[int, set[int]] = {}
    for i, j, differ in near(hashes.reshape(-1, WORDS), training.hashes, most_bits):
        origin = int(training.origin[j])
        bits[origin] = min(differ, bits.get(origin, BITS))
        slices.setdefault(origin, set()).add(i)
    return [
        Pair(dataset.name, case.stem, training.datasets[origin], fewest, len(slices[origin]))
        for origin, fewest in sorted(bits.items())
    ]


def _in_words(checked: bool, sets: Sequence[SetReport], pictures: int) -> str:
    taught = [entry.dataset for entry in sets if entry.taught]
    if not checked:
        known = f" It says that it was taught {', '.join(taught)}." if taught else ""
        return f"The model carries no hashes of its training pictures: overlap cannot be told.{known}"
    affected, cases = sum(entry.affected for entry in sets), sum(entry.cases for entry in sets)
    unreadable = sum(len(entry.unreadable) for entry in sets)
    more = f" {unreadable} cases could not be read." if unreadable else ""
    if not affected:
        return f"None of {cases} test cases looks like one of {pictures} training pictures.{more}"
    share = np.round(100 * affected / cases, 1)
    where = ", ".join(f"{entry.dataset} {entry.affected}" for entry in sets if entry.affected)
    return (
        f"{affected} of {cases} test cases ({share:g} %) look like one of {pictures} training pictures: {where}.{more}"
    )

"""Scores of outlines in pictures of a cache: pixels are counted by picture, Dice is of cases, intervals of subjects."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.evaluation.statistics import Stratum, mean_intervals, mean_of_columns

Entry = dict[str, Any]


def pixel_counts(cached: CachedDataset, row: int, predicted: NDArray[np.integer]) -> NDArray[np.float64]:
    """(targets, 3) pixels predicted, wanted and both; NaN for a target that was not annotated in this picture."""
    codes, unknown = cached.codes[row], set(cached.rows[row].unknown)
    judged = codes != UNKNOWN_CODE
    found = np.full((len(cached.dataset.targets), 3), np.nan)
    for index, target in enumerate(cached.dataset.targets):
        if unknown & set(target.labels):
            continue
        asked, wanted = np.isin(predicted, target.codes) & judged, np.isin(codes, target.codes)
        found[index] = asked.sum(), wanted.sum(), (asked & wanted).sum()
    return found


def outline_scores(
    cached: CachedDataset, counts: dict[str, NDArray[np.float64]], units: dict[str, str], *, seed: int, draws: int
) -> Entry:
    """Dice of each case over all its pictures, then means over cases that show the target, then over targets.

    Args:
        counts: stem to the sum of `pixel_counts` over its pictures.
        units: stem to its subject.

    Returns:
        "targets": name to the interval of its Dice over test cases that show it; "dice": the mean over targets with
        its interval; "cases" of the test part; "by_case": stem to its subject and its Dice of each of the targets that
        "dice" is about (None where it shows none), so that runs can be compared case by case.
    """
    names = [target.name for target in cached.dataset.targets]
    stems = sorted(counts)
    if not stems:
        return {"targets": {}, "dice": None, "cases": 0, "by_case": {}}
    asked, wanted, both = np.moveaxis(np.stack([counts[stem] for stem in stems]), 2, 0)
    with np.errstate(invalid="ignore"):
        dice = np.where(wanted > 0, 2 * both / (asked + wanted), np.nan)
    subjects = np.unique([units[stem] for stem in stems], return_inverse=True)[1]
    shown = [i for i, target in enumerate(cached.dataset.targets) if np.isfinite(dice[:, i]).any()]
    each = mean_intervals([Stratum.of(dice, subjects)], seed=seed, draws=draws)
    own = [i for i in shown if not cached.dataset.targets[i].derived]
    mean = mean_of_columns([_dropped(dice[:, own], subjects)], seed=seed, draws=draws) if own else None
    return {
        "targets": {names[i]: asdict(found) for i in shown if (found := each[i]) is not None},
        "dice": mean and asdict(mean), "cases": len(stems),
        "by_case": {stem: {"unit": units[stem], "dice": [round(float(v), 4) if np.isfinite(v) else None for v in row]}
                    for stem, row in zip(stems, dice[:, own], strict=True)},
    }  # fmt: skip


def _dropped(dice: NDArray[np.float64], subjects: NDArray[np.integer]) -> Stratum:
    """Without cases that show nothing: `mean_of_columns` wants a value of every unit."""
    some = np.isfinite(dice).any(axis=1)
    return Stratum.of(dice[some], np.unique(subjects[some], return_inverse=True)[1])

"""Whether a model knows that something is there: how often it is right, and what its probabilities are worth.

A concept counts as found if the predicted mask holds anything; unanswered questions (status "missing" or "failed")
count as answered wrongly, whichever kind they are, and are counted. Concepts that files do not name (derived) are left
out. Rates say nothing without both kinds of questions, so a protocol that only asks for what is there has recall alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.statistics import (
    DRAWS,
    LEVEL,
    Floats,
    Interval,
    percentiles,
    ratio,
    resampled,
    resampled_strata,
)

RATES = ("recall", "specificity", "precision", "balanced_accuracy", "auc")
BINS = 10

Entry = dict[str, Any]


def presence_table(
    rows: Iterable[ResultRow], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> list[Entry]:
    """One entry for each (model, protocol, dataset), then one with "dataset" None: the mean over those datasets that
    asked for present and for absent concepts.

    "asked", "present", "absent", "true_positives", "false_positives", "unanswered" are counts of questions; each of
    `RATES` is an interval (see `Interval`) or None. The area under the ROC curve is of the presence probability, ties
    half, over the questions that have one. Units are resampled within each dataset, with all their questions.
    """
    groups: dict[tuple[str, str], dict[str, list[ResultRow]]] = {}
    for row in sorted((row for row in rows if not row.derived), key=lambda row: (row.model, row.key)):
        groups.setdefault((row.model, row.protocol), {}).setdefault(row.dataset, []).append(row)
    entries: list[Entry] = []
    for (model, protocol), datasets in groups.items():
        about = {"model": model, "protocol": protocol, "oracle": "oracle" in protocol}
        answers = {name: _Answers(some) for name, some in datasets.items()}
        drawn = {name: own.drawn_rates(draws, (seed, 0)) for name, own in answers.items()}
        for name, own in answers.items():
            rates = _rate_entries([own], [drawn[name]], level)
            entries.append({"dataset": name, **about, **own.numbers, **rates})
        both = [name for name, own in answers.items() if own.positive.any() and not own.positive.all()]
        if both:
            mine = [answers[name] for name in both]
            numbers = {key: sum(own.numbers[key] for own in mine) for key in mine[0].numbers}
            parts = [answers[name].drawn_rates(draws, (seed, i)) for i, name in enumerate(both)]
            rates = _rate_entries(mine, parts, level)
            entries.append({"dataset": None, "datasets": both, **about, **numbers, **rates})
    return entries


class _Answers:
    """The answers about one dataset as arrays over questions, and (units, 4) counts of true and false positives,
    false and true negatives."""

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        names, self.unit = np.unique([row.unit for row in rows], return_inverse=True)
        self.units = len(names)
        self.positive = np.array([row.present for row in rows])
        found = np.array([row.found if row.status == "ok" else not row.present for row in rows])
        self.score = np.array([np.nan if row.presence is None else row.presence for row in rows], dtype=np.float64)
        self.table = np.zeros((self.units, 4))
        np.add.at(self.table, (self.unit, np.where(self.positive, 0, 1) + np.where(found, 0, 2)), 1.0)
        # Columns: 0 present and found, 1 absent and found, 2 present and not found, 3 absent and not found.
        self.numbers = {
            "asked": len(rows), "present": int(self.positive.sum()), "absent": int((~self.positive).sum()),
            "true_positives": int(self.table[:, 0].sum()), "false_positives": int(self.table[:, 1].sum()),
            "unanswered": sum(row.status != "ok" for row in rows),
        }  # fmt: skip
        scored = np.flatnonzero(np.isfinite(self.score))
        self.scored = scored[np.argsort(self.score[scored], kind="stable")]

    def rates(self, weights: Floats) -> Floats:
        """(draws, rates) for (draws, units) weights."""
        counts = weights @ self.table
        hit, false, missed, right = counts.T
        recall, specificity = ratio(hit, hit + missed), ratio(right, right + false)
        precision = ratio(hit, hit + false) if self.numbers["absent"] else np.full(len(counts), np.nan)
        auc = weighted_auc(self.score[self.scored], self.positive[self.scored], weights[:, self.unit[self.scored]])
        return np.stack([recall, specificity, precision, (recall + specificity) / 2, auc], axis=1)

    def drawn_rates(self, draws: int, seed: tuple[int, ...]) -> Floats:
        parts = resampled(self.units, draws, seed, width=3 * len(self.scored))
        return np.concatenate([self.rates(weights) for _, weights in parts])

    @property
    def support(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rates,) units and questions that each rate is made of; of the rarer kind where it needs both."""
        kinds = [self.positive, ~self.positive]
        scored = [kind & np.isfinite(self.score) for kind in kinds]
        units = [len(np.unique(self.unit[kind])) for kind in (*kinds, *scored)]
        found = self.table[:, :2].sum(axis=1)
        count = [int(kind.sum()) for kind in (*kinds, *scored)]
        return (
            np.array([units[0], units[1], (found > 0).sum(), min(units[:2]), min(units[2:])]),
            np.array([count[0], count[1], found.sum(), sum(count[:2]), sum(count[2:])], dtype=np.int64),
        )


def _rate_entries(answers: Sequence[_Answers], drawn: Sequence[Floats], level: float) -> Entry:
    """Mean of each rate over the datasets in which it has a value."""
    values = np.concatenate([own.rates(np.ones((1, own.units))) for own in answers])
    support = [own.support for own in answers]
    entry: Entry = {}
    for k, name in enumerate(RATES):
        held = np.flatnonzero(np.isfinite(values[:, k])).tolist()
        if not held:
            entry[name] = None
            continue
        units, cases = (np.array([support[i][part][k] for i in held]) for part in (0, 1))
        low, high = percentiles(np.stack([drawn[i][:, k] for i in held]), units, level)
        mean = float(values[held, k].mean())
        entry[name] = asdict(Interval(mean, low, high, int(units.sum()), int(cases.sum())))
    return entry


def weighted_auc(score: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """(draws,) probability that a positive scores above a negative, ties half (Mann and Whitney); NaN without both.

    Args:
        score: (questions,) ascending.
        weights: (draws, questions) how often each question counts.
    """
    if not score.size:
        return np.full(len(weights), np.nan)
    starts = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]]))
    up, down = (np.add.reduceat(weights * kind, starts, axis=1) for kind in (positive, ~positive))
    below = np.cumsum(down, axis=1) - down / 2
    return ratio((up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1))


def reliability(
    rows: Iterable[ResultRow], *, bins: int = BINS, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> list[Entry]:
    """Of each (model, protocol): do concepts that get a presence of 0.8 occur in 80 % of the questions?

    Questions of all datasets are pooled. "bins" has, for each of `bins` bins of equal width that is not empty, the
    range "from" to "to" (the last one closed), "count", "confidence" (mean probability) and "observed", the share of
    present concepts with its interval (units resampled within each dataset). "ece" is the mean of |observed -
    confidence| over questions, "brier" the mean squared error with its interval. The expected calibration error has no
    interval: it is biased upwards, the more the fewer questions, and resampling doubles that bias.
    """
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    asked = (row for row in rows if row.presence is not None and not row.derived and row.status == "ok")
    for row in sorted(asked, key=lambda row: (row.model, row.key)):
        groups.setdefault((row.model, row.protocol), []).append(row)
    return [
        {"model": model, "protocol": protocol, "oracle": "oracle" in protocol, "questions": len(some)}
        | _curve(some, bins, (seed, draws, level))
        for (model, protocol), some in groups.items()
    ]


def _curve(rows: Sequence[ResultRow], bins: int, settings: tuple[int, int, float]) -> Entry:
    seed, draws, level = settings
    score = np.array([row.presence for row in rows], dtype=np.float64)
    present = np.array([row.present for row in rows], dtype=np.float64)
    names, unit = np.unique([f"{row.dataset}\n{row.unit}" for row in rows], return_inverse=True)
    bin_of = np.clip((score * bins).astype(int), 0, bins - 1)
    # Columns: one for each bin, and a last one for the squared error of all questions.
    counts, sums = np.zeros((2, len(names), bins + 1))
    for column, value in ((bin_of, present), (np.full(len(rows), bins), (score - present) ** 2)):
        np.add.at(counts, (unit, column), 1.0)
        np.add.at(sums, (unit, column), value)
    sizes = list(Counter(str(name).split("\n")[0] for name in names).values())
    parts = resampled_strata(sizes, draws, (seed, 0), width=2 * bins)
    drawn = np.concatenate([ratio(weights @ sums, weights @ counts) for _, weights in parts])
    units = (counts > 0).sum(axis=0)

    def interval(k: int) -> Interval:
        cases = int(counts[:, k].sum())
        return Interval(float(sums[:, k].sum()) / cases, *percentiles(drawn[None, :, k], units[[k]], level),
                        int(units[k]), cases)  # fmt: skip

    curve: list[Entry] = []
    for b in np.flatnonzero(units[:bins]).tolist():
        confidence = float(score[bin_of == b].mean())
        curve.append({"from": b / bins, "to": (b + 1) / bins, "confidence": confidence, "observed": interval(b)})
    ece = sum(part["observed"].cases * abs(part["observed"].mean - part["confidence"]) for part in curve) / len(rows)
    for part in curve:
        part |= {"count": part["observed"].cases, "observed": asdict(part["observed"])}
    return {"bins": curve, "ece": ece, "brier": asdict(interval(bins))}

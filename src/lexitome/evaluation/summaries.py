"""Means over rows: what a card says of each target, of each set, of presence and of objects. JSON-able."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lexitome.evaluation.cases import TEXT, TEXT_AND_BOX, Protocol, Row

Entry = dict[str, Any]


def by_target(rows: Sequence[Row], protocol: Protocol = TEXT) -> list[Entry]:
    """One entry for each (dataset, target) that some case shows: mean and median Dice in percent, share found."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.present and row.protocol == protocol:
            groups.setdefault((row.dataset, row.target), []).append(row)
    entries = []
    for (name, target), some in groups.items():
        values = np.array([row.dice for row in some], dtype=np.float64)
        entries.append({
            "dataset": name, "target": target, "derived": some[0].derived, "trained": some[0].trained,
            "cases": len(some), "subjects": len({row.unit for row in some}),
            "dice": _percent(values.mean()), "median": _percent(np.median(values)),
            "found": _percent(np.mean([row.found for row in some])),
        })  # fmt: skip
    return entries


def mean_dice(entries: Iterable[Entry], names: set[str], *, only_trained: bool = False) -> Entry:
    """Mean over concepts (dataset, target) of the named sets, unions that the files do not name left out."""
    values = [
        float(entry["dice"])
        for entry in entries
        if entry["dataset"] in names and not entry["derived"] and (entry["trained"] or not only_trained)
    ]
    return {"concepts": len(values), "dice": round(float(np.mean(values)), 1) if values else None}


def gain_of_box(rows: Sequence[Row]) -> list[Entry]:
    """For each set with 2D images the mean Dice over its targets by words, with an oracle box, and the difference; of
    the same cases."""
    entries = []
    for name in dict.fromkeys(row.dataset for row in rows if row.protocol == TEXT_AND_BOX):
        here = [row for row in rows if row.dataset == name]
        boxed = {(row.stem, row.target) for row in here if row.protocol == TEXT_AND_BOX}
        same = [row for row in here if (row.stem, row.target) in boxed]
        means = [mean_dice(by_target(same, protocol), {name}) for protocol in (TEXT, TEXT_AND_BOX)]
        words, box = (mean["dice"] for mean in means)
        if words is not None and box is not None:
            gain = round(box - words, 1)
            entries.append(
                {"dataset": name, "targets": means[0]["concepts"], "text": words, "oracle_box": box, "gain": gain}
            )
    return entries


def counted_objects(rows: Sequence[Row]) -> list[Entry]:
    """For each (dataset, target) whose objects reference and model tell apart, asked by words: F1 of objects at IoU 0.5
    over all cases together, mean absolute error of their number in a case, and the mean number in the reference."""
    groups: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for row in rows:
        if row.objects is not None and row.protocol == TEXT:
            groups.setdefault((row.dataset, row.target), []).append(row.objects)
    entries = []
    for (name, target), triples in groups.items():
        found, wanted, matched = np.array(triples, dtype=np.float64).T
        entries.append({
            "dataset": name, "target": target, "cases": len(triples),
            "objects": round(float(wanted.mean()), 1),
            "f1": _percent(2 * matched.sum() / max(float((found + wanted).sum()), 1.0)),
            "count_error": round(float(np.abs(found - wanted).mean()), 2),
        })  # fmt: skip
    return entries


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

    @property
    def entry(self) -> Entry:
        return {
            "pairs": self.pairs, "balanced_accuracy": _percent(self.balanced_accuracy),
            "sensitivity": _percent(self.sensitivity), "specificity": _percent(self.specificity),
            "auc": _percent(self.auc),
        }  # fmt: skip


def presence_result(rows: Sequence[Row], seed: int = 0) -> PresenceResult | None:
    """Balanced by drawing, set by set, as many pairs of the more frequent kind as there are of the other; None if there
    is no pair."""
    rng = np.random.default_rng(seed)
    asked = [row for row in rows if row.protocol == TEXT and not row.derived]
    chosen: list[Row] = []
    for name in sorted({row.dataset for row in asked}):
        kinds = [[r for r in asked if r.dataset == name and r.present is kind] for kind in (True, False)]
        count = min(len(kind) for kind in kinds)
        for kind in kinds:
            chosen += [kind[int(i)] for i in rng.choice(len(kind), count, replace=False)] if count else []
    if not chosen:
        return None
    present = np.array([r.presence for r in chosen if r.present])
    absent = np.array([r.presence for r in chosen if not r.present])
    found = [np.mean([r.found for r in chosen if r.present is kind]) for kind in (True, False)]
    wins = (present[:, None] > absent[None]).mean() + 0.5 * (present[:, None] == absent[None]).mean()
    return PresenceResult(len(chosen), float(found[0]), float(1 - found[1]), float(wins))


def _percent(share: float | np.floating) -> float:
    return round(100 * float(share), 1)

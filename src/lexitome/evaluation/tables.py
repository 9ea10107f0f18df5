"""What a run amounts to: means with intervals by dataset, by concept and over datasets, presence, calibration, time.

Every mean is of one model and one protocol: oracle prompts are never mixed with text. Concepts that files do not name
(derived) appear by concept only. Lengths carry their unit in the name of the column ("hd95_mm", "hd95_px") and are
never averaged across units. All values are JSON-able, shares between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.evaluation.mask_calibration import mask_calibration
from lexitome.evaluation.metrics import METRICS
from lexitome.evaluation.presence import presence_table, reliability
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.statistics import (
    DRAWS,
    LEVEL,
    Floats,
    Interval,
    Stratum,
    mean_intervals,
    mean_of_columns,
)

ALWAYS = ("dice", "iou", "precision", "recall", "volume_error", "nsd", "boundary_iou", "unbounded")
"""Metrics that every present concept has. An unanswered question scores their value for an empty prediction, should its
row not say so itself."""
SECONDS = "seconds"
CLASS_MEANS = ("dice", "nsd")
"""Metrics whose mean over concepts stands beside the mean over cases."""

Entry = dict[str, Any]


def summarise(rows: Iterable[ResultRow], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> dict[str, Any]:
    """The tables of a run.

    Returns:
        "by_dataset": for each (model, protocol, dataset): counts; "metrics": column to interval and median over cases
            (a case is one concept asked in one image); "over_concepts": the mean over concepts of their means over
            cases, of `CLASS_MEANS`; "seconds" of one question.
        "by_concept": the same for each concept, with "derived" and "taught".
        "overall": for each (model, protocol) and "subset" ("all", "taught", "untaught"), means over the datasets'
            means, and the "datasets" that they are of.
        "presence", "calibration": see `presence.presence_table` and `presence.reliability`.
        "mask_calibration": see `mask_calibration.mask_calibration`.
        "settings": seed, draws, level and what was resampled.

    An interval is {"mean", "low", "high", "units", "cases"}; low and high are None where there is a single unit.
    """
    frame = Frame.of(rows)
    how = _How(seed, draws, level)
    return {
        "settings": {**asdict(how), "resampled": "units within each dataset, datasets fixed"},
        "by_dataset": _by_dataset(frame, how),
        "by_concept": _by_concept(frame, how),
        "overall": _overall(frame, how),
        "presence": presence_table(frame.rows, seed=seed, draws=draws, level=level),
        "calibration": reliability(frame.rows, seed=seed, draws=draws, level=level),
        "mask_calibration": mask_calibration(frame.rows),
    }


@dataclass(frozen=True)
class _How:
    seed: int
    draws: int
    level: float


@dataclass(frozen=True, eq=False)
class Frame:
    """Rows, sorted, and their (rows, columns) numbers, NaN for none; `units` are numbered over all datasets."""

    rows: list[ResultRow]
    columns: list[str]
    values: Floats
    units: NDArray[np.int64]

    @staticmethod
    def of(rows: Iterable[ResultRow]) -> Frame:
        ordered = sorted(rows, key=lambda row: (row.model, row.key))
        scores = [scores_of(row) for row in ordered]
        columns = list(dict.fromkeys(name for row in scores for name in row))
        values = np.array([[row.get(name, np.nan) for name in columns] for row in scores], dtype=np.float64)
        names = [f"{row.dataset}\n{row.unit}" for row in ordered]
        units = np.unique(names, return_inverse=True)[1] if names else np.empty(0, dtype=np.int64)
        return Frame(ordered, columns, values.reshape(len(ordered), len(columns)), units)

    def stratum(self, index: Sequence[int]) -> Stratum:
        return Stratum.of(self.values[index], self.units[index])

    def by_concept(self, index: Sequence[int], column: int) -> Stratum:
        """One column of the values with a column for each concept that has any; units without a value left out."""
        held = [i for i in index if np.isfinite(self.values[i, column])]
        names, concept = np.unique([self.rows[i].concept for i in held], return_inverse=True)
        spread = np.full((len(held), len(names)), np.nan)
        spread[np.arange(len(held)), concept] = self.values[held, column]
        return Stratum.of(spread, self.units[held])

    def groups(self, *names: str, derived: bool) -> dict[tuple, list[int]]:
        """Indices of rows with equal fields; with or without those of derived concepts."""
        found: dict[tuple, list[int]] = {}
        for i, row in enumerate(self.rows):
            if derived or not row.derived:
                found.setdefault(tuple(getattr(row, name) for name in names), []).append(i)
        return found


def scores_of(row: ResultRow) -> dict[str, float]:
    """The numbers of a row that a mean may hold, by column (see `column_of`); what is not finite is no number."""
    found = {column_of(name, row): value for name, value in given_by(row).items() if not _is_flag(name)}
    return found if row.seconds is None else found | {SECONDS: row.seconds}


def given_by(row: ResultRow) -> dict[str, float]:
    """The finite metrics of a row. Unanswered questions score as an empty mask, whatever the row leaves out."""
    given = dict(row.metrics)
    if row.present and row.status != "ok":
        given |= {name: METRICS[name].empty_prediction for name in ALWAYS if given.get(name) is None}
    return {name: value for name, value in given.items() if value is not None and math.isfinite(value)}


def column_of(name: str, row: ResultRow) -> str:
    """The metric, with its unit if it has one: "hd95_mm", "false_volume_mm2"."""
    kind = METRICS[name].unit if name in METRICS else "share"
    if kind == "length":
        return f"{name}_{row.length}"
    if kind == "volume":
        return f"{name}_mm{row.dims}" if row.length == "mm" else f"{name}_{'px' if row.dims == 2 else 'voxels'}"
    return name


def _is_flag(name: str) -> bool:
    return name in METRICS and METRICS[name].unit == "flag"


def counts_of(rows: Sequence[ResultRow]) -> Entry:
    """How many questions, of which kind, and what became of them."""
    return {
        "rows": len(rows), "present": sum(row.present for row in rows), "absent": sum(not row.present for row in rows),
        "cases": len({(row.dataset, row.case) for row in rows}),
        "units": len({(row.dataset, row.unit) for row in rows}),
        "missing": sum(row.status == "missing" for row in rows), "failed": sum(row.status == "failed" for row in rows),
        "unbounded": sum(given_by(row).get("unbounded") == 1.0 for row in rows),
    }  # fmt: skip


def _by_dataset(frame: Frame, how: _How) -> list[Entry]:
    entries = []
    for (model, protocol, dataset), index in frame.groups("model", "protocol", "dataset", derived=False).items():
        some = [frame.rows[i] for i in index]
        about = {"dataset": dataset, "model": model, "protocol": protocol, "oracle": some[0].oracle}
        kinds: Entry = {key: sorted({getattr(row, key) for row in some}) for key in ("split", "modality", "dims")}
        concepts = {"concepts": len({row.concept for row in some if row.present})}
        means = _means(frame, index, how)
        classes = {"over_concepts": _over_concepts(frame, index, how)}
        entries.append(about | kinds | concepts | {"counts": counts_of(some)} | means | classes)
    return entries


def _by_concept(frame: Frame, how: _How) -> list[Entry]:
    """Of concepts that some case shows; the false finds of absent ones are in the tables by dataset."""
    entries = []
    groups = frame.groups("model", "protocol", "dataset", "concept", derived=True)
    for (model, protocol, dataset, concept), index in groups.items():
        shown = [i for i in index if frame.rows[i].present]
        if shown:
            some = [frame.rows[i] for i in shown]
            entries.append({
                "dataset": dataset, "concept": concept, "derived": some[0].derived, "taught": some[0].taught,
                "model": model, "protocol": protocol, "oracle": some[0].oracle, "counts": counts_of(some),
                "found": sum(row.found for row in some),
            } | _means(frame, shown, how))  # fmt: skip
    return entries


def _overall(frame: Frame, how: _How) -> list[Entry]:
    entries = []
    for (model, protocol), index in frame.groups("model", "protocol", derived=False).items():
        known = {frame.rows[i].taught for i in index if frame.rows[i].present}
        subsets = {"all": index} | {
            name: [i for i in index if frame.rows[i].taught is kind]
            for name, kind in (("taught", True), ("untaught", False))
            if {True, False} <= known
        }
        for subset, part in subsets.items():
            datasets: dict[str, list[int]] = {}
            for i in part:
                datasets.setdefault(frame.rows[i].dataset, []).append(i)
            found = mean_intervals([frame.stratum(own) for own in datasets.values()], **asdict(how))
            entries.append({
                "model": model, "protocol": protocol, "oracle": "oracle" in protocol, "subset": subset,
                "datasets": list(datasets), "counts": counts_of([frame.rows[i] for i in part]),
            } | _entries_of(frame.columns, found, {}))  # fmt: skip
    return entries


def _means(frame: Frame, index: Sequence[int], how: _How) -> Entry:
    found = mean_intervals([frame.stratum(index)], **asdict(how))
    values = frame.values[index]
    medians = {
        name: float(np.median(values[held, k]))
        for k, name in enumerate(frame.columns)
        if (held := np.isfinite(values[:, k])).any()
    }
    return _entries_of(frame.columns, found, medians)


def _entries_of(columns: Sequence[str], found: Sequence[Interval | None], medians: Mapping[str, float]) -> Entry:
    """ "metrics" and "seconds" of a table's entry."""
    entries = {
        name: asdict(interval) | ({"median": medians[name]} if name in medians else {})
        for name, interval in zip(columns, found, strict=True)
        if interval is not None
    }
    seconds = entries.pop(SECONDS, None)
    return {"metrics": entries, "seconds": seconds}


def _over_concepts(frame: Frame, index: Sequence[int], how: _How) -> Entry:
    """Each concept of the dataset counts the same, however many cases show it."""
    entry: Entry = {}
    for k, name in enumerate(frame.columns):
        stratum = frame.by_concept(index, k)
        found = mean_of_columns([stratum], **asdict(how)) if name in CLASS_MEANS else None
        if found is not None:
            entry[name] = asdict(found) | {"concepts": stratum.sums.shape[1]}
    return entry


def mean_over_concepts(
    rows: Iterable[ResultRow], *, metric: str = "dice", seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> Entry | None:
    """The mean over the concepts of all datasets of their means over cases, as an interval and "concepts", the number
    of (dataset, concept); None where no row has the metric. Derived concepts are left out.

    Args:
        rows: of one model and one protocol.
        metric: a share.
    """
    frame = Frame.of(rows)
    if metric not in frame.columns:
        return None
    k = frame.columns.index(metric)
    strata = [frame.by_concept(index, k) for index in frame.groups("dataset", derived=False).values()]
    found = mean_of_columns(strata, **asdict(_How(seed, draws, level)))
    return None if found is None else asdict(found) | {"concepts": sum(stratum.sums.shape[1] for stratum in strata)}

"""Two or more runs, row by row: on which datasets does one beat the other, and by how much.

Rows are paired by `ResultRow.key` (dataset, case, concept, protocol), so a difference is always of the same question
under the same protocol. What has no partner is counted and named, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lexitome.errors import InputError
from lexitome.evaluation.metrics import METRICS
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import Run
from lexitome.evaluation.statistics import (
    FLIPS,
    PairedTest,
    holm,
    paired_permutation,
    stratified_mean,
    stratified_permutation,
)
from lexitome.evaluation.tables import SECONDS, column_of, given_by

PRESENCE = "presence"
"""Besides `METRICS` and `SECONDS`: 1 where the model rightly found something or nothing, absent concepts included."""
COMPARABLE = (*(name for name, info in METRICS.items() if info.unit != "flag"), PRESENCE, SECONDS)

Verdict = Literal["win", "tie", "loss", "single unit"]
Entry = dict[str, Any]
Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class _Settings:
    metric: str
    seed: int
    draws: int

    @property
    def higher_is_better(self) -> bool:
        return METRICS[self.metric].better == "high" if self.metric in METRICS else self.metric == PRESENCE


@dataclass(frozen=True)
class _Pair:
    """The values of one question in both runs; `unit` is of the question, `measure` of the values."""

    dataset: str
    unit: str
    concept: str
    measure: str
    first: float
    second: float


def compare(runs: Sequence[Run], *, metric: str = "dice", seed: int = 0, draws: int = FLIPS) -> dict[str, Any]:
    """`compare_rows` of run folders. They are called by their models' names; where these are the same, by their folders
    too.

    Raises:
        InputError: see `compare_rows`.
    """
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else f"{run.name} ({run.path.name})" for run in runs]
    if len(set(labels)) < len(labels):
        labels = [str(run.path) for run in runs]
    return compare_rows([(label, run.rows) for label, run in zip(labels, runs, strict=True)], metric=metric, seed=seed,
                        draws=draws)  # fmt: skip


def compare_rows(
    named: Sequence[tuple[str, Sequence[ResultRow]]], *, metric: str = "dice", seed: int = 0, draws: int = FLIPS
) -> dict[str, Any]:
    """Each later run against the first one; differences are later minus first.

    Args:
        metric: one of `COMPARABLE`. Signed metrics are compared by their magnitude.
        draws: of the permutation test, where there are too many units to enumerate.

    Returns:
        "metric", "better", "first" and one of "comparisons" for each later run, with "run", "pairs", "left_out" (counts
        of what was not compared, and why), "unmatched" (names of what had no partner) and "protocols". Each of these
        has "datasets" and "overall", the mean over datasets, with "wins", "ties" and "losses". Each entry has "a" and
        "b", the intervals of the first and the later run, "difference" with "low" and "high", "p", "effect_size"
        (see `statistics.PairedTest`), "verdict" for the later run, and "p_holm" over the datasets of its protocol.

    Raises:
        InputError: fewer than two runs, an unknown metric, two rows of a run with one key, or no pair at all.
    """
    if len(named) < 2:
        raise InputError("lexitome compare", "one run cannot be compared", "Name at least two run folders.")
    if metric not in COMPARABLE:
        remedy = f"Choose from {', '.join(COMPARABLE)}."
        raise InputError("lexitome compare", f"there is no metric {metric!r}", remedy)
    how = _Settings(metric, seed, draws)
    tables = [(name, _by_key(name, rows)) for name, rows in named]
    return {
        "metric": metric, "better": "high" if how.higher_is_better else "low", "first": tables[0][0],
        "settings": {"seed": seed, "flips": draws, "flipped": "units", "family": "datasets of one protocol"},
        "comparisons": [_compare_two(tables[0], other, how) for other in tables[1:]],
    }  # fmt: skip


def _by_key(name: str, rows: Iterable[ResultRow]) -> dict[Key, ResultRow]:
    table: dict[Key, ResultRow] = {}
    for row in rows:
        if row.key in table:
            cause = f"asks {' / '.join(row.key)} twice"
            raise InputError(name, cause, "Compare folders that hold the answers of one model each.")
        table[row.key] = row
    return table


def _compare_two(
    first: tuple[str, Mapping[Key, ResultRow]], second: tuple[str, Mapping[Key, ResultRow]], how: _Settings
) -> Entry:
    (name_a, a), (name_b, b) = first, second
    pairs: dict[str, list[_Pair]] = {}
    left_out = dict.fromkeys(("derived", "absent", "no_value_in_a", "no_value_in_b", "no_value_in_both"), 0)
    differing: list[Key] = []
    for key in sorted(set(a) & set(b)):
        found = _pair(a[key], b[key], how.metric)
        if isinstance(found, _Pair):
            pairs.setdefault(key[3], []).append(found)
        elif found == "differs":
            differing.append(key)
        else:
            left_out[found] += 1
    unmatched = {"only_in_a": sorted(set(a) - set(b)), "only_in_b": sorted(set(b) - set(a)), "differ": differing}
    if not pairs:
        cause = f"shares no question that has a {how.metric} in both with {name_a}"
        raise InputError(name_b, cause, "Compare runs of the same data and prompts, or choose another --metric.")
    return {
        "run": name_b, "against": name_a, "pairs": sum(map(len, pairs.values())),
        "left_out": left_out | {reason: len(keys) for reason, keys in unmatched.items()},
        "unmatched": {reason: [" / ".join(key) for key in keys] for reason, keys in unmatched.items()},
        "unanswered": {"a": _unanswered(a), "b": _unanswered(b)},
        "protocols": [_one_protocol(protocol, some, how) for protocol, some in pairs.items()],
    }  # fmt: skip


def _pair(a: ResultRow, b: ResultRow, metric: str) -> _Pair | str:
    """The pair, or why there is none. Rows differ where references do: other presence, subject or unit of length."""
    if a.derived or b.derived:
        return "derived"
    lengths = column_of(metric, a) != column_of(metric, b)
    if a.present != b.present or a.unit != b.unit or lengths:
        return "differs"
    if not a.present and metric not in (PRESENCE, SECONDS, "false_volume"):
        return "absent"
    first, second = _value(a, metric), _value(b, metric)
    if first is None or second is None:
        return "no_value_in_both" if first == second else "no_value_in_a" if first is None else "no_value_in_b"
    return _Pair(a.dataset, a.unit, a.concept, column_of(metric, a), first, second)


def _value(row: ResultRow, metric: str) -> float | None:
    if metric == PRESENCE:
        return float((row.found and row.status == "ok") == row.present)
    if metric == SECONDS:
        return row.seconds
    value = given_by(row).get(metric)
    return abs(value) if value is not None and METRICS[metric].unit == "signed share" else value


def _unanswered(rows: Mapping[Key, ResultRow]) -> Entry:
    states = [row.status for row in rows.values()]
    return {"missing": states.count("missing"), "failed": states.count("failed")}


def _one_protocol(protocol: str, pairs: Sequence[_Pair], how: _Settings) -> Entry:
    groups: dict[tuple[str, str], list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.dataset, pair.measure), []).append(pair)
    entries: list[Entry] = []
    for (dataset, measure), some in groups.items():
        a, b = _by_unit(some)
        concepts = len({pair.concept for pair in some})
        about: Entry = {"dataset": dataset, "measure": measure, "cases": len(some), "concepts": concepts}
        test = paired_permutation(b, a, seed=how.seed, draws=how.draws)
        entries.append(about | _entry({dataset: a}, {dataset: b}, test, how))
    for entry, p in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
        entry["p_holm"] = p
    return {
        "protocol": protocol, "oracle": "oracle" in protocol, "datasets": entries,
        "overall": [_overall(measure, groups, entries, how) for measure in dict.fromkeys(m for _, m in groups)],
    }  # fmt: skip


def _overall(
    measure: str, groups: Mapping[tuple[str, str], Sequence[_Pair]], entries: Sequence[Entry], how: _Settings
) -> Entry:
    """Over the datasets that have this measure: lengths in mm and in px are two."""
    own = {dataset: _by_unit(pairs) for (dataset, other), pairs in groups.items() if other == measure}
    a, b = ({dataset: sides[i] for dataset, sides in own.items()} for i in (0, 1))
    test = stratified_permutation(b, a, seed=how.seed, draws=how.draws)
    verdicts = [entry["verdict"] for entry in entries if entry["measure"] == measure]
    return {
        "datasets": len(own), "measure": measure, "cases": sum(len(v) for units in a.values() for v in units.values()),
        **_entry(a, b, test, how),
        "wins": verdicts.count("win"), "ties": verdicts.count("tie"), "losses": verdicts.count("loss"),
        "undecided": verdicts.count("single unit"),
    }  # fmt: skip


Side = dict[str, list[float]]


def _by_unit(pairs: Sequence[_Pair]) -> tuple[Side, Side]:
    a: Side = {}
    b: Side = {}
    for pair in pairs:
        a.setdefault(pair.unit, []).append(pair.first)
        b.setdefault(pair.unit, []).append(pair.second)
    return a, b


def _entry(a: Mapping[str, Side], b: Mapping[str, Side], test: PairedTest, how: _Settings) -> Entry:
    """Both runs over the same rows, and the test of their difference."""
    sides = (asdict(stratified_mean(side, seed=how.seed)) for side in (a, b))
    return dict(zip("ab", sides, strict=True)) | asdict(test) | {"verdict": verdict(test, how.higher_is_better)}


def verdict(test: PairedTest, higher_is_better: bool) -> Verdict:
    """A tie where the interval of the difference includes 0; of a single unit there is no interval, so no verdict."""
    if test.low is None or test.high is None:
        return "single unit"
    if test.low <= 0 <= test.high:
        return "tie"
    return "win" if (test.difference > 0) == higher_is_better else "loss"


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """
    Raises:
        InputError: a folder is no finished run, or is named twice.
    """
    twice = [folder for i, folder in enumerate(folders) if folder.resolve() in {f.resolve() for f in folders[:i]}]
    if twice:
        raise InputError(twice[0], "is named twice", "Name each run once.")
    return [Run.load(folder) for folder in folders]

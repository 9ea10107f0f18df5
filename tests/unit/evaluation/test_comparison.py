"""Two runs against each other: pairing, what is left out, Holm, and who wins."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from result_rows import row

from lexitome.errors import InputError
from lexitome.evaluation.comparison import compare_rows, verdict
from lexitome.evaluation.comparison_text import (
    BRIEF_HEADER,
    HEADER,
    brief_cells,
    cells,
    left_out_lines,
    number,
    p_value,
    to_csv,
    to_markdown,
)
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.statistics import PairedTest, holm, paired_permutation


def run(shift: dict[str, float], units: int = 16, noise: int = 0, **fields: Any) -> list[ResultRow]:
    """Two cases of each of `units` subjects of each dataset; the same difficulty in every run, plus `shift`."""
    rng, own = np.random.default_rng(0), np.random.default_rng(noise)
    return [
        row(float(np.clip(0.5 + 0.1 * rng.normal() + gain + 0.01 * own.normal(), 0.01, 1)), dataset=dataset,
            case=f"c{u}-{c}", unit=f"u{u:02}", **fields)
        for dataset, gain in shift.items() for u in range(units) for c in range(2)
    ]  # fmt: skip


def test_who_wins_on_which_dataset() -> None:
    before = run({"a": 0, "b": 0, "c": 0}, noise=1)
    after = run({"a": 0.1, "b": 0, "c": -0.1}, noise=2)
    result = compare_rows([("before", before), ("after", after)])
    comparison = result["comparisons"][0]
    assert (comparison["run"], comparison["against"], comparison["pairs"]) == ("after", "before", 96)
    part = comparison["protocols"][0]
    assert {e["dataset"]: e["verdict"] for e in part["datasets"]} == {"a": "win", "b": "tie", "c": "loss"}
    overall = part["overall"][0]
    assert (overall["wins"], overall["ties"], overall["losses"], overall["datasets"]) == (1, 1, 1, 3)
    assert overall["verdict"] == "tie" and overall["effect_size"] is None
    for entry in part["datasets"]:
        mine = {
            name: [r for r in rows if r.dataset == entry["dataset"]] for name, rows in (("a", before), ("b", after))
        }
        sides = {name: np.mean([r.metrics["dice"] for r in rows]) for name, rows in mine.items()}
        assert (entry["a"]["mean"], entry["b"]["mean"]) == pytest.approx((sides["a"], sides["b"]))
        assert entry["difference"] == pytest.approx(sides["b"] - sides["a"])
        assert entry["low"] <= entry["difference"] <= entry["high"]
    ps = [entry["p"] for entry in part["datasets"]]
    assert [entry["p_holm"] for entry in part["datasets"]] == holm(ps) and ps[0] < 0.001 < 0.05 < ps[1]
    units = {f"u{u:02}": [0.0, 0.0] for u in range(16)}
    for sign, rows in ((1, after), (-1, before)):
        for r in rows:
            if r.dataset == "a":
                units[r.unit][int(r.case[-1])] += sign * r.metrics["dice"]
    test = paired_permutation(units, {u: [0.0, 0.0] for u in units}, seed=0)
    assert part["datasets"][0]["p"] == test.p
    assert part["datasets"][0]["effect_size"] == pytest.approx(test.effect_size)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_later_runs_are_each_compared_with_the_first() -> None:
    runs = [(name, run({"a": gain})) for name, gain in (("one", 0.0), ("two", 0.1), ("three", -0.2))]
    found = compare_rows(runs)
    assert found["first"] == "one"
    verdicts = {c["run"]: c["protocols"][0]["datasets"][0]["verdict"] for c in found["comparisons"]}
    assert verdicts == {"two": "win", "three": "loss"}


def test_lower_is_better_for_distances_and_magnitudes() -> None:
    def of(metric: str, value: float) -> list[ResultRow]:
        return [replace(r, metrics={metric: value + i / 100}) for i, r in enumerate(run({"a": 0}, units=4))]

    assert first_entry(of("hd95", 9), of("hd95", 3), "hd95")["verdict"] == "win"
    assert first_entry(of("dice", 0.9), of("dice", 0.3), "dice")["verdict"] == "loss"
    error = first_entry(of("volume_error", -0.9), of("volume_error", 0.1), "volume_error")
    assert error["verdict"] == "win" and error["a"]["mean"] == pytest.approx(0.9 - 0.035)


def first_entry(a: list[ResultRow], b: list[ResultRow], metric: str) -> dict[str, Any]:
    return compare_rows([("a", a), ("b", b)], metric=metric)["comparisons"][0]["protocols"][0]["datasets"][0]


def test_what_has_no_partner_is_counted_and_named() -> None:
    a, b = run({"a": 0}), run({"a": 0.1})
    lone = row(0.3, dataset="a", case="only-a")
    other = [row(0.3, dataset="a", case="odd", present=True), row(None, dataset="a", case="odd")]
    union = row(0.9, dataset="a", concept="both", derived=True)
    absent = row(None, dataset="a", case="c0-0", concept="spleen")
    a, b = [*a, lone, other[0], union, absent], [*b[1:], other[1], union, absent]
    comparison = compare_rows([("a", a), ("b", b)])["comparisons"][0]
    assert comparison["pairs"] == 31
    assert comparison["left_out"] == {
        "derived": 1, "absent": 1, "no_value_in_a": 0, "no_value_in_b": 0, "no_value_in_both": 0,
        "only_in_a": 2, "only_in_b": 0, "differ": 1,
    }  # fmt: skip
    assert comparison["unmatched"]["only_in_a"] == ["a / c0-0 / liver / text", "a / only-a / liver / text"]
    lines = left_out_lines(comparison)
    assert any("only in A: a / c0-0 / liver / text; a / only-a" in line for line in lines)


def test_failures_score_zero_and_distances_to_nothing_are_counted() -> None:
    a, b = run({"a": 0}), run({"a": 0})
    b[0] = replace(b[0], status="failed", metrics={})
    entry = compare_rows([("a", a), ("b", b)])
    assert entry["comparisons"][0]["pairs"] == 32 and entry["comparisons"][0]["unanswered"]["b"] == {
        "missing": 0, "failed": 1,
    }  # fmt: skip
    assert entry["comparisons"][0]["protocols"][0]["datasets"][0]["difference"] < 0
    a, b = ([replace(r, metrics={"hd95": 2.0}) for r in rows] for rows in (a, b))
    b[3] = replace(b[3], metrics={"hd95": None, "unbounded": 1.0}, found=False)
    comparison = compare_rows([("a", a), ("b", b)], metric="hd95")["comparisons"][0]
    assert comparison["left_out"]["no_value_in_b"] == 1 and comparison["pairs"] == 31


def test_presence_counts_absent_concepts() -> None:
    a = [row(0.5, case="c1", unit="u1"), row(None, case="c2", unit="u2", found=True)]
    b = [a[0], replace(a[1], found=False)]
    entry = first_entry(a, b, "presence")
    assert (entry["a"]["mean"], entry["b"]["mean"], entry["cases"]) == (0.5, 1.0, 2)


def test_protocols_and_units_of_length_are_never_mixed() -> None:
    a = run({"a": 0}) + run({"a": 0.2}, protocol="oracle-box")
    parts = compare_rows([("a", a), ("b", a)])["comparisons"][0]["protocols"]
    assert [(part["protocol"], part["oracle"]) for part in parts] == [("oracle-box", True), ("text", False)]
    scan = [replace(r, metrics={"assd": 1.0}, length="mm", dims=3) for r in run({"a": 0, "b": 0}, units=2)]
    scan = [replace(r, length="px", dims=2) if r.dataset == "b" else r for r in scan]
    part = compare_rows([("a", scan), ("b", scan)], metric="assd")["comparisons"][0]["protocols"][0]
    assert [(o["measure"], o["datasets"]) for o in part["overall"]] == [("assd_mm", 1), ("assd_px", 1)]
    assert [cells(entry, "assd")[0] for entry in part["datasets"]] == ["a (mm)", "b (px)"]


def test_verdict_needs_an_interval() -> None:
    assert verdict(PairedTest(0.3, 1.0, None, 1, None, None), True) == "single unit"
    assert verdict(PairedTest(0.3, 0.1, 1.0, 5, 0.0, 0.5), True) == "tie"
    assert verdict(PairedTest(0.3, 0.1, 1.0, 5, 0.1, 0.5), False) == "loss"


@pytest.mark.parametrize(
    ("runs", "metric", "words"),
    [
        ([("a", [row(0.5)])], "dice", "at least two"),
        ([("a", [row(0.5)]), ("b", [row(0.5)])], "dices", "no metric 'dices'"),
        ([("a", [row(0.5)]), ("b", [row(0.5)])], "unbounded", "no metric"),
        ([("a", [row(0.5)]), ("b", [row(0.5, dataset="x")])], "dice", "shares no question"),
        ([("a", [row(0.5)]), ("b", [row(0.5)])], "nsd", "nsd in both"),
        ([("a", [row(0.5), row(0.6)]), ("b", [row(0.5)])], "dice", "twice"),
    ],
)
def test_what_cannot_be_compared_is_said(runs: list[tuple[str, list[ResultRow]]], metric: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare_rows(runs, metric=metric)


def test_numbers_as_people_read_them() -> None:
    assert number(0.1234, "dice") == "12.3" and number(0.1234, "dice", signed=True) == "+12.3"
    assert number(-0.0001, "dice", signed=True) == "0.0" and number(None, "dice") == "-"
    assert number(2.5, "hd95") == "2.50" and number(0.0125, "seconds") == "0.013"
    assert p_value(0.00099) == "< 0.001" and p_value(0.0312) == "0.031"


def test_markdown_and_csv_hold_every_line() -> None:
    results = [compare_rows([("old|er", run({"a": 0, "b": 0})), ("new", run({"a": 0.1, "b": 0}))])]
    page = to_markdown(results)
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(lines) == 4 and all(line.count(" | ") == len(HEADER) - 1 for line in lines)
    assert "B = new against A = old|er, in percent" in page
    assert "B wins on 1, ties on 1, loses on 0 of 2 datasets." in page
    table = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert [line["dataset"] for line in table] == ["a", "b", ""]
    part = results[0]["comparisons"][0]["protocols"][0]
    assert float(table[0]["mean_b"]) == part["datasets"][0]["b"]["mean"]
    assert float(table[2]["difference"]) == part["overall"][0]["difference"] and table[2]["p_holm"] == ""


def test_brief_tables_fit_a_terminal() -> None:
    entry = first_entry(run({"spleen_msd_ct": 0}, noise=1), run({"spleen_msd_ct": 0.1}, noise=2), "dice")
    short, full = brief_cells(entry, "dice"), cells(entry, "dice")
    assert len(short) == len(BRIEF_HEADER) and len(full) == len(HEADER)
    assert dict(zip(BRIEF_HEADER, short, strict=True)).items() - dict(zip(HEADER, full, strict=True)).items() == {
        ("A", full[3].split(" ")[0]), ("B", full[4].split(" ")[0]),
    }  # fmt: skip
    assert sum(map(len, short)) + 2 * len(short) < 80

"""Our scores beside published ones: means by hand, the same tasks on both sides, and what the page says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexitome.data.dataset import Case, Dataset, Target
from lexitome.evaluation.beside import Cell, Comparison, Heading, as_json, compare_with_published, score
from lexitome.evaluation.beside_text import as_markdown, cell_text, headings_of, packed, rows_of
from lexitome.evaluation.found_sets import FoundSet, TaskData
from lexitome.evaluation.presets import load_preset
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import plain

SAM3 = load_preset("medical-sam3")


def row(case: str, dice: float | None, *, dataset: str = "cvc", concept: str = "polyp", **changes: object) -> ResultRow:
    given = ResultRow(
        dataset, "test", case, case[0], "colonoscopy", 2, concept, False, "compact", "text", dice is not None,
        metrics={"dice": dice, "iou": None if dice is None else dice / (2 - dice)},
    )  # fmt: skip
    return replace(given, **changes)  # type: ignore[arg-type]


def task_data(name: str, dataset: str, concepts: Sequence[str] = ("polyp",), cases: int = 2) -> TaskData:
    task = next(task for task in SAM3.tasks if task.name == name)
    targets = tuple(Target(concept, (), (i,), (i,)) for i, concept in enumerate(concepts, 1))
    every = tuple(Case(f"a{i}", "a", "test", None) for i in range(cases))  # type: ignore[arg-type]
    data = Dataset(dataset, Path(dataset), "", "", "", "", 2, "", "", None, None, targets, every)
    return TaskData(task, FoundSet(task.source, Path(dataset), data), data, tuple(concepts), ("fewer images",))


def compared(data: Sequence[TaskData], rows: Sequence[ResultRow]) -> Comparison:
    return compare_with_published(SAM3, {e.task.source.key: e.found for e in data}, data, rows)


def test_mean_over_cases_then_over_concepts() -> None:
    """A concept with many cases does not outweigh one with few; absent targets and other concepts do not count."""
    rows = [row(f"{'ab'[i % 2]}{i}", 0.9) for i in range(8)]
    rows += [row("a1", 0.1, concept="cyst"), row("b9", None, concept="cyst")]
    found = score(rows, "dice", 0)
    assert found is not None
    cell, drawn, units = found
    assert cell.value == pytest.approx((0.9 + 0.1) / 2) and (cell.cases, cell.failed, units) == (9, 0, 2)
    assert drawn.shape == (2000,) and np.isfinite(drawn).all()
    assert score([row("a1", None)], "dice", 0) is None and score(rows, "nsd", 0) is None


SCORES = st.integers(0, 1000).map(lambda n: n / 1000)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), SCORES), min_size=1, max_size=20))
def test_score_is_the_mean_of_means_and_within_its_interval(given: list[tuple[str, str, float]]) -> None:
    rows = [row(f"{unit}{i}", dice, concept=concept) for i, (unit, concept, dice) in enumerate(given)]
    means = [np.mean([d for _, c, d in given if c == concept]) for concept in {c for _, c, _ in given}]
    found = score(rows, "dice", 0)
    assert found is not None
    cell, drawn, units = found
    assert cell.value == pytest.approx(np.mean(means)) and units == len({u for u, _, _ in given})
    assert (cell.low is None) == (units == 1)
    if cell.low is not None and cell.high is not None:
        assert drawn.min() - 1e-9 <= cell.low <= cell.high <= drawn.max() + 1e-9
    again = score(rows[::-1], "dice", 0)
    assert again is not None and again[0].value == pytest.approx(cell.value)


def test_interval_is_over_units_not_cases() -> None:
    """A hundred frames of two videos say no more than two videos do."""
    alike = score([row(f"{'ab'[i % 2]}{i}", (0.2, 0.8)[i % 2]) for i in range(100)], "dice", 0)
    apart = score([row(f"{i}", (0.2, 0.8)[i % 2], unit=str(i)) for i in range(100)], "dice", 0)
    assert alike is not None and apart is not None
    assert alike[0].low == pytest.approx(0.2) and alike[0].high == pytest.approx(0.8)
    assert apart[0].high - apart[0].low < 0.2  # type: ignore[operator]


def test_both_sides_are_averaged_over_the_same_tasks() -> None:
    """Of the published means, those over the tasks at hand; CVC-ClinicDB and PH2 have box numbers, HC18 has none."""
    data = [
        task_data("CVC-ClinicDB", "cvc"),
        task_data("PH2", "ph2", ["skin lesion"]),
        task_data("HC18", "hc18", ["h"]),
    ]
    rows = [row("a1", 0.6), row("b1", 0.8), row("a1", 0.9, dataset="ph2", concept="skin lesion")]
    rows += [row("a1", 0.3, dataset="hc18", concept="h")]
    rows += [replace(r, protocol="oracle-box", metrics={"dice": 1.0, "iou": 1.0}) for r in rows]
    rows[-1] = replace(rows[-1], metrics={"dice": 0.0, "iou": 0.0})  # HC18 with a box
    block = compared(data, rows).blocks[1]
    means, common = block.means["dice"], block.common["dice"]
    assert means["ours:text"].value == pytest.approx((0.7 + 0.9 + 0.3) / 3) and means["ours:text"].tasks == 3
    assert means["medical-sam3"].value == pytest.approx((0.879 + 0.927 + 0.926) / 3)
    assert means["medical-sam3-box"].value == pytest.approx((0.915 + 0.936) / 2) and means["sam3-box"].tasks == 2
    assert means["ours:oracle-box"].value == pytest.approx(2 / 3) and common["ours:oracle-box"].value == 1.0
    assert common["sam3-box"] == means["sam3-box"] and common["ours:text"] == means["ours:text"]
    assert means["ours:text"].low is not None and means["sam3"].low is None
    labels = [r.label for r in rows_of(block, "dice", compared(data, rows).headings, 1) if r.mean]
    assert labels == ["mean of the 3 measured", "mean where all have it", "mean of all 7 as published"]


def test_published_columns_stand_beside_ours_asked_alike() -> None:
    comparison = compared([task_data("PH2", "cvc")], [row("a1", 0.5, protocol="oracle-box"), row("a1", 0.5)])
    assert [heading.key for heading in comparison.headings] == [
        "ours:oracle-box", "sam3-box", "medical-sam3-box", "ours:text", "sam3", "medical-sam3",
    ]  # fmt: skip
    shown = headings_of(comparison, ["text"])
    assert [heading.key for heading in shown] == ["ours:oracle-box", "ours:text", "sam3", "medical-sam3"]
    assert headings_of(comparison, ["oracle-exemplar"]) == list(comparison.headings)  # rather than nothing to compare


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(1, 6))
def test_narrow_tables_hold_every_column_once_in_order(groups: list[int], most: int) -> None:
    headings = [Heading(f"{i}.{j}", "m", str(i), "", True) for i, size in enumerate(groups) for j in range(size)]
    tables = packed(headings, most)
    assert [heading for table in tables for heading in table] == headings
    assert all(0 < len(table) <= most for table in tables)


def test_missing_answers_count_and_are_told() -> None:
    rows = [row("a1", 0.8), row("b1", 0.0, status="missing")]
    comparison = compared([task_data("PH2", "cvc")], rows)
    cell = comparison.blocks[1].lines[4].cells["dice"]["ours:text"]
    assert cell.value == pytest.approx(0.4) and cell.failed == 1
    assert comparison.notes == ("Missing or unusable answers: 1. They count as empty masks; rows.csv says why.",)


def test_sets_that_lack_what_is_asked_are_told() -> None:
    entry = task_data("PH2", "ph2", ["finger"])
    comparison = compare_with_published(SAM3, {"ph2": entry.found}, [], [])
    absent = {item.source.key: item for item in comparison.absent}
    assert absent["ph2"].problem == "none of its labels (finger) is asked for" and absent["stare"].problem == ""
    assert comparison.blocks[1].lines[4].state == "no label" and len(comparison.absent) == 17


def test_cells() -> None:
    assert cell_text(None, 1) == "-" and cell_text(Cell(0.879), 1) == "87.9" and cell_text(Cell(0.8738), 2) == "87.38"
    assert cell_text(Cell(0.8, 0.75, 0.85, 9), 1) == "80.0 [75.0, 85.0]"
    assert (
        cell_text(Cell(0.5, tasks=2), 1, of=3) == "50.0 (2 of 3)" and cell_text(Cell(0.5, tasks=3), 1, of=3) == "50.0"
    )


def test_page_and_json_mark_what_is_published() -> None:
    comparison = compared([task_data("PH2", "cvc")], [row("a1", 0.5), row("b1", 0.7)])
    page = as_markdown(comparison)
    assert "| PH2 | 2 images | 60.0 [50.0, 70.0] | 18.4 | 92.7 |" in page
    assert "compact, text | SAM3, text (published) | Medical SAM3, text (published)" in page
    assert "- PH2: fewer images." in page and "SAM3, oracle box (published): authors' pre-release report" in page
    assert "TN3K: 3,493 images" in page and "licence: not checked" in page
    entry = json.loads(json.dumps(plain(as_json(comparison)), allow_nan=False))
    task = next(t for group in entry["groups"] for t in group["tasks"] if t["task"] == "PH2")
    assert task["state"] == "measured" and task["differs"] == ["fewer images"]
    assert task["scores"]["dice"]["ours:text"]["cases"] == 2
    assert {column["key"]: column["published"] for column in entry["columns"]}["sam3"] is True
    assert len(entry["absent"]) == 16 and all(item["licence"] for item in entry["absent"])

"""The tables of a run by hand: what is averaged over what, and what is never mixed."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from result_rows import row

from lexitome.evaluation.metrics import METRICS
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.statistics import bootstrap_mean
from lexitome.evaluation.tables import ALWAYS, mean_over_concepts, summarise


def by(entries: list[dict[str, Any]], *names: str) -> dict[Any, dict[str, Any]]:
    return {tuple(entry[name] for name in names) if len(names) > 1 else entry[names[0]]: entry for entry in entries}


def some_rows() -> list[ResultRow]:
    return [
        row(0.9, case="c1", unit="u1"), row(0.5, case="c2", unit="u2"), row(0.7, case="c3", unit="u2"),
        row(0.1, case="c1", unit="u1", concept="tumour"),
        row(None, case="c2", unit="u2", concept="tumour", metrics={"false_volume": 30.0}, found=True),
        row(1.0, case="c1", unit="u1", concept="liver and tumour", derived=True),
        row(0.95, case="c1", unit="u1", protocol="oracle-box"),
        row(0.2, dataset="other", case="x", unit="u1"), row(0.4, dataset="other", case="y", unit="u2"),
    ]  # fmt: skip


def test_means_over_cases_then_over_datasets() -> None:
    tables = summarise(some_rows(), draws=300)
    sets = by(tables["by_dataset"], "protocol", "dataset")
    assert set(sets) == {("text", "set"), ("text", "other"), ("oracle-box", "set")}
    mine = sets["text", "set"]
    assert mine["metrics"]["dice"]["mean"] == pytest.approx((0.9 + 0.5 + 0.7 + 0.1) / 4)
    assert mine["metrics"]["dice"]["median"] == pytest.approx(0.6)
    assert (mine["metrics"]["dice"]["units"], mine["metrics"]["dice"]["cases"]) == (2, 4)
    assert mine["over_concepts"]["dice"]["mean"] == pytest.approx((0.7 + 0.1) / 2)
    assert mine["over_concepts"]["dice"]["concepts"] == mine["concepts"] == 2
    assert mine["metrics"]["false_volume_px"]["mean"] == 30
    assert not mine["oracle"] and sets["oracle-box", "set"]["oracle"]
    assert sets["oracle-box", "set"]["metrics"]["dice"]["low"] is None  # a single subject
    overall = by(tables["overall"], "protocol")
    assert overall["text"]["metrics"]["dice"]["mean"] == pytest.approx((0.55 + 0.3) / 2)
    assert overall["text"]["datasets"] == ["other", "set"] and overall["oracle-box"]["datasets"] == ["set"]


def test_mean_over_the_concepts_of_all_datasets() -> None:
    rows = [row for row in some_rows() if row.protocol == "text"]
    found = mean_over_concepts(rows, draws=100)
    assert found is not None and found["mean"] == pytest.approx((0.7 + 0.1 + 0.3) / 3)
    assert (found["concepts"], found["units"], found["cases"]) == (3, 4, 6)
    mine = summarise([row for row in rows if row.dataset == "set"], draws=100)["by_dataset"][0]["over_concepts"]["dice"]
    assert mean_over_concepts([row for row in rows if row.dataset == "set"], draws=100) == mine
    assert mean_over_concepts([row for row in rows if not row.present]) is None and mean_over_concepts([]) is None


def test_unions_are_listed_and_not_averaged() -> None:
    concepts = by(summarise(some_rows(), draws=50)["by_concept"], "protocol", "dataset", "concept")
    assert concepts["text", "set", "liver and tumour"]["derived"]
    tumour = concepts["text", "set", "tumour"]
    assert tumour["metrics"]["dice"]["mean"] == 0.1 and tumour["counts"]["rows"] == 1  # where it is there


def test_intervals_are_those_of_the_statistics() -> None:
    rng = np.random.default_rng(0)
    values = {f"u{i:02}": rng.random(int(n)) for i, n in enumerate(rng.integers(1, 5, 12))}
    rows = [row(float(v), unit=u, case=f"{u}-{j}") for u, some in values.items() for j, v in enumerate(some)]
    found = summarise(rows, seed=4, draws=400)["by_dataset"][0]["metrics"]["dice"]
    wanted = bootstrap_mean(values, seed=4, draws=400)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    classes = summarise(rows, seed=4, draws=400)["by_dataset"][0]["over_concepts"]["dice"]  # one concept: the same
    assert (classes["mean"], classes["low"], classes["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))


def test_no_answer_scores_as_an_empty_mask() -> None:
    bare = {"present": True, "found": False, "metrics": {"hd95": None}}
    rows = [
        row(0.8, case="c1"), row(None, case="c2", status="missing", **bare),
        row(None, case="c3", status="failed", **bare),
    ]  # fmt: skip
    entry = summarise(rows, draws=50)["by_dataset"][0]
    assert entry["metrics"]["dice"]["mean"] == pytest.approx(0.8 / 3)
    assert entry["metrics"]["volume_error"]["mean"] == -1 and entry["metrics"]["nsd"]["mean"] == 0
    counts = entry["counts"]
    assert (counts["missing"], counts["failed"], counts["unbounded"]) == (1, 1, 2)
    assert all(METRICS[name].empty_prediction is not None for name in ALWAYS)
    assert "unbounded" not in entry["metrics"] and "hd95_px" not in entry["metrics"]


def test_lengths_of_two_units_never_meet() -> None:
    scan = {"dims": 3, "length": "mm"}
    rows = [
        row(0.5, case="c1", metrics={"hd95": 3.0}, **scan), row(0.5, case="c2", metrics={"hd95": 40.0}),
        row(None, case="c3", metrics={"false_volume": 5.0}, **scan),
        row(None, case="c4", metrics={"false_volume": 7.0}, length="mm"),
    ]  # fmt: skip
    metrics = summarise(rows, draws=50)["by_dataset"][0]["metrics"]
    assert {name: entry["mean"] for name, entry in metrics.items()} == {
        "hd95_mm": 3, "hd95_px": 40, "false_volume_mm3": 5, "false_volume_mm2": 7,
    }  # fmt: skip


def test_taught_and_untaught_concepts_apart() -> None:
    rows = [row(0.9, taught=True), row(0.1, concept="spleen", taught=False)]
    overall = by(summarise(rows, draws=50)["overall"], "subset")
    means = {name: entry["metrics"]["dice"]["mean"] for name, entry in overall.items()}
    assert means == {"all": 0.5, "taught": 0.9, "untaught": 0.1}
    assert len(summarise(rows[:1], draws=50)["overall"]) == 1


def test_order_of_rows_does_not_matter_and_all_is_json() -> None:
    rows = some_rows()
    rows += [replace(r, model="n", seconds=0.25, presence=0.5, metrics={**r.metrics, "nsd": 1 / 3}) for r in rows]
    shuffled = random.Random(0).sample(rows, len(rows))
    text = json.dumps(summarise(rows, draws=100), allow_nan=False)
    assert json.dumps(summarise(shuffled, draws=100), allow_nan=False) == text
    models = by(json.loads(text)["by_dataset"], "model", "protocol", "dataset")
    assert models["n", "text", "set"]["seconds"]["mean"] == 0.25 and models["m", "text", "set"]["seconds"] is None


def test_no_rows_make_empty_tables() -> None:
    tables = summarise([])
    kinds = ("by_dataset", "by_concept", "overall", "presence", "calibration", "mask_calibration")
    assert all(tables[name] == [] for name in kinds)


@pytest.mark.slow
def test_ten_thousand_rows_are_summed_up_in_seconds() -> None:
    rng = np.random.default_rng(0)
    names = ("dice", "iou", "precision", "recall", "nsd", "boundary_iou", "hd95", "hd", "assd", "ece", "brier")
    rows = [
        row(0.5, dataset=f"d{i % 5}", case=f"c{i // 10}", unit=f"u{i // 20}", concept=f"k{i % 10}",
            presence=rng.random(), present=i % 3 > 0, metrics=dict(zip(names, rng.random(11).tolist(), strict=True)))
        for i in range(10_000)
    ]  # fmt: skip
    began = time.process_time()
    summarise(rows)  # five tables, each with 2000 draws
    assert time.process_time() - began < 8

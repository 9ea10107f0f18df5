"""Presence by hand and against SciPy, and the reliability curve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_rows import row
from scipy import stats

from lexitome.evaluation.presence import presence_table, reliability, weighted_auc
from lexitome.evaluation.rows import ResultRow


def asked(present: str, found: str, presence: list[float | None], **fields: object) -> list[ResultRow]:
    """One question of each letter, y or n, each about a subject of its own."""
    return [
        row(
            0.5 if p == "y" else None,
            present=p == "y",
            found=f == "y",
            presence=s,
            case=f"c{i}",
            unit=f"u{i}",
            **fields,
        )
        for i, (p, f, s) in enumerate(zip(present, found, presence, strict=True))
    ]


def test_rates_by_hand() -> None:
    entries = presence_table(asked("yyyynnnn", "yyynynnn", [0.9, 0.8, 0.7, 0.4, 0.75, 0.3, 0.4, 0.1]))
    assert [entry["dataset"] for entry in entries] == ["set", None]
    for entry in entries:
        assert (entry["asked"], entry["present"], entry["absent"]) == (8, 4, 4)
        assert (entry["true_positives"], entry["false_positives"], entry["unanswered"]) == (3, 1, 0)
        means = {
            name: entry[name]["mean"] for name in ("recall", "specificity", "precision", "balanced_accuracy", "auc")
        }
        assert means == pytest.approx(
            {"recall": 3 / 4, "specificity": 3 / 4, "precision": 3 / 4, "balanced_accuracy": 3 / 4,
             "auc": (4 + 4 + 3 + 2.5) / 16}
        )  # fmt: skip
        assert all(0 <= entry[name]["low"] <= means[name] <= entry[name]["high"] <= 1 for name in means)


def test_an_unanswered_question_is_answered_wrongly_and_a_union_is_not_asked() -> None:
    rows = asked("yynn", "yyny", [0.9, 0.9, 0.1, 0.9])
    rows[1], rows[3] = replace(rows[1], status="failed"), replace(rows[3], status="missing")
    entry = presence_table([*rows, replace(rows[0], derived=True, concept="union")])[0]
    assert (entry["asked"], entry["true_positives"], entry["false_positives"], entry["unanswered"]) == (4, 1, 1, 2)


def test_only_what_is_there_was_asked() -> None:
    entries = presence_table(asked("yyy", "yyn", [None] * 3, protocol="oracle-box"))
    assert len(entries) == 1 and entries[0]["oracle"]  # no mean over datasets: none asked for both kinds
    assert entries[0]["recall"]["mean"] == pytest.approx(2 / 3)
    assert all(entries[0][name] is None for name in ("precision", "specificity", "balanced_accuracy", "auc"))


def test_mean_over_datasets_and_protocols_apart() -> None:
    rows = asked("ynyn", "ynyn", [0.9, 0.1, 0.8, 0.2], dataset="a") + asked("yn", "ny", [0.2, 0.9], dataset="b")
    rows += asked("yy", "yy", [1, 1], dataset="c") + asked("yn", "yn", [1, 0], dataset="a", protocol="oracle-points:1")
    entries = {(e["protocol"], e["dataset"]): e for e in presence_table(rows)}
    overall = entries["text", None]
    assert overall["datasets"] == ["a", "b"] and overall["asked"] == 6
    assert overall["balanced_accuracy"]["mean"] == overall["auc"]["mean"] == 0.5
    assert entries["oracle-points:1", None]["balanced_accuracy"]["mean"] == 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30))
def test_weighted_area_is_mann_and_whitneys_of_repeated_questions(questions: list[tuple[bool, int, int]]) -> None:
    questions = sorted(questions, key=lambda q: q[1])
    positive, score, weight = (np.array(part) for part in zip(*questions, strict=True))
    found = float(weighted_auc(score.astype(float), positive.astype(bool), weight[None].astype(float))[0])
    repeated, kinds = np.repeat(score, weight), np.repeat(positive, weight).astype(bool)
    up, down = repeated[kinds], repeated[~kinds]
    if len(up) and len(down):
        assert found == pytest.approx(stats.mannwhitneyu(up, down).statistic / (len(up) * len(down)))
    else:
        assert np.isnan(found)


@pytest.mark.slow
def test_interval_of_the_area_covers_the_truth() -> None:
    """Normal scores one standard deviation apart: the area is Phi(1 / sqrt 2)."""
    rng, hits, runs = np.random.default_rng(0), 0, 200
    truth = stats.norm.cdf(1 / np.sqrt(2))
    for run in range(runs):
        present = rng.random(80) < 0.5
        scores = (rng.normal(0, 1, 80) + present).tolist()
        letters = "".join("y" if p else "n" for p in present)
        auc = presence_table(asked(letters, letters, scores), seed=run, draws=500)[0]["auc"]
        hits += auc["low"] <= truth <= auc["high"]
    assert 0.9 <= hits / runs <= 0.99


def test_reliability_by_hand() -> None:
    rows = asked("yyyn" + "ynnn", "y" * 8, [0.75] * 4 + [0.0, 0.0, 0.1, 0.1])
    rows += asked("y", "y", [1.0], dataset="other") + asked("y", "y", [None], dataset="silent")
    curve = reliability(rows, bins=4)
    assert len(curve) == 1 and curve[0]["questions"] == 9
    first, last = curve[0]["bins"]  # 0.75 and 1 lie in the last bin, the two in between are empty
    assert (first["from"], first["to"], first["count"], first["confidence"]) == (0, 0.25, 4, pytest.approx(0.05))
    assert (last["from"], last["to"], last["count"], last["confidence"]) == (0.75, 1, 5, pytest.approx(0.8))
    assert (first["observed"]["mean"], last["observed"]["mean"]) == (0.25, 0.8)
    assert curve[0]["ece"] == pytest.approx(4 / 9 * 0.2)
    errors = [0.25**2] * 3 + [0.75**2, 1, 0, 0.01, 0.01, 0]
    assert curve[0]["brier"]["mean"] == pytest.approx(np.mean(errors)) and curve[0]["brier"]["units"] == 9
    assert first["observed"]["low"] <= 0.25 <= first["observed"]["high"]


def test_a_calibrated_model_has_almost_no_error() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(4000)
    letters = "".join("y" if p else "n" for p in rng.random(4000) < scores)
    curve = reliability(asked(letters, letters, scores.tolist()), draws=200)[0]
    assert curve["ece"] < 0.03 and len(curve["bins"]) == 10
    covered = [part["observed"]["low"] <= part["confidence"] <= part["observed"]["high"] for part in curve["bins"]]
    assert sum(covered) >= 8

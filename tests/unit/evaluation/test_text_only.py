"""Text-only evaluation: Dice by hand, balanced presence, and a whole small run with the shipped model."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from lexitome.data.folder import load_dataset
from lexitome.evaluation.compact_card import measure, render, summarise
from lexitome.evaluation.text_only import Row, data_hash, dice, evaluate_dataset, presence_result
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import CATALOG

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets

masks = arrays(bool, (4, 5))


@given(masks, masks)
def test_dice_is_symmetric_and_bounded(a: np.ndarray, b: np.ndarray) -> None:
    assert dice(a, b) == dice(b, a) and 0 <= dice(a, b) <= 1
    assert dice(a, a) == 1 and (dice(a, b) == 1) == bool((a == b).all())


def test_dice_by_hand_and_of_empty_masks() -> None:
    a, b = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    assert dice(a, b) == 1.0  # nothing to find, nothing found
    a[0, :2] = True
    assert dice(a, b) == 0.0
    b[0, 1:] = True
    assert dice(a, b) == pytest.approx(2 * 1 / (2 + 3))


def row(present: bool, presence: float, dataset: str = "a", target: str = "x", score: float = 0.5) -> Row:
    return Row(dataset, "s", "u", target, False, present, presence, presence > 0.5, score if present else math.nan, 0.1)


def test_presence_is_balanced_within_each_set() -> None:
    rows = [row(True, 0.9)] * 90 + [row(False, 0.1)] * 5 + [row(False, 0.9)] * 5 + [row(True, 0.1, "b")] * 20
    result = presence_result(rows)
    assert result.pairs == 20  # ten of each kind of set a; set b has no absent pair
    assert result.sensitivity == 1.0 and result.specificity == 0.5 and result.balanced_accuracy == 0.75
    assert result.auc == pytest.approx(0.75)  # half the absent ones tie with the present ones


def test_summary_counts_cases_and_missed_targets() -> None:
    rows = [row(True, 0.9, score=0.8), row(True, 0.1, score=0.0), row(False, 0.9)]
    (entry,) = summarise(rows)
    assert entry["cases"] == 2 and entry["dice"] == 40.0 and entry["found"] == 50.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_sets(root / "train", 10)
    write_sets(root / "external", 3)
    return root


def test_every_annotated_target_is_asked_and_absent_ones_too(data: Path) -> None:
    segmenter = Segmenter.load(threads=1)
    datasets = [load_dataset(d) for d in sorted((data / "train").iterdir())]
    ct = datasets[0]
    rows = list(evaluate_dataset(segmenter, ct, datasets))
    test_cases = [c for c in ct.cases if c.split == "test"]
    assert {r.stem for r in rows} == {c.stem for c in test_cases}
    assert {r.target for r in rows} == {t.name for t in ct.targets}
    assert all(math.isnan(r.dice) != r.present for r in rows)
    unknown = replace(ct, cases=tuple(replace(c, unknown_labels=frozenset({1})) for c in ct.cases))
    assert "right kidney" not in {r.target for r in evaluate_dataset(segmenter, unknown, datasets)}


def test_card_says_what_was_measured(data: Path) -> None:
    measured = measure(Segmenter.load(threads=1), data)
    assert measured == json.loads(json.dumps(measured))
    entries = measured["in_domain"]
    assert isinstance(entries, list)
    flat = [e["dice"] for e in entries if not e["derived"]]
    assert measured["mean_in_domain_2d"] == {"concepts": len(flat), "dice": pytest.approx(np.mean(flat), abs=0.06)}
    assert measured["mean_in_domain_3d"] == {"concepts": 0, "dice": None}
    text = render(measured, CATALOG["compact"])
    for entry in entries:
        assert f"| {entry['dataset']} | {entry['target']}" in text
    for trained in CATALOG["compact"].sets:
        assert trained.name in text and trained.licence.replace("|", "/") in text


def test_data_hash_follows_the_test_images(data: Path) -> None:
    folder = data / "external" / "kvasir_seg"
    before = data_hash(load_dataset(folder, external=True))
    assert before == data_hash(load_dataset(folder, external=True))
    path = next((folder / "masks").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    assert before != data_hash(load_dataset(folder, external=True))

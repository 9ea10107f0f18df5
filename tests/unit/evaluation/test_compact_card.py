"""The evaluation of a model: measures by hand, balanced presence, resuming, and a whole small run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.data.cache import open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.evaluation.card_text import render
from lexitome.evaluation.cases import TEXT_AND_BOX, Row, data_hash, evaluate_case
from lexitome.evaluation.compact_card import measure
from lexitome.evaluation.ledger import Ledger, fill, identity_of
from lexitome.evaluation.measures import dice, drawn_box, matched_objects, seeded
from lexitome.evaluation.summaries import by_target, counted_objects, gain_of_box, mean_dice, presence_result
from lexitome.inference.segmenter import Segmenter
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training.export import write_model

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=2)
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


def test_objects_by_hand() -> None:
    reference = np.array([[1, 1, 1, 0, 2, 2, 0, 3]])
    assert matched_objects(reference, reference) == (3, 3, 3)
    assert matched_objects(np.zeros_like(reference), reference) == (0, 3, 0)
    # The first kept by two thirds, the second by exactly half (no match), the third missed, one too many.
    assert matched_objects(np.array([[5, 5, 0, 0, 7, 0, 9, 0]]), reference) == (3, 3, 1)
    joined = np.array([[1, 1, 1, 1, 1, 1, 1, 1]])
    assert matched_objects(joined, reference) == (1, 3, 0)


@given(arrays(np.uint16, (6, 7), elements=st.integers(0, 4)), st.permutations([1, 2, 3, 4]))
def test_objects_do_not_depend_on_their_numbers(ids: np.ndarray, order: list[int]) -> None:
    renamed = np.array([0, *order])[ids] * 10
    count = len(set(ids.ravel().tolist()) - {0})
    assert matched_objects(renamed, ids) == (count, count, count)


@given(st.integers(0, 39), st.integers(0, 49), st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_a_drawn_box_is_near_the_target_and_in_the_picture(y: int, x: int, h: int, w: int, seed: int) -> None:
    reference = np.zeros((40, 50), bool)
    reference[y : y + h, x : x + w] = True
    h, w = min(h, 40 - y), min(w, 50 - x)
    box = drawn_box(reference, seeded(seed, "set", "stem", "target"))
    assert 0 <= box.x0 <= box.x1 <= 49 and 0 <= box.y0 <= box.y1 <= 39
    for got, wanted, length in ((box.x0, x, w), (box.x1, x + w - 1, w), (box.y0, y, h), (box.y1, y + h - 1, h)):
        assert abs(got - wanted) <= 0.3 * length + 1e-9  # 15 %, or more where a box of one pixel would turn over
    assert box == drawn_box(reference, seeded(seed, "set", "stem", "target"))


def row(present: bool, presence: float, dataset: str = "a", score: float = 0.5, **more: Any) -> Row:
    base = Row(dataset, "s", "u", "x", False, present, presence, presence > 0.5, score if present else None, 0.1)
    return replace(base, **more)


def test_presence_is_balanced_within_each_set() -> None:
    rows = [row(True, 0.9)] * 90 + [row(False, 0.1)] * 5 + [row(False, 0.9)] * 5 + [row(True, 0.1, "b")] * 20
    result = presence_result(rows + [row(True, 0.0, protocol=TEXT_AND_BOX)] * 50)
    assert result is not None and result.pairs == 20  # ten of each kind of set a; set b has no absent pair
    assert result.sensitivity == 1.0 and result.specificity == 0.5 and result.balanced_accuracy == 0.75
    assert result.auc == pytest.approx(0.75)  # half the absent ones tie with the present ones
    assert presence_result([row(True, 0.9)]) is None


def test_summary_counts_cases_and_missed_targets() -> None:
    rows = [row(True, 0.9, score=0.8), row(True, 0.1, score=0.0), row(False, 0.9)]
    (entry,) = by_target([*rows, row(True, 1.0, score=1.0, protocol=TEXT_AND_BOX)])
    assert entry["cases"] == 2 and entry["dice"] == 40.0 and entry["found"] == 50.0


def test_the_gain_of_a_box_is_of_the_same_cases() -> None:
    rows = [row(True, 0.9, score=0.5), row(True, 0.9, score=0.7, protocol=TEXT_AND_BOX)]
    rows += [row(True, 0.9, score=0.1, stem="volume without a box"), row(True, 0.9, "b")]
    assert gain_of_box(rows) == [{"dataset": "a", "targets": 1, "text": 50.0, "oracle_box": 70.0, "gain": 20.0}]


def test_objects_are_counted_over_all_cases() -> None:
    rows = [row(True, 0.9, objects=(8, 10, 6)), row(True, 0.9, objects=(2, 0, 0)), row(True, 0.9)]
    (entry,) = counted_objects([*rows, row(True, 0.9, objects=(1, 1, 1), protocol=TEXT_AND_BOX)])
    assert entry["f1"] == 60.0 and entry["count_error"] == 2.0 and entry["objects"] == 5.0 and entry["cases"] == 2


def test_means_may_leave_out_what_was_not_taught() -> None:
    entries = [{"dataset": "a", "derived": d, "trained": t, "dice": v} for d, t, v in
               ((False, True, 80.0), (False, False, 20.0), (True, True, 5.0))]  # fmt: skip
    assert mean_dice(entries, {"a"}) == {"concepts": 2, "dice": 50.0}
    assert mean_dice(entries, {"a"}, only_trained=True) == {"concepts": 1, "dice": 80.0}
    assert mean_dice(entries, {"b"}) == {"concepts": 0, "dice": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets; objects of the first are told apart in train/, the second has another name outside."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 10), ("external", 3)):
        write_sets(root / part, count)
    polyps = root / "train" / "kvasir_seg"
    (polyps / "instances").mkdir()
    for path in (polyps / "masks").iterdir():
        (polyps / "instances" / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture(scope="module")
def segmenter(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Taught nothing; its card says that it was taught polyps."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    cached = open_cache(load_dataset(data / "train" / "kvasir_seg"), folder / "cache", side=64)
    net = CompactNet(TINY, EfficientNetLite(0)).eval()
    write_model(net, [cached], folder / "model", name="tiny", provenance={"steps": 0}, metrics={"dice": 0.0})
    return Segmenter.load(folder / "model", threads=1)


def test_targets_are_asked_by_words_and_by_a_box(segmenter: Segmenter, data: Path) -> None:
    datasets = [load_dataset(d) for d in sorted((data / "train").iterdir())]
    ct = datasets[0]
    case = next(c for c in ct.cases if c.split == "test")
    rows = evaluate_case(segmenter, ct, case, datasets)
    words = [r for r in rows if r.protocol == "text"]
    assert {r.target for r in words} == {t.name for t in ct.targets}
    assert all((r.dice is None) != r.present and not r.trained for r in words)
    boxed = [r for r in rows if r.protocol == TEXT_AND_BOX]
    assert [r.target for r in boxed] == [r.target for r in words if r.present]
    hidden = replace(case, unknown_labels=frozenset({1}))
    assert "right kidney" not in {r.target for r in evaluate_case(segmenter, ct, hidden, datasets)}


def test_objects_are_compared_where_both_sides_tell_them_apart(segmenter: Segmenter, data: Path) -> None:
    polyps = load_dataset(data / "train" / "kvasir_seg")
    case = next(c for c in polyps.cases if c.split == "test")
    rows = [r for r in evaluate_case(segmenter, polyps, case, []) if r.target == "polyp"]
    assert all(r.objects is not None and r.objects[1] == 1 for r in rows)
    outside = load_dataset(data / "external" / "kvasir_seg", external=True)
    assert all(r.objects is None for r in evaluate_case(segmenter, outside, outside.cases[0], []))


def test_rows_survive_the_disk_and_are_not_asked_again(segmenter: Segmenter, data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(data / "external" / "kvasir_seg", external=True)
    ledger = Ledger(tmp_path, "model", dataset)
    first, second, third = dataset.cases
    assert ledger.missing == [first, second, third]
    done = evaluate_case(segmenter, dataset, second, [])
    ledger.add(second, done)
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write('{"case": "' + first.stem)  # the power goes
    again = Ledger(tmp_path, "model", dataset)
    assert again.rows == done and again.missing == [first, third]
    fill(segmenter, [again], [], threads=2)
    whole = Ledger(tmp_path, "model", dataset)
    assert not whole.missing and whole.rows == again.rows and len(whole.rows) > len(done)
    assert Ledger(tmp_path, "another model", dataset).missing == list(dataset.cases)


def test_other_thresholds_are_another_model(segmenter: Segmenter) -> None:
    folder = segmenter.card.files
    before = identity_of(segmenter)
    path = Path(str(folder)) / "card.json"
    text = path.read_text()
    try:
        path.write_text(text.replace('"default_threshold": 0.5', '"default_threshold": 0.4'))
        assert identity_of(segmenter) != before
    finally:
        path.write_text(text)
    assert identity_of(segmenter) == before


@pytest.fixture(scope="module")
def measured(segmenter: Segmenter, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    yield measure(segmenter, data, tmp_path_factory.mktemp("rows"), threads=2)


def test_sets_it_was_not_trained_on_are_apart(measured: dict[str, Any]) -> None:
    assert {e["dataset"] for e in measured["in_domain"]} == {"kvasir_seg"}
    assert {e["dataset"] for e in measured["not_trained_on"]} == {"btcv_abdomen_ct2d"}
    assert {e["dataset"] for e in measured["external"]} == {"kvasir_seg", "btcv_abdomen_ct2d"}
    flat = [e["dice"] for e in measured["in_domain"] if not e["derived"]]
    assert measured["mean_in_domain_2d"] == {"concepts": len(flat), "dice": pytest.approx(np.mean(flat), abs=0.06)}
    assert measured["mean_in_domain_3d"] == {"concepts": 0, "dice": None}
    assert measured["mean_external_trained_concepts"]["concepts"] == 1 < measured["mean_external"]["concepts"]


def test_card_says_what_was_measured(measured: dict[str, Any], segmenter: Segmenter) -> None:
    assert measured == json.loads(json.dumps(measured))
    text = render(measured, segmenter.card)
    assert "no commercial use by kvasir_seg" in segmenter.card.weights_duties in text
    for key in ("in_domain", "not_trained_on", "external"):
        for entry in measured[key]:
            assert f"| {entry['dataset']} | {entry['target']}" in text
    for trained in segmenter.card.sets:
        assert trained.name in text and trained.licence in text
    assert "words + ORACLE box" in text and "F1 at IoU 0.5" in text and "Not a medical" in text
    assert measured["oracle_box"]["in_domain"][0]["gain"] == pytest.approx(
        measured["oracle_box"]["in_domain"][0]["oracle_box"] - measured["oracle_box"]["in_domain"][0]["text"], abs=0.01
    )
    assert '"steps": 0' in text and segmenter.card.sha256[:16] in text


def test_data_hash_follows_the_test_images(data: Path) -> None:
    folder = data / "external" / "kvasir_seg"
    before = data_hash(load_dataset(folder, external=True))
    assert before == data_hash(load_dataset(folder, external=True))
    path = next((folder / "masks").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    assert before != data_hash(load_dataset(folder, external=True))

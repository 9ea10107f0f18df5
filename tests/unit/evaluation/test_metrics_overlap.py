"""Overlap of masks: by hand, its symmetries, and how the measures hang together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.evaluation.metrics import OVERLAPS
from lexitome.evaluation.metrics.overlap import Counts, count, dice, iou, precision, recall, volume_error

masks = arrays(bool, (2, 4, 5))


def test_by_hand() -> None:
    prediction, reference = np.zeros((1, 1, 10), bool), np.zeros((1, 1, 10), bool)
    prediction[..., 2:8], reference[..., 5:9] = True, True
    counts = count(prediction, reference)
    assert counts == Counts(6, 4, 3)
    values = [of(counts) for of in (dice, iou, precision, recall, volume_error)]
    assert values == pytest.approx([6 / 10, 3 / 7, 3 / 6, 3 / 4, 2 / 4])


def test_empty_masks_score_as_documented() -> None:
    assert {name: of(Counts(0, 5, 0)) for name, of in OVERLAPS.items()} == {
        "dice": 0, "iou": 0, "precision": 0, "recall": 0, "volume_error": -1,
    }  # fmt: skip
    for counts in (Counts(5, 0, 0), Counts(0, 0, 0)):
        assert [of(counts) for of in OVERLAPS.values()] == [None] * 5


@given(masks, masks)
def test_bounds_symmetry_and_relations(a: np.ndarray, b: np.ndarray) -> None:
    there, back = count(a, b), count(b, a)
    if not (a.any() and b.any()):
        return
    assert dice(there) == dice(back) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert iou(there) == iou(back) and precision(there) == recall(back)
    overlap = iou(there) or 0.0
    assert 0 <= overlap <= (dice(there) or 0.0) <= 1
    assert dice(there) == pytest.approx(2 * overlap / (1 + overlap))
    assert (dice(there) == 1) == bool((a == b).all())


@given(masks, masks, st.integers(0, 2), st.integers(0, 3))
def test_flips_and_padding_change_nothing(a: np.ndarray, b: np.ndarray, axis: int, margin: int) -> None:
    assert count(a, b) == count(np.flip(a, axis), np.flip(b, axis)) == count(np.pad(a, margin), np.pad(b, margin))

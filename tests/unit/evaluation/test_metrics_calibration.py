"""Calibration: probabilities that are right by construction, bins that add up, and where it is asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.evaluation.metrics import calibration_bins, ece_of
from lexitome.evaluation.metrics.calibration import (
    MARGIN,
    binned,
    brier,
    calibration_region,
    from_text,
    pooled,
    to_text,
)

probabilities = arrays(np.float32, (4, 5, 6), elements=st.floats(0, 1, width=32))
truths = arrays(bool, (4, 5, 6))


def test_by_hand() -> None:
    values, truth = np.array([0.1, 0.1, 0.9, 0.7]), np.array([False, True, True, True])
    bins = binned(values, truth, bins=2)
    assert bins["count"] == [2, 2] and bins["positive"] == [1, 2]
    assert ece_of(bins) == pytest.approx((2 * abs(0.1 - 0.5) + 2 * abs(0.8 - 1.0)) / 4)
    assert brier(values, truth) == pytest.approx((0.01 + 0.81 + 0.01 + 0.09) / 4)


def test_honest_probabilities_are_calibrated_and_bold_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((1, 300, 300))
    truth = rng.random(probability.shape) < probability
    honest = ece_of(calibration_bins(probability, truth))
    bold = ece_of(calibration_bins(np.where(probability > 0.5, 1.0, 0.0), truth))
    assert honest is not None and honest < 0.01
    assert bold == pytest.approx(0.25, abs=0.01)


def test_only_the_surroundings_of_the_object_are_asked() -> None:
    truth = np.zeros((1, 200, 200), bool)
    truth[0, 90:110, 90:110] = True
    probability = np.where(truth, 0.8, 0.0)
    values, _ = calibration_region(probability, truth)
    assert len(values) == (20 + 2 * MARGIN) ** 2
    assert ece_of(binned(values, truth[0, 85:115, 85:115].reshape(-1))) == pytest.approx(0.2 * 400 / 900)
    padded = [np.pad(array, ((0, 0), (30, 7), (0, 9))) for array in (probability, truth)]
    assert calibration_bins(*padded) == calibration_bins(probability, truth)


def test_nothing_to_ask() -> None:
    nothing = np.zeros((1, 5, 5))
    bins = calibration_bins(nothing, nothing > 0)
    assert ece_of(bins) is None and sum(bins["count"]) == 0
    assert brier(*calibration_region(nothing, nothing > 0)) is None


def test_voxels_that_nobody_judged_are_left_out() -> None:
    truth, judged = np.ones((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    judged[0, :, 2:] = False
    bins = calibration_bins(np.where(judged, 1.0, 0.0), truth, judged=judged)
    assert sum(bins["count"]) == 8 and ece_of(bins) == 0


@settings(max_examples=50, deadline=None)
@given(probabilities, truths, st.integers(1, 20))
def test_bins_hold_every_voxel_and_pool_exactly(p: np.ndarray, truth: np.ndarray, bins: int) -> None:
    values, asked = calibration_region(p, truth)
    whole = binned(values, asked, bins)
    assert sum(whole["count"]) == len(values) and len(whole["count"]) == bins
    cut = len(values) // 3
    both = pooled([binned(values[:cut], asked[:cut], bins), binned(values[cut:], asked[cut:], bins)])
    for name, sums in whole.items():
        assert both[name] == pytest.approx(sums)
    error = ece_of(whole)
    assert error is None or -1e-9 <= error <= 1 + 1e-9


@settings(max_examples=50, deadline=None)
@given(probabilities, truths, st.integers(1, 20))
def test_bins_survive_as_text(p: np.ndarray, truth: np.ndarray, bins: int) -> None:
    whole = calibration_bins(p, truth, bins)
    text = to_text(whole)
    again = from_text(text)
    assert again["count"] == whole["count"] and again["positive"] == whole["positive"]
    assert again["probability"] == pytest.approx(whole["probability"], rel=1e-8)
    assert "," not in text and to_text(again) == text


def test_bins_as_text_by_hand() -> None:
    bins = binned(np.array([0.05, 0.06, 0.95]), np.array([False, True, True]), bins=3)
    assert to_text(bins) == "2:0.11:1 0 1:0.95:1"


@pytest.mark.parametrize("text", ["x", "1:2", "1:0.5:2", "2:nan:1", "1:0.5:1 ", "-1:0:0", "1:0.5:0.5:0"])
def test_text_that_holds_no_bins(text: str) -> None:
    with pytest.raises(ValueError):
        from_text(text)

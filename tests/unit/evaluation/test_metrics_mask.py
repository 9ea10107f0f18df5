"""`measure_mask`: keys, units, empty masks, what nobody judged, and bad input."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lexitome.errors import InputError
from lexitome.evaluation.metrics import METRICS, ece_of, measure_calibration, measure_mask, measure_objects

SHAPE = (6, 20, 22)
MM = np.diag([0.5, 0.8, 3.0, 1.0])
PLAIN = {
    "dice", "iou", "precision", "recall", "volume_error", "nsd", "hd95", "hd", "assd", "boundary_iou", "unbounded",
    "false_volume",
}  # fmt: skip


def block(*, x: int = 6, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[shape[0] // 4 : shape[0] // 4 + 3, 5:15, x : x + 10] = True
    return mask


EMPTY = np.zeros(SHAPE, bool)


def test_every_key_is_described() -> None:
    pytest.importorskip("skimage")
    probability = np.where(block(), 0.9, 0.1)
    everything = measure_mask(block(), block(), MM, tolerance=1.0, tubular=True)
    assert set(everything) == PLAIN | {"cldice"}
    everything |= measure_calibration(probability, block())[0]
    objects = measure_objects(block().astype(int), block().astype(int))
    counts = {"objects_found", "objects_wanted", "objects_matched"}
    assert set(everything) | set(objects) == set(METRICS) | counts
    assert set(measure_mask(block(), block(), None, tolerance=1.0)) == PLAIN
    for name, value in (everything | objects).items():
        if name in METRICS and METRICS[name].better == "high":
            assert value == 1


def test_lengths_follow_the_affine() -> None:
    found = measure_mask(block(x=8), block(), MM, tolerance=1.0)
    assert found["hd"] == pytest.approx(1.0) and found["nsd"] == 1 and found["unbounded"] == 0
    assert found["dice"] == pytest.approx(0.8) and found["false_volume"] is None
    assert measure_mask(block(x=8), block(), None, tolerance=1.0)["hd"] == pytest.approx(2.0)


@pytest.mark.parametrize("where", ["prediction", "reference", "both"])
def test_empty_masks_score_what_the_table_says(where: str) -> None:
    pytest.importorskip("skimage")
    prediction, reference = block(), block()
    probability = np.full(SHAPE, 0.2)
    if where != "reference":
        prediction = EMPTY
    if where != "prediction":
        reference = EMPTY
    found = measure_mask(prediction, reference, MM, tolerance=1.0, tubular=True)
    found |= measure_calibration(probability, reference)[0]
    found |= measure_objects(prediction.astype(np.uint8), reference.astype(np.uint8))
    for name, info in METRICS.items():
        wanted = getattr(info, f"empty_{where}" if where != "both" else "both_empty")
        if where == "prediction" and name in ("ece", "brier"):
            continue  # the probability may well say something where the mask says nothing
        if where == "reference" and name == "false_volume":
            wanted = 300 * 0.5 * 0.8 * 3.0
        if where != "both" and name == "count_error":
            wanted = 1.0
        assert found[name] == wanted if wanted is None else found[name] == pytest.approx(wanted), name


def test_false_volume_without_spacing_and_of_a_slice() -> None:
    assert measure_mask(block(), EMPTY, None, tolerance=1.0)["false_volume"] == 300
    flat = block()[2:3]
    assert measure_mask(flat, EMPTY[:1], MM, tolerance=1.0)["false_volume"] == pytest.approx(100 * 0.5 * 0.8)


def test_a_slice_has_no_top_and_bottom() -> None:
    """A hole of one pixel is far from the outline in a plane, but close to the faces above and below in a volume."""
    reference = np.zeros((1, 31, 31), bool)
    reference[0, 5:26, 5:26] = True
    prediction = reference.copy()
    prediction[0, 15, 15] = False
    assert measure_mask(prediction, reference, None, tolerance=1.0)["hd"] == pytest.approx(10, abs=0.5)
    between = ((1, 1), (0, 0), (0, 0))
    thick = measure_mask(np.pad(prediction, between), np.pad(reference, between), None, tolerance=1.0)["hd"]
    assert thick is not None and thick < 1.5


def test_what_nobody_judged_does_not_count() -> None:
    judged = np.ones(SHAPE, bool)
    judged[:, :, 16:] = False
    found = measure_mask(block(x=6) | block(x=12), block(), MM, judged, tolerance=1.0)
    assert found["dice"] == 1 and found["nsd"] == 1 and found["hd"] == 0
    outside = measure_mask(block(), block(), MM, ~judged, tolerance=1.0)
    assert outside["dice"] is None and outside["false_volume"] == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        measure_mask(block(), block()[:3], MM, tolerance=1.0)
    with pytest.raises(ValueError, match="one shape"):
        measure_mask(block()[0], block()[0], MM, tolerance=1.0)
    with pytest.raises(ValueError, match="tolerance"):
        measure_mask(block(), block(), MM, tolerance=-1.0)
    with pytest.raises(ValueError, match="affine"):
        measure_mask(block(), block(), np.zeros((4, 4)), tolerance=1.0)
    for wrong in (np.full(SHAPE, 1.2), np.full(SHAPE, np.nan), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="probabilities"):
            measure_calibration(wrong, block())


def test_calibration_is_asked_where_somebody_judged_and_something_is() -> None:
    judged = np.ones(SHAPE, bool)
    judged[:, :, 10:] = False
    values, bins = measure_calibration(np.where(judged, 0.8, 0.1), block(), judged)
    assert bins is not None and sum(bins["count"]) <= judged.sum() and values["ece"] == ece_of(bins)
    inside = sum(bins["positive"])
    assert inside == (block() & judged).sum() and values["ece"] == pytest.approx(abs(0.8 - inside / sum(bins["count"])))
    assert measure_calibration(np.full(SHAPE, 0.9), EMPTY) == ({"ece": None, "brier": None}, None)
    assert measure_calibration(np.full(SHAPE, 0.9), block(), ~block()) == ({"ece": None, "brier": None}, None)


def test_without_scikit_image_only_centre_lines_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("skimage", "skimage.morphology"):
        monkeypatch.setitem(sys.modules, module, None)
    assert measure_mask(block(), block(), MM, tolerance=1.0)["dice"] == 1
    with pytest.raises(InputError, match=r"lexitome\[eval\]"):
        measure_mask(block(), block(), MM, tolerance=1.0, tubular=True)

"""clDice of lines whose centre is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from lexitome.evaluation.metrics import measure_mask
from lexitome.evaluation.metrics.skeleton import centreline_dice

pytest.importorskip("skimage")
masks = arrays(bool, (7, 8)).filter(lambda mask: bool(mask.any()))


def tube(thickness: int, length: int = 40, dims: int = 2) -> np.ndarray:
    mask = np.zeros((21,) * (dims - 1) + (60,), bool)
    low = 10 - thickness // 2
    mask[(slice(low, low + thickness),) * (dims - 1) + (slice(10, 10 + length),)] = True
    return mask


@pytest.mark.parametrize("dims", [2, 3])
def test_thickness_does_not_matter_but_length_does(dims: int) -> None:
    assert centreline_dice(tube(3, dims=dims), tube(7, dims=dims)) == 1
    short = centreline_dice(tube(5, 20, dims), tube(5, 40, dims))
    assert short == pytest.approx(2 / 3, abs=0.05)  # precision 1, about half of the line found
    assert centreline_dice(tube(3, dims=dims), np.roll(tube(3, dims=dims), 8, 0)) == 0


def test_a_gap_costs_little_dice_and_is_seen_by_neither_spacing() -> None:
    whole = tube(3)[None]
    broken = whole.copy()
    broken[..., 29:31] = False
    found = [
        measure_mask(broken, whole, affine, tolerance=1.0, tubular=True) for affine in (None, np.diag([2, 1, 9, 1]))
    ]
    assert found[0]["cldice"] == found[1]["cldice"] == pytest.approx(2 * 0.95 / 1.95, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(masks, masks)
def test_bounds_and_symmetry(a: np.ndarray, b: np.ndarray) -> None:
    value = centreline_dice(a, b)
    assert 0 <= value <= 1 and value == pytest.approx(centreline_dice(b, a))
    assert centreline_dice(a, a) == 1
    assert value == pytest.approx(centreline_dice(np.pad(a, 3), np.pad(b, 3)))

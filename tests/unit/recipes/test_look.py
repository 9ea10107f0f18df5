"""What is seen of shapes and spacing in single masks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.sources.folder import load_dataset
from lexitome.recipes.look import look_at, shape_of, square

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set


@pytest.mark.parametrize(("width", "length"), [(3, 90), (6, 60), (12, 120)])
def test_the_width_of_a_band(width: int, length: int) -> None:
    mask = np.zeros((128, 128), bool)
    mask[4 : 4 + width, 4 : 4 + length] = True
    found = shape_of(mask)
    assert found.width * 128 == pytest.approx(width, rel=0.2) and found.parts == 1
    assert found.compactness < 0.7


def test_discs_are_compact_and_counted() -> None:
    found = shape_of(disc(128, 30, 30, 12) | disc(128, 90, 90, 20))
    assert found.parts == 2 and found.compactness > 0.9
    branches = np.zeros((128, 128), bool)
    branches[10:120:20, 4:124] = True
    assert shape_of(branches).parts == 6 and shape_of(branches).compactness < 0.3
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    assert shape_of(dot).parts == 1 and np.isfinite(shape_of(dot).compactness)


def test_pixels_are_made_square() -> None:
    mask = np.zeros((10, 40), bool)
    mask[4:6, 8:32] = True
    assert square(mask, (1.0, 1.0)) is mask and square(mask, (1.02, 1.0)) is mask
    assert square(mask, (4.0, 1.0)).shape == (40, 40) and square(mask, (4.0, 1.0)).sum() == 4 * mask.sum()
    assert square(mask, (1.0, 2.5)).shape == (10, 100)
    assert (square(mask, (2.0, 1.0))[::2] == mask).all()


@pytest.mark.parametrize("thick", [0, 1, 2])
def test_the_thickest_axis_is_the_one_that_is_cut(tmp_path: Path, thick: int) -> None:
    """Whichever axis of the array (x, y, z) it is, distances and sizes in a slice are those of the slices that are
    shown."""
    spacing = [1.0, 1.0, 1.0]
    spacing[thick] = 6.0
    mask = np.zeros((30, 40, 50), np.uint8)
    mask[5:25, 5:25, 5:25] = 1
    cases = {f"v{i}": (painted(mask, i), mask) for i in range(2)}
    found = look_at(
        load_dataset(save_set(tmp_path / "set", cases, {1: "cyst"}, "MRI", affine=np.diag([*spacing, 1.0]), dims=3))
    )
    assert found.cubic == 0 and found.slices == (50, 40, 30)[thick] and found.across == (40, 50, 50)[thick]
    assert found.spacing is not None and (found.spacing.gap, found.spacing.pixel) == (6.0, 1.0)
    assert found.spacing.smallest == found.spacing.largest == pytest.approx(2 * 20 / np.pi**0.5)
    assert found.spacing.narrowest == pytest.approx(10, rel=0.1)  # half of the side of a square: area to half border

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from skimage.measure import grid_points_in_poly

from lexitome.io.contours import outlines


def filled(rings: list[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Even-odd filling by counting, for each voxel centre, the edges that its ray to +x crosses."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = np.zeros(shape, dtype=bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 != y1:
                crosses = ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
                inside ^= crosses
    return inside


@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_filling_the_outlines_recovers_any_mask(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(filled(outlines(mask), mask.shape), mask)


def ring_with_islands() -> NDArray[np.bool_]:
    y, x = np.mgrid[:60, :80]
    radius = np.hypot(y - 30, x - 40)
    mask = (radius < 28) & (radius > 18) | (radius < 9) & (radius > 4)
    mask[30, 40] = True
    mask[10:50:7, 15:66:9] ^= True
    mask[0, 0] = mask[59, 79] = True
    return mask


def test_holes_and_islands_survive_in_another_rasteriser() -> None:
    mask = ring_with_islands()
    result = np.zeros(mask.shape, dtype=bool)
    for ring in outlines(mask):
        result |= grid_points_in_poly(mask.shape, ring[:, ::-1])
    # scikit-image decides for itself about points on the zero-width channels.
    assert 2 * (result & mask).sum() / (result.sum() + mask.sum()) > 0.98


@pytest.mark.parametrize("at", [(0, 0), (3, 4), (5, 6)])
def test_one_voxel(at: tuple[int, int]) -> None:
    mask = np.zeros((6, 7), dtype=bool)
    mask[at] = True
    (ring,) = outlines(mask)
    assert np.allclose(ring.mean(axis=0), at[::-1])
    assert np.abs(ring - at[::-1]).max() == 0.5


def test_one_polygon_for_each_region_whatever_the_holes() -> None:
    mask = np.ones((30, 30), dtype=bool)
    mask[3:27:3, 3:27:3] = False
    assert len(outlines(mask)) == 1
    assert outlines(np.zeros((4, 4), dtype=bool)) == []


def test_straight_runs_have_no_needless_vertices() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:35, 5:35] = True
    (ring,) = outlines(mask)
    assert len(ring) == 8

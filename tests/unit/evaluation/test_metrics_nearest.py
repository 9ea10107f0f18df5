"""Distances to the nearest site beside every distance there is, with boxes divided as far as they can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.evaluation.metrics import nearest
from lexitome.evaluation.metrics.geometry import metric_matrix
from lexitome.evaluation.metrics.nearest import distances_to_nearest
from lexitome.evaluation.metrics.surface import distances_between, elements

OBLIQUE = np.array([[0.6, -0.5, 1.1, 4], [0.5, 0.6, -0.4, 5], [0.1, 0.3, 4.6, 6], [0, 0, 0, 1]])
"""Turned, anisotropic, and a little sheared."""
MATRICES = (np.diag([5.0, 0.7, 1.5]), metric_matrix(OBLIQUE, 3))


def by_hand(points: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Every point against every site."""
    return np.array([np.linalg.norm(sites - point, axis=1).min() for point in points])


def places(dims: int) -> st.SearchStrategy[np.ndarray]:
    """Also many at one place, in a row, or far away from all others."""
    number = st.one_of(st.floats(0, 3), st.integers(-4, 4).map(float), st.floats(-300, 300))
    return st.integers(1, 40).flatmap(lambda count: arrays(float, (count, dims), elements=number))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([2, 3]), st.sampled_from([0.5, 3.0, 100.0]), st.sampled_from([1, 40, 2**18]))
def test_every_kind_of_cloud(data: st.DataObject, dims: int, near: float, direct: int) -> None:
    points, sites = data.draw(places(dims)), data.draw(places(dims))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_DIRECT", direct)  # 1: divided until a site is left
        patch.setattr(nearest, "_AT_ONCE", 8)
        found = distances_to_nearest(points, sites, near)
    np.testing.assert_allclose(found, by_hand(points, sites), rtol=1e-9, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(arrays(bool, (5, 6, 7)).filter(np.any), arrays(bool, (5, 6, 7)).filter(np.any), st.sampled_from([0, 1]))
def test_surfaces_of_small_masks(a: np.ndarray, b: np.ndarray, which: int) -> None:
    matrix = MATRICES[which]
    one, other = (elements(mask, matrix).places for mask in (a, b))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_DIRECT", 1)
        found = distances_between(a, b, matrix)
    np.testing.assert_allclose(found.of_prediction, np.sort(by_hand(one, other)), atol=1e-9)
    np.testing.assert_allclose(found.of_reference, np.sort(by_hand(other, one)), atol=1e-9)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("kind", ["speckled", "far", "inside"])
def test_large_masks_at_some_of_their_elements(matrix: np.ndarray, kind: str) -> None:
    rng = np.random.default_rng(5)
    grid = np.indices((40, 48, 56)) - np.array([20, 24, 28]).reshape(3, 1, 1, 1)
    reference = (grid**2).sum(0) < 19**2
    prediction = {
        "speckled": reference ^ (rng.random(reference.shape) < 0.05),
        "far": (np.abs(grid - np.array([-18, -22, -26]).reshape(3, 1, 1, 1)) < 2).all(0),
        "inside": (grid**2).sum(0) < 3,  # all of the reference is about as far from its centre
    }[kind]
    one, other = (elements(mask, matrix).places for mask in (prediction, reference))
    for points, sites in ((one, other), (other, one)):
        some = rng.integers(0, len(points), 300)
        np.testing.assert_allclose(distances_to_nearest(points, sites, 2.0)[some], by_hand(points[some], sites))


def test_boxes_leave_few_sites_for_a_far_point() -> None:
    """Of a wall of 10,000 sites, seen from 100 away, a box of 4 x 4 needs those in front of it only."""
    y, x = np.indices((100, 100), dtype=np.float32).reshape(2, -1)
    wall = np.stack([np.zeros_like(y), y, x, y**2 + x**2])
    kept = nearest._can_be_nearest(np.array([98.0, 48, 48]), np.array([102.0, 52, 52]), wall, 0.0)
    assert 25 <= len(kept) <= 100
    assert set(np.flatnonzero((abs(y - 50) <= 2) & (abs(x - 50) <= 2))) <= set(kept.tolist())

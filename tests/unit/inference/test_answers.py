"""Answers gathered from slices of any view on one grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lexitome.data.intensity import View
from lexitome.inference.answers import CERTAIN_SHARE, SLICE_PRESENCE, Seen, SliceAnswer, is_certain, overall

orders = st.permutations([0, 1, 2]).map(tuple)
views = st.builds(View, orders, st.sets(st.integers(0, 2)).map(lambda s: tuple(sorted(s))))


def seen(plane: NDArray[np.float32], presence: float = 1.0) -> Seen:
    half = np.zeros((1, 4, 4), np.float32)
    return Seen(plane[None], np.array([presence], np.float32), half, np.zeros((1, 2, 4, 4), np.float32))


def gather(volume: NDArray[np.float32], primary: View, others: list[View], grid: tuple[int, int, int]) -> SliceAnswer:
    """All slices of a (Z, Y, X) array of probabilities, told view by view."""
    answer = SliceAnswer(primary, grid, 1 + len(others))
    for view in (primary, *others):
        slices = view.apply(volume)
        for index, plane in enumerate(slices):
            answer.add(view, (index, len(slices)), seen(np.ascontiguousarray(plane)), 0, certain=False)
    return answer


@settings(max_examples=40, deadline=None)
@given(views, views, views, st.integers(0, 4), st.integers(0, 5), st.integers(0, 6))
def test_a_voxel_lands_where_it_is_whatever_the_view(a: View, b: View, c: View, z: int, y: int, x: int) -> None:
    volume = np.zeros((5, 6, 7), np.float32)
    volume[z, y, x] = 0.75
    answer = gather(volume, a, [b, c], a.apply(volume).shape)  # type: ignore[arg-type]
    assert np.abs(a.undo(answer.probability) - volume).max() < 2e-3


@settings(max_examples=25, deadline=None)
@given(views, views, st.integers(1, 5), st.integers(1, 5))
def test_a_coarser_grid_keeps_what_is_constant(a: View, b: View, height: int, width: int) -> None:
    volume = np.full((5, 6, 7), 0.5, np.float32)
    grid = (a.apply(volume).shape[0], height, width)
    assert np.abs(gather(volume, a, [b], grid).probability - 0.5).max() < 2e-3


def test_views_are_averaged() -> None:
    first, second = View(), View((1, 0, 2))
    answer = SliceAnswer(first, (4, 4, 4), 2)
    for index in range(4):
        answer.add(first, (index, 4), seen(np.full((4, 4), 0.8, np.float32)), 0, certain=False)
        answer.add(second, (index, 4), seen(np.full((4, 4), 0.2, np.float32), 0.7), 0, certain=False)
    assert np.abs(answer.probability - 0.5).max() < 1e-3
    assert (answer.presence == 1).all(), "presence is that of the primary view"


def test_slices_that_do_not_show_it_count_as_zero_unless_the_mask_is_certain() -> None:
    answer = SliceAnswer(View(), (3, 2, 2))
    plane = np.full((2, 2), 0.95, np.float32)
    for index, certain in enumerate((False, True)):
        answer.add(View(), (index, 3), seen(plane, SLICE_PRESENCE - 0.01), 0, certain=certain)
    answer.add(View(), (2, 3), seen(plane, SLICE_PRESENCE), 0, certain=False)
    assert (answer.probability.max((1, 2)) > 0.9).tolist() == [False, True, True]
    assert answer.certain.tolist() == [False, True, False] and answer.centres is None


def test_a_picture_keeps_its_mask_and_its_centres() -> None:
    answer = SliceAnswer(View(), (1, 2, 2))
    answer.add(View(), (0, 1), seen(np.full((2, 2), 0.6, np.float32), 0.01), 0, certain=False)
    assert (answer.probability > 0.59).all() and answer.centres is not None


@pytest.mark.parametrize(
    ("share", "level", "expected"), [(0.01, 0.95, True), (0.01, 0.85, False), (CERTAIN_SHARE / 2, 0.99, False)]
)
def test_certain_masks(share: float, level: float, expected: bool) -> None:
    probability = np.full((100, 100), 0.3, np.float32)
    probability.flat[: round(share * probability.size)] = level
    assert is_certain(probability) is expected
    assert not is_certain(np.full((10, 10), 0.4, np.float32))


def test_presence_of_a_volume_is_that_of_its_best_slices() -> None:
    presence = np.linspace(0, 1, 41, dtype=np.float32)
    assert overall(presence) == pytest.approx(presence[-3:].mean())
    assert overall(presence[:1]) == 0

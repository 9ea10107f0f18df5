"""Windows cover every pixel, their weights are positive, and what is the same everywhere stays so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.inference.sliding import gaussian, positions, predict


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Size, window, overlap in one to three dimensions."""
    axes = draw(st.integers(1, 3))
    sides = st.integers(1, {1: 60, 2: 24, 3: 10}[axes])
    size, window = (draw(st.tuples(*[sides] * axes)) for _ in range(2))
    return size, window, draw(st.floats(0, 0.9))


@given(layouts())
@settings(max_examples=150, deadline=None)
def test_every_pixel_is_covered_and_no_window_leaves_the_image(
    layout: tuple[tuple[int, ...], tuple[int, ...], float],
) -> None:
    size, window, overlap = layout
    seen = np.zeros(size, int)
    corners = positions(size, window, overlap)
    assert len(set(corners)) == len(corners)
    for corner in corners:
        for first, side, length in zip(corner, window, size, strict=True):
            assert 0 <= first <= max(0, length - side)
        seen[tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))] += 1
    assert seen.min() >= 1
    for axis, side in enumerate(window):
        starts = sorted({corner[axis] for corner in corners})
        assert max(np.diff(starts), default=0) <= max(1, int(side * (1 - overlap)))


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_weights_are_positive_symmetric_and_highest_in_the_middle(
    layout: tuple[tuple[int, ...], tuple[int, ...], float],
) -> None:
    _, window, _ = layout
    weights = gaussian(window)
    assert weights.shape == window and weights.dtype == np.float32 and weights.min() > 0 and weights.max() == 1
    assert np.allclose(weights, np.flip(weights)) and weights[tuple(w // 2 for w in window)] == 1
    assert np.isclose(weights[(0,) * len(window)], weights[(-1,) * len(window)])


@given(layouts(), st.floats(-1e3, 1e3, width=32), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_constant_image_has_a_constant_answer(
    layout: tuple[tuple[int, ...], tuple[int, ...], float], value: float, batch: int
) -> None:
    size, window, overlap = layout
    answer = predict(torch.full((1, *size), value), window, overlap, lambda b: torch.cat([b, 2 * b], 1), batch=batch)
    assert answer.shape == (2, *size)
    assert torch.allclose(answer[0], torch.full(size, value), rtol=1e-5)
    assert torch.allclose(answer[1], torch.full(size, 2 * value), rtol=1e-5)


def test_what_looks_at_single_pixels_sees_the_image_and_batches_do_not_matter() -> None:
    image = torch.randn(2, 37, 21, generator=torch.manual_seed(0))
    one, four = (predict(image, (16, 8), 0.5, lambda b: b**2, batch=n) for n in (1, 4))
    assert torch.allclose(one, image**2, atol=1e-5) and torch.equal(one, four)


def test_borders_of_windows_weigh_little() -> None:
    """A network that is wrong at the border of what it sees: hardly any of it is left where windows overlap."""

    def ask(windows: torch.Tensor) -> torch.Tensor:
        answer = torch.zeros_like(windows)
        answer[..., 0], answer[..., -1] = 1, 1
        return answer

    answer = predict(torch.zeros(1, 4, 64), (4, 16), 0.5, ask)
    assert answer[..., 8:-8].max() < 0.01 and answer[..., 0].min() == 1  # nobody else has seen the first column


def test_impossible_windows_are_refused() -> None:
    for size, window, overlap in (((4,), (2, 2), 0.5), ((4,), (0,), 0.5), ((4,), (2,), 1.0)):
        with pytest.raises(ValueError, match="cover"):
            positions(size, window, overlap)

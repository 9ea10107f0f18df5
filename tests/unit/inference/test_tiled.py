"""Slices go to the network's grid and come back as they were."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.inference.tiled import Windows, answered, masks_from

sides = st.integers(1, 40)


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_a_constant_slice_has_a_constant_answer_at_any_resolution(
    size: tuple[int, int], grid: tuple[int, int], depth: int
) -> None:
    shape = (1, *size) if depth == 1 else (1, 4, *size)
    found = answered(torch.full(shape, 0.3), grid, Windows(16, depth), lambda b: torch.cat([b, 1 - b], 1))
    assert found.shape == (2, *shape[1:])
    assert torch.allclose(found[0], torch.tensor(0.3), atol=1e-4)
    assert torch.allclose(found[1], torch.tensor(0.7), atol=1e-4)


def test_around_a_small_slice_is_its_lowest_value_and_the_answer_is_cut_back() -> None:
    seen = []

    def ask(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows)
        return windows

    picture = torch.rand(1, 10, 12, generator=torch.manual_seed(0)) + 1
    assert torch.allclose(answered(picture, (10, 12), Windows(16), ask), picture)
    assert seen[0].shape == (1, 1, 16, 16) and torch.equal(seen[0][0, :, 3:13, 2:14], picture)
    assert seen[0][0, 0, 0, 0] == picture.min() == seen[0].min()


def test_finer_and_coarser_grids_come_back() -> None:
    rows = torch.linspace(0, 1, 64)[None, :, None].expand(1, 64, 48).contiguous()
    for grid in ((32, 24), (128, 96), (100, 20)):
        assert (answered(rows, grid, Windows(16), lambda b: b) - rows).abs().max() < 0.03


def test_mirrored_answers_are_averaged_in_their_own_place() -> None:
    picture = torch.rand(1, 16, 16, generator=torch.manual_seed(0))
    assert torch.allclose(answered(picture, (16, 16), Windows(16, mirrored=True), lambda b: b), picture, atol=1e-6)
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16)
    found = answered(picture, (16, 16), Windows(16, mirrored=True), lambda b: ramp.expand(len(b), 1, 16, 16))
    assert torch.allclose(found, torch.tensor(0.5), atol=1e-6)


def test_masks() -> None:
    likely = torch.tensor([[0.5, 0.2, 0.3], [0.3, 0.45, 0.3], [0.2, 0.35, 0.4]])
    assert masks_from(likely, exclusive=True).tolist() == [[False, True, False], [False, False, True]]
    assert masks_from(likely, exclusive=False).tolist()[0] == [True, False, False]

"""What moves pixels moves labels alike, mirrors only what may be mirrored, and colour changes stay pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sets import disc

from lexitome.data.augment import (
    Warp,
    change_tone,
    change_window,
    draw_warp,
    keep_middle,
    swap_neighbours,
    warp_labels,
    warp_picture,
)
from lexitome.data.traits import SetTraits

SIDE = 64
UPRIGHT, MIRRORED, FREE = SetTraits(), SetTraits(mirror=True), SetTraits(rotate=True, mirror=True)
STILL = Warp(torch.eye(2, 3))
seeds = st.integers(0, 2**32 - 1)


def warps(traits: SetTraits, count: int = 200) -> np.ndarray:
    """(count, 2, 2) linear parts."""
    return np.stack([draw_warp(traits, np.random.default_rng(i)).matrix[:, :2].numpy() for i in range(count)])


@given(seeds)
def test_an_upright_set_is_never_mirrored_nor_turned_over(seed: int) -> None:
    matrix = draw_warp(UPRIGHT, np.random.default_rng(seed)).matrix[:, :2].double().numpy()
    assert np.linalg.det(matrix) > 0
    assert matrix[0, 0] > 0.3 and matrix[1, 1] > 0.3  # right stays right, down stays down


def test_other_sets_are_mirrored_half_of_the_time() -> None:
    mirrored = np.linalg.det(warps(MIRRORED)) < 0
    assert 0.35 < mirrored.mean() < 0.65
    assert (warps(MIRRORED)[:, 1, 1] > 0.3).all()  # left and right change places, up and down do not
    turned = warps(FREE)[:, 1, 1]
    assert (turned > 0).any() and (turned < 0).any() and (np.abs(turned) < 0.3).any()


@given(seeds)
def test_zoom_stays_within_what_is_said(seed: int) -> None:
    zoom = np.linalg.norm(draw_warp(FREE, np.random.default_rng(seed)).matrix[:, :2].numpy(), axis=0)
    assert zoom.min() > 0.45 and zoom.max() < 2.2 and zoom.max() / zoom.min() < 1.8


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_picture_and_labels_move_together(seed: int) -> None:
    labels = np.where(disc(SIDE, 30, 26, 12), 7, 0).astype(np.uint8)
    picture = np.repeat((labels > 0)[..., None] * np.uint8(255), 3, 2)
    warp = draw_warp(FREE, np.random.default_rng(seed))
    moved, codes = warp_picture(picture, warp, 96), warp_labels(labels, warp, 96)
    assert moved.shape == (3, 96, 96) and moved.dtype == torch.float32
    assert codes.shape == (96, 96) and codes.dtype == np.int32 and set(np.unique(codes)) <= {0, 7}
    assert ((moved[0].numpy() > 127.5) != (codes == 7)).mean() < 0.02  # the border, where nearest rounds


def test_without_a_warp_nothing_moves_and_large_ids_survive() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    torch.testing.assert_close(warp_picture(picture, STILL, SIDE), torch.from_numpy(picture).permute(2, 0, 1).float(),
                               atol=0.01, rtol=0)  # fmt: skip
    ids = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) + np.uint16(60000)
    assert (warp_labels(ids, STILL, SIDE) == ids).all()


def test_the_matrix_maps_new_to_old_coordinates() -> None:
    """A shift by a quarter of the picture to the right shows what lay a quarter further right."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[10, 40] = 1
    shifted = warp_labels(labels, Warp(torch.tensor([[1.0, 0, 0.5], [0, 1, 0]])), SIDE)
    assert np.argwhere(shifted).tolist() == [[10, 24]]


def test_stacks() -> None:
    stack = torch.arange(3.0)[:, None, None].expand(3, 4, 4)
    assert keep_middle(stack).unique().tolist() == [1] and keep_middle(stack).shape == (3, 4, 4)
    assert swap_neighbours(stack)[:, 0, 0].tolist() == [2, 1, 0]


@settings(deadline=None, max_examples=60)
@given(seeds, st.booleans())
def test_tones_are_pictures_and_depend_on_the_generator_only(seed: int, colour: bool) -> None:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) * 255
    before = picture.clone()

    def changed() -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return change_tone(change_window(picture, rng), rng, colour=colour)

    result = changed()
    assert torch.equal(result, changed()) and torch.equal(picture, before)
    assert result.dtype == torch.float32 and result.shape == picture.shape
    assert result.min() >= 0 and result.max() <= 255 and torch.isfinite(result).all()


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_grey_stays_grey(seed: int) -> None:
    grey = (torch.rand(1, 16, 16) * 255).expand(3, -1, -1)
    result = change_tone(grey, np.random.default_rng(seed), colour=False)
    assert torch.equal(result[0], result[1]) and torch.equal(result[1], result[2])


def test_windows_change_half_of_the_time_and_keep_the_order_of_values() -> None:
    ramp = torch.linspace(0, 255, 256).view(1, 1, 256).expand(3, 1, -1)
    results = [change_window(ramp, np.random.default_rng(i)) for i in range(100)]
    changed = [not torch.equal(r, ramp) for r in results]
    assert 0.35 < np.mean(changed) < 0.65
    assert all((r[0, 0].diff() >= 0).all() and r.min() >= 0 and r.max() <= 255 for r in results)


@pytest.mark.parametrize("traits", [UPRIGHT, MIRRORED, FREE])
def test_the_middle_of_a_picture_mostly_stays_in_sight(traits: SetTraits) -> None:
    labels = disc(SIDE, 32, 32, 6).astype(np.uint8)
    seen = [warp_labels(labels, draw_warp(traits, np.random.default_rng(i)), SIDE).any() for i in range(100)]
    assert np.mean(seen) > 0.98

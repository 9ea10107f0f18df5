"""Views of a picture: boxes, tones in their range, undistorted twins, masks of exact size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexitome.data.multi_crop import Crops, Masks, Sizes, Tone, block_mask, change_tone, draw_box, draw_views, resized
from lexitome.errors import InputError

STILL = Tone(jitter=0, grey=0, blur=(0, 0, 0), noise=0)
CROPS = Crops((32,), (16,), local_views=3)
SIZES = Sizes(32, 16, None)


def picture(channels: int = 1) -> Tensor:
    return torch.rand(channels, 50, 70, generator=torch.Generator().manual_seed(0))


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), low=st.floats(0.02, 0.9), seed=st.integers(0, 99))
def test_boxes_lie_inside(height: int, width: int, low: float, seed: int) -> None:
    top, left, rows, columns = draw_box(height, width, (low, 1.0), np.random.default_rng(seed))
    assert 0 <= top <= top + rows <= height and 0 <= left <= left + columns <= width and rows > 0 and columns > 0


def test_boxes_have_the_wanted_share() -> None:
    rng = np.random.default_rng(0)
    shares = [
        rows * columns / 200**2 for _, _, rows, columns in (draw_box(200, 200, (0.1, 0.3), rng) for _ in range(400))
    ]
    assert 0.09 < min(shares) < 0.12 and 0.28 < max(shares) < 0.31


@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_their_shapes_and_range(channels: int) -> None:
    views = draw_views(picture(channels), CROPS, SIZES, np.random.default_rng(0))
    assert views.large.shape == (2, 3, 32, 32) and views.small.shape == (3, 3, 16, 16) and views.gram is None
    for values in (views.large, views.small):
        assert values.dtype == torch.float32 and values.min() >= 0 and values.max() <= 1
        assert bool((values[:, :1] == values).all()) == (channels == 1), "grey stays grey, colours stay colours"


def test_views_are_a_function_of_the_generator() -> None:
    one, again, other = (draw_views(picture(), CROPS, SIZES, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(one.large, again.large) and torch.equal(one.small, again.small)
    assert not torch.equal(one.large, other.large)


def test_twins_are_the_same_crop_undistorted() -> None:
    """Without changes of tone the student's crop is its twin made smaller; with them the twin stays as it was."""
    sizes = Sizes(32, 16, 64)
    plain = draw_views(picture(), replace(CROPS, tone=STILL), sizes, np.random.default_rng(3))
    assert plain.gram is not None and plain.gram.shape == (2, 3, 64, 64)
    torch.testing.assert_close(plain.large[0], resized(plain.gram[0], 32))
    strong = replace(STILL, jitter=1.0, brightness=0.5)
    loud = draw_views(picture(), replace(CROPS, tone=strong), sizes, np.random.default_rng(3))
    assert loud.gram is not None and torch.equal(loud.gram[0], plain.gram[0])
    assert not torch.allclose(loud.large[0], plain.large[0], atol=0.01)


def test_student_crops_are_the_same_whether_twins_are_kept_or_not() -> None:
    sizes = Sizes(32, 16, 64)
    kept, left_out = (draw_views(picture(), CROPS, sizes, np.random.default_rng(3), twins=t) for t in (True, False))
    assert left_out.gram is None and torch.equal(kept.large, left_out.large) and torch.equal(kept.small, left_out.small)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), channels=st.sampled_from([1, 3]))
def test_tones_stay_in_range_and_black_stays_flat(seed: int, channels: int) -> None:
    changed = change_tone(picture(channels), Tone(), 0.5, np.random.default_rng(seed))
    assert changed.min() >= 0 and changed.max() <= 1 and changed.isfinite().all()
    black = change_tone(torch.zeros(1, 8, 8), replace(Tone(), noise=0), 1.0, np.random.default_rng(seed))
    assert black.std() < 1e-6


def test_tones_keep_the_order_of_values() -> None:
    """No solarisation: what was brighter stays at least as bright."""
    ramp = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    for seed in range(20):
        changed = change_tone(ramp, replace(Tone(), noise=0), 0.0, np.random.default_rng(seed)).flatten()
        assert (changed.diff() >= 0).all()


def test_empty_crops_are_drawn_again() -> None:
    """Most of the picture is air: with more tries more small crops show the thing."""
    shown = torch.zeros(1, 100, 100)
    shown[:, 40:60, 40:60] = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))

    def empty(tries: int) -> int:
        crops = replace(CROPS, tries=tries, tone=STILL, local_scale=(0.02, 0.05))
        views = [draw_views(shown, crops, SIZES, np.random.default_rng(seed)).small for seed in range(20)]
        return sum(int(view.std() < 0.01) for each in views for view in each)

    assert empty(8) < empty(1) / 2


def test_sizes_follow_their_chances() -> None:
    crops = Crops((32, 64), (16, 24), (64, 128), (0.8, 0.2))
    drawn = [crops.sizes(np.random.default_rng(seed)) for seed in range(200)]
    assert set(drawn) == {Sizes(32, 16, 64), Sizes(64, 24, 128)}
    assert 140 < drawn.count(Sizes(32, 16, 64)) < 180


def test_sides_that_do_not_belong_together() -> None:
    with pytest.raises(InputError, match="local_sides"):
        Crops((32, 64), (16,), chances=(0.5, 0.5)).check()
    Crops((32, 64), (16, 16), chances=(0.5, 0.5)).check()


@settings(max_examples=80, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_masks_hide_exactly_as_many(height: int, width: int, share: float, seed: int) -> None:
    count = int(share * height * width)
    mask = block_mask((height, width), count, np.random.default_rng(seed))
    assert mask.shape == (height, width) and mask.sum() == count


def test_masks_are_blocks() -> None:
    """Hidden patches have more hidden neighbours than patches hidden one by one would."""
    rng, blocks, single = np.random.default_rng(0), 0, 0
    for _ in range(30):
        mask = block_mask((14, 14), 60, rng)
        scattered = rng.permutation(mask.ravel()).reshape(mask.shape)
        blocks, single = (n + int((m[1:] & m[:-1]).sum()) for n, m in ((blocks, mask), (single, scattered)))
    assert blocks > 1.8 * single


def test_half_of_the_crops_have_masks_of_evenly_spread_size() -> None:
    ratios = Masks().ratios(40, np.random.default_rng(0))
    assert (ratios > 0).sum() == 20
    for number, ratio in enumerate(sorted(ratios[ratios > 0])):
        assert 0.1 + 0.02 * number <= ratio <= 0.1 + 0.02 * (number + 1) + 1e-9

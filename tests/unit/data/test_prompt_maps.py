"""Spatial prompts: what a drawn place points at is what it asks for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lexitome.data.prompt_maps import (
    BOX,
    CHANNELS,
    INSIDE,
    MASK,
    OUTSIDE,
    STRIDE,
    Place,
    box_map,
    draw_place,
    no_place,
    point_map,
)

SIDE = 64
AT_A_POINT = 0.96
"""Only the map pixel that holds a point is this bright: its centre is within 0.54 map pixels."""
seeds = st.integers(0, 2**32 - 1)


def blobs(seed: int) -> np.ndarray:
    """(SIDE, SIDE) bool with one part or more, from single pixels to most of the picture."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), rng.uniform(0.5, 8))
    return noise >= np.quantile(noise, rng.uniform(0.3, 0.9999))


def drawn(seed: int) -> tuple[np.ndarray, Place]:
    mask = blobs(seed)
    return mask, draw_place(mask, np.random.default_rng(seed))


def pooled(mask: np.ndarray) -> np.ndarray:
    """Share of each map pixel that the mask covers."""
    return mask.reshape(SIDE // STRIDE, STRIDE, SIDE // STRIDE, STRIDE).mean((1, 3))


@settings(deadline=None, max_examples=200)
@given(seeds)
def test_what_is_asked_is_part_of_the_target_and_something_points_at_it(seed: int) -> None:
    mask, place = drawn(seed)
    assert place.mask.dtype == bool and place.mask.shape == mask.shape
    assert place.mask.any() and not (place.mask & ~mask).any()
    assert place.maps.shape == (CHANNELS, SIDE // STRIDE, SIDE // STRIDE) and place.maps.dtype == np.float32
    assert place.maps.any() and place.maps.min() >= 0 and place.maps.max() <= 1
    parts, _ = ndimage.label(mask)
    assert (np.isin(parts, np.unique(parts[place.mask])) & mask == place.mask).all()  # whole parts


@settings(deadline=None, max_examples=200)
@given(seeds)
def test_boxes_hold_the_parts_that_they_ask_for(seed: int) -> None:
    mask, place = drawn(seed)
    box = place.maps[BOX]
    if not box.any():
        return
    assert not place.maps[[INSIDE, OUTSIDE, MASK]].any()
    rows, columns = (np.flatnonzero(box.any(axis)) for axis in (1, 0))
    assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and set(np.unique(box)) <= {0, 1}
    covered = np.kron(box, np.ones((STRIDE, STRIDE))) > 0
    wide = ndimage.binary_dilation(covered, np.ones((3, 3)), iterations=STRIDE // 2)  # what rounding to the map lost
    narrow = ndimage.binary_erosion(covered, np.ones((3, 3)), iterations=STRIDE // 2)
    parts, count = ndimage.label(mask)
    for part in (parts == i for i in range(1, count + 1)):
        if place.mask[part].any():
            assert (part & wide).sum() >= 0.45 * part.sum()
        else:
            assert (part & narrow).sum() <= 0.5 * part.sum()


@settings(deadline=None, max_examples=200)
@given(seeds)
def test_points_lie_where_they_say(seed: int) -> None:
    _, place = drawn(seed)
    assert (pooled(place.mask)[place.maps[INSIDE] > AT_A_POINT] > 0).all()
    assert (pooled(place.mask)[place.maps[OUTSIDE] > AT_A_POINT] < 1).all()
    for channel in (INSIDE, OUTSIDE):
        assert not place.maps[channel].any() or place.maps[channel].max() > AT_A_POINT


@settings(deadline=None, max_examples=300)
@given(seeds)
def test_corrections_are_wrong_and_point_at_the_error(seed: int) -> None:
    mask, place = drawn(seed)
    so_far, true = place.maps[MASK], pooled(place.mask)
    if not so_far.any():
        return
    if place.mask.sum() > 20 and not mask.all():
        assert not np.array_equal(so_far, true.astype(np.float32))
    missing, excess = place.maps[INSIDE] > AT_A_POINT, place.maps[OUTSIDE] > AT_A_POINT
    assert missing.sum() + excess.sum() <= 2  # one point, perhaps between two map pixels
    assert (so_far[missing] < 1).all() and (so_far[excess] > 0).all()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_correction_is_never_empty_nor_right(side: int) -> None:
    """Small masks vanish or stay as they are under most errors."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[30 : 30 + side, 31 : 31 + side] = True
    found = [draw_place(mask, np.random.default_rng(i)).maps for i in range(300)]
    assert all(maps.any() for maps in found)
    corrections = [maps[MASK] for maps in found if maps[MASK].any()]
    assert len(corrections) > 30


def test_every_kind_is_drawn() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[8:20, 8:20] = mask[40:60, 40:60] = True
    places = [draw_place(mask, np.random.default_rng(i)) for i in range(400)]
    boxes, corrections = (np.mean([p.maps[channel].any() for p in places]) for channel in (BOX, MASK))
    assert 0.4 < boxes < 0.6 and 0.13 < corrections < 0.28
    assert {int(p.mask.sum()) for p in places} == {144, 400, 544}  # one part, the other, both


def test_box_map() -> None:
    plane = box_map((8, 10), [(2.4, 1.6, 5.5, 3.4), (9.0, 7.0, 9.1, 7.1)])
    wanted = np.zeros((8, 10))
    wanted[2:3, 2:6] = 1
    wanted[7, 9] = 1  # smaller than a map pixel, still there
    assert (plane == wanted).all()
    assert box_map((8, 10), [(-5, -5, 99, 99)]).all() and not box_map((8, 10), []).any()


def test_point_map() -> None:
    plane = point_map((8, 10), [(3.0, 2.0), (9.0, 7.0)])
    assert plane[2, 3] == plane[7, 9] == 1 and plane.argmax() == 23
    assert plane[2, 5] == pytest.approx(np.exp(-0.5), abs=1e-6)  # one sigma away
    assert not point_map((8, 10), []).any()


def test_no_place_is_silent() -> None:
    assert no_place(SIDE).shape == (CHANNELS, SIDE // STRIDE, SIDE // STRIDE) and not no_place(SIDE).any()

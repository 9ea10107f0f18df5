from __future__ import annotations

import numpy as np

from lexitome.inference.consistency import SMALLEST_PART, drop_specks, smooth_slice


def smooth(probability: np.ndarray) -> np.ndarray:
    return np.stack([smooth_slice(probability, index) for index in range(len(probability))])


def test_specks_go_and_organs_stay() -> None:
    mask = np.zeros((10, 20, 20), bool)
    mask[2:8, 5:10, 5:10] = True  # 150 voxels
    mask[0, 0, 0] = True
    mask[5, 15:19, 15:19] = True  # 16 voxels: just above a tenth
    kept = drop_specks(mask)
    assert not kept[0, 0, 0] and kept[5, 16, 16] and kept[2:8, 5:10, 5:10].all()
    assert 16 / 150 > SMALLEST_PART > 1 / 150


def test_diagonal_neighbours_are_one_part() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert (drop_specks(mask) == mask).all()


def test_nothing_stays_nothing() -> None:
    assert not drop_specks(np.zeros((3, 4, 5), bool)).any()


def test_a_gap_of_one_slice_is_bridged_and_a_lone_slice_is_not_enough() -> None:
    probability = np.zeros((7, 4, 4), np.float16)
    probability[[1, 3]] = 0.9
    smoothed = smooth(probability)
    assert smoothed.dtype == np.float32
    assert (smoothed[2] > 0.44).all() and (smoothed[1] < 0.5).all()
    constant = np.full((5, 2, 2), 0.7, np.float32)
    assert np.allclose(smooth(constant), constant)


def test_where_the_user_pointed_the_next_slice_has_no_say() -> None:
    probability = np.zeros((7, 4, 4), np.float16)
    probability[[2, 3]] = 0.9
    smoothed = [smooth_slice(probability, index, {2, 3}).mean() for index in range(7)]
    assert np.allclose(smoothed, [0, 0.225, 0.9, 0.9, 0.225, 0, 0], atol=1e-3)
    lone = [smooth_slice(probability, index, {3}).mean() for index in (2, 3)]
    assert np.allclose(lone, [0.675, 0.9], atol=1e-3)


def test_short_stacks_are_left_alone() -> None:
    for slices in (1, 2):
        probability = np.random.default_rng(0).random((slices, 5, 5)).astype(np.float32)
        assert (smooth(probability) == probability).all()

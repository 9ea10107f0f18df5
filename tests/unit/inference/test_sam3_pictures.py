"""From a volume to what SAM3 sees, against torchvision and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.data.intensity import View, choose_view, to_pictures
from lexitome.inference.sam3_pictures import Pictures, to_input
from lexitome.volume import PIXEL_AFFINE, Volume


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([14, 64]), st.integers(0, 9))
def test_equals_torchvision(height: int, width: int, side: int, seed: int) -> None:
    """What the official code and transformers do: resize of 8-bit values, mean and deviation of a half."""
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    picture = np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), np.uint8)
    small = transforms.resize(torch.from_numpy(picture).permute(0, 3, 1, 2), [side, side], antialias=True)
    theirs = transforms.normalize(transforms.to_dtype(small, torch.float32, scale=True), [0.5] * 3, [0.5] * 3)
    torch.testing.assert_close(to_input(picture, side), theirs, atol=1e-5, rtol=0)


def test_range_and_grey() -> None:
    ends = to_input(np.array([0, 255], np.uint8).reshape(1, 1, 2, 1).repeat(2, 1), 2)
    assert ends.shape == (1, 3, 2, 2)
    assert ends[0, :, 0].tolist() == [[-1, 1]] * 3


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_odd_pictures(size: tuple[int, int]) -> None:
    volume = Volume(np.full((1, 1, *size), 7, np.uint8), PIXEL_AFFINE, spacing_known=False)
    square = Pictures(volume, View(), None, 28)[0]
    assert square.shape == (1, 3, 28, 28) and square.unique().tolist() == [pytest.approx(7 / 127.5 - 1)]


def scan() -> Volume:
    values = np.random.default_rng(0).normal(0, 300, (1, 5, 20, 30)).astype(np.float32)
    return Volume(values, np.diag([-2.0, 2.0, 5.0, 1.0]), modality="CT")


def test_slices_of_a_volume_are_windowed_and_turned() -> None:
    volume, window = scan(), (-100.0, 300.0)
    view = choose_view(volume)
    pictures = Pictures(volume, view, window, 32)
    assert len(pictures) == 5
    expected = to_pictures(volume, window, view)
    for index in range(5):
        torch.testing.assert_close(pictures[index], to_input(expected[index : index + 1], 32))


def test_stacked_channels_are_neighbours() -> None:
    volume = scan()
    plain, stacked = (Pictures(volume, View(), None, 32, stacked=stacked) for stacked in (False, True))
    for index, near in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 4)]):
        for channel, other in enumerate(near):
            torch.testing.assert_close(stacked[index][:, channel], plain[other][:, 0])


def test_photographs_keep_their_colours() -> None:
    array = np.zeros((3, 1, 8, 8), np.uint8)
    array[1] = 255
    square = Pictures(Volume(array, PIXEL_AFFINE, spacing_known=False), View(), None, 8, stacked=True)[0]
    assert square.mean((0, 2, 3)).tolist() == [-1, 1, -1]

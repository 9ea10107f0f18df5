"""Pictures cut from volumes: orientation, windows, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexitome.data.intensity import (
    LUNG,
    SOFT_TISSUE,
    View,
    choose_view,
    is_hounsfield,
    to_pictures,
    views_of,
    with_neighbours,
)
from lexitome.volume import PIXEL_AFFINE, Volume

orders = st.permutations([0, 1, 2]).map(tuple)


def oriented(code: str, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Affine whose voxel axes x, y, z grow towards the letters of `code` (e.g. "LPS")."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(code):
        world = ["LR", "PA", "IS"].index(next(p for p in ("LR", "PA", "IS") if letter in p))
        affine[world, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    return affine


def marked(code: str, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    """A volume that is bright at the voxel nearest to the patient's right, anterior, superior corner."""
    array = np.zeros((1, 6, 7, 8), np.uint8)
    index = [0 if letter in "LPI" else -1 for letter in code]  # along x, y, z
    array[0, index[2], index[1], index[0]] = 255
    return Volume(array, oriented(code, spacing))


@pytest.mark.parametrize("code", ["LPS", "RAS", "LAS", "RPI", "SLP", "PSL", "ASR", "IPL"])
def test_axial_slices_look_radiological(code: str) -> None:
    """Right of the patient at image left, anterior up, superior in the last slice, whatever the stored axes."""
    pictures = to_pictures(marked(code))
    assert np.argwhere(pictures[..., 0] == 255).tolist() == [[len(pictures) - 1, 0, 0]]


def test_thick_axis_decides_the_plane() -> None:
    coronal = marked("LSP", (1.0, 1.0, 5.0))
    assert choose_view(coronal).order[0] == 0
    assert to_pictures(coronal).shape[0] == 6
    mild = marked("LSP", (1.0, 1.0, 1.5))
    assert to_pictures(mild).shape[0] == 7  # still axial: y runs superior


@given(orders, st.sets(st.integers(0, 2)).map(tuple))
def test_view_undo_is_the_inverse(order: tuple[int, int, int], flips: tuple[int, ...]) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    view = View(order, flips)
    assert (view.undo(view.apply(array)) == array).all()


def test_windows() -> None:
    hounsfield = np.array([-1000, -125, 75, 275], np.int16).reshape(1, 1, 1, 4)
    volume = Volume(hounsfield, np.eye(4), modality="CT")
    assert to_pictures(volume)[0, 0, :, 0].tolist() == [0, 0, 128, 255]
    assert to_pictures(volume, LUNG)[0, 0, :, 0].tolist() == [0, 159, 196, 232]
    assert SOFT_TISSUE == (-125.0, 275.0)


@pytest.mark.parametrize(("values", "modality", "expected"), [
    ([-1000, 0, 400], "", True), ([-1000, 0, 400], "CT", True), ([-1000, 0, 400], "MR", False),
    ([0, 5, 400], "", False), ([0, 5, 400], "CT", True),
])  # fmt: skip
def test_hounsfield_is_recognised(values: list[int], modality: str, expected: bool) -> None:
    volume = Volume(np.array(values, np.int16).reshape(1, 1, 1, 3), np.eye(4), modality=modality)
    assert is_hounsfield(volume) is expected


def test_eight_bit_and_colour_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 1, 5, 6), np.uint8)
    assert (to_pictures(Volume(colour, PIXEL_AFFINE, spacing_known=False))[0] == colour[:, 0].transpose(1, 2, 0)).all()
    grey = colour[:1]
    assert (to_pictures(Volume(grey, PIXEL_AFFINE, spacing_known=False))[0, ..., 1] == grey[0, 0]).all()


@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6))
def test_stretch_does_not_depend_on_units(scale: float, offset: float) -> None:
    values = np.linspace(0, 1, 400).reshape(1, 1, 20, 20)
    plain = to_pictures(Volume(values, np.eye(4), modality="MR"))
    other = to_pictures(Volume(values * scale + offset, np.eye(4), modality="MR"))
    if scale > abs(offset) * 1e-3:  # else float32 cannot hold the steps
        assert np.abs(plain.astype(int) - other.astype(int)).max() <= 1


def test_constant_and_sparse_images_do_not_break() -> None:
    assert (to_pictures(Volume(np.full((1, 1, 4, 4), 7.0), np.eye(4))) == 0).all()
    sparse = np.zeros((1, 1, 100, 100))
    sparse[0, 0, 3, 3] = 5.0
    assert to_pictures(Volume(sparse, np.eye(4)))[0, 3, 3, 0] == 255


def test_channels_of_deep_colour_keep_their_proportions() -> None:
    deep = np.zeros((3, 1, 10, 10), np.uint16)
    deep[0], deep[1], deep[2] = 60000, 30000, np.linspace(0, 60000, 100).reshape(1, 10, 10)
    red, green, _ = to_pictures(Volume(deep, PIXEL_AFFINE, spacing_known=False))[0, 5, 5]
    assert red == 255 and green == pytest.approx(128, abs=2)


CODES = ["LPS", "RAS", "LAS", "RPI", "SLP", "PSL", "ASR", "IPL"]


@pytest.mark.parametrize("code", CODES)
def test_nearly_cubic_volumes_are_cut_three_ways_as_a_radiologist_hangs_them(code: str) -> None:
    """The marked corner is the patient's right, anterior, superior one: it lies in the last axial slice top left, in
    the last coronal slice (they run to anterior) top left, in the last sagittal slice (to right) top left."""
    volume = marked(code)
    views = views_of(volume)
    assert views[0] == choose_view(volume) and len({view.order[0] for view in views}) == 3
    for view in views:
        pictures = to_pictures(volume, None, view)
        assert np.argwhere(pictures[..., 0] == 255).tolist() == [[len(pictures) - 1, 0, 0]]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("voxel", [(0, 0, 0), (5, 6, 7), (1, 4, 2)])
def test_a_marked_voxel_is_where_the_view_says(code: str, voxel: tuple[int, int, int]) -> None:
    array = np.zeros((1, 6, 7, 8), np.uint8)
    array[0][voxel] = 255
    volume = Volume(array, oriented(code, (1.0, 1.3, 1.6)))
    for view in views_of(volume):
        pictures = to_pictures(volume, None, view)
        assert np.argwhere(view.undo(pictures[..., 0])).tolist() == [list(voxel)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.5), (2.5, 1.0, 1.0), (0.4, 1.0, 0.9), (1.0, 1.0, 9.0)])
def test_other_volumes_are_cut_one_way(spacing: tuple[float, float, float]) -> None:
    volume = marked("LPS", spacing)
    assert views_of(volume) == [choose_view(volume)]


def test_pictures_and_volumes_without_spacing_are_cut_one_way() -> None:
    flat = Volume(np.zeros((1, 1, 5, 5), np.uint8), np.eye(4))
    unknown = Volume(np.zeros((1, 5, 5, 5), np.uint8), PIXEL_AFFINE, spacing_known=False)
    assert views_of(flat) == views_of(unknown) == [View()]


def test_neighbours_become_channels() -> None:
    grey = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    stacked = with_neighbours(grey)
    assert stacked.shape == grey.shape and stacked.dtype == np.uint8
    assert stacked[:, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 4]]
    assert with_neighbours(grey[2:3])[0, 0, 0].tolist() == [2, 2, 2]

"""Slices on disk as they are, and patches cut out of them where and how it was said."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("monai")

from lexitome.data.cache import Row
from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE, Dataset
from lexitome.data.intensity import choose_view
from lexitome.data.normalisation import Normalisation
from lexitome.data.patches import PLAIN, Augmentation, Layout, Place, change_tones, draw_place, take
from lexitome.data.shelves import SliceShelf, open_slices
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import SetTraits

sys.path.insert(0, str(Path(__file__).parent))
from tiny_sets import save_set

AFFINE = np.diag([2.0, 1.0, 4.0, 1.0])


def volumes(folder: Path) -> Dataset:
    rng, cases = np.random.default_rng(0), {}
    for i in range(3):
        mask = np.zeros((4, 30, 20), np.uint8)
        mask[1:3, 5:15, 8:12] = 1 + i % 2
        cases[f"p{i}"] = ((rng.normal(0, 5, mask.shape) + 50 * mask).astype(np.float32), mask)
    return load_dataset(save_set(folder, cases, {1: "one", 2: "two"}, "MRI", affine=AFFINE, dims=3))


@pytest.fixture
def shelf(tmp_path: Path) -> SliceShelf:
    return open_slices(volumes(tmp_path / "set"), tmp_path / "cache", Normalisation("zscore"), SetTraits())


def test_slices_are_stored_as_they_hang_with_their_spacing(tmp_path: Path, shelf: SliceShelf) -> None:
    volume, codes = read_case(shelf.dataset.cases[0])
    view = choose_view(volume)
    first = [i for i, row in enumerate(shelf.rows) if row.stem == "p0"]
    assert len(first) == 4 and [shelf.rows[i].present for i in first] == [(), (1,), (1,), ()]
    assert (np.stack([shelf.codes(i) for i in first]) == view.apply(codes)).all()
    expected = view.apply((volume.array[0] - volume.array[0].mean()) / volume.array[0].std())
    assert np.allclose(np.stack([shelf.picture(i)[0] for i in first]), expected, atol=5e-3)
    assert shelf.spacing(0) == (1.0, 2.0) and shelf.picture(0).dtype == np.float16


def test_an_interrupted_folder_is_completed_and_a_change_makes_another(tmp_path: Path, shelf: SliceShelf) -> None:
    (shelf.folder / "rows.json").unlink()
    (shelf.folder / "p1.codes.npy").unlink()
    kept = (shelf.folder / "p0.npy").stat().st_mtime_ns
    again = open_slices(shelf.dataset, tmp_path / "cache", Normalisation("zscore"), SetTraits())
    assert again.rows == shelf.rows and (shelf.folder / "p1.codes.npy").exists()
    assert (shelf.folder / "p0.npy").stat().st_mtime_ns == kept
    other = open_slices(shelf.dataset, tmp_path / "cache", Normalisation("imagenet"), SetTraits())
    assert other.folder != shelf.folder and other.picture(0).dtype == np.uint8 and shelf.folder.is_dir()


def test_slices_of_files_that_changed_go(tmp_path: Path, shelf: SliceShelf) -> None:
    os.utime(shelf.dataset.cases[0].image, ns=(1, 1))
    again = open_slices(shelf.dataset, tmp_path / "cache", Normalisation("zscore"), SetTraits())
    assert again.folder != shelf.folder and again.rows == shelf.rows
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [again.folder]


def test_a_patch_at_the_spacing_of_the_slice_is_the_slice(shelf: SliceShelf) -> None:
    layout = Layout(16, spacing=(1.0, 2.0))
    picture, codes = take(shelf, 1, Place((13.0, 10.0), layout.step((30, 20), (1.0, 2.0))), layout)
    assert torch.allclose(picture, torch.from_numpy(shelf.picture(1)[:, 5:21, 2:18].astype(np.float32)), atol=1e-4)
    assert (codes == shelf.codes(1)[5:21, 2:18]).all()
    beyond, outside = take(shelf, 1, Place((0.0, 10.0), (1.0, 1.0)), layout)
    assert torch.allclose(beyond[:, :7], torch.tensor(float(shelf.picture(1).min())), atol=1e-3)
    assert not outside[:8].any()


def test_spacing_decides_what_a_patch_shows(shelf: SliceShelf) -> None:
    """Voxels of 1 x 2 mm: 32 pixels of 1 mm show 32 rows, of which there are 30, and 16 columns."""
    layout = Layout(32, spacing=(1.0, 1.0))
    assert layout.step((30, 20), (1.0, 2.0)) == (1.0, 0.5) and layout.grid((30, 20), (1.0, 2.0)) == (30, 40)
    _, codes = take(shelf, 1, Place((15.0, 10.0), (1.0, 0.5)), layout)
    assert (codes > 0).sum() == 2 * (shelf.codes(1) > 0).sum()
    whole = Layout(32)
    assert whole.grid((30, 20), (1.0, 2.0)) == (32, 32)
    place = draw_place(shelf, 1, whole, PLAIN, np.random.default_rng(0))
    _, codes = take(shelf, 1, place, whole)
    assert place.middle == (15.0, 10.0)
    assert (codes > 0).mean() == pytest.approx((shelf.codes(1) > 0).mean(), rel=0.1)


def test_turning_zooming_and_mirroring(shelf: SliceShelf) -> None:
    layout = Layout(20, spacing=(1.0, 2.0))
    plain, _ = take(shelf, 1, Place((15.0, 10.0), (1.0, 1.0)), layout)
    for flips, axis in (((True, False), 1), ((False, True), 2)):
        assert torch.allclose(take(shelf, 1, Place((15.0, 10.0), (1.0, 1.0), flips=flips), layout)[0], plain.flip(axis),
                              atol=1e-4)  # fmt: skip
    turned, _ = take(shelf, 1, Place((15.0, 10.0), (1.0, 1.0), angle=np.pi / 2), layout)
    assert torch.allclose(turned, plain.rot90(1, (1, 2)), atol=1e-3)
    _, small = take(shelf, 1, Place((15.0, 10.0), (1.0, 1.0), zoom=0.5), layout)
    assert (small > 0).sum() == pytest.approx((shelf.codes(1) > 0).sum() / 4, abs=2)


def test_stacks_end_where_the_volume_ends(shelf: SliceShelf) -> None:
    layout = Layout(16, spacing=(1.0, 2.0), depth=3)
    place = Place((13.0, 10.0), (1.0, 1.0))
    picture, codes = take(shelf, 1, place, layout)
    assert picture.shape == (1, 3, 16, 16) and (codes[1] == shelf.codes(1)[5:21, 2:18]).all()
    _, codes = take(shelf, 3, place, layout)  # the next row is of another volume
    assert (codes[2] == UNKNOWN_CODE).all() and not (codes[:2] == UNKNOWN_CODE).any()


def test_patches_lie_in_the_slice_and_show_what_they_must(shelf: SliceShelf) -> None:
    layout = Layout(4, spacing=(1.0, 2.0))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        anywhere = draw_place(shelf, 1, layout, Augmentation(), rng)
        assert 2 <= anywhere.middle[0] <= 28 and 2 <= anywhere.middle[1] <= 18
        _, codes = take(shelf, 1, draw_place(shelf, 1, layout, PLAIN, rng, shown=(1,)), layout)
        assert (codes == 1).any()
        assert draw_place(shelf, 0, layout, PLAIN, rng, shown=(1,)).middle != ()  # shows nothing: anywhere


def test_mirroring_needs_the_permission_of_the_set(shelf: SliceShelf) -> None:
    def flips(traits: SetTraits, augmentation: Augmentation) -> set[tuple[bool, bool]]:
        known = replace(shelf, traits=traits)
        return {draw_place(known, 0, Layout(8), augmentation, np.random.default_rng(i)).flips for i in range(60)}

    assert flips(SetTraits(), Augmentation()) == {(False, False)}
    assert flips(SetTraits(mirror=True), Augmentation()) == {(False, False), (False, True)}
    assert len(flips(SetTraits(mirror=True, rotate=True), Augmentation())) == 4
    assert len(flips(SetTraits(), Augmentation(mirror="always"))) == 4
    assert flips(SetTraits(mirror=True), Augmentation(mirror="never")) == {(False, False)}


def test_tones_are_a_function_of_the_seed_and_keep_the_shape() -> None:
    picture = torch.randn(3, 4, 24, 24, generator=torch.manual_seed(0))
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    changed = [change_tones(picture, seed) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()
    assert all(each.shape == picture.shape and torch.isfinite(each).all() for each in changed)
    assert all(torch.equal(change_tones(picture, seed), changed[seed]) for seed in range(12))
    assert 3 <= sum(not torch.equal(each, picture) for each in changed) <= 12
    assert type(changed[0]) is torch.Tensor


def test_rows_know_their_case(shelf: SliceShelf) -> None:
    assert isinstance(shelf.rows[0], Row) and [row.slice for row in shelf.rows[:4]] == [0, 1, 2, 3]

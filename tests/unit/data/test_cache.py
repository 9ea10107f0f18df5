"""Decoded pictures on disk: aligned with their masks, built once, and again when anything that decides them changes."""

from __future__ import annotations

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import disc, painted, save_set, write_sets

from lexitome.data import cache
from lexitome.data.cache import CachedDataset, open_cache, open_sets
from lexitome.data.dataset import UNKNOWN_CODE, Case, Dataset
from lexitome.data.intensity import View
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import CACHE_SIDE, SetTraits
from lexitome.errors import InputError
from lexitome.io import locks

SIDE = 32
MASK = disc(SIDE, 12, 20, 7).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_set(tmp_path / "discs", {f"p{i}": (painted(MASK, i), MASK) for i in range(5)}, {1: "disc"}, "CT")


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} if place.exists() else set()


def test_pictures_codes_and_rows_belong_together(folder: Path, tmp_path: Path) -> None:
    found = open_cache(load_dataset(folder), tmp_path / "cache", side=64)
    assert found.images.shape == (5, 64, 64, 3) and found.codes.shape == (5, 64, 64) and found.instances is None
    assert {row.stem for row in found.rows} == {f"p{i}" for i in range(5)}
    assert {row.split for row in found.rows} == {"train", "val", "test"}
    for image, codes, row in zip(found.images, found.codes, found.rows, strict=True):
        assert row.present == (1,) and not row.stacked and row.unknown == ()
        assert image[codes == 1].mean() > image[codes == 0].mean() + 40
        assert (codes == np.kron(MASK, np.ones((2, 2)))).all()


def test_it_is_written_once_and_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, place = load_dataset(folder), tmp_path / "cache"
    first = open_cache(dataset, place, side=SIDE)
    monkeypatch.setattr(cache, "read_case", None)  # reading an image again would fail
    again = open_cache(load_dataset(folder), place, side=SIDE)
    assert first.rows == again.rows and (first.images == again.images).all() and len(names(place)) == 1
    assert not again.images.flags.writeable


def change_image(dataset: Dataset) -> Dataset:
    path = dataset.cases[0].image
    path.write_bytes(path.read_bytes() + b"\0")
    return dataset


def change_mask(dataset: Dataset) -> Dataset:
    path = dataset.cases[0].files[1]
    os.utime(path, ns=(1, 1))
    return dataset


def change_part(dataset: Dataset) -> Dataset:
    first, *others = dataset.cases
    return replace(dataset, cases=(replace(first, split="val" if first.split != "val" else "train"), *others))


def change_what_is_known(dataset: Dataset) -> Dataset:
    first, *others = dataset.cases
    return replace(dataset, cases=(replace(first, unknown_labels=frozenset({1})), *others))


def change_the_ignored_label(dataset: Dataset) -> Dataset:
    path = dataset.root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ignore_label": 1}))
    return load_dataset(dataset.root)


@pytest.mark.parametrize("change", [
    change_part, change_what_is_known, change_the_ignored_label,
    lambda dataset: replace(dataset, cases=dataset.cases[1:]), lambda dataset: replace(dataset, window=(0.0, 80.0)),
])  # fmt: skip
def test_whatever_decides_the_pictures_makes_a_new_cache(folder: Path, tmp_path: Path, change: object) -> None:
    dataset, place = load_dataset(folder), tmp_path / "cache"
    open_cache(dataset, place, side=SIDE)
    changed = change(dataset)  # type: ignore[operator]
    fresh = open_cache(changed, place, side=SIDE)
    assert len(names(place)) == 2
    assert [row.split for row in fresh.rows] == [case.split for case in changed.cases]


@pytest.mark.parametrize("change", [change_image, change_mask])
def test_what_was_made_of_changed_files_goes(folder: Path, tmp_path: Path, change: object) -> None:
    dataset, place = load_dataset(folder), tmp_path / "cache"
    sibling = load_dataset(save_set(tmp_path / "discs-32", {"p0": (painted(MASK, 0), MASK)}, {1: "disc"}, "CT"))
    (place / "discs-32-mine").mkdir(parents=True)  # somebody else's
    open_cache(sibling, place, side=SIDE)
    others = names(place)
    for old in (dataset, replace(dataset, window=(0.0, 80.0))):
        open_cache(old, place, side=SIDE)
    assert len(names(place)) == len(others) + 2
    fresh = open_cache(change(dataset), place, side=SIDE)  # type: ignore[operator]
    assert len(fresh.rows) == 5 and others < names(place) and len(names(place)) == len(others) + 1


def test_what_was_made_of_files_that_are_gone_stays(folder: Path, tmp_path: Path) -> None:
    dataset, place = load_dataset(folder), tmp_path / "cache"
    open_cache(dataset, place, side=SIDE)
    dataset.cases[0].image.unlink()
    open_cache(replace(dataset, cases=dataset.cases[1:]), place, side=SIDE)
    assert len(names(place)) == 2


def test_pixels_that_nobody_judged_are_kept(folder: Path, tmp_path: Path) -> None:
    found = open_cache(change_the_ignored_label(load_dataset(folder)), tmp_path / "cache", side=SIDE)
    assert set(np.unique(found.codes)) == {0, UNKNOWN_CODE}


def test_side_and_slice_step_make_a_new_cache(folder: Path, tmp_path: Path) -> None:
    dataset, place = load_dataset(folder), tmp_path / "cache"
    open_cache(dataset, place, side=SIDE)
    open_cache(dataset, place, side=64)
    open_cache(dataset, place, side=64, traits=SetTraits(slice_step=2))
    assert len(names(place)) == 3
    assert open_cache(dataset, place, traits=SetTraits(size="small")).images.shape[1] == CACHE_SIDE["small"]


def test_an_interrupted_build_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, save = tmp_path / "cache", np.save

    def full(path: Path, array: np.ndarray) -> None:
        if path.name == "codes.npy":
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(KeyboardInterrupt):
        open_cache(load_dataset(folder), place, side=SIDE)
    assert names(place) == set()
    monkeypatch.undo()
    assert len(open_cache(load_dataset(folder), place, side=SIDE).rows) == 5


def test_a_full_disk_says_what_to_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"cannot be written .*Free some space, or name another place with --cache"):
        open_cache(load_dataset(folder), tmp_path / "cache", side=SIDE)
    assert names(tmp_path / "cache") == set()


def test_of_several_who_want_it_one_decodes_and_the_others_wait(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, dataset, read, decoded = tmp_path / "cache", load_dataset(folder), cache.read_case, []

    def slowly(case: Case) -> object:
        decoded.append(case.stem)
        time.sleep(0.05)
        return read(case)

    monkeypatch.setattr(cache, "read_case", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: open_cache(dataset, place, side=SIDE), range(3)))
    assert sorted(decoded) == [f"p{i}" for i in range(5)] and len(names(place)) == 1
    assert all((each.images == found[0].images).all() for each in found)


def test_without_locks_the_result_of_the_quicker_one_is_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that knows none: the other one finishes while this one is writing."""
    place, dataset, replaced = tmp_path / "cache", load_dataset(folder), os.replace

    def later(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replaced)
        monkeypatch.setattr(os, "getpid", lambda: -1)
        open_cache(dataset, place, side=SIDE)
        replaced(source, target)

    monkeypatch.setattr(locks, "_take", lambda _: True)
    monkeypatch.setattr(os, "replace", later)
    assert len(open_cache(dataset, place, side=SIDE).rows) == 5
    assert len(names(place)) == 1 and not next(iter(names(place))).startswith(".")


def test_slices_without_their_neighbours_make_a_new_cache(tmp_path: Path) -> None:
    alone = phantom(tmp_path, (1.0, 1.0, 4.0), neighbours=False)
    stacked = phantom(tmp_path, (1.0, 1.0, 4.0))
    assert len(names(tmp_path / "cache")) == 2
    assert not any(row.stacked for row in alone.rows) and all(row.stacked for row in stacked.rows)
    for image, other in zip(alone.images, stacked.images, strict=True):
        assert (image == other[..., 1:2]).all()


def test_object_ids_are_kept(tmp_path: Path) -> None:
    ids = np.where(MASK > 0, 40000, 0).astype(np.uint16)
    ids[:12] = np.where(MASK[:12] > 0, 7, 0)
    folder = save_set(tmp_path / "set", {"p": (painted(MASK), MASK)}, {1: "disc"}, instances={"p": ids})
    found = open_cache(load_dataset(folder), tmp_path / "cache", side=64)
    assert found.instances is not None
    assert (found.instances[0] == np.kron(ids, np.ones((2, 2)))).all()


GRID = (20, 24, 28)  # z, y, x
VOXEL = (13, 5, 17)


def phantom(
    tmp_path: Path, spacing: tuple[float, float, float], step: int = 1, *, neighbours: bool = True
) -> CachedDataset:
    """A grey volume with one bright voxel that is annotated, and with an id; spacing along x, y, z."""
    image, mask, ids = np.full(GRID, 50, np.uint8), np.zeros(GRID, np.uint8), np.zeros(GRID, np.uint16)
    image[VOXEL], mask[VOXEL], ids[VOXEL] = 200, 1, 9
    image[VOXEL[0] + 1, :, :] = 90  # what comes after, along z
    affine = np.diag([*spacing, 1.0])
    folder = tmp_path / "phantom"
    if not folder.exists():
        save_set(folder, {"v": (image, mask)}, {1: "dot"}, "MRI", instances={"v": ids}, affine=affine, dims=3)
    return open_cache(load_dataset(folder), tmp_path / "cache", side=112,
                      traits=SetTraits(slice_step=step, neighbours=neighbours))  # fmt: skip


def test_nearly_cubic_volumes_are_cut_in_three_directions(tmp_path: Path) -> None:
    """The annotated voxel is bright in every direction, at its slice, and its neighbours are the other channels."""
    found = phantom(tmp_path, (1.0, 1.0, 1.5))
    assert len(found.rows) == sum(GRID) and all(row.stacked for row in found.rows)
    shown = [i for i, row in enumerate(found.rows) if row.present]
    assert {found.rows[i].axis: found.rows[i].slice for i in shown}.keys() == {0, 1, 2}
    for i in shown:
        row, image, codes = found.rows[i], found.images[i], found.codes[i]
        assert row.slice in (VOXEL[row.axis], GRID[row.axis] - 1 - VOXEL[row.axis])  # some views are flipped
        peak = np.argwhere(image[..., 1] == image[..., 1].max()).mean(0)
        assert np.abs(peak - np.argwhere(codes == 1).mean(0)).max() < 2
        assert found.instances is not None and ((found.instances[i] == 9) == (codes == 1)).all()
        others = [j for j, other in enumerate(found.rows) if other.axis == row.axis]
        before, after = (found.images[others[row.slice + d]][..., 1] for d in (-1, 1))
        assert (image[..., 0] == before).all() and (image[..., 2] == after).all()


def test_the_channels_of_a_stack_run_as_the_slices_do(tmp_path: Path) -> None:
    found = phantom(tmp_path, (1.0, 1.0, 4.0))
    assert len(found.rows) == GRID[0] and {row.axis for row in found.rows} == {0}
    image = found.images[VOXEL[0]]
    assert np.median(image[..., 2]) > np.median(image[..., 1]) == np.median(image[..., 0])
    first, last = found.images[0], found.images[-1]
    assert (first[..., 0] == first[..., 1]).all() and (last[..., 1] == last[..., 2]).all()


def test_every_nth_slice_with_its_true_neighbours(tmp_path: Path) -> None:
    whole, some = phantom(tmp_path, (1.0, 1.0, 4.0)), phantom(tmp_path, (1.0, 1.0, 4.0), step=3)
    assert [row.slice for row in some.rows] == list(range(0, GRID[0], 3))
    for image, row in zip(some.images, some.rows, strict=True):
        assert (image == whole.images[row.slice]).all()


def test_all_sets_below_a_folder(tmp_path: Path) -> None:
    root = write_sets(tmp_path / "sets", 3)
    (root / "notes").mkdir()
    assert [s.dataset.name for s in open_sets(root, tmp_path / "cache")] == ["btcv_abdomen_ct2d", "kvasir_seg"]


def test_views_that_are_stored_are_those_that_are_cut() -> None:
    """`Row.axis` is the array axis that slices are counted along."""
    array = np.arange(24).reshape(2, 3, 4)
    assert View((1, 0, 2), ()).apply(array).shape[0] == array.shape[1]

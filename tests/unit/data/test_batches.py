"""Batches: reproducible, balanced between present and absent, and never asking what was not annotated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import write_sets

from lexitome.data.batches import BatchSource, augment
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.folder import load_dataset
from lexitome.data.negatives import GENERIC, MAY_SHOW, surely_absent
from lexitome.data.prompt_maps import draw_map


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    root = write_sets(tmp_path_factory.mktemp("sets"))
    return [open_cache(load_dataset(d), tmp_path_factory.mktemp("cache"), 48) for d in sorted(root.iterdir())]


def test_cache_is_written_once_and_read_again(sets: list[CachedDataset], tmp_path: Path) -> None:
    dataset = sets[0].dataset
    first = open_cache(dataset, tmp_path, 32)
    stamp = (tmp_path / f"{dataset.name}-32" / "images.npy").stat().st_mtime_ns
    again = open_cache(dataset, tmp_path, 32)
    assert (tmp_path / f"{dataset.name}-32" / "images.npy").stat().st_mtime_ns == stamp
    assert first.rows == again.rows and (first.images == again.images).all()
    assert [p.name for p in tmp_path.iterdir()] == [f"{dataset.name}-32"]


def test_a_batch_depends_on_seed_and_step_only(sets: list[CachedDataset]) -> None:
    one, other = BatchSource(sets, seed=3), BatchSource(sets, seed=3)
    other.batch(0, 4, 64)  # drawing another one before must not matter
    a, b = one.batch(7, 4, 64), other.batch(7, 4, 64)
    for x, y in zip(vars(a).values(), vars(b).values(), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(a.pictures, one.batch(8, 4, 64).pictures)


def test_shapes_and_balance(sets: list[CachedDataset]) -> None:
    source = BatchSource(sets, seed=0)
    batches = [source.batch(i, 4, 64) for i in range(20)]
    first = batches[0]
    assert first.pictures.shape == (4, 3, 64, 64) and first.masks.shape == (12, 64, 64)
    assert first.text.shape == (12, source.text.dim) and first.spatial.shape == (12, 3, 16, 16)
    present = torch.cat([b.present for b in batches])
    places = torch.cat([b.spatial.flatten(1).any(1) for b in batches])
    assert 0.4 < present.mean() < 0.8 and 0.05 < places.float().mean() < 0.35
    for batch in batches:
        assert torch.equal(batch.present.bool(), batch.masks.flatten(1).any(1))


def test_only_training_rows_are_drawn(sets: list[CachedDataset]) -> None:
    source = BatchSource(sets, seed=0)
    for cached, rows in zip(sets, source.rows, strict=True):
        assert {cached.rows[i].split for i in rows} == {"train"}


def test_left_and_right_are_never_mirrored(sets: list[CachedDataset]) -> None:
    """In a set with sides, the right kidney (image left) stays left of the left kidney under every augmentation."""
    cached = next(s for s in sets if s.dataset.name == "btcv_abdomen_ct2d")
    rng = np.random.default_rng(0)
    for trial in range(60):
        _, codes = augment(cached, trial % len(cached.rows), 48, rng)
        columns = [np.nonzero(codes == side)[1] for side in (1, 2)]
        if all(len(c) > 30 for c in columns):
            assert columns[0].mean() < columns[1].mean()


def test_image_and_mask_move_together(sets: list[CachedDataset]) -> None:
    cached = next(s for s in sets if s.dataset.name == "kvasir_seg")
    rng = np.random.default_rng(0)
    for index in range(8):
        picture, codes = augment(cached, index, 64, rng)
        if (codes > 0).sum() > 40:
            inside = picture[0].numpy()[codes > 0].mean()
            around = picture[0].numpy()[(codes == 0) & (picture[0].numpy() > 1)].mean()
            assert inside > around + 10


def test_absent_targets_are_really_absent(sets: list[CachedDataset]) -> None:
    datasets = [s.dataset for s in sets]
    ct = next(d for d in datasets if d.family == "ct")
    far = surely_absent(ct, datasets, same_family=False)
    assert [t.name for t in far] == ["polyp"]
    assert surely_absent(ct, datasets, same_family=True) == []
    assert all("lungs" in MAY_SHOW[name] for name in ("btcv_abdomen_ct2d", "jsrt_scr")) and "blood vessel" in GENERIC


def test_unknown_dataset_gives_no_negatives(sets: list[CachedDataset]) -> None:
    from dataclasses import replace

    stranger = replace(sets[0].dataset, name="a_new_set")
    assert surely_absent(stranger, [s.dataset for s in sets], same_family=False) == []


def test_drawn_prompts_point_at_the_part_they_ask_for() -> None:
    mask = np.zeros((64, 64), bool)
    mask[8:20, 8:20] = mask[40:60, 40:60] = True
    rng = np.random.default_rng(0)
    for _ in range(40):
        maps, asked = draw_map(mask, rng)
        assert asked.sum() in (144, 400) and maps.shape == (3, 16, 16)
        coarse = asked.reshape(16, 4, 16, 4).any((1, 3))
        if maps[0].any():
            assert (maps[0] * coarse).sum() >= 0.6 * coarse.sum()
        else:
            assert coarse[np.unravel_index(maps[1].argmax(), (16, 16))]

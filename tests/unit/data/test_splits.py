"""Parts by subject, published parts, and splits stored with hashes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lexitome.data.dataset import Dataset
from lexitome.data.sources import load_any
from lexitome.data.splits import assign_splits, changes, read_splits, resume_splits, write_splits
from lexitome.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((4, 4), 20 * i, np.uint8)).save(root / part / f"p{i}.png")
    return root


def load(root: Path, seed: int = 0) -> Dataset:
    return load_any(root, concept="polyp", seed=seed)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", "train", "val", "test"])), min_size=1, max_size=60),
    st.integers(0, 3),
)
def test_published_parts_are_kept_and_subjects_are_whole_otherwise(rows: list[tuple[int, str]], seed: int) -> None:
    units = {f"{i}": f"unit{unit}" for i, (unit, _) in enumerate(rows)}
    published = {f"{i}": part for i, (_, part) in enumerate(rows) if part}
    split_of = assign_splits("set", units, seed, published)
    assert split_of.keys() == units.keys()
    for stem, part in published.items():
        assert split_of[stem] == part or (part == "train" and "val" not in published.values())
        assert (part == "test") == (split_of[stem] == "test") or not {"val", "test"} & set(published.values())
    if not published:
        assert all(len({split_of[s] for s in units if units[s] == unit}) == 1 for unit in units.values())


def test_stored_splits_come_back(root: Path, tmp_path: Path) -> None:
    dataset = load(root)
    path = tmp_path / "splits.json"
    stored = write_splits(dataset, path)
    assert read_splits(path) == stored and len(stored.files) == 20 and not changes(dataset, stored)
    other_seed = load(root, seed=3)
    assert [c.split for c in other_seed.cases] != [c.split for c in dataset.cases]
    assert resume_splits(other_seed, path).cases == dataset.cases
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_moved_or_touched_files_are_still_the_same(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    before = write_splits(load(root), path).sha256
    os.utime(root / "images" / "p3.png", ns=(1, 1))
    (tmp_path / "moved").mkdir()
    root = root.rename(tmp_path / "moved" / "set")
    assert not changes(load(root), read_splits(path))
    assert write_splits(load(root), path).sha256 == before


def test_changed_vanished_and_new_files_are_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    write_splits(load(root), path)
    Image.fromarray(np.ones((4, 4), np.uint8)).save(root / "masks" / "p2.png")
    (root / "masks" / "p5.png").unlink()
    for part in ("images", "masks"):
        Image.fromarray(np.ones((4, 4), np.uint8)).save(root / part / "p77.png")
    found = changes(load(root), read_splits(path))
    assert set(found) == {"masks/p2.png has changed", "masks/p5.png has vanished", "images/p77.png is new",
                          "masks/p77.png is new", "case p77 is new"}  # fmt: skip
    with pytest.raises(InputError, match=r"p5\.png has vanished.* and 2 more.*delete splits\.json"):
        resume_splits(load(root), path)


def test_an_edited_or_damaged_split_is_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    write_splits(load(root), path)
    entry = json.loads(path.read_text())
    entry["cases"]["p1"][1] = "test" if entry["cases"]["p1"][1] != "test" else "train"
    path.write_text(json.dumps(entry))
    with pytest.raises(InputError, match="edited"):
        read_splits(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="not a stored split"):
        read_splits(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_splits(tmp_path / "nowhere.json")

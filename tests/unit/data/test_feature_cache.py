"""Small arrays on disk under a key."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.feature_cache import FeatureCache, kept_hash, user_cache

FEATURES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "new" / "text")
    assert cache.get(["a", "b"]) is None
    cache.put(["a", "b"], FEATURES)
    found = FeatureCache(cache.folder).get(["a", "b"])
    assert found is not None and found.dtype == np.float32
    np.testing.assert_array_equal(found, FEATURES)


def test_parts_of_a_key_stay_apart(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.put(["ab", "c"], FEATURES)
    assert cache.get(["a", "bc"]) is None and cache.get(["abc"]) is None


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"nothing of the kind"])
def test_damaged_files_are_not_there(tmp_path: Path, damage: bytes) -> None:
    cache = FeatureCache(tmp_path)
    cache.put(["a"], FEATURES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert cache.get(["a"]) is None
    file.write_bytes(file.read_bytes())


def test_values_that_are_no_numbers_are_not_there(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.put(["a"], FEATURES * np.nan)
    assert cache.get(["a"]) is None


def test_a_place_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "text")
    cache.put(["a"], FEATURES)
    assert cache.get(["a"]) is None


def test_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "lexitome"


def test_hashes_are_kept_until_a_file_changes(tmp_path: Path) -> None:
    file, asked = tmp_path / "weights.pt", []
    file.write_bytes(b"one")

    def found() -> str:
        return kept_hash([file], lambda: asked.append(1) or f"{len(asked):064x}", tmp_path / "new" / "sha256")  # type: ignore[func-returns-value]

    assert found() == found() == f"{1:064x}" and len(asked) == 1
    os.utime(file, ns=(1, 1))
    assert found() == f"{2:064x}"
    file.write_bytes(b"three")
    assert found() == f"{3:064x}"
    for kept in (tmp_path / "new" / "sha256").iterdir():
        kept.write_bytes(b"\xff damaged")
    assert found() == f"{4:064x}" and found() == f"{4:064x}"

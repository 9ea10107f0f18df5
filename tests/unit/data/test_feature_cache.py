"""Small arrays on disk under a key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lexitome.data.feature_cache import FeatureCache, user_cache

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

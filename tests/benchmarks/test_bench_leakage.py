"""The measure of the leakage check: strangers are of other subjects, copies are of the picture itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

leakage = pytest.importorskip("leakage")

from lexitome.data.sources.folder import load_dataset  # noqa: E402


def test_strangers_are_of_other_subjects() -> None:
    hashes = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 7], [3, 0, 0, 0]], dtype=np.uint64)
    nearest = leakage.nearest_strangers(hashes, ["a", "a", "b", "b"])
    assert nearest == [(2, 3), (2, 2), (2, 1), (2, 0)]


def test_every_copy_shows_the_same_picture() -> None:
    picture = np.random.default_rng(0).integers(60, 140, (20, 30, 1), dtype=np.uint8).repeat(3, axis=2)
    shapes = {name: change(picture).shape[:2] for name, change in leakage.COPIES.items()}
    assert shapes.pop("half size, JPEG 50") == (10, 15) and shapes.pop("1.6 times, JPEG 75") == (32, 48)
    assert shapes.pop("squeezed to 256 x 256, JPEG 80") == (256, 256) and set(shapes.values()) == {(20, 30)}
    assert leakage.windowed(picture, 60, 140).max() - leakage.windowed(picture, 60, 140).min() > 250


def test_a_part_is_measured_and_one_subject_is_none(annotated: Path) -> None:
    dataset = load_dataset(annotated / "dsb2018_fluorescence_nuclei")
    entry = leakage.measure_part(dataset, ("train", "val"), 6)
    assert entry is not None and entry["pictures"] == 6 == entry["subjects"]
    assert set(entry["copies"]) == set(leakage.COPIES) and all(len(bits) == 6 for bits in entry["copies"].values())
    assert leakage.measure_part(dataset, ("train", "val"), 1) is None
    found = leakage.together({"discs": entry})
    assert found["pictures"] == 6 and 0 <= found["copies"]["JPEG 30"]["found"] <= 1

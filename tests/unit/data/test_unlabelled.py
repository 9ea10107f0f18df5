"""Pictures without labels: of annotated sets, image folders and volumes; parts, units, interruption, bad files."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from tiny_sets import write_sets

from lexitome.data.sources.find import find_sets
from lexitome.data.unlabelled import HOUNSFIELD, UNITS, open_pictures
from lexitome.errors import InputError

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def silent(_: str) -> None:
    pass


def volume(seed: int, shape: tuple[int, int, int] = (40, 30, 6)) -> np.ndarray:
    """(X, Y, Z) HU: a body in air, nothing in the first two slices."""
    values = np.full(shape, -1000, np.int16)
    values[10:30, 8:22, 2:] = np.random.default_rng(seed).integers(-100, 300, (20, 14, shape[2] - 2))
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    (root / "inner").mkdir(parents=True)
    for number in range(3):
        nibabel.Nifti1Image(volume(number), AFFINE).to_filename(root / f"ct{number}.nii.gz")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 90, 3), dtype=np.uint8)).save(root / "inner" / "colour.png")
    Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(root / "inner" / "grey.png")
    (root / "notes.txt").write_text("not an image")
    return root


def test_a_folder_of_everything(folder: Path, tmp_path: Path) -> None:
    (found,) = open_pictures([folder], tmp_path / "cache", intensity="imagenet", side=64, say=silent)
    parts = [(held, i) for held in (False, True) for i in range(found.count(held_out=held))]
    assert len(parts) == 3 * 4 + 2, "slices that show nothing are left out"
    assert found.count() and found.count(held_out=True)
    pictures = [found.picture(i, held_out=held) for held, i in parts]
    assert {p.shape for p in pictures} == {(1, 30, 40), (3, 36, 64), (1, 20, 30)}, "long sides are shrunk to 64"
    assert all(p.dtype == np.float32 and p.min() >= 0 and p.max() <= 1 for p in pictures)
    assert len(found.hashes()) and found.name == "scans"


def test_hounsfield_units_are_kept(tmp_path: Path) -> None:
    nibabel.Nifti1Image(volume(0), AFFINE).to_filename(tmp_path / "ct.nii.gz")
    (found,) = open_pictures([tmp_path / "ct.nii.gz"], tmp_path / "cache", intensity="hu_meddino", side=64, say=silent)
    assert found.count() == 4 and not found.count(held_out=True)
    hounsfield = found.picture(0)[0] * 2000 - 1000
    expected = volume(0)[:, :, 2].T
    assert sorted(np.unique(hounsfield.round())) == sorted(np.unique(expected))
    normalised = (found.picture(0)[0] - HOUNSFIELD.mean[0]) / HOUNSFIELD.deviation[0]
    np.testing.assert_allclose(normalised, (hounsfield - 65.1084) / 178.0166, atol=1e-4)


def test_pictures_have_no_hounsfield_units(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    (found,) = open_pictures([folder], tmp_path / "cache", intensity="hu_meddino", side=64, say=said.append)
    assert found.count() + found.count(held_out=True) == 3 * 4
    assert "left out     2 of 5" in said[-1] and "Hounsfield" in said[-1]
    with pytest.raises(InputError, match="Hounsfield"):
        open_pictures([folder / "inner"], tmp_path / "cache", intensity="hu_meddino", side=64, say=silent)


def test_what_was_read_is_not_read_again_unless_it_changed(folder: Path, tmp_path: Path) -> None:
    def kept() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}

    def opened() -> None:
        open_pictures([folder], tmp_path / "cache", intensity="imagenet", side=64, say=silent)

    opened()
    first = kept()
    opened()
    assert kept() == first and len(first) == 5
    (tmp_path / "cache" / "scans-pictures" / sorted(first)[0]).unlink()  # as after an interruption
    opened()
    assert kept().keys() == first.keys()
    nibabel.Nifti1Image(volume(9), AFFINE).to_filename(folder / "ct1.nii.gz")
    opened()
    assert len(kept().keys() - first.keys()) == 1


def test_a_damaged_file_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    said: list[str] = []
    (found,) = open_pictures([folder], tmp_path / "cache", intensity="imagenet", side=64, say=said.append)
    assert found.count() + found.count(held_out=True) == 14
    assert "left out     1 of 6" in said[-1] and "broken.png" in said[-1]


def test_annotated_sets_give_their_training_part(tmp_path: Path) -> None:
    """From the decoded cache; neither the test part nor neighbouring slices are seen."""
    write_sets(tmp_path / "sets")
    found = open_pictures([tmp_path / "sets"], tmp_path / "cache", intensity="imagenet", side=64, say=silent)
    assert [each.name for each in found] == ["btcv_abdomen_ct2d", "kvasir_seg"]
    for each, dataset in zip(found, find_sets([tmp_path / "sets"]), strict=True):
        parts = [case.split for case in dataset.cases]
        assert (each.count(), each.count(held_out=True)) == (parts.count("train"), parts.count("val"))
        assert each.licence == "CC0"
        assert len(each.picture(0)) == (3 if each.name == "kvasir_seg" else 1)
        assert len(each.hashes()) == parts.count("train") + parts.count("val")


def test_every_unit_is_affine() -> None:
    for units in UNITS.values():
        assert units.low < units.high and min(units.deviation) > 0 and len(units.mean) == 3


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        (tmp_path / "empty").mkdir()
        open_pictures([tmp_path / "empty"], tmp_path / "cache", intensity="imagenet", side=64, say=silent)
    with pytest.raises(InputError, match="zscore"):
        open_pictures([tmp_path / "empty"], tmp_path / "cache", intensity="zscore", side=64, say=silent)

"""The benchmarks are scripts, not part of the package: their folder goes on the path, as when they are run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent / "benchmarks"), str(TESTS / "unit" / "inference")]

SIDE = 64


@pytest.fixture(scope="session")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two sets under names that the project knows: discs with object ids, and small volumes whose first and
    last slices are empty."""
    root = tmp_path_factory.mktemp("annotated")
    rng = np.random.default_rng(0)
    _write_discs(root / "dsb2018_fluorescence_nuclei", rng, 20)
    _write_volumes(root / "hippocampus_msd_mr3d", rng, 10)
    return root


def _write_discs(folder: Path, rng: np.random.Generator, count: int) -> None:
    for part in ("images", "masks", "instances"):
        (folder / part).mkdir(parents=True)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(count):
        ids = np.zeros((SIDE, SIDE), np.uint8)
        for i, (y, x) in enumerate(rng.integers(8, SIDE - 8, (4, 2)), start=1):
            ids[(rows - y) ** 2 + (columns - x) ** 2 < 40] = i
        grey = np.clip(40 + 150 * (ids > 0) + rng.normal(0, 8, ids.shape), 0, 255).astype(np.uint8)
        for part, plane in (("images", np.stack([grey] * 3, -1)), ("masks", (ids > 0).astype(np.uint8)),
                            ("instances", ids)):  # fmt: skip
            Image.fromarray(plane).save(folder / part / f"cell{number:02d}.png")
    labels = {"1": {"name": "nuclei", "synonyms": ["cell nuclei", "karyon"]}}
    _describe(folder, "fluorescence microscopy", labels, 2)


def _write_volumes(folder: Path, rng: np.random.Generator, count: int) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    z, y, x = np.mgrid[:8, :24, :24]
    for number in range(count):
        centre = rng.integers(8, 16, 2)
        mask = ((z - 3) ** 2 + (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 8).astype(np.uint8)
        image = (60 + 120 * mask + rng.normal(0, 8, mask.shape)).astype(np.int16)
        for part, array in (("images", image), ("masks", mask)):
            volume = nibabel.Nifti1Image(array.transpose(2, 1, 0), np.diag([1.0, 1.0, 3.0, 1.0]))
            nibabel.save(volume, folder / part / f"brain_{number:03d}.nii.gz")
    _describe(folder, "MRI", {"1": {"name": "hippocampus", "synonyms": ["human hippocampus", "seahorse"]}}, 3)


def _describe(folder: Path, modality: str, labels: dict[str, object], dims: int) -> None:
    entry = {"modality": modality, "license": "CC0", "title": folder.name, "labels": labels, "dims": dims}
    (folder / "dataset.json").write_text(json.dumps(entry))

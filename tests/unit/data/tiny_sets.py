"""Small annotated folders on disk. `write_sets` draws two that a network could learn: discs in colour, and in CT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

SIDE = 48


def write_sets(root: Path, count: int = 12) -> Path:
    rng = np.random.default_rng(0)
    _write(root / "kvasir_seg", rng, count, "colonoscopy", {"1": "polyp"}, colour=True)
    _write(
        root / "btcv_abdomen_ct2d",
        rng,
        count,
        "CT",
        {"1": "right kidney", "2": "left kidney", "3": "spleen"},
        colour=False,
    )
    return root


def _write(
    folder: Path, rng: np.random.Generator, count: int, modality: str, labels: dict[str, str], *, colour: bool
) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for i in range(count):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for label in labels:
            if len(labels) > 1 and label == "3" and i % 2:
                continue  # the spleen is absent from every other slice
            y, x = rng.integers(10, SIDE - 10, 2)
            x = {"1": x // 2, "2": SIDE // 2 + x // 2, "3": x}[label] if len(labels) > 1 else x
            mask[(rows - y) ** 2 + (columns - x) ** 2 < 36] = int(label)
        grey = np.clip(60 + 60 * mask + rng.normal(0, 6, mask.shape), 0, 255).astype(np.uint8)
        picture = np.stack([grey, grey // 2, grey // 3], -1) if colour else grey
        stem = f"sabs{i:02d}_z{i}" if not colour else f"image{i}"
        Image.fromarray(picture).save(folder / "images" / f"{stem}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
    (folder / "dataset.json").write_text(json.dumps({
        "modality": modality, "license": "CC0", "title": folder.name,
        "labels": {i: {"name": name, "synonyms": [f"the {name}"]} for i, name in labels.items()},
    }))  # fmt: skip


def save_set(
    folder: Path,
    cases: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: Mapping[int, str],
    modality: str = "photograph",
    *,
    instances: Mapping[str, np.ndarray] | None = None,
    affine: np.ndarray | None = None,
    **meta: object,
) -> Path:
    """An annotated folder.

    Args:
        cases: stem to image and mask; (Y, X) or (Y, X, 3) uint8 become PNG, (Z, Y, X) become NIfTI with `affine`. A
            mask of size 0 is not written.
        instances: stem to object ids.
        meta: further entries of dataset.json.
    """
    parts = {"images": {stem: case[0] for stem, case in cases.items()},
             "masks": {stem: case[1] for stem, case in cases.items()}, "instances": dict(instances or {})}  # fmt: skip
    for part, arrays in parts.items():
        for stem, array in arrays.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            if affine is not None and array.size:
                nibabel.Nifti1Image(array.transpose(2, 1, 0), affine).to_filename(folder / part / f"{stem}.nii.gz")
            elif array.size:
                Image.fromarray(array).save(folder / part / f"{stem}.png")
    entry = {"modality": modality, "license": "CC0", "labels": {str(i): {"name": n} for i, n in labels.items()}, **meta}
    (folder / "dataset.json").write_text(json.dumps(entry))
    return folder


def disc(side: int, y: float, x: float, radius: float) -> np.ndarray:
    """(side, side) bool."""
    rows, columns = np.mgrid[:side, :side]
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


def painted(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """A noisy grey picture, brighter where labels are higher."""
    noise = np.random.default_rng(seed).normal(0, 4, mask.shape)
    return np.clip(40 + 50.0 * mask + noise, 0, 255).astype(np.uint8)

"""Two small annotated folders on disk, drawn so that a network could learn them: discs (photo) and bars (CT)."""

from __future__ import annotations

import json
from pathlib import Path

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

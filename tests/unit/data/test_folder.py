"""Annotated folders: targets, unions, splits by subject."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.data.cases import read_case
from lexitome.data.folder import EXTRA_SHIFT, load_dataset, split_units
from lexitome.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "jsrt_scr"
    for part in ("images", "masks", "masks_clavicles"):
        (root / part).mkdir(parents=True)
    for i in range(10):
        Image.fromarray(np.full((8, 6), 20 * i, np.uint8)).save(root / "images" / f"case{i}.jpg")
        mask = np.zeros((8, 6), np.uint8)
        mask[:2], mask[2:4] = 1, 2
        Image.fromarray(mask).save(root / "masks" / f"case{i}.png")
        extra = np.zeros((8, 6), np.uint8)
        extra[1:3] = 1
        Image.fromarray(extra).save(root / "masks_clavicles" / f"case{i}.png")
    meta = {
        "modality": "Chest X-ray", "license": "CC0",
        "labels": {
            "1": {"name": "right lung", "synonyms": ["right lung field"]},
            "2": {"name": "left lung", "synonyms": []},
        },
        "groups": {"lungs": {"ids": [1, 2], "synonyms": ["lung"]}},
        "extra_masks": {"masks_clavicles": {"1": {"name": "right clavicle", "synonyms": []}}},
        "labels_not_annotated": {"case3": [2]},
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(meta))
    return root


def test_targets_cover_labels_groups_and_the_overlapping_map(folder: Path) -> None:
    dataset = load_dataset(folder)
    targets = {t.name: t for t in dataset.targets}
    _, codes = read_case(dataset.cases[0])
    area = {name: int(np.isin(codes, t.codes).sum()) for name, t in targets.items()}
    assert area == {"right lung": 12, "left lung": 12, "lungs": 24, "right clavicle": 12}
    assert codes.max() == 2 + EXTRA_SHIFT


def test_a_word_that_two_labels_share_means_both(folder: Path) -> None:
    meta = json.loads((folder / "dataset.json").read_text())
    meta["groups"] = {}
    for entry in meta["labels"].values():
        entry["synonyms"] = ["pulmonary field"]
    (folder / "dataset.json").write_text(json.dumps(meta))
    targets = {t.name: t for t in load_dataset(folder).targets}
    assert "pulmonary field" not in targets["left lung"].synonyms
    assert targets["pulmonary field"].labels == (1, 2) and targets["pulmonary field"].derived
    assert targets["lung"].labels == (1, 2) and targets["lung"].derived  # of "left lung" and "right lung"


def test_not_annotated_is_unknown(folder: Path) -> None:
    case = next(c for c in load_dataset(folder).cases if c.stem == "case3")
    assert case.unknown_labels == {2}


def test_mask_of_another_size_is_refused(folder: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "masks" / "case0.png")
    with pytest.raises(InputError, match="grid"):
        read_case(load_dataset(folder).cases[0])


@pytest.mark.parametrize("count", [3, 4, 10, 97])
def test_splits_keep_subjects_whole_and_are_stable(count: int) -> None:
    units = [f"p{i}" for i in range(count)]
    splits = split_units("set", units, 0)
    assert splits == split_units("set", units[::-1], 0)
    assert set(splits) == set(units) and set(splits.values()) == {"train", "val", "test"}
    assert splits != split_units("set", units, 1) or count < 5


def test_published_test_part_is_kept() -> None:
    splits = split_units("fuseg", [f"train_{i}" for i in range(20)] + ["valid_1", "valid_2"], 0)
    assert {u for u, s in splits.items() if s == "test"} == {"valid_1", "valid_2"}


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the research images are not beside the repository")
def test_no_subject_is_in_two_splits_of_the_real_sets() -> None:
    for root in sorted((SHARED / "train").iterdir()):
        dataset = load_dataset(root)
        where: dict[str, set[str]] = {}
        for case in dataset.cases:
            where.setdefault(case.unit, set()).add(case.split)
        assert all(len(splits) == 1 for splits in where.values()), root.name
        assert {"train", "test"} <= {c.split for c in dataset.cases}, root.name


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the research images are not beside the repository")
def test_left_kidney_is_on_the_right_of_the_picture() -> None:
    """Pictures are in radiological orientation: what the model learns as left is the patient's left."""
    dataset = load_dataset(SHARED / "train" / "btcv_abdomen_ct2d")
    left, right = (next(t for t in dataset.targets if t.name == f"{side} kidney") for side in ("left", "right"))
    offsets = []
    for case in dataset.cases[::10]:
        _, codes = read_case(case)
        columns = [np.nonzero(np.isin(codes, t.codes))[2] for t in (left, right)]
        if all(len(c) for c in columns):
            offsets.append(columns[0].mean() - columns[1].mean())
    assert len(offsets) > 10 and min(offsets) > 0

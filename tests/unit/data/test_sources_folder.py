"""Annotated folders: targets, unions, splits by subject."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.data.cases import read_case, read_instances
from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.data.sources import load_any
from lexitome.data.sources.folder import load_dataset, load_plain
from lexitome.data.sources.label_maps import EXTRA_SHIFT, read_label_map, to_labels
from lexitome.data.splits import split_units
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


def test_an_image_without_mask_is_unknown_not_background(folder: Path) -> None:
    (folder / "masks" / "case4.png").unlink()
    case = next(c for c in load_dataset(folder).cases if c.stem == "case4")
    assert case.unknown_labels == {1, 2}


def test_instances_keep_ids_above_255(folder: Path) -> None:
    (folder / "instances").mkdir()
    ids = np.zeros((8, 6), np.uint16)
    ids[0], ids[3] = 7, 40_000
    Image.fromarray(ids).save(folder / "instances" / "case0.png")
    dataset = load_dataset(folder)
    volume, _ = read_case(dataset.cases[0])
    found = read_instances(dataset.cases[0], volume)
    assert found is not None and np.array_equal(found[0], ids)
    left = next(t for t in dataset.targets if t.name == "left lung")
    only = read_instances(dataset.cases[0], volume, left)
    assert only is not None and set(np.unique(only)) == {0, 40_000}
    other = read_instances(dataset.cases[1], volume)  # no file: no objects, but the set counts objects
    assert other is not None and not other.any()


@pytest.mark.parametrize("mode", ["P", "1", "L", "RGB"])
def test_masks_are_read_as_labels_whatever_their_mode(folder: Path, mode: str) -> None:
    labels = np.zeros((8, 6), np.uint8)
    labels[2:5] = 1
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 30, 60])  # the colour of label 1 has a red of 200
    elif mode == "1":
        image = Image.fromarray(labels * np.uint8(255)).convert("1")
    image = image.convert("RGB") if mode == "RGB" else image
    path = folder / "masks" / "case0.png"
    image.save(path)
    assert np.array_equal(read_label_map(path)[0], labels)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[0, 255]], np.uint8), "0 and 255"),
        (np.array([[0, 257, 514]], np.uint16), "16 bit"),
        (np.array([[0, 1000]], np.uint16), "label 1000"),
        (np.array([[0, -1]], np.int16), "label -1"),
        (np.array([[0.0, 0.5]], np.float32), "no label"),
        (np.arange(256, dtype=np.uint8)[None], "different values"),
    ],
)
def test_values_that_are_no_labels_are_explained(values: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        to_labels(Path("mask.png"), values)


def test_pixels_that_nobody_judged_are_unknown(folder: Path) -> None:
    meta = json.loads((folder / "dataset.json").read_text()) | {"ignore_label": 255}
    (folder / "dataset.json").write_text(json.dumps(meta))
    mask = np.zeros((8, 6), np.uint8)
    mask[0], mask[7] = 1, 255
    Image.fromarray(mask).save(folder / "masks" / "case0.png")
    dataset = load_dataset(folder)
    _, codes = read_case(dataset.cases[0])
    assert (codes[0, 7] == UNKNOWN_CODE).all()
    assert all(UNKNOWN_CODE not in t.codes for t in dataset.targets)


@pytest.mark.parametrize("how", ["0/255", "0/1", "smooth", "palette", "jpeg"])
def test_plain_folder_takes_masks_in_any_values(tmp_path: Path, how: str) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    shape = np.zeros((32, 32), np.uint8)
    shape[8:24, 8:24] = 1
    Image.fromarray(shape * np.uint8(90)).save(tmp_path / "images" / "a.png")
    mask = Image.fromarray(shape if how in ("0/1", "palette") else shape * np.uint8(255))
    if how == "smooth":
        mask = mask.resize((64, 64), Image.Resampling.BILINEAR).resize((32, 32), Image.Resampling.BILINEAR)
    if how == "palette":
        mask.putpalette([0, 0, 0, 10, 200, 10])
    mask.save(tmp_path / "masks" / f"a.{'jpg' if how == 'jpeg' else 'png'}")
    dataset = load_plain(tmp_path, "polyp")
    _, codes = read_case(dataset.cases[0])
    assert (codes[0] == shape).mean() > 0.99 and set(np.unique(codes)) == {0, 1}
    assert dataset.targets[0].name == "polyp" and "colorectal polyp" in dataset.targets[0].synonyms


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the research images are not beside the repository")
@pytest.mark.parametrize("part", ["train", "external"])
def test_every_real_set_loads_and_its_masks_hold_only_named_labels(part: str) -> None:
    for root in sorted((SHARED / part).iterdir()):
        dataset = load_any(root)
        assert dataset.targets and dataset.family != "unknown", root.name
        named = {code for target in dataset.targets for code in target.codes} | {0}
        for case in dataset.cases[:: max(1, len(dataset.cases) // 3)]:
            volume, codes = read_case(case)
            assert codes.shape == volume.grid and set(np.unique(codes)) <= named, (root.name, case.stem)
            ids = read_instances(case, volume)
            assert (ids is not None) == (root / "instances").is_dir() and (ids is None or ids.any())


def test_frames_of_a_sequence_are_one_unit(folder: Path) -> None:
    for i in range(10):
        for part in ("images", "masks", "masks_clavicles"):
            path = next((folder / part).glob(f"case{i}.*"))
            path.rename(path.with_stem(f"{i + 1:03d}"))
    meta = json.loads((folder / "dataset.json").read_text()) | {"sequences": "1-4 s1; 5-7 s2; 8-9 s3"}
    (folder / "dataset.json").write_text(json.dumps(meta))
    units = [c.unit for c in load_dataset(folder).cases]
    assert units == ["s1"] * 4 + ["s2"] * 3 + ["s3"] * 2 + ["010"]

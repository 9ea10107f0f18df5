"""nnU-Net raw datasets: channels, regions, "ignore", versions, splits."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.data.sources import load_any
from lexitome.errors import InputError

SHAPE = (7, 6, 5)  # x, y, z
AFFINE = np.diag([1.0, 1.5, 3.0, 1.0])


def write_nifti(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def labels_of(seed: int, values: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values, np.uint8), SHAPE)


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """Two channels, overlapping regions, a label for what nobody judged, ten training and two labelled test cases."""
    root = tmp_path / "Dataset001_Brain"
    for number in range(12):
        part = "Tr" if number < 10 else "Ts"
        for channel in range(2):
            values = np.full(SHAPE, 100 * channel + number, np.float32)
            values[0, 0, 0] = channel + 0.5
            write_nifti(root / f"images{part}" / f"case_{number:03d}_{channel:04d}.nii.gz", values)
        write_nifti(root / f"labels{part}" / f"case_{number:03d}.nii.gz", labels_of(number, (0, 1, 2, 3, 4)))
    write_nifti(root / "imagesTs" / "case_099_0000.nii.gz", np.zeros(SHAPE, np.float32))  # no labels: not used
    meta = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": 3, "ignore": 4},
        "regions_class_order": [1, 2, 3], "numTraining": 10, "file_ending": ".nii.gz",
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(meta))
    return root


def test_channels_regions_and_ignore(brats: Path) -> None:
    dataset = load_any(brats)
    assert (dataset.form, dataset.family, dataset.dims, len(dataset.cases)) == ("nnU-Net", "mr", 3, 12)
    targets = {t.name: t.codes for t in dataset.targets}
    assert targets == {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}
    for number in (0, 11):
        case = next(c for c in dataset.cases if c.stem == f"case_{number:03d}")
        volume, codes = read_case(case)
        assert volume.array.shape == (2, *SHAPE[::-1]) and volume.spacing == (1.0, 1.5, 3.0)
        assert [float(channel[0, 0, 0]) for channel in volume.array] == [0.5, 1.5]
        expected = labels_of(number, (0, 1, 2, 3, 4)).T
        assert np.array_equal(codes, np.where(expected == 4, UNKNOWN_CODE, expected))


@pytest.mark.parametrize(("names", "seen"), [
    (["T1"], None), (["T1", "FLAIR"], "of 2 channels only T1 can"), (["T1", "T2", "FLAIR"], None),
    (["T1", "T2", "FLAIR", "T1c"], "of 4 channels only T1, T2, FLAIR can"),
])  # fmt: skip
def test_channels_that_the_network_does_not_see_are_said(brats: Path, names: list[str], seen: str | None) -> None:
    meta = json.loads((brats / "dataset.json").read_text())
    meta["channel_names"] = {str(i): name for i, name in enumerate(names)}
    (brats / "dataset.json").write_text(json.dumps(meta))
    said = [f.cause for f in load_any(brats).findings if "can be seen by the network" in f.cause]
    assert (seen is None and not said) or (seen is not None and said[0].startswith(seen))


def test_labelled_test_images_are_the_test_part(brats: Path) -> None:
    dataset = load_any(brats)
    assert {c.stem for c in dataset.cases if c.split == "test"} == {"case_010", "case_011"}
    assert sum(c.split == "val" for c in dataset.cases) == 1
    assert any(f.where == ("case_099",) for f in dataset.findings)


def test_final_splits_are_honoured(brats: Path) -> None:
    stems = [f"case_{number:03d}" for number in range(10)]
    folds = [{"train": stems[3:], "val": stems[:3]}, {"train": stems[:7], "val": stems[7:]}]
    (brats / "splits_final.json").write_text(json.dumps(folds))
    split_of = {c.stem: c.split for c in load_any(brats).cases}
    assert {stem for stem, split in split_of.items() if split == "val"} == set(stems[:3])
    assert split_of["case_010"] == "test" and split_of["case_009"] == "train"


def test_version_1_with_all_channels_in_one_file(tmp_path: Path) -> None:
    root = tmp_path / "Task01"
    stack = np.stack([np.full(SHAPE, value, np.int16) for value in (3, 900)], axis=-1)
    stack[0, 0, 0] = 1, 2
    for number in range(4):
        write_nifti(root / "imagesTr" / f"brain_{number}.nii.gz", stack)
        write_nifti(root / "labelsTr" / f"brain_{number}.nii.gz", labels_of(number, (0, 1, 2)))
    meta = {
        "name": "Brain",
        "modality": {"0": "MRI", "1": "T2"},
        "labels": {"0": "background", "1": "edema", "2": "glioma"},
    }
    (root / "dataset.json").write_text(json.dumps(meta))
    dataset = load_any(root)
    assert [(t.name, t.codes) for t in dataset.targets] == [("edema", (1,)), ("glioma", (2,))]
    volume, codes = read_case(dataset.cases[2])
    assert volume.array.shape[0] == 2 and volume.array[:, 0, 0, 0].tolist() == [1, 2] and volume.array[1].max() == 900
    assert np.array_equal(codes, labels_of(2, (0, 1, 2)).T)


def test_ct_is_known_and_colour_png_are_pictures(tmp_path: Path) -> None:
    root = tmp_path / "Dataset002_CT"
    write_nifti(root / "imagesTr" / "a_0000.nii.gz", labels_of(0, (0, 9)).astype(np.int16))
    write_nifti(root / "labelsTr" / "a.nii.gz", labels_of(1, (0, 1)))
    meta = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "left_kidney": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(meta))
    dataset = load_any(root)
    assert dataset.family == "ct" and read_case(dataset.cases[0])[0].modality == "CT"
    assert dataset.targets[0].name == "left kidney"
    flat = tmp_path / "Dataset003_Photo"
    for part in ("imagesTr", "labelsTr"):
        (flat / part).mkdir(parents=True)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(flat / "imagesTr" / "a_0000.png")
    Image.fromarray(np.ones((4, 5), np.uint8)).save(flat / "labelsTr" / "a.png")
    meta = {"channel_names": {"0": "R"}, "labels": {"background": 0, "wound": 1}, "file_ending": ".png"}
    (flat / "dataset.json").write_text(json.dumps(meta))
    dataset = load_any(flat)
    volume, codes = read_case(dataset.cases[0])
    assert dataset.dims == 2 and volume.array.shape == (3, 1, 4, 5) and codes.all()


def test_a_case_without_labels_is_unknown_and_a_missing_channel_is_found(brats: Path) -> None:
    (brats / "labelsTr" / "case_002.nii.gz").unlink()
    (brats / "imagesTr" / "case_004_0001.nii.gz").unlink()
    dataset = load_any(brats)
    assert next(c for c in dataset.cases if c.stem == "case_002").unknown_labels == {1, 2, 3}
    assert any(f.level == "error" and f.where == ("case_004",) for f in dataset.findings)


@pytest.mark.parametrize(
    "meta",
    [
        {}, {"channel_names": {"0": "CT"}}, {"channel_names": {"0": "CT"}, "labels": {"a": 300}},
        {"channel_names": {"CT": "0"}, "labels": {"a": 1}},
    ],
)  # fmt: skip
def test_unusable_descriptions_are_refused(brats: Path, meta: dict) -> None:
    (brats / "dataset.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"dataset\.json"):
        load_any(brats)

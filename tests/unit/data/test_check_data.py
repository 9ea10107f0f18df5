"""`check_dataset` and `lexitome check-data`: what is wrong is found, what is right is not blamed."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from lexitome.cli import check_data
from lexitome.data.check import Report, check_dataset
from lexitome.data.sources import load_any

SHARED = Path(__file__).parents[4] / "shared" / "data"
SIDE = 40


def texture(seed: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(SIDE, SIDE)), 3)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return ((rows - 20) ** 2 + (columns - 20) ** 2 < 80).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve sound images of a skin lesion."""
    root = tmp_path / "lesions"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(12):
        save(root, f"p{i}", texture(i), disc())
    describe(root, {"1": {"name": "skin lesion", "synonyms": []}})
    return root


def save(root: Path, stem: str, image: np.ndarray, mask: np.ndarray) -> None:
    Image.fromarray(image).save(root / "images" / f"{stem}.png")
    Image.fromarray(mask).save(root / "masks" / f"{stem}.png")


def describe(root: Path, labels: dict, **more: object) -> None:
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "modality": "dermoscopy", **more}))


def check(root: Path) -> Report:
    return check_dataset(load_any(root))


def found(report: Report, level: str, topic: str) -> list[str]:
    return [" ".join((f.cause, *f.where)) for f in report.findings if (f.level, f.topic) == (level, topic)]


def test_sound_data_are_not_blamed(root: Path) -> None:
    report = check(root)
    assert report.count("error") == report.count("warning") == 0
    assert report.splits == {"train": 9, "val": 1, "test": 2} and report.targets[0].cases == 12
    assert report.targets[0].share == pytest.approx(disc().mean())


def test_pairs(root: Path) -> None:
    (root / "masks" / "p3.png").unlink()
    (root / "images" / "p4.png").rename(root / "images" / "q4.png")
    (root / "images" / "notes.txt").write_text("x")
    report = check(root)
    errors = found(report, "error", "pairs")
    assert any("2 images have no mask p3 q4" in line for line in errors)
    assert any("1 masks have no image p4.png" in line for line in errors)
    assert any("notes.txt" in line for line in found(report, "warning", "pairs"))


def test_unreadable_files_and_other_grids(root: Path) -> None:
    (root / "images" / "p0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "masks" / "p1.png")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(root / "masks" / "p2.png")
    lines = found(check(root), "error", "reading")
    assert any("p0.png" in line for line in lines)
    assert any("2 cases" in line and "grid" in line for line in lines)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (disc() * np.uint8(255), "0 and 255"),
        (disc().astype(np.uint16) * 257, "16 bit"),
        (disc() * np.uint8(7), "label value 7 in 1 masks has no name"),
        (np.stack([disc() * np.uint8(200), disc(), disc()], -1), "colour picture"),
    ],
)
def test_masks_with_wrong_values(root: Path, mask: np.ndarray, words: str) -> None:
    save(root, "p5", texture(5), mask)
    report = check(root)
    assert report.count("error") == 1
    assert any(words in f.cause for f in report.findings if f.level == "error")


def test_palette_masks_are_right(root: Path) -> None:
    image = Image.fromarray(disc())
    image.putpalette([0, 0, 0, 220, 20, 60])
    image.save(root / "masks" / "p5.png")
    report = check(root)
    assert report.count("error") == 0 and report.targets[0].cases == 12


def test_jpeg_masks(root: Path) -> None:
    (root / "masks" / "p5.png").unlink()
    Image.fromarray(disc() * np.uint8(255)).save(root / "masks" / "p5.jpg", quality=60)
    report = check(root)
    assert any("JPEG" in f.remedy for f in report.findings if f.level == "error")
    (root / "dataset.json").unlink()
    report = check_dataset(load_any(root, concept="skin lesion"))
    assert report.count("error") == 0 and any("JPEG" in line for line in found(report, "warning", "labels"))


def test_unused_labels_and_empty_masks(root: Path) -> None:
    describe(root, {"1": {"name": "skin lesion"}, "2": {"name": "hair"}})
    save(root, "p0", texture(0), np.zeros((SIDE, SIDE), np.uint8))
    report = check(root)
    assert any("hair" in line for line in found(report, "warning", "labels"))
    assert found(report, "hint", "empty") == ["1 of 12 images show nothing (empty mask) p0"]
    for i in range(8):
        save(root, f"p{i}", texture(i), np.zeros((SIDE, SIDE), np.uint8))
    assert found(check(root), "warning", "empty")
    for i in range(12):
        save(root, f"p{i}", texture(i), np.zeros((SIDE, SIDE), np.uint8))
    assert found(check(root), "error", "empty")


def test_duplicates_within_and_across_parts(root: Path) -> None:
    splits = {c.stem: c.split for c in load_any(root).cases}
    train = [stem for stem, split in splits.items() if split == "train"]
    test = next(stem for stem, split in splits.items() if split == "test")
    same = texture(50)
    for stem in (train[0], train[1]):
        save(root, stem, same, disc())
    report = check(root)
    assert found(report, "warning", "duplicates") and not found(report, "error", "duplicates")
    save(root, test, same, disc())
    assert any(test in line for line in found(check(root), "error", "duplicates"))
    save(root, test, (same * 0.9).astype(np.uint8), disc())
    assert any("nearly" in line and test in line for line in found(check(root), "warning", "duplicates"))


def test_a_subject_in_two_parts(tmp_path: Path) -> None:
    root = tmp_path / "Dataset001"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    stems = [f"patient{p}_slice{s}" for p in range(5) for s in range(2)]
    for i, stem in enumerate(stems):
        Image.fromarray(texture(i)).save(root / "imagesTr" / f"{stem}_0000.png")
        Image.fromarray(disc()).save(root / "labelsTr" / f"{stem}.png")
    meta = {"channel_names": {"0": "US"}, "labels": {"background": 0, "nerve": 1}, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(meta))
    assert not found(check(root), "error", "leakage")
    folds = [{"train": stems[:7], "val": stems[7:]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    assert found(check(root), "error", "leakage") == ["1 subjects are in more than one part patient3 (train, val)"]


def test_constant_and_broken_pictures(root: Path) -> None:
    save(root, "p2", np.full((SIDE, SIDE), 9, np.uint8), disc())
    values = texture(3).astype(np.float32)
    values[0, 0] = np.nan
    (root / "images" / "p3.png").unlink()
    Image.fromarray(values).save(root / "images" / "p3.tif")
    lines = found(check(root), "warning", "pictures")
    assert any("same value" in line and "p2" in line for line in lines)
    assert any("NaN" in line and "p3" in line for line in lines)


@pytest.mark.parametrize(("offset", "level"), [(0.0, None), (0.05, None), (0.5, "warning"), (30.0, "error")])
def test_mask_in_another_place_than_its_image(tmp_path: Path, offset: float, level: str | None) -> None:
    root = tmp_path / "set"
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    moved = affine.copy()
    moved[0, 3] = offset
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(4):
        volume = np.stack([texture(4 * i + z) for z in range(4)], -1).astype(np.int16)
        nib.save(nib.Nifti1Image(volume, affine), root / "images" / f"p{i}.nii.gz")
        nib.save(
            nib.Nifti1Image(np.stack([disc()] * 4, -1), moved if i == 2 else affine), root / "masks" / f"p{i}.nii.gz"
        )
    describe(root, {"1": {"name": "skin lesion"}}, dims=3)
    geometry = {f.level: f.where for f in check(root).findings if f.topic == "geometry"}
    assert geometry == ({} if level is None else {level: ("p2",)})


def test_odd_spacing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(5):
        affine = np.diag([1.0, 1.0, 20.0 if i == 4 else 2.0, 1.0])
        nib.save(nib.Nifti1Image(np.stack([texture(i)] * 2, -1), affine), root / "images" / f"p{i}.nii.gz")
        nib.save(nib.Nifti1Image(np.stack([disc()] * 2, -1), affine), root / "masks" / f"p{i}.nii.gz")
    describe(root, {"1": {"name": "skin lesion"}}, dims=3)
    assert any("spacing of 1 images" in line and "p4" in line for line in found(check(root), "warning", "geometry"))


def test_names_are_hints(root: Path) -> None:
    describe(root, {"1": {"name": "left lung"}, "2": {"name": "blorptic zone"}})
    report = check(root)
    hints = found(report, "hint", "names")
    assert any("'blorptic zone' is not in the vocabulary" in line for line in hints)
    assert any("name a side (left lung)" in line for line in hints)
    assert report.count("error") == 0


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.add_typer(check_data.app)
    app.callback()(lambda: None)
    return app


def test_command_says_what_to_fix_and_what_to_type(root: Path, command: typer.Typer) -> None:
    runner = CliRunner()
    fine = runner.invoke(command, ["check-data", str(root)])
    assert fine.exit_code == 0 and f"next: lexitome train --data {root}" in fine.output
    assert "12 images of 12 subjects" in fine.output and "skin lesion" in fine.output
    save(root, "p2", np.full((SIDE, SIDE), 9, np.uint8), disc())
    assert runner.invoke(command, ["check-data", str(root)]).exit_code == 0
    assert runner.invoke(command, ["check-data", str(root), "--strict"]).exit_code == 1
    (root / "masks" / "p3.png").unlink()
    bad = runner.invoke(command, ["check-data", str(root)])
    assert bad.exit_code == 2 and "-> Add the masks" in bad.output and "next: fix the errors" in bad.output


def test_command_names_the_set_as_training_does(
    root: Path, command: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is in which part depends on the name, so "." has to mean the folder."""
    named = json.loads(CliRunner().invoke(command, ["check-data", str(root), "--json"]).output)
    monkeypatch.chdir(root)
    assert json.loads(CliRunner().invoke(command, ["check-data", ".", "--json"]).output) == named


def test_command_as_json(root: Path, command: typer.Typer) -> None:
    done = CliRunner().invoke(command, ["check-data", str(root), "--json", "--unit-pattern", r"p\d"])
    report = json.loads(done.output)
    assert report["units"] == 10 and report["targets"][0]["name"] == "skin lesion"  # p1, p10 and p11 are one


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the research images are not beside the repository")
@pytest.mark.parametrize("name", ["train/jsrt_scr", "train/hippocampus_msd_mr3d", "external/miccai2015_cpm_nuclei"])
def test_real_sets_have_no_false_error(name: str) -> None:
    report = check(SHARED / name)
    assert report.count("error") == 0, [f for f in report.findings if f.level == "error"]
    assert all(target.cases for target in report.targets)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the research images are not beside the repository")
def test_known_duplicates_of_a_real_set_are_found() -> None:
    """The breast ultrasound set is known to hold the same lesion several times under different numbers."""
    assert any(
        "benign_001 = benign_318" in line
        for line in found(check(SHARED / "train/busi_breast_us"), "warning", "duplicates")
    )

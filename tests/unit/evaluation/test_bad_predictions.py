"""A folder of predictions with everything wrong that there is: every case has its row, scores by the rule, and stands
in the report with the reason."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from html import unescape
from pathlib import Path

import nibabel
import numpy as np
import pytest
from eval_sets import AFFINE, painted, save_set

from lexitome.evaluation.predictions import folder_answerer
from lexitome.evaluation.protocols import parse_all
from lexitome.evaluation.reference import test_sets as load_sets
from lexitome.evaluation.report import write_report
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import Run, read_object
from lexitome.evaluation.runner import Settings, evaluate

LIVER = np.zeros((6, 20, 22), np.uint8)
LIVER[1:5, 5:15, 6:16] = 1
MOVED, COARSE = AFFINE.copy(), AFFINE @ np.diag([2.0, 1, 1, 1])
MOVED[2, 3] = 8.0


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        nibabel.Nifti1Image(array.transpose(*range(array.ndim)[::-1]), affine).to_filename(path)

    return save


def broken(path: Path) -> None:
    nifti(LIVER)(path)
    path.write_bytes(path.read_bytes()[:-60])


def no_image(path: Path) -> None:
    path.write_bytes(gzip.compress(b"<html>404 Not Found</html>"))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "cropped": (nifti(LIVER[:, 1:]), "has 22 x 19 x 6 voxels (x, y, z), the image 22 x 20 x 6"),
    "resampled": (nifti(LIVER, COARSE), "lies elsewhere"),
    "shifted": (nifti(LIVER, MOVED), "lies elsewhere: its affine moves a corner by 2 voxels"),
    "labels": (nifti(LIVER * 3), "holds 3, which is no label of the dataset"),
    "negative": (nifti(-LIVER.astype(np.int16)), "holds -1, which is no label of the dataset"),
    "probabilities": (nifti(LIVER * np.float32(0.7)), "holds 0.7, which is no label: write masks, not probabilities"),
    "nan": (nifti(np.where(LIVER > 0, np.float32(np.nan), 0)), "holds values that are not finite"),
    "series": (nifti(np.stack([LIVER, LIVER])), "holds 2 frames"),
    "broken": (broken, "reading the NIfTI file failed"),
    "html": (no_image, "not what its name (.nii.gz) says"),
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
}
EXTRA = {
    "of_nobody.nii.gz": "no case has this name",
    "gone.npy": "masks are not read from .npy",
    "good/lung.nii.gz": "no concept has this name",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    names = ("fine", "good", "gone", *BAD)
    cases = {name: (painted(LIVER, i), LIVER) for i, name in enumerate(names)}
    data = save_set(root / "data" / "external" / "scans", cases, {1: "liver"}, "CT", affine=AFFINE, dims=3)
    masks = root / "masks"
    (masks / "good").mkdir(parents=True)
    nifti(LIVER)(masks / "fine.nii.gz")
    nifti(LIVER)(masks / "good" / "liver.nii.gz")
    for name, (write, _) in BAD.items():
        write(masks / f"{name}.nii.gz")
    for name in EXTRA:
        nifti(LIVER)(masks / name) if name.endswith(".nii.gz") else np.save(masks / name, LIVER)
    np.save(masks / "fine.npy", LIVER)  # what a tool leaves beside its masks is nobody's loss
    sets = load_sets([data])
    settings = Settings(quiet=True, overlays=False, leakage=False)
    evaluate(folder_answerer(masks, sets), sets, parse_all(["text"]), root / "run", settings=settings)
    write_report([root / "run"], root / "run", images=False)
    return root / "run"


@pytest.fixture(scope="module")
def rows(run: Path) -> dict[str, ResultRow]:
    return {row.case: row for row in Run.load(run).rows}


def test_every_case_has_a_row_that_scores_by_the_rule(rows: dict[str, ResultRow]) -> None:
    assert {name for name, row in rows.items() if row.status == "ok"} == {"fine", "good"}
    assert {name for name, row in rows.items() if row.status == "missing"} == {"gone"}
    assert {name for name, row in rows.items() if row.status == "failed"} == set(BAD)
    for name, row in rows.items():
        scored = (row.metrics["dice"], row.metrics["nsd"], row.metrics["hd95"], row.metrics["unbounded"], row.found)
        assert scored == ((1.0, 1.0, 0.0, 0.0, True) if name in ("fine", "good") else (0.0, 0.0, None, 1.0, False)), (
            name
        )


@pytest.mark.parametrize("name", BAD)
def test_the_row_names_the_file_and_the_reason(rows: dict[str, ResultRow], name: str) -> None:
    note = rows[name].note
    assert note.startswith(f"{name}.nii.gz ") and BAD[name][1] in note


def test_means_are_over_all_cases(run: Path) -> None:
    summary = read_object(run / "summary.json")
    (entry,) = summary["by_dataset"]
    assert entry["counts"]["rows"] == entry["metrics"]["dice"]["cases"] == len(BAD) + 3
    assert entry["metrics"]["dice"]["mean"] == pytest.approx(2 / (len(BAD) + 3))
    assert entry["metrics"]["hd95_mm"]["cases"] == 2 and entry["counts"]["unbounded"] == len(BAD) + 1
    assert entry["counts"]["failed"] == len(BAD) and entry["counts"]["missing"] == 1


@pytest.mark.parametrize("page", ["report.html", "report.md"])
def test_the_report_names_each(run: Path, rows: dict[str, ResultRow], page: str) -> None:
    said = unescape((run / page).read_text(encoding="utf-8")).replace("<wbr>", "").replace("\\", "")
    assert f"1 answers are missing, {len(BAD)} cannot be used: all score as empty masks." in said
    for name in ("gone", *BAD):
        assert rows[name].note in said, name
    assert f"{len(EXTRA)} files belong to no question and are not scored" in said
    for name, reason in EXTRA.items():
        assert f"{name}: {reason}" in said
    assert str(run.parent) not in said


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    data = save_set(tmp_path / "data" / "scans", {"a": (painted(LIVER), LIVER)}, {1: "liver"}, affine=AFFINE, dims=3)
    (tmp_path / "masks").mkdir()
    nifti(LIVER)(tmp_path / "masks" / "a.nii.gz")
    (tmp_path / "masks" / "a.nii.gz").rename(tmp_path / "masks" / "a.NII.GZ")
    sets = load_sets([data])
    settings = Settings(quiet=True, overlays=False, leakage=False)
    (row,) = evaluate(folder_answerer(tmp_path / "masks", sets, split="all"), sets, parse_all(["text"]),
                      tmp_path / "run", split="all", settings=settings)  # fmt: skip
    assert row.status == "ok" and row.metrics["dice"] == 1.0
    nifti(LIVER)(tmp_path / "masks" / "a.nii")
    (row,) = evaluate(folder_answerer(tmp_path / "masks", sets, split="all"), sets, parse_all(["text"]),
                      tmp_path / "again", split="all", settings=settings)  # fmt: skip
    assert row.status == "failed" and row.note == "there are a.nii and a.NII.GZ: which one counts?"

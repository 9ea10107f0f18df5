"""Another tool's masks: found, understood, and where they cannot be used, named."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from eval_sets import AFFINE, write_eval_sets
from PIL import Image

from lexitome.data.dataset import Dataset
from lexitome.errors import InputError
from lexitome.evaluation.answering import Answer
from lexitome.evaluation.asking import read_exam
from lexitome.evaluation.predictions import folder_answerer, read_labels
from lexitome.evaluation.reference import test_sets as load_sets
from lexitome.prompts import Query, Text


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return {d.name: d for d in load_sets([write_eval_sets(tmp_path_factory.mktemp("data"))])}


def ask(folder: Path, dataset: Dataset, stem: str, concept: str) -> Answer:
    case = next(case for case in dataset.cases if case.stem == stem)
    exam = read_exam(dataset, case, absent=False, seed=0)
    session = folder_answerer(folder).begin(exam.volume, exam.about)
    (answer,) = session.answer([Query(Text(concept))])
    return answer


def flat(sets: dict[str, Dataset], concept: str, stem: str = "p1_a") -> np.ndarray:
    case = next(case for case in sets["organs"].cases if case.stem == stem)
    exam = read_exam(sets["organs"], case, absent=False, seed=0)
    return next(question.mask for question in exam.asked if question.concept == concept)[0]


def labels(sets: dict[str, Dataset]) -> np.ndarray:
    return (flat(sets, "left kidney") + 2 * flat(sets, "right kidney")).astype(np.uint8)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nibabel.Nifti1Image(array.transpose(*range(array.ndim)[::-1]), affine).to_filename(path)


def test_label_maps_with_the_ids_of_the_dataset(sets: dict[str, Dataset], tmp_path: Path) -> None:
    save(tmp_path / "p1_a.png", labels(sets))
    for concept in ("left kidney", "right kidney", "kidney"):  # the last is their union
        answer = ask(tmp_path, sets["organs"], "p1_a", concept)
        assert answer.status == "ok" and (answer.mask[0] == flat(sets, concept)).all() and answer.mask.any()


@pytest.mark.parametrize(
    "table",
    [
        {"20": "Left_Kidney", "10": "right kidney"},
        {"left kidney": 20, "right kidney": 10, "background": 0},
        {"labels": {"background": 0, "left_kidney": 20, "right_kidney": 10}},
        {"labels": [{"label": 20, "name": "left kidney"}, {"label": 10, "name": "right kidney"}]},
        {"labels": {"20": {"name": "left kidney"}, "10": {"name": "right kidney"}}},
    ],
)
def test_label_maps_with_ids_of_their_own(sets: dict[str, Dataset], tmp_path: Path, table: dict) -> None:
    name = "dataset.json" if "background" in table.get("labels", {}) else "labels.json"
    (tmp_path / name).write_text(json.dumps(table))
    save(tmp_path / "p1_a.png", np.array([0, 20, 10], np.uint8)[labels(sets)])
    for concept in ("left kidney", "right kidney", "kidney"):
        assert (ask(tmp_path, sets["organs"], "p1_a", concept).mask[0] == flat(sets, concept)).all()


def test_one_file_for_each_concept(sets: dict[str, Dataset], tmp_path: Path) -> None:
    for concept, value in (("left kidney", 255), ("right kidney", 7)):
        save(tmp_path / "p1_a" / f"{concept.replace(' ', '_')}.png", (flat(sets, concept) * value).astype(np.uint8))
    for concept in ("left kidney", "right kidney", "kidney"):
        assert (ask(tmp_path, sets["organs"], "p1_a", concept).mask[0] == flat(sets, concept)).all()
    (tmp_path / "p1_a" / "left_kidney.png").unlink()
    answer = ask(tmp_path, sets["organs"], "p1_a", "left kidney")
    assert answer.status == "missing" and answer.notes == ("p1_a/ has no file for 'left kidney'",)
    assert not answer.mask.any()


def test_objects_beside_the_mask(sets: dict[str, Dataset], tmp_path: Path) -> None:
    ids = np.zeros((40, 40), np.uint16)
    ids[2:9, 2:9], ids[20:30, 20:30] = 1, 2
    save(tmp_path / "c0" / "nuclei.png", ((ids > 0) * 255).astype(np.uint8))
    save(tmp_path / "c0" / "nuclei_instances.png", ids)
    answer = ask(tmp_path, sets["cells"], "c0", "nuclei")
    assert answer.instances is not None and (answer.instances[0] == ids).all()


def test_a_mask_of_the_only_thing_there_is_may_be_white(sets: dict[str, Dataset], tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[5:20, 5:20] = 255
    save(tmp_path / "c0.png", mask)
    assert (ask(tmp_path, sets["cells"], "c0", "nuclei").mask[0] == (mask > 0)).all()


def test_several_datasets_have_folders_of_their_own(sets: dict[str, Dataset], tmp_path: Path) -> None:
    save(tmp_path / "organs" / "p1_a.png", labels(sets))
    assert ask(tmp_path, sets["organs"], "p1_a", "left kidney").status == "ok"
    assert ask(tmp_path, sets["cells"], "c0", "nuclei").status == "missing"


BLOB = np.zeros((6, 30, 32), np.uint8)
BLOB[2:4, 10:20, 10:20] = 1
MOVED = AFFINE.copy()
MOVED[0, 3] = 1.0
TURNED = np.diag([2.0, 2.0, 4.0, 1.0])


@pytest.mark.parametrize(
    ("array", "affine", "reason"),
    [
        (BLOB[:5], AFFINE, "has 32 x 30 x 5 voxels (x, y, z), the image 32 x 30 x 6"),
        (BLOB, MOVED, "lies elsewhere: its affine moves a corner by 0.5 voxels"),
        (BLOB, TURNED, "lies elsewhere"),
        (BLOB * 7, AFFINE, "holds 7, which is no label of the dataset (or give labels.json)"),
        (BLOB * np.float32(0.4), AFFINE, "holds 0.4, which is no label: write masks, not probabilities"),
        (np.where(BLOB > 0, np.float32(np.nan), 0), AFFINE, "holds values that are not finite (NaN or infinity)"),
        (np.where(BLOB > 0, np.float32(np.inf), 0), AFFINE, "holds values that are not finite (NaN or infinity)"),
        (np.stack([BLOB, BLOB, BLOB]), AFFINE, "holds 3 frames"),
    ],
)
def test_what_cannot_be_scored_is_named(
    sets: dict[str, Dataset], tmp_path: Path, array: np.ndarray, affine: np.ndarray, reason: str
) -> None:
    save(tmp_path / "s0.nii.gz", array, affine)
    answer = ask(tmp_path, sets["scans"], "s0", "liver")
    assert answer.status == "failed" and not answer.mask.any()
    assert len(answer.notes) == 1 and answer.notes[0].startswith("s0.nii.gz ") and reason in answer.notes[0]


def test_a_rounded_affine_and_whole_floats_are_fine(sets: dict[str, Dataset], tmp_path: Path) -> None:
    save(tmp_path / "s0.nii.gz", BLOB.astype(np.float32), AFFINE + 1e-4)
    answer = ask(tmp_path, sets["scans"], "s0", "liver")
    assert answer.status == "ok" and (answer.mask == BLOB).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x1f\x8b broken gzip", b"\x89PNG\r\n\x1a\n broken"])
def test_corrupt_files_are_named(sets: dict[str, Dataset], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s0.nii.gz").write_bytes(content)
    answer = ask(tmp_path, sets["scans"], "s0", "liver")
    assert (
        answer.status == "failed" and answer.notes[0].startswith("s0.nii.gz ") and str(tmp_path) not in answer.notes[0]
    )


def test_masks_of_one_thing_have_one_value(sets: dict[str, Dataset], tmp_path: Path) -> None:
    save(tmp_path / "s0" / "liver.nii.gz", BLOB + BLOB.astype(np.uint8) * (np.arange(32) % 2).astype(np.uint8))
    assert "holds 3 values" in ask(tmp_path, sets["scans"], "s0", "liver").notes[0]
    save(tmp_path / "p1_a" / "kidney.png", np.zeros((40, 50, 3), np.uint8) + np.array([1, 2, 3], np.uint8))
    assert "colour picture" in ask(tmp_path, sets["organs"], "p1_a", "kidney").notes[0]


def test_two_answers_to_one_question_are_no_answer(sets: dict[str, Dataset], tmp_path: Path) -> None:
    save(tmp_path / "s0.nii.gz", BLOB)
    save(tmp_path / "s0.nii", BLOB)
    assert "which one counts" in ask(tmp_path, sets["scans"], "s0", "liver").notes[0]
    (tmp_path / "s0.nii").unlink()
    save(tmp_path / "s0" / "liver.nii.gz", BLOB)
    answer = ask(tmp_path, sets["scans"], "s0", "liver")
    assert answer.status == "failed" and "which one counts" in answer.notes[0]


def test_a_concept_without_an_id_needs_a_file_of_its_own(sets: dict[str, Dataset], tmp_path: Path) -> None:
    save(tmp_path / "p1_a.png", labels(sets))
    exam = read_exam(sets["organs"], next(c for c in sets["organs"].cases if c.stem == "p1_a"), absent=False, seed=0)
    session = folder_answerer(tmp_path).begin(exam.volume, exam.about)
    (answer,) = session.answer([Query(Text("left clavicle"))])
    assert answer.status == "missing" and "no id of its own" in answer.notes[0]


def test_extra_files_are_named_with_the_reason(sets: dict[str, Dataset], tmp_path: Path) -> None:
    for name in (
        "p0_a.png",
        "p9_a.png",
        "p1_a/left_kidney.png",
        "p1_a/lefft_kidney.png",
        "p1_a/left_kidney_instances.png",
    ):
        save(tmp_path / "organs" / name, np.zeros((40, 50), np.uint8))
    save(tmp_path / "stray.png", np.zeros((40, 50), np.uint8))
    (tmp_path / "organs" / "log.txt").write_text("not a mask")
    chosen = [sets["organs"]]
    assert folder_answerer(tmp_path, chosen).extra == (
        "organs/p1_a/lefft_kidney.png: no concept has this name",
        "organs/p9_a.png: no case has this name",
        "stray.png: belongs to no dataset that is scored",
    )
    assert all("not in the val part" in e for e in folder_answerer(tmp_path, chosen, split="val").extra if "p0" in e)


def test_provenance_follows_the_files_not_their_place(sets: dict[str, Dataset], tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name / "p1_a.png", labels(sets))
    one, two = folder_answerer(tmp_path / "a"), folder_answerer(tmp_path / "b", name="a")
    assert one.name == "a" and one.provenance() == two.provenance()
    save(tmp_path / "b" / "p1_a.png", 0 * labels(sets))
    assert folder_answerer(tmp_path / "b", name="a").provenance() != one.provenance()


def test_folders_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        folder_answerer(tmp_path / "none")
    with pytest.raises(InputError, match="holds no masks"):
        folder_answerer(tmp_path)
    save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    for text in ("[1, 2]", "{", '{"labels": [{"name": "x"}]}', '{"a": "b"}'):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(InputError, match="does not say which value means what"):
            read_labels(tmp_path)

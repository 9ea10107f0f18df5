"""nnU-Net: what is written for it, what is typed, and (slow) that its own commands run and are scored."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from lexitome.data.cases import read_case
from lexitome.data.dataset import Dataset
from lexitome.data.sources import load_any
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.evaluation import nnunet
from lexitome.evaluation.answering import About
from lexitome.evaluation.nnunet import Options, Work, collect, commands, convert, run_nnunet, write_splits
from lexitome.evaluation.nnunet_answers import epochs_of, nnunet_answerer
from lexitome.evaluation.predictions import folder_answerer
from lexitome.evaluation.protocols import parse_all
from lexitome.evaluation.run_folder import Run
from lexitome.evaluation.runner import Settings, evaluate
from lexitome.prompts import Query, Text

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set


def blobs(folder: Path, count: int = 12, *, colour: bool = False) -> Dataset:
    rng, cases = np.random.default_rng(0), {}
    for i in range(count):
        mask = disc(48, *rng.integers(14, 34, 2), 9).astype(np.uint8) * (1 + i % 2)
        picture = painted(mask, i)
        cases[f"scan {i}"] = (np.stack([picture, picture // 2, picture // 3], -1) if colour else picture, mask)
    return load_dataset(save_set(folder, cases, {1: "left kidney", 2: "right kidney"}, ignore_label=7))


def of_split(dataset: Dataset, split: str) -> list[str]:
    return [case.stem for case in dataset.cases if case.split == split]


@pytest.mark.parametrize("colour", [False, True])
def test_pictures_become_a_raw_dataset_that_is_read_as_one(colour: bool, tmp_path: Path) -> None:
    dataset = blobs(tmp_path / "two blobs", colour=colour)
    converted = convert(dataset, tmp_path / "work")
    raw = Work(tmp_path / "work", converted.identifier).raw
    meta = json.loads((raw / "dataset.json").read_text())
    assert converted.identifier == "Dataset900_two_blobs" and converted.ending == ".png" == meta["file_ending"]
    assert list(meta["channel_names"].values()) == (["red", "green", "blue"] if colour else ["channel0"])
    assert list(converted.cases["train"].values()) == of_split(dataset, "train")
    assert len(list((raw / "imagesTs").iterdir())) == len(of_split(dataset, "test"))
    assert meta["numTraining"] == len(list((raw / "labelsTr").iterdir()))
    assert max(meta["labels"].values()) == meta["labels"]["ignore"] == len(converted.classes) + 1
    again = load_any(raw)
    name, stem = next(iter(converted.cases["train"].items()))
    ours = read_case(next(case for case in dataset.cases if case.stem == stem))
    theirs = read_case(next(case for case in again.cases if case.stem == name))
    assert (ours[0].array == theirs[0].array).all()
    assert ((ours[1] > 0) == (theirs[1] > 0)).all()
    assert convert(dataset, tmp_path / "work") == converted  # as stored


def test_volumes_keep_their_place_and_the_unjudged_is_ignored(tmp_path: Path) -> None:
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 4.0, 9], [0, 0, 0, 1]])
    mask = np.zeros((5, 8, 9), np.uint8)
    mask[1:3, 2:5, 2:6], mask[4] = 1, 9
    image = np.random.default_rng(0).integers(-1000, 1000, mask.shape).astype(np.int16)
    cases = {f"v{i}": (image, mask) for i in range(6)}
    dataset = load_dataset(save_set(tmp_path / "ct", cases, {1: "liver"}, "CT", affine=affine, dims=3, ignore_label=9))
    converted = convert(dataset, tmp_path / "work")
    raw = Work(tmp_path / "work", converted.identifier).raw
    assert json.loads((raw / "dataset.json").read_text())["channel_names"] == {"0": "CT"}
    stored = nibabel.load(raw / "imagesTr" / "train00000_0000.nii.gz")
    assert np.allclose(stored.affine, affine) and (np.asarray(stored.dataobj).transpose(2, 1, 0) == image).all()
    labels = np.asarray(nibabel.load(raw / "labelsTr" / "train00000.nii.gz").dataobj).transpose(2, 1, 0)
    assert (labels == np.where(mask == 9, 2, mask)).all()


def test_partly_annotated_cases_are_left_out_and_named(tmp_path: Path) -> None:
    dataset = blobs(tmp_path / "blobs")
    first = of_split(dataset, "train")[0]
    partial = tuple(
        replace(case, unknown_labels=frozenset({2})) if case.stem == first else case for case in dataset.cases
    )
    converted = convert(replace(dataset, cases=partial), tmp_path / "work")
    assert converted.left_out == (first,) and first not in converted.cases["train"].values()
    nobody = tuple(replace(case, unknown_labels=frozenset({2})) for case in dataset.cases)
    with pytest.raises(InputError, match="no completely annotated case"):
        convert(replace(dataset, cases=nobody), tmp_path / "other")


def test_commands_name_our_trainer_and_fold(tmp_path: Path) -> None:
    converted = convert(blobs(tmp_path / "blobs"), tmp_path / "work")
    work = Work(tmp_path / "work", converted.identifier)
    typed = commands(work, Options(device="cuda", mirror=False), "2d")
    assert list(typed) == ["plan", "train", "predict"]
    assert typed["plan"][:5] == ["nnUNetv2_plan_and_preprocess", "-d", "900", "-c", "2d"]
    assert typed["train"][:4] == ["nnUNetv2_train", "900", "2d", "0"] and nnunet.TRAINER in typed["train"]
    assert typed["predict"][-1] == "--disable_tta" and "cuda" in typed["predict"]
    said = work.environment(Options(epochs=3, iterations=7))
    assert said["LEXITOME_EPOCHS"] == "3" and said["nnUNet_raw"] == str((tmp_path / "work" / "raw").resolve())
    write_splits(work, converted)
    (fold,) = json.loads((work.preprocessed / "splits_final.json").read_text())
    assert fold["train"] == sorted(converted.cases["train"]) and fold["val"] == sorted(converted.cases["val"])


def test_its_masks_are_scored_under_our_names(tmp_path: Path) -> None:
    """Reference labels in the place of predictions: every answer is right, the case that is not there is missing."""
    dataset = blobs(tmp_path / "blobs")
    converted = convert(dataset, tmp_path / "work")
    work = Work(tmp_path / "work", converted.identifier)
    (work.root / "predicted").mkdir()
    cases = {case.stem: case for case in dataset.cases}
    for name, stem in list(converted.cases["test"].items())[1:]:
        codes = read_case(cases[stem])[1][0]
        labels = sum((codes == code) * number for code, number in converted.classes.items())
        Image.fromarray(np.asarray(labels, np.uint8)).save(work.root / "predicted" / f"{name}.png")
    answerer = folder_answerer(collect(dataset, work, converted, work.root / "predictions"), [dataset])
    assert not answerer.extra
    for i, stem in enumerate(converted.cases["test"].values()):
        volume, codes = read_case(cases[stem])
        about = About(dataset.name, stem, labels={target.name: target.labels for target in dataset.targets})
        queries = [Query(Text(target.name)) for target in dataset.targets]
        for target, answer in zip(dataset.targets, answerer.begin(volume, about).answer(queries), strict=True):
            if i == 0:
                assert answer.status == "missing"
            else:
                assert answer.status == "ok" and (answer.mask == np.isin(codes, target.codes)).all(), target.name


def test_a_failure_names_the_log_and_is_tried_again(tmp_path: Path) -> None:
    work = Work(tmp_path)
    fails = [sys.executable, "-c", "print('words of its own'); raise SystemExit(3)"]
    with pytest.raises(InputError, match=r"failed with code 3 \(words of its own\).*train.log"):
        nnunet.run("train", fails, work, Options())
    nnunet.run("train", [sys.executable, "-c", "import os; print(os.environ['nnUNet_results'])"], work, Options())
    assert (tmp_path / "train.log").read_text().strip() == str((tmp_path / "results").resolve())
    nnunet.run("train", fails, work, Options())  # has ended well before: not repeated


@pytest.mark.parametrize("name", ["epochs", "iterations", "processes"])
def test_no_length_below_one(name: str) -> None:
    with pytest.raises(InputError, match="is below 1"):
        Options(**{name: 0})  # type: ignore[arg-type]


def test_a_folder_is_for_one_run(tmp_path: Path) -> None:
    dataset = blobs(tmp_path / "blobs")
    convert(dataset, tmp_path / "work")
    with pytest.raises(InputError, match="other images, masks or parts"):
        convert(dataset, tmp_path / "work", "val")
    moved = tuple(replace(case, split="train") if case.split == "val" else case for case in dataset.cases)
    with pytest.raises(InputError, match="other images, masks or parts"):
        convert(replace(dataset, cases=moved), tmp_path / "work")
    nnunet.run("train", [sys.executable, "-c", ""], Work(tmp_path / "work"), Options(epochs=2))
    with pytest.raises(InputError, match="of another length"):
        nnunet.run("train", [sys.executable, "-c", ""], Work(tmp_path / "work"), Options(epochs=3))


def test_the_length_is_part_of_its_name_as_a_baseline(tmp_path: Path) -> None:
    assert epochs_of("nnunet") == Options().epochs and epochs_of("nnunet:7") == 7
    assert epochs_of("otsu") is None and epochs_of("nnunetv1") is None
    for wrong in ("nnunet:", "nnunet:0", "nnunet:many"):
        with pytest.raises(InputError, match="no number of epochs"):
            epochs_of(wrong)
    external = blobs(tmp_path / "blobs")
    external = replace(external, cases=tuple(replace(case, split="test") for case in external.cases))
    with pytest.raises(InputError, match="no training part"):
        nnunet_answerer([external], tmp_path / "work")


@pytest.mark.slow
def test_volumes_by_its_own_commands_scored_in_mm(tmp_path: Path) -> None:
    """Anisotropic, oblique volumes through the whole of it: nnU-Net plans for the spacing of the affine, its masks lie
    where the images do and are scored by the runner."""
    pytest.importorskip("nnunetv2")
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]]) @ np.diag([-1.0, -1.5, 3.0])
    affine = np.block([[turn, np.array([[5.0], [-3.0], [40.0]])], [np.zeros((1, 3)), np.ones((1, 1))]])
    rng, cases = np.random.default_rng(0), {}
    z, y, x = np.mgrid[:12, :32, :32]
    for i in range(6):
        centre = rng.integers(11, 21, 2)
        mask = ((3 * (z - 6)) ** 2 + (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 80).astype(np.uint8)
        cases[f"scan {i}"] = (300.0 * mask + rng.normal(0, 30, mask.shape)).astype(np.int16), mask
    dataset = load_dataset(save_set(tmp_path / "scans", cases, {1: "spleen"}, "MRI", affine=affine, dims=3))
    parts = ("train", "train", "train", "val", "test", "test")
    dataset = replace(dataset, cases=tuple(replace(c, split=p) for c, p in zip(dataset.cases, parts, strict=True)))
    options = Options(epochs=6, iterations=10, processes=1, device="cpu", mirror=False)
    answerer = nnunet_answerer([dataset], tmp_path / "work", options, say=lambda line: None)
    plans = json.loads(next((tmp_path / "work" / "scans" / "preprocessed").glob("*/nnUNetPlans.json")).read_text())
    np.testing.assert_allclose(plans["original_median_spacing_after_transp"], [3.0, 1.5, 1.0], rtol=1e-4)
    rows = evaluate(answerer, [dataset], parse_all(["text"]), tmp_path / "run", jobs=1, settings=Settings(quiet=True))
    assert [row.status for row in rows] == ["ok", "ok"] and {row.length for row in rows} == {"mm"}
    assert {row.model for row in rows} == {"nnU-Net (6 epochs)"}
    assert min(row.metrics["dice"] or 0 for row in rows) > 0.5
    info = Run.load(tmp_path / "run")
    assert info.info["model"]["kind"] == "baseline" and info.leakage is not None and info.leakage["checked"]


@pytest.mark.slow
def test_its_own_commands_run_and_find_something(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2")
    dataset = blobs(tmp_path / "blobs")
    folder = run_nnunet(dataset, tmp_path / "work", Options(epochs=1, iterations=4, processes=1, mirror=False))
    answerer = folder_answerer(folder, [dataset])
    case = next(case for case in dataset.cases if case.split == "test")
    about = About(dataset.name, case.stem, labels={"left kidney": (1,)})
    (answer,) = answerer.begin(read_case(case)[0], about).answer([Query(Text("left kidney"))])
    assert answer.status == "ok" and answer.mask.shape == (1, 48, 48)
    assert {path.name for path in (tmp_path / "work").glob("*.done")} == {"plan.done", "train.done", "predict.done"}

"""The command line and the Python call with a model that lies in a folder: options, files, numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image
from pydicom import examples
from tiny_model import CONCEPTS

import lexitome
from lexitome.cli import main
from lexitome.cli.console import BAD_INPUT, OK
from lexitome.errors import InputError
from lexitome.inference.segmenter import UNMIRRORED
from lexitome.io.write import write
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import PIXEL_AFFINE, Volume


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two bright discs that do not touch."""
    y, x = np.mgrid[:128, :128]
    inside = (np.hypot(y - 64, x - 34) < 16) | (np.hypot(y - 64, x - 94) < 16)
    path = tmp_path / "cells.png"
    Image.fromarray(np.stack([0 * x, np.where(inside, 230, 20), 0 * x + 200], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Two bright blocks in a CT-like volume."""
    array = np.full((50, 40, 12), -1000, np.int16)
    array[5:15, 5:15, 2:9] = array[30:42, 25:35, 2:9] = 400
    path = tmp_path / "stack.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 4.0, 1.0])), path)
    return path


def segment(model: Path, *arguments: str | Path) -> int:
    return main(["segment", "-m", str(model), *map(str, arguments)])


def report_of(folder: Path) -> dict:
    return dict(json.loads((folder / "report.json").read_text()))


def test_a_folder_in_place_of_a_name(
    bright_folder: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert segment(bright_folder, "-i", cells, "-o", out, "-t", "nuclei", "-t", "polyp", "--stats") == OK
    shown = capsys.readouterr().out
    assert "nuclei: found, 2 objects, " in shown and "polyp: found, " in shown and shown.count("objects") == 1
    report = report_of(out)
    assert report["model"]["model"] == "tiny" and report["request"]["model"] == str(bright_folder)
    assert [f["objects"] for f in report["findings"]] == [2, None]
    assert [f["instances_file"] for f in report["findings"]] == [None, None]
    entries = json.loads((out / "statistics.json").read_text())["findings"]
    assert [entry["objects"] for entry in entries] == [2, None]
    assert not (out / "nuclei_instances.png").exists()


def test_instances_of_a_picture(
    bright_folder: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("-t", "nuclei", "-t", "polyp", "--instances")
    assert segment(bright_folder, "-i", cells, "-o", out, *options) == OK
    picture = Image.open(out / "nuclei_instances.png")
    ids, mask = np.asarray(picture), np.asarray(Image.open(out / "nuclei.png"))
    assert picture.mode.startswith("I;16") and set(np.unique(ids)) == {0, 1, 2}
    assert np.array_equal(ids > 0, mask > 0) and ids[64, 34] != ids[64, 94]
    report = report_of(out)
    assert [f["instances_file"] for f in report["findings"]] == ["nuclei_instances.png", None]
    assert [f["file"] for f in report["findings"]] == ["nuclei.png", "polyp.png"]
    assert "nuclei_instances.png" in report["files"] and "polyp" in str(report["notes"])
    assert "no map of objects for 'polyp'" in capsys.readouterr().out


@pytest.mark.parametrize(("format", "ending"), [("nifti", ".nii.gz"), ("nrrd", ".nrrd"), ("mha", ".mha")])
def test_instances_of_a_volume(bright_folder: Path, stack: Path, tmp_path: Path, format: str, ending: str) -> None:
    out = tmp_path / "out"
    options = ("-t", "nuclei", "--instances", "-f", format, "-ml")
    assert segment(bright_folder, "-i", stack, "-o", out, *options) == OK
    image = SimpleITK.ReadImage(str(out / f"nuclei_instances{ending}"))
    labels = SimpleITK.ReadImage(str(out / f"segmentation{ending}"))
    ids = SimpleITK.GetArrayFromImage(image)
    assert image.GetPixelID() == SimpleITK.sitkUInt16 and set(np.unique(ids)) == {0, 1, 2}
    assert np.array_equal(ids > 0, SimpleITK.GetArrayFromImage(labels) > 0)
    assert image.GetOrigin() == labels.GetOrigin() and image.GetDirection() == labels.GetDirection()
    assert report_of(out)["findings"][0]["instances_file"] == f"nuclei_instances{ending}"
    assert json.loads((out / "labels.json").read_text())["labels"][0]["objects"] == 2


def test_dicom_objects_hold_no_instances(
    bright_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("-i", examples.get_path("overlay"), "-o", tmp_path / "out", "-t", "nuclei", "--instances")
    assert segment(bright_folder, *options, "-f", "dicom-seg") == BAD_INPUT
    assert "--format nifti" in capsys.readouterr().err and not (tmp_path / "out").exists()


def finding(name: str, ids: NDArray[np.uint16] | None) -> Finding:
    mask = np.ones((1, 4, 5), bool) if ids is None else ids > 0
    return Finding(name, mask, 1.0, 1.0, instances=ids)


def test_maps_of_objects_take_nobodys_place(tmp_path: Path) -> None:
    ids = np.zeros((1, 4, 5), np.uint16)
    ids[0, 1, 1], ids[0, 3, 3] = 1, 2
    volume = Volume(np.zeros((1, 1, 4, 5), np.uint8), PIXEL_AFFINE, spacing_known=False)
    both = Segmentation(volume, (finding("cell", ids), finding("cell instances", None)))
    written = write(both, tmp_path / "out", format="png", instances=True)
    assert [path.name for path in written.paths] == ["cell.png", "cell_instances.png", "cell_instances_2.png"]
    assert written.instances[0] is not None and written.instances[1] is None
    assert np.array_equal(np.asarray(Image.open(written.instances[0])), ids[0])
    alone = Segmentation(volume, both.findings[:1])
    named = write(alone, tmp_path / "my.nii.gz", format="nifti", instances=True)
    assert [path.name for path in named.paths] == ["my.nii.gz", "my_instances.nii.gz"]
    with pytest.raises(InputError, match=r"my_instances.* exists already"):
        (tmp_path / "my.nii.gz").unlink()
        write(alone, tmp_path / "my.nii.gz", format="nifti", instances=True, overwrite=False)
    assert not (tmp_path / "my.nii.gz").exists()
    with pytest.raises(InputError, match="holds masks"):
        write(alone, tmp_path / "dicom", format="dicom-seg", instances=True)


def test_instances_must_fit_the_grid() -> None:
    volume = Volume(np.zeros((1, 1, 4, 5), np.uint8), PIXEL_AFFINE, spacing_known=False)
    for ids in (np.zeros((1, 4, 6), np.uint16), np.zeros((1, 4, 5), np.int32)):
        bad = Finding("cell", np.zeros((1, 4, 5), bool), 1.0, 1.0, instances=ids)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="instances of 'cell'"):
            Segmentation(volume, (bad,))


def test_flips_on_the_command_line(tiny_folder: Path, stack: Path, tmp_path: Path) -> None:
    options = ("-i", stack, "-t", "left kidney", "-t", "liver")
    for name, flips in (("plain", ()), ("flips", ("--flips",))):
        assert segment(tiny_folder, *options, "-o", tmp_path / name, *flips) == OK
    plain, flips = ([f["presence"] for f in report_of(tmp_path / name)["findings"]] for name in ("plain", "flips"))
    assert plain[0] == flips[0]
    report = report_of(tmp_path / "flips")
    assert UNMIRRORED in report["findings"][0]["notes"] and report["model"]["flips"] is True


def test_python_call(bright_folder: Path, tiny_folder: Path, cells: Path, tmp_path: Path) -> None:
    result = lexitome.segment(cells, "nuclei", model=bright_folder, threads=1)
    assert result["nuclei"].objects == 2
    folder = shutil.copytree(bright_folder, tmp_path / "model")
    assert lexitome.segment(cells, "nuclei", model=str(folder), flips=True)["nuclei"].found
    shutil.rmtree(folder)
    shutil.copytree(tiny_folder, folder)
    again = lexitome.segment(cells, "nuclei", model=str(folder))
    expected = json.loads((tiny_folder / "card.json").read_text())["sha256"]
    assert again.provenance["weights_sha256"] == expected, "new weights in the same folder are read"
    with pytest.raises(InputError, match="no such model"):
        lexitome.segment(cells, "nuclei", model=tmp_path / "nothing")


def test_another_calibration_is_another_model(tiny_folder: Path, cells: Path, tmp_path: Path) -> None:
    """The same weights, exported again: neither Python nor --no-overwrite takes the old answers for the new ones."""
    folder, out = shutil.copytree(tiny_folder, tmp_path / "model"), tmp_path / "out"
    options = ("-i", cells, "-o", out, "-t", "zeppelin", "--no-overwrite")
    first = lexitome.segment(cells, "zeppelin", model=folder)["zeppelin"].presence
    assert segment(folder, *options) == OK and segment(folder, *options) == OK
    card = json.loads((folder / "card.json").read_text())
    duties = {"default_threshold": 0.9, "weights_duties": "name as sources some_set"}
    (folder / "card.json").write_text(json.dumps(card | duties))
    again = lexitome.segment(cells, "zeppelin", model=folder)
    assert again["zeppelin"].presence < first
    assert again.provenance["weights_duties"] == "name as sources some_set"
    assert segment(folder, *options) == BAD_INPUT, "results of another request"
    assert segment(folder, *options[:-1]) == OK and report_of(out)["model"]["folder"] == str(folder)


def test_duties_are_said(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"weights_duties": "name as sources some_set"}))
    assert main(["models", str(folder)]) == OK
    assert capsys.readouterr().out.splitlines()[-1] == "tiny: name as sources some_set"
    assert main(["models", str(folder), "--json"]) == OK
    assert json.loads(capsys.readouterr().out)[0]["weights_duties"] == "name as sources some_set"


def test_models_and_info_describe_a_folder(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(tiny_folder)]) == OK
    shown = capsys.readouterr().out
    assert "tiny" in shown and "CC0" in shown and "compact " not in shown.splitlines()[1].split("  ")[0]
    assert main(["models", str(tiny_folder), "--json"]) == OK
    (card,) = json.loads(capsys.readouterr().out)
    assert card["name"] == "tiny" and card["countable"] == ["nuclei"] and card["metrics"] == {"dice": 0.5}
    assert main(["info", str(tiny_folder), "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in facts["models"]] == ["tiny"]
    assert facts["concepts"]["trained"] == len(CONCEPTS)


@pytest.mark.parametrize("command", ["models", "info"])
def test_no_such_model(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path)]) == BAD_INPUT
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "encoder.onnx" in shown.err and "compact" in shown.err


def test_an_unknown_model_is_said_before_anything_is_read(
    cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(tmp_path / "nowhere", "-i", cells, "-o", tmp_path / "out", "-t", "polyp") == BAD_INPUT
    assert "there is no such model" in capsys.readouterr().err and not (tmp_path / "out").exists()

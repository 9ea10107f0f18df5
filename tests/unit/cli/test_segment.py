"""`lexitome segment` end to end: real weights, images made here, every way in and out that the command line offers."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread, examples
from segment_command import report_of, segment

import lexitome
from lexitome.cli import main
from lexitome.cli.console import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED, TERMINATED

DEMO = Path(lexitome.__file__).parent / "assets" / "demo"
COMMAND = (sys.executable, "-c", "import sys; from lexitome.cli import main; sys.exit(main())", "segment")


@pytest.fixture
def fundus(tmp_path: Path) -> Path:
    """A real fundus photograph, 256 x 192."""
    path = tmp_path / "fundus.png"
    Image.open(DEMO / "fundus.jpg").resize((256, 192)).save(path)
    return path


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """12 oblique, anisotropic slices of a real photograph's green channel."""
    slices = np.asarray(Image.open(DEMO / "fundus.jpg").resize((40, 48)))[..., 1]
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * [-0.7, 0.9, 3.0]
    affine[:3, 3] = (11.0, -7.0, 5.0)
    array = np.stack([slices] * 12, axis=-1).transpose(1, 0, 2).astype(np.int16)
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_one_picture(fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert segment("-i", fundus, "-o", out, "-t", "Optic  Disc", "-t", "retinal vessel", "--preview", "--stats") == OK
    assert names(out) == {"optic_disc.png", "retinal_vessel.png", "preview.png", "statistics.json", "report.json"}
    mask = np.asarray(Image.open(out / "optic_disc.png"))
    assert mask.shape == (192, 256) and set(np.unique(mask)) <= {0, 255}
    report = report_of(out)
    finding = report["findings"][0]  # type: ignore[index]
    assert (finding["prompt"], finding["file"], finding["concept"]) == ("Optic Disc", "optic_disc.png", "optic disc")
    assert finding["found"] == bool(mask.any()) and 0 <= finding["presence"] <= 1
    model = report["model"]
    assert isinstance(model, dict) and len(model["weights_sha256"]) == 64 and model["weights_licence"]
    assert set(report["seconds"]) == {"read", "load", "encode", "decode", "write"}  # type: ignore[call-overload]
    assert report["peak_ram_mb"] > 50  # type: ignore[operator]
    assert report["versions"]["onnxruntime"]  # type: ignore[index]
    shown = capsys.readouterr()
    assert shown.out.startswith("Optic Disc: ") and str(out / "optic_disc.png") in shown.out
    assert shown.err == ""
    entry = json.loads((out / "statistics.json").read_text())["findings"][0]
    assert entry["area_px"] == np.count_nonzero(mask)


def test_untrained_and_unknown_words_are_said_plainly(
    fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("-i", fundus, "-o", tmp_path / "out", "-t", "left ear", "-t", "optik disk") == OK
    shown = capsys.readouterr().out
    assert "untrained concept: result is a guess" in shown
    assert "optic disc" in shown  # as what was meant, or as "did you mean"


def test_volume_keeps_its_place(volume: Path, tmp_path: Path) -> None:
    """Default format is NIfTI; NRRD and MHA land on the same world coordinates."""
    for format in ("nifti", "nrrd", "mha"):
        assert segment("-i", volume, "-o", tmp_path / format, "-t", "liver", *_format(format)) == OK
    original = nibabel.load(volume)
    mask = nibabel.load(tmp_path / "nifti" / "liver.nii.gz")
    assert mask.shape == original.shape
    np.testing.assert_allclose(mask.affine, original.affine, atol=1e-5)
    for name in ("nrrd/liver.nrrd", "mha/liver.mha"):
        other = SimpleITK.ReadImage(str(tmp_path / name))
        assert np.array_equal(SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0), np.asarray(mask.dataobj))
        corner = tuple(size - 1 for size in original.shape)
        lps = np.array(other.TransformIndexToPhysicalPoint(corner))
        np.testing.assert_allclose(lps * [-1, -1, 1], (original.affine @ [*corner, 1])[:3], atol=1e-3)


def _format(name: str) -> tuple[str, ...]:
    return () if name == "nifti" else ("--format", name)


def test_png_of_a_volume_is_refused(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("-i", volume, "-o", tmp_path / "out", "-t", "liver", "-f", "png") == BAD_INPUT
    assert "--format nifti" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_dicom_in_dicom_seg_out(tmp_path: Path, kind: str) -> None:
    source = Path(examples.get_path("overlay"))
    # A box makes sure that there is something to write, whatever the weights think of the liver.
    options = ("-t", "liver", "--box", "60,90,200,200", "-f", "dicom-seg", "--segment-type", kind)
    assert segment("-i", source, "-o", tmp_path / "out", *options) == OK
    dataset, image = dcmread(tmp_path / "out" / "segmentation.dcm"), dcmread(source)
    assert dataset.SegmentationType == kind.upper()
    assert dataset.StudyInstanceUID == image.StudyInstanceUID
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == image.SeriesInstanceUID


def test_dicom_in_rtstruct_out(tmp_path: Path) -> None:
    source = Path(examples.get_path("overlay"))
    options = ("-t", "liver", "--box", "60,90,200,200", "-f", "dicom-rtstruct")
    assert segment("-i", source, "-o", tmp_path / "out", *options) == OK
    dataset = dcmread(tmp_path / "out" / "rtstruct.dcm")
    assert dataset.StructureSetROISequence[0].ROIName == "liver"


def test_multilabel(fundus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert segment("-i", fundus, "-o", out, "-t", "optic disc", "-t", "retinal vessel", "-ml") == OK
    assert names(out) == {"segmentation.png", "labels.json", "report.json"}
    assert set(np.unique(np.asarray(Image.open(out / "segmentation.png")))) <= {0, 1, 2}
    assert [f["file"] for f in report_of(out)["findings"]] == ["segmentation.png"] * 2  # type: ignore[attr-defined]


def test_one_bad_input_among_several(fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        shutil.copy(fundus, folder / name)
    (folder / "b.png").write_text("no image")
    assert segment("-i", folder, "-o", out, "-t", "optic disc") == SOME_FAILED
    assert names(out) == {"a/optic_disc.png", "a/report.json", "c/optic_disc.png", "c/report.json"}
    assert not (out / "b").exists()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(folder / "b.png") in errors[0]


def test_resume(fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished inputs are skipped, interrupted ones done again, results of another request left alone."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(fundus, folder / name)
    command = ("-i", folder, "-o", out, "-t", "optic disc", "--no-overwrite")
    assert segment(*command) == OK
    kept = (out / "a" / "optic_disc.png").stat().st_mtime_ns
    (out / "b" / "report.json").unlink()
    (out / "b" / "optic_disc.png").write_text("half")
    capsys.readouterr()
    assert segment(*command) == OK
    assert "done earlier" in capsys.readouterr().err
    assert (out / "a" / "optic_disc.png").stat().st_mtime_ns == kept
    assert Image.open(out / "b" / "optic_disc.png").size == (256, 192)
    assert segment("-i", folder, "-o", out, "-t", "retinal vessel", "--no-overwrite") == SOME_FAILED
    assert names(out / "a") == {"optic_disc.png", "report.json"}


def test_jobs(fundus: Path, volume: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.json"
    entries = [
        {"input": str(fundus), "output": str(tmp_path / "one"), "text": "optic disc"},
        {"input": str(volume), "output": str(tmp_path / "two"), "points": [[20, 20, 3]]},
    ]
    jobs.write_text(json.dumps(entries))
    assert segment("--jobs", jobs) == OK
    assert names(tmp_path / "one") == {"optic_disc.png", "report.json"}
    assert names(tmp_path / "two") == {"points.nii.gz", "report.json"}


def test_report_on_stdout_is_json_and_nothing_else(
    fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("-i", fundus, "-o", tmp_path / "out", "-t", "optic disc", "--report") == OK
    assert json.loads(capsys.readouterr().out) == report_of(tmp_path / "out")


def test_quiet(fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("-i", fundus, "-o", tmp_path / "out", "-t", "optic disc", "-q") == OK
    assert capsys.readouterr() == ("", "")


def test_fixes_are_told(fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transparent = tmp_path / "alpha.png"
    Image.open(fundus).convert("RGBA").save(transparent)
    assert segment("-i", transparent, "-o", tmp_path / "out", "-t", "optic disc") == OK
    assert f"note: {transparent}: " in capsys.readouterr().err
    assert "alpha" in str(report_of(tmp_path / "out")["input"]["fixes"])  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("-t", " "), "empty"),
        (("--box", "300,10,310,20"), "x 0 to 255"),
        (("--point", "10,500"), "y 0 to 191"),
        (("--point", "10,10,3"), "z 0 to 0"),
        (("-t", "polyp", "--model", "nonsense"), "compact"),
        (("-t", "polyp", "--frame", "7"), "1"),
        (("-t", "polyp", "--series", "1"), "series"),
    ],
)
def test_prompts_that_do_not_fit(
    fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], word: str
) -> None:
    assert segment("-i", fundus, "-o", tmp_path / "out", *options) == BAD_INPUT
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and word in shown.err
    assert not (tmp_path / "out").exists()


def test_a_point_on_a_volume_must_name_its_slice(
    volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("-i", volume, "-o", tmp_path / "out", "--point", "5,5") == BAD_INPUT
    assert "12 slices" in capsys.readouterr().err


def test_no_patient_identifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = dcmread(examples.get_path("overlay"))
    secrets = {"PatientName": "Doe^Jane", "PatientID": "SECRET-4711", "PatientBirthDate": "19010203"}
    for keyword, value in secrets.items():
        setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "slice.dcm")
    out = tmp_path / "out"
    assert segment("-i", tmp_path / "slice.dcm", "-o", out, "-t", "liver", "-v", "--stats") == OK
    assert main(["check", str(tmp_path / "slice.dcm")]) == OK
    shown = capsys.readouterr()
    texts = [shown.out, shown.err, *((out / name).read_text() for name in ("report.json", "statistics.json"))]
    texts.append(bytes(nibabel.load(out / "liver.nii.gz").header.binaryblock).decode("latin-1"))
    assert not [(value, text) for value in ("Doe", "Jane", "4711", "19010203") for text in texts if value in text]


def _long_volume(path: Path) -> NDArray[np.uint8]:
    """Enough slices to be stopped in the middle."""
    array = np.random.default_rng(0).integers(0, 255, (64, 64, 2000), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return array


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_stopped_in_the_middle_leaves_nothing(fundus: Path, tmp_path: Path, number: int, code: int) -> None:
    long = tmp_path / "long.nii"
    _long_volume(long)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "-i", str(fundus), "-i", str(long), "-o", str(out), "-t", "liver"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (out / "fundus" / "report.json").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert names(out) == {"fundus/liver.png", "fundus/report.json"}
    assert not (out / "long").exists()


def test_progress_bar_goes_to_the_terminal_and_results_to_the_pipe(fundus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(fundus, folder / name)
    terminal, other_end = pty.openpty()
    command = [*COMMAND, "-i", str(folder), "-o", str(tmp_path / "out"), "-t", "optic disc"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=other_end, text=True, env=environment, timeout=120)
    os.close(other_end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert done.returncode == OK
    assert "2/2" in shown
    assert [line for line in done.stdout.splitlines() if line.startswith("optic disc: ")] and "2/2" not in done.stdout

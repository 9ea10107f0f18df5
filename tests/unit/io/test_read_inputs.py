"""Around `read`: zips, arrays in memory, lists of inputs, the geometry report, and real series."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from read_phantoms import axial_affine, found_marks, marked_array, world_of_marks, write_series

from lexitome.errors import InputError
from lexitome.io import find_inputs, from_array, geometry_report, list_series, read
from lexitome.volume import PIXEL_AFFINE

SHARED = Path(__file__).parents[4] / "shared" / "data" / "dicom"


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(folder)))
    return path


def test_zipped_series_is_read_like_the_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", marked_array(), axial_affine())
    volume = read(zipped(folder, tmp_path / "series.zip"))
    assert np.array_equal(volume.array, read(folder).array)
    assert np.array_equal(volume.affine, read(folder).affine)
    assert volume.source.path == str(tmp_path / "series.zip")
    assert len(volume.source.headers) == 5
    assert list_series(tmp_path / "series.zip") == list_series(folder)


def test_zipped_image_is_read_like_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(marked_array().T, axial_affine()), tmp_path / "in" / "image.nii.gz")
    volume = read(zipped(tmp_path / "in", tmp_path / "image.zip"))
    assert np.array_equal(volume.array[0], marked_array())
    Image.new("L", (3, 3)).save(tmp_path / "in" / "other.png")
    with pytest.raises(InputError, match=r"holds 2 images"):
        read(zipped(tmp_path / "in", tmp_path / "image.zip"))


def test_member_names_cannot_leave_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "series", marked_array(), axial_affine())
    temporary = tmp_path / "a" / "b"
    temporary.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = sorted(tmp_path.rglob("*"))
    path = zipped(folder, tmp_path / "slip.zip", prefix="../../")
    assert read(path).grid == (5, 7, 9)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


def test_error_in_a_zip_names_the_member(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", marked_array(), axial_affine())
    (folder / "bad.dcm").write_bytes(b"not DICOM at all" * 20)
    path = zipped(folder, tmp_path / "series.zip")
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.path == f"{path}!bad.dcm"


def test_damaged_and_empty_zips_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", marked_array(), axial_affine())
    path = zipped(folder, tmp_path / "series.zip")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"unpacking the zip failed"):
        read(path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds no image"):
        read(zipped(tmp_path / "none", tmp_path / "none.zip"))


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXITOME_MAX_FILES", "4")
    folder = write_series(tmp_path / "series", marked_array(), axial_affine())
    with pytest.raises(InputError, match=r"holds 5 files, more than 4"):
        read(zipped(folder, tmp_path / "series.zip"))
    with pytest.raises(InputError, match=r"holds more than 4 files"):
        read(folder)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((6, 8), (1, 1, 6, 8)), ((6, 8, 3), (3, 1, 6, 8)), ((6, 8, 4), (3, 1, 6, 8)), ((5, 6, 8), (1, 5, 6, 8))],
)
def test_arrays_become_volumes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    volume = from_array(array)
    assert volume.array.shape == expected
    assert not volume.spacing_known and np.array_equal(volume.affine, PIXEL_AFFINE)
    assert bool(volume.fixes) == (shape[-1] == 4)
    first = array[..., 0] if expected[0] == 3 else array.reshape(-1, *shape[-2:])[0]
    assert np.array_equal(volume.array[0, 0], first)


def test_array_with_affine_or_spacing_is_placed() -> None:
    placed = from_array(marked_array(), affine=axial_affine(), modality="CT")
    for value, place in world_of_marks(axial_affine()).items():
        assert found_marks(placed.array, placed.affine)[value] == pytest.approx(place)
    assert placed.spacing_known and placed.modality == "CT"
    assert from_array(marked_array()[0], spacing=(0.5, 0.25)).spacing == (0.5, 0.25, 1.0)
    assert from_array(np.zeros((4, 5, 3), np.uint8) + 1, affine=axial_affine()).grid == (4, 5, 3)


@pytest.mark.parametrize(
    ("array", "options", "cause"),
    [
        (np.zeros((0, 4)), {}, "empty"),
        (np.zeros(4), {}, "1 axes"),
        (np.zeros((2, 2), complex), {}, "type is complex"),
        (np.array([["a"]]), {}, "type is"),
        (np.full((2, 2), np.nan), {}, "finite"),
        (np.eye(3), {"affine": np.zeros((4, 4))}, "unusable"),
        (np.eye(3), {"spacing": (1.0, 0.0)}, "unusable"),
        (np.eye(3), {"spacing": (1.0, 1.0), "affine": np.eye(4)}, "both"),
    ],
)
def test_unusable_arrays_are_refused(array: np.ndarray, options: dict[str, object], cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        from_array(array, **options)  # type: ignore[arg-type]


def test_inputs_are_found_once_each_and_sorted(tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "b", marked_array(), axial_affine())
    write_series(tmp_path / "study" / "a", marked_array(), axial_affine())
    for name in ("z.png", "c.NII.GZ", "notes.txt", ".hidden.png", "labels.raw", "d.mha"):
        (tmp_path / "study" / name).write_bytes(b"x")
    (tmp_path / "study" / ".cache").mkdir()
    (tmp_path / "study" / ".cache" / "e.png").write_bytes(b"x")
    plain = next((tmp_path / "study" / "a").glob("*_3.dcm"))
    nameless = tmp_path / "study" / "n" / "IM0001"
    nameless.parent.mkdir()
    nameless.write_bytes(plain.read_bytes())
    study = tmp_path / "study"
    expected = [study / name for name in ("a", "b", "c.NII.GZ", "d.mha", "n", "z.png")]
    assert find_inputs([study]) == expected
    assert find_inputs([str(study / "z.png"), study]) == expected
    assert find_inputs([study / "notes.txt"]) == [study / "notes.txt"]


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no images"):
        find_inputs([tmp_path])
    with pytest.raises(InputError, match=r"no such file"):
        find_inputs([tmp_path / "absent"])


def test_report_says_where_the_image_lies_and_not_whose_it_is(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", marked_array(), axial_affine())
    before = sorted((path, os.stat(path).st_mtime_ns) for path in tmp_path.rglob("*"))
    report = json.loads(json.dumps(geometry_report(folder)))
    assert sorted((path, os.stat(path).st_mtime_ns) for path in tmp_path.rglob("*")) == before
    assert report["format"] == "dicom" and report["modality"] == "CT" and report["dtype"] == "int16"
    assert report["shape"] == {"channels": 1, "z": 5, "y": 7, "x": 9}
    assert report["orientation"] == "LPS" and report["handedness"] == "right" and report["unit"] == "mm"
    assert report["spacing"] == {"x": 0.7, "y": 0.9, "z": 2.5}
    assert np.allclose(report["affine_ras"], axial_affine())
    assert report["world_bounds_ras"]["max"] == pytest.approx([31.5 + 0.35, 42.25 + 0.45, -17 + 4.5 * 2.5])
    assert report["world_bounds_ras"]["min"] == pytest.approx([31.5 - 8.5 * 0.7, 42.25 - 6.5 * 0.9, -17 - 1.25])
    assert report["value_range"] == [0, 1003]
    assert report["slice_gaps_mm"] == {"min": 2.5, "max": 2.5}
    assert [series["slices"] for series in report["series"]] == [5]
    assert "secret" not in json.dumps(report).lower()


def test_report_of_a_png_is_in_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(tmp_path / "image.png")
    report = geometry_report(tmp_path / "image.png")
    assert report["unit"] == "px" and report["orientation"] is None and report["series"] == []


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "grid", "modality"),
    [
        ("ibsi_lung_ct_rtstruct/CT", (60, 201, 204), "CT"),
        ("sts042_ct_mr_pet_rtstruct/CT", (49, 162, 134), "CT"),
        ("sts042_ct_mr_pet_rtstruct/MR_T1", (42, 97, 54), "MR"),
        ("sts042_ct_mr_pet_rtstruct/PET", (49, 30, 26), "PT"),
        ("dcmqi_liver_ct_seg/CT", (3, 512, 512), "CT"),
    ],
)
def test_real_series_agree_with_simpleitk(name: str, grid: tuple[int, int, int], modality: str) -> None:
    import SimpleITK as sitk

    if not SHARED.is_dir():
        pytest.skip("the research images are not beside the repository")
    volume = read(SHARED / name)
    assert volume.grid == grid and volume.modality == modality and volume.fixes == ()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(SHARED / name)))
    image = reader.Execute()
    assert np.allclose(sitk.GetArrayFromImage(image), volume.array[0], rtol=1e-4, atol=1e-4)
    for index in ((0, 0, 0), (5, 3, 2)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        assert volume.to_world(np.array(index, dtype=float)) == pytest.approx((-x, -y, z), abs=1e-3)


@pytest.mark.shared
def test_real_study_folder_lists_its_series() -> None:
    if not SHARED.is_dir():
        pytest.skip("the research images are not beside the repository")
    with pytest.raises(InputError, match=r"holds 3 series.*MR.*--series N"):
        read(SHARED / "sts042_ct_mr_pet_rtstruct")
    assert read(SHARED / "sts042_ct_mr_pet_rtstruct", series=4).modality == "PT"
    for name in ("RTSTRUCT_CT", "RTSTRUCT_PET"):
        with pytest.raises(InputError, match=r"RTSTRUCT"):
            read(SHARED / "sts042_ct_mr_pet_rtstruct" / name)

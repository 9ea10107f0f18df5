"""Every test file that pydicom and nibabel ship goes through `read`: a Volume with their values, or an InputError."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut

from lexitome.errors import InputError
from lexitome.io import list_series, read
from lexitome.volume import LPS_TO_RAS, Volume

PYDICOM = Path(pydicom.__file__).parent / "data"
NIBABEL = Path(nibabel.__file__).parent

DAMAGED = {"MR_truncated.dcm", "badVR.dcm", "JPEG2000-embedded-sequence-delimiter.dcm", "GDCMJ2K_TextGBR.dcm"}
"""Images that are refused since they are broken: pydicom alone decodes none of them either."""


def _pydicom_files() -> list[Path]:
    return sorted(path for path in PYDICOM.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))


def _nibabel_files() -> list[Path]:
    folders = {path for path in NIBABEL.rglob("tests/data") if path.is_dir()}
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")


def _ids(paths: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def _read_or_refuse(path: Path, frame: int | None = None) -> Volume | None:
    """None where refused, after checking that the refusal is one line naming the file."""
    try:
        return read(path, frame=frame)
    except InputError as error:
        if "--frame 1" in error.remedy and frame is None:
            return _read_or_refuse(path, frame=1)
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        assert len(error.cause) > 8 and len(error.remedy) > 8
        return None


def _expected_dicom(path: Path) -> np.ndarray | None:
    """(C, Y, X) of the first frame as pydicom itself decodes it, None where it cannot or it is no image to segment."""
    dataset = pydicom.dcmread(path, force=True)
    if "PixelData" not in dataset or str(dataset.get("Modality")) in ("SEG", "RTDOSE"):
        return None
    try:
        pixels = pydicom.pixels.pixel_array(dataset, index=0)
    except Exception:
        return None
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return np.moveaxis(pixels, -1, 0).astype(np.float64)
    values = apply_modality_lut(pixels, dataset).astype(np.float64)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        values = slope * (2**dataset.BitsStored - 1) + 2 * intercept - values  # unsigned in these files
    return values[None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", _pydicom_files(), ids=_ids(_pydicom_files(), PYDICOM))
def test_pydicom_file_is_read_as_pydicom_reads_it_or_refused(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    volume = _read_or_refuse(path)
    assert capfd.readouterr() == ("", "")
    expected = _expected_dicom(path)
    if volume is None:
        assert expected is None or path.name in DAMAGED
        return
    if expected is None:  # what only GDCM decodes is compared below
        assert path.name in {"JPEG-lossy.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm"}
        return
    assert np.allclose(volume.array[:, 0], expected, rtol=1e-6, atol=1e-3)
    dataset = pydicom.dcmread(path, force=True)
    if "ImagePositionPatient" in dataset and "PixelSpacing" in dataset:
        origin = np.array([*map(float, dataset.ImagePositionPatient), 1.0])
        assert volume.affine[:, 3] == pytest.approx(LPS_TO_RAS @ origin)
        assert volume.spacing[:2] == pytest.approx([float(value) for value in dataset.PixelSpacing][::-1])


def test_lossless_jpeg_by_gdcm_equals_the_same_image_uncompressed() -> None:
    lossless = read(PYDICOM / "test_files" / "SC_rgb_jpeg_gdcm.dcm")
    assert np.array_equal(lossless.array, read(PYDICOM / "test_files" / "SC_rgb_rle.dcm").array)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_12_bit_jpeg_by_gdcm_has_the_values_that_pydicoms_own_tests_expect(name: str) -> None:
    pixels = read(PYDICOM / "test_files" / name).array[0, 0]
    assert (pixels[420, 140], pixels[230, 120]) == (244, 95)


@pytest.mark.filterwarnings("ignore")
def test_most_pydicom_images_decode() -> None:
    """The formats promise: all images of the package but the damaged ones (RTDOSE and SEG are not images)."""
    names = {path.name for path in _pydicom_files() if _expected_dicom_safe(path) is not None}
    decoded = {path.name for path in _pydicom_files() if path.name in names and _read_or_refuse(path) is not None}
    assert names - decoded <= DAMAGED
    assert len(decoded) > 70


def _expected_dicom_safe(path: Path) -> np.ndarray | None:
    try:
        return _expected_dicom(path)
    except Exception:
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", _nibabel_files(), ids=_ids(_nibabel_files(), NIBABEL))
def test_nibabel_file_is_read_as_nibabel_reads_it_or_refused(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    volume = _read_or_refuse(path)
    assert capfd.readouterr() == ("", "")
    if volume is None:
        assert not path.name.endswith((".nii", ".nii.gz")) or path.name == "row_major.dconn.nii"
        return
    if volume.source.format != "nifti":
        return
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    first = data.reshape(*data.shape[:3], -1)[..., 0].T
    finite = np.isfinite(first)
    assert np.allclose(volume.array[0][finite], first[finite], rtol=1e-5)
    assert np.allclose(volume.affine, image.affine, atol=1e-3)  # type: ignore[attr-defined]
    assert volume.array.shape[0] == 1


def test_nibabel_nifti_files_are_read() -> None:
    names = {path.name for path in _nibabel_files() if path.name.endswith((".nii", ".nii.gz"))}
    assert len(names) >= 7


def _folders() -> Iterator[Path]:
    for folder in sorted(path for path in PYDICOM.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        if any(path.is_file() for path in folder.iterdir()):
            yield folder


@pytest.mark.parametrize("folder", list(_folders()), ids=lambda folder: folder.name)
def test_folders_of_pydicom_files_are_read_or_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        known = list_series(folder)
    except InputError as error:
        assert str(error).startswith(str(folder))
        return
    assert known
    for info in known:
        for fix in (False, True):
            try:
                volume = read(folder, series=info.uid, fix_slices=fix)
                assert volume.source.series_uid == info.uid
            except InputError as error:
                assert "\n" not in str(error) and error.remedy
    assert capfd.readouterr() == ("", "")


def test_a_ct_series_of_pydicom_is_sorted_by_position() -> None:
    volume = read(PYDICOM / "test_files" / "dicomdirtests" / "98892001" / "CT5N")
    assert volume.grid == (5, 16, 16)
    assert volume.spacing == pytest.approx((0.488281, 0.488281, 2.5))
    heights = [float(header.ImagePositionPatient[2]) for header in volume.source.headers]  # type: ignore[attr-defined]
    assert heights == [-1.2375, 1.2625, 3.7625, 6.2625, 8.7625]


def test_gzipped_dicom_is_refused_with_a_remedy(tmp_path: Path) -> None:
    content = (PYDICOM / "test_files" / "CT_small.dcm").read_bytes()
    (tmp_path / "image.dcm.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"gzip file.*Unpack it"):
        read(tmp_path / "image.dcm.gz")

"""DICOM values: per-slice rescale, MONOCHROME1, palette, LUT; series, frames, spacing and single files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import EncapsulatedPDFStorage, RTStructureSetStorage, SecondaryCaptureImageStorage
from read_phantoms import axial_affine, ct_slice, marked_array, set_pixels, write_series

from lexitome.errors import InputError
from lexitome.io import list_series, read


def one_file(folder: Path, plane: NDArray[np.integer], **tags: object) -> Path:
    """A single CT slice with the given elements set, or removed where None."""
    dataset = ct_slice(plane, axial_affine(), 0)
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(folder / "slice.dcm", enforce_file_format=True)
    return folder / "slice.dcm"


def test_rescale_of_each_slice_is_its_own(tmp_path: Path) -> None:
    def edit(dataset: Dataset, z: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(0.5 + z), str(10 * z)

    volume = read(write_series(tmp_path, marked_array(), axial_affine(), edit=edit))
    expected = np.stack([plane * (0.5 + z) + 10 * z for z, plane in enumerate(marked_array())])
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0], expected.astype(np.float32))


def test_hounsfield_units_stay_int16(tmp_path: Path) -> None:
    volume = read(one_file(tmp_path, marked_array()[0], RescaleSlope="1", RescaleIntercept="-1024"))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[0, 0], marked_array()[0] - 1024)


def test_monochrome1_is_inverted_after_the_modality_lut(tmp_path: Path) -> None:
    plane = marked_array()[3].astype(np.uint16)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "DX", "BitsStored": 12, "HighBit": 11}
    path = one_file(tmp_path, plane, RescaleSlope="2", RescaleIntercept="-100", **tags)
    volume = read(path)
    low, high = -100, 2 * 4095 - 100
    assert np.array_equal(volume.array[0, 0], low + high - (2 * plane.astype(int) - 100))
    assert any("MONOCHROME1" in fix and "inverted" in fix for fix in volume.fixes)


def test_monochrome1_leaves_hounsfield_units_alone(tmp_path: Path) -> None:
    path = one_file(tmp_path, marked_array()[0], PhotometricInterpretation="MONOCHROME1", RescaleIntercept="-1024")
    volume = read(path)
    assert np.array_equal(volume.array[0, 0], marked_array()[0] - 1024)
    assert any("not inverted" in fix for fix in volume.fixes)


def test_modality_lut_is_applied(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.LUTData = [5, 50, 500, 5000]
    table["LUTData"].VR = "US"
    plane = np.array([[0, 1, 2], [3, 3, 0]], dtype=np.uint16)
    volume = read(one_file(tmp_path, plane, ModalityLUTSequence=Sequence([table]), Modality="DX"))
    assert volume.array[0, 0].tolist() == [[5, 50, 500], [5000, 5000, 5]]


def test_palette_colour_becomes_rgb(tmp_path: Path) -> None:
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR", "Modality": "US"}
    for colour, values in (("Red", [0, 255, 7, 4]), ("Green", [1, 128, 8, 5]), ("Blue", [2, 64, 9, 6])):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        tags[f"{colour}PaletteColorLookupTableData"] = bytes(values)
    volume = read(one_file(tmp_path, np.array([[0, 1], [2, 1]], dtype=np.uint8), **tags))
    assert volume.array.shape == (3, 1, 2, 2) and volume.array.dtype == np.uint8
    assert volume.array[:, 0].tolist() == [[[0, 255], [7, 255]], [[1, 128], [8, 128]], [[2, 64], [9, 64]]]


def test_spacing_is_row_then_column_and_unknown_without_tags(tmp_path: Path) -> None:
    volume = read(one_file(tmp_path, marked_array()[0], PixelSpacing=["3", "2"]))
    assert volume.spacing[:2] == (2.0, 3.0)
    bare = read(one_file(tmp_path, marked_array()[0], PixelSpacing=None, ImagePositionPatient=None))
    assert not bare.spacing_known and bare.unit == "px"


def test_detector_spacing_is_used_and_reported(tmp_path: Path) -> None:
    tags = {"PixelSpacing": None, "ImagePositionPatient": None, "ImageOrientationPatient": None, "Modality": "DX"}
    volume = read(one_file(tmp_path, marked_array()[0], ImagerPixelSpacing=["0.2", "0.1"], **tags))
    assert volume.spacing_known and volume.spacing[:2] == (0.1, 0.2)
    assert any("magnification" in fix for fix in volume.fixes)


def test_series_are_listed_and_chosen(tmp_path: Path) -> None:
    write_series(tmp_path, marked_array(), axial_affine(), number=4)
    write_series(tmp_path, marked_array()[:2] + np.int16(1), axial_affine(), number=9)
    known = list_series(tmp_path)
    assert [(info.number, info.slices, info.modality) for info in known] == [(4, 5, "CT"), (9, 2, "CT")]
    with pytest.raises(InputError, match=r"holds 2 series: 4 \(CT, phantom, 5 slices\); 9 .*--series N"):
        read(tmp_path)
    assert read(tmp_path, series=9).grid == (2, 7, 9)
    assert read(tmp_path, series="4").grid == (5, 7, 9)
    assert read(tmp_path, series=known[1].uid).source.series_uid == known[1].uid
    with pytest.raises(InputError, match=r"no series 7"):
        read(tmp_path, series=7)


def test_echoes_are_chosen_not_mixed(tmp_path: Path) -> None:
    for echo in (2, 1):

        def edit(dataset: Dataset, z: int, echo: int = echo) -> None:
            dataset.EchoNumbers, dataset.SeriesInstanceUID = echo, "1.2.3"

        array = marked_array() + np.int16(2000 * echo)
        write_series(tmp_path / str(echo), array, axial_affine(), edit=edit)
    with pytest.raises(InputError, match=r"2 images at each of 5 slice positions.*--frame 1 to --frame 2"):
        read(tmp_path)
    for echo in (1, 2):
        assert np.array_equal(read(tmp_path, frame=echo).array[0], marked_array() + 2000 * echo)


def test_cine_asks_for_a_frame(tmp_path: Path) -> None:
    dataset = ct_slice(marked_array()[0], axial_affine(), 0)
    dataset.SOPClassUID, dataset.Modality = SecondaryCaptureImageStorage, "US"
    set_pixels(dataset, marked_array())
    dataset.save_as(tmp_path / "cine.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=r"holds 5 images.*--frame 1 to --frame 5"):
        read(tmp_path / "cine.dcm")
    volume = read(tmp_path / "cine.dcm", frame=4)
    assert np.array_equal(volume.array[0, 0], marked_array()[3])
    assert volume.source.frames == (4,)


def test_localizers_are_left_out_and_reported(tmp_path: Path) -> None:
    def edit(dataset: Dataset, z: int) -> None:
        if z == 4:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    volume = read(write_series(tmp_path, marked_array(), axial_affine(), edit=edit))
    assert np.array_equal(volume.array[0], marked_array()[:4])
    assert "1 localizer" in volume.fixes[0]


def test_one_slice_of_a_series_can_be_read_alone(tmp_path: Path) -> None:
    folder = write_series(tmp_path, marked_array(), axial_affine())
    path = next(folder.glob("*_2.dcm"))
    volume = read(path)
    assert np.array_equal(volume.array[0, 0], marked_array()[2])
    assert volume.affine == pytest.approx(axial_affine() @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]])


def test_other_files_in_the_folder_are_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path, marked_array(), axial_affine())
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / ".hidden.dcm").write_text("x")
    structures = ct_slice(marked_array()[0], axial_affine(), 0)
    structures.SOPClassUID, structures.Modality = RTStructureSetStorage, "RTSTRUCT"
    del structures.PixelData
    structures.save_as(tmp_path / "rs.dcm", enforce_file_format=True)
    assert read(tmp_path).grid == (5, 7, 9)


@pytest.mark.parametrize(
    ("uid", "what"), [(RTStructureSetStorage, "structure set"), (EncapsulatedPDFStorage, "encapsulated PDF")]
)
def test_objects_that_are_no_images_are_named(uid: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"is a.*{what}.*not an image"):
        read(one_file(tmp_path, marked_array()[0], SOPClassUID=uid))


def test_file_without_dicom_marker_is_read_and_reported(tmp_path: Path) -> None:
    path = one_file(tmp_path, marked_array()[3])
    bare = Dataset()
    bare.update(dcmread(path))
    bare.save_as(tmp_path / "old.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "old.dcm").read_bytes()[128:132] != b"DICM"
    volume = read(tmp_path / "old.dcm")
    assert np.array_equal(volume.array[0, 0], marked_array()[3])
    assert any("no DICOM file header" in fix for fix in volume.fixes)

"""A marked voxel lies at the same world coordinates after reading, whatever the format, rotation, flip and spacing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage
from read_phantoms import (
    LPS,
    axial_affine,
    ct_slice,
    found_marks,
    marked_array,
    set_pixels,
    world_of_marks,
    write_series,
)
from write_phantoms import orthogonal_affines

from lexitome.errors import InputError
from lexitome.io import read
from lexitome.io.geometry import orientation_code

Writer = Callable[[Path, NDArray[np.int16], NDArray[np.float64]], Path]


def by_nibabel_sform(folder: Path, array: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    image = nibabel.Nifti1Image(array.T, affine)
    image.set_qform(None, code=0)
    nibabel.save(image, folder / "image.nii.gz")
    return folder / "image.nii.gz"


def by_nibabel_qform(folder: Path, array: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    image = nibabel.Nifti2Image(array.T, affine)
    image.set_sform(None, code=0)
    image.set_qform(affine, code=1)
    nibabel.save(image, folder / "image.nii")
    return folder / "image.nii"


def by_simpleitk(suffix: str, compress: bool) -> Writer:
    def write(folder: Path, array: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
        lps = LPS @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, str(folder / f"image{suffix}"), compress)
        return folder / f"image{suffix}"

    return write


def by_pydicom_slices(folder: Path, array: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    return write_series(folder / "series", array, affine)


def by_pydicom_enhanced(folder: Path, array: NDArray[np.int16], affine: NDArray[np.float64]) -> Path:
    """One multi-frame file whose frames are stored out of order."""
    order = np.random.default_rng(3).permutation(len(array))
    slices = [ct_slice(array[z], affine, int(z)) for z in order]
    dataset = slices[0]
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.SeriesInstanceUID = "1.2.3.4"
    frames = []
    for item in slices:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = item.ImagePositionPatient
        frame.PlanePositionSequence = Sequence([place])
        frames.append(frame)
    measures, turn, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    turn.ImageOrientationPatient = dataset.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([turn])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, keyword)
    set_pixels(dataset, array[order])
    dataset.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder / "enhanced.dcm"


WRITERS: dict[str, Writer] = {
    "nifti1-sform-gz": by_nibabel_sform,
    "nifti2-qform": by_nibabel_qform,
    "nrrd": by_simpleitk(".nrrd", compress=False),
    "nrrd-gz": by_simpleitk(".nrrd", compress=True),
    "nhdr": by_simpleitk(".nhdr", compress=False),
    "mha": by_simpleitk(".mha", compress=False),
    "mha-zlib": by_simpleitk(".mha", compress=True),
    "mhd": by_simpleitk(".mhd", compress=False),
    "dicom-series": by_pydicom_slices,
    "dicom-enhanced": by_pydicom_enhanced,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@settings(max_examples=12, deadline=None)
@given(affine=orthogonal_affines())
def test_marks_stay_at_their_world_coordinates(writer: Writer, affine: NDArray[np.float64]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volume = read(writer(Path(folder), marked_array(), affine))
    expected, found = world_of_marks(affine), found_marks(volume.array, volume.affine)
    for value, place in expected.items():
        assert found[value] == pytest.approx(place, abs=2e-3), f"mark {value}"
    assert volume.spacing_known
    assert np.sort(volume.array.ravel()).tolist() == np.sort(marked_array().ravel()).tolist()


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_axial_image_keeps_array_affine_and_dtype(writer: Writer, tmp_path: Path) -> None:
    affine = axial_affine()
    volume = read(writer(tmp_path, marked_array(), affine))
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array[0], marked_array())
    assert np.allclose(volume.affine, affine, atol=1e-5)
    assert volume.fixes == ()
    assert orientation_code(volume.affine) == "LPS"


def test_headers_follow_the_array_order(tmp_path: Path) -> None:
    volume = read(write_series(tmp_path, marked_array(), axial_affine()))
    places = [header.ImagePositionPatient[2] for header in volume.source.headers]  # type: ignore[attr-defined]
    assert places == sorted(places)
    assert volume.source.frames == ()
    assert not any("PixelData" in header for header in volume.source.headers)  # type: ignore[operator]
    for z, header in enumerate(volume.source.headers):
        assert volume.to_world(np.array([0.0, 0.0, z])) == pytest.approx(
            np.array([float(value) for value in header.ImagePositionPatient]) * [-1, -1, 1]  # type: ignore[attr-defined]
        )


def test_enhanced_frames_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    path = by_pydicom_enhanced(tmp_path, marked_array(), axial_affine())
    volume = read(path)
    order = np.random.default_rng(3).permutation(5)
    assert volume.source.frames == tuple(int(np.flatnonzero(order == z)[0]) + 1 for z in range(5))
    assert len(volume.source.headers) == 5


def sheared(degrees: float) -> NDArray[np.float64]:
    """Gantry tilt: slices stay parallel but each is shifted along y."""
    affine = axial_affine()
    affine[1, 2] = affine[2, 2] * np.tan(np.radians(degrees))
    return affine


@pytest.mark.parametrize("name", ["nifti1-sform-gz", "nrrd", "mha", "dicom-series"])
def test_tiny_shear_becomes_square_and_is_reported(name: str, tmp_path: Path) -> None:
    affine = sheared(0.03)
    volume = read(WRITERS[name](tmp_path, marked_array(), affine))
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(3)).max() < 1e-9
    assert len(volume.fixes) == 1 and "square" in volume.fixes[0]
    for value, place in world_of_marks(affine).items():
        assert found_marks(volume.array, volume.affine)[value] == pytest.approx(place, abs=0.02)


@pytest.mark.parametrize("name", ["nifti1-sform-gz", "nrrd", "mha", "dicom-series"])
def test_gantry_tilt_is_refused_or_resampled(name: str, tmp_path: Path) -> None:
    affine = sheared(15)
    z, y, x = np.indices((12, 40, 44))
    centre = np.array([20, 15, 5])
    array = (1000 * np.exp(-(((x - 20) / 4.0) ** 2 + ((y - 15) / 3.0) ** 2 + ((z - 5) / 2.0) ** 2))).astype(np.int16)
    path = WRITERS[name](tmp_path, array, affine)
    with pytest.raises(InputError, match=r"sheared by 15.*--fix-slices"):
        read(path)
    volume = read(path, fix_slices=True)
    assert any("resampled onto a square grid" in fix and "15.00" in fix for fix in volume.fixes)
    assert volume.source.headers == ()
    weights = volume.array[0].astype(float)
    voxels = np.array([(np.indices(weights.shape)[axis] * weights).sum() / weights.sum() for axis in (2, 1, 0)])
    expected = affine[:3, :3] @ centre + affine[:3, 3]
    assert volume.to_world(voxels) == pytest.approx(expected, abs=0.1)
    # Every corner voxel of the tilted image lies inside the new grid.
    for corner in np.ndindex(2, 2, 2):
        voxel = np.array(corner[::-1]) * [43, 39, 11]
        inside = volume.to_voxel(affine[:3, :3] @ voxel + affine[:3, 3])
        assert (inside > -0.01).all() and (inside < np.array(volume.grid[::-1]) - 1 + 0.01).all()

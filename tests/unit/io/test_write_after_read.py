"""The phantom through every pair of input and output formats: a voxel must stay where it is in the world."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from PIL import Image
from test_write_dicom import AFFINES, mask_of_contours, world_of_seg
from test_write_volumes import grid_of
from write_phantoms import GRID, asymmetric_mask, dicom_volume, world_points

import lexitome.io
from lexitome.errors import InputError
from lexitome.io.write import FORMATS, write
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import LPS_TO_RAS, PIXEL_AFFINE, Volume

VALUES = (np.arange(np.prod(GRID)).reshape(GRID) % 90 + asymmetric_mask() * 100).astype(np.int16)
"""Above 99 inside the phantom, so that the mask is what the reader read, in the order it chose."""


def save_nifti(affine: NDArray[np.float64], folder: Path) -> Path:
    image = nibabel.Nifti1Image(VALUES.transpose(2, 1, 0), affine)
    nibabel.save(image, folder / "in.nii.gz")
    return folder / "in.nii.gz"


def save_itk(affine: NDArray[np.float64], path: Path) -> Path:
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(VALUES)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


def save_dicom(affine: NDArray[np.float64], folder: Path) -> Path:
    series = folder / "series"
    series.mkdir()
    for z, header in enumerate(dicom_volume(affine).source.headers):
        header.PixelData = VALUES[z].tobytes()
        # File names in an order that has nothing to do with the slices.
        header.save_as(series / f"{(z * 5) % GRID[0]}.dcm", enforce_file_format=True)
    return series


def save(kind: str, affine: NDArray[np.float64], folder: Path) -> Path:
    if kind == "nifti":
        return save_nifti(affine, folder)
    if kind == "dicom":
        return save_dicom(affine, folder)
    return save_itk(affine, folder / f"in.{kind}")


def world_of_output(path: Path, format: str, volume: Volume) -> NDArray[np.float64]:
    if format == "dicom-seg":
        return world_of_seg(path, 1)
    if format == "dicom-rtstruct":
        return world_points(mask_of_contours(path, 0, volume), volume.affine)
    mask, affine = grid_of(path)
    return world_points(mask, affine)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("kind", ["nifti", "nrrd", "mha", "dicom"])
def test_every_pair_lands_on_the_same_world_coordinates(kind: str, name: str, tmp_path: Path) -> None:
    affine = AFFINES[name]
    if kind == "dicom" and np.linalg.det(LPS_TO_RAS @ affine) < 0:
        affine = affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    expected = world_points(VALUES > 99, affine)
    volume = lexitome.io.read(save(kind, affine, tmp_path))
    segmentation = Segmentation(volume, (Finding("phantom", volume.array[0] > 99, 1.0, 1.0),))
    for format in FORMATS:
        out = tmp_path / format
        if format == "png" or (format.startswith("dicom") and kind != "dicom"):
            with pytest.raises(InputError, match="--format nifti"):
                write(segmentation, out, format=format)
            assert not out.exists()
            continue
        (path,) = write(segmentation, out, format=format).paths
        found = world_of_output(path, format, volume)
        assert len(found) == len(expected)
        gap = np.linalg.norm(found[:, None] - expected[None], axis=-1).min(axis=1)
        assert gap.max() < 0.01 * min(volume.spacing), (format, gap.max())


@pytest.mark.parametrize("format", FORMATS)
def test_png_in(format: str, tmp_path: Path) -> None:
    picture = VALUES[0].astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "in.png")
    volume = lexitome.io.read(tmp_path / "in.png")
    segmentation = Segmentation(volume, (Finding("phantom", volume.array[0] > 99, 1.0, 1.0),))
    if format.startswith("dicom"):
        with pytest.raises(InputError, match="--format nifti"):
            write(segmentation, tmp_path / "out", format=format)
        return
    (path,) = write(segmentation, tmp_path / "out", format=format).paths
    if format == "png":
        assert np.array_equal(np.asarray(Image.open(path)) > 0, picture > 99)
        return
    mask, affine = grid_of(path)
    assert np.array_equal(mask[0], picture > 99)
    assert np.allclose(affine, PIXEL_AFFINE)


def test_our_own_masks_read_back_on_the_same_grid(tmp_path: Path) -> None:
    affine = AFFINES["oblique"]
    volume = lexitome.io.read(save("nifti", affine, tmp_path))
    segmentation = Segmentation(volume, (Finding("phantom", volume.array[0] > 99, 1.0, 1.0),))
    for format in ("nifti", "nrrd", "mha"):
        (path,) = write(segmentation, tmp_path / format, format=format).paths
        again = lexitome.io.read(path)
        assert np.array_equal(again.array[0] > 0, segmentation.findings[0].mask)
        assert np.allclose(again.affine, volume.affine, atol=1e-5)

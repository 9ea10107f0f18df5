"""Images to read: an array that is asymmetric on every axis, and DICOM series built around it with pydicom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MARKS = {1001: (1, 2, 3), 1002: (6, 1, 0), 1003: (2, 5, 4)}
"""Value to voxel (x, y, z): three points fix an affine's rotation, flips and scale."""

Edit = Callable[[Dataset, int], None]


def marked_array() -> NDArray[np.int16]:
    """(Z, Y, X) = (5, 7, 9), a ramp with the three `MARKS`; no flip or rotation maps it onto itself."""
    array = np.arange(5 * 7 * 9, dtype=np.int16).reshape(5, 7, 9)
    for value, (x, y, z) in MARKS.items():
        array[z, y, x] = value
    return array


def axial_affine(spacing: tuple[float, float, float] = (0.7, 0.9, 2.5)) -> NDArray[np.float64]:
    """RAS+ of a plain axial DICOM series: x to the left, y to the back, z up."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = (31.5, 42.25, -17.0)
    return affine


def write_series(
    folder: Path,
    array: NDArray[np.integer],
    affine_ras: NDArray[np.float64],
    *,
    edit: Edit | None = None,
    number: int = 1,
) -> Path:
    """One CT file for each z of (Z, Y, X); `edit(dataset, z)` changes a dataset before it is written.

    Files are named so that their order by name is not their order in space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = generate_uid(entropy_srcs=[str(folder), str(number)])
    for z, plane in enumerate(array):
        dataset = ct_slice(plane, affine_ras, z)
        dataset.SeriesInstanceUID = series
        dataset.SeriesNumber = number
        if edit is not None:
            edit(dataset, z)
        dataset.save_as(folder / f"{(z * 7 + 3) % 11:02d}_{number}_{z}.dcm", enforce_file_format=True)
    return folder


def ct_slice(plane: NDArray[np.integer], affine_ras: NDArray[np.float64], z: int) -> Dataset:
    """A CT image of (Y, X) that lies at index z of a stack with the given affine."""
    lps = LPS @ affine_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "CT"
    dataset.PatientName = "Secret^Name"
    dataset.PatientID = "SECRET-ID"
    dataset.SeriesDescription = "phantom"
    dataset.InstanceNumber = 100 - z
    axes = (lps[:3, :2] / spacing[:2]).T.ravel()
    dataset.ImageOrientationPatient = [f"{value:.12f}" for value in axes]
    dataset.ImagePositionPatient = [f"{value:.8f}" for value in (lps @ [0, 0, z, 1])[:3]]
    dataset.PixelSpacing = [f"{spacing[1]:.10f}", f"{spacing[0]:.10f}"]
    dataset.SliceThickness = f"{spacing[2]:.6f}"
    set_pixels(dataset, plane)
    return dataset


def set_pixels(dataset: Dataset, array: NDArray[np.integer]) -> None:
    """Puts (Y, X), (frames, Y, X) or (Y, X, 3) pixels of 8 or 16 bits into a dataset."""
    colour = array.ndim == 3 and array.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = array.shape[:2] if colour else array.shape[-2:]
    if array.ndim == 3 and not colour:
        dataset.NumberOfFrames = array.shape[0]
    dataset.BitsAllocated = dataset.BitsStored = 8 * array.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    data = array.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)


def world_of_marks(affine_ras: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    return {value: affine_ras[:3, :3] @ voxel + affine_ras[:3, 3] for value, voxel in MARKS.items()}


def found_marks(array: NDArray[np.generic], affine_ras: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
    """World coordinates, RAS+, of the marks in a (C, Z, Y, X) array."""
    found = {}
    for value in MARKS:
        places = np.argwhere(array[0] == value)
        assert len(places) == 1, f"mark {value} is at {len(places)} voxels"
        found[value] = affine_ras[:3, :3] @ places[0][::-1] + affine_ras[:3, 3]
    return found

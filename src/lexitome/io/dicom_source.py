"""The DICOM images a segmentation refers back to: where each slice lies, and that it is still the slice we hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from lexitome.errors import InputError
from lexitome.volume import LPS_TO_RAS, Volume

REMEDY = "Write volumes instead: --format nifti."
TOLERANCE = 0.1
"""How far, in voxels, a corner of a slice may lie from where its header says (uneven spacing, rounded headers)."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice of the volume and the image it came from.

    Args:
        header: the DICOM image.
        frame: 1-based frame number, None for a single-frame image.
        affine: (4, 4) in-plane voxel (column, row, 0, 1) to world LPS+ mm; None where the image has no position.
    """

    header: Dataset
    frame: int | None
    affine: NDArray[np.float64] | None


def planes_of(volume: Volume, format_name: str) -> list[Plane]:
    """One `Plane` for each z of the volume, in array order.

    Raises:
        InputError: the source is not DICOM, or the volume's grid is no longer that of its headers (resampled,
            cropped, reordered), so that references would point to the wrong pixels.
    """
    source = volume.source
    if not source.headers:
        raise InputError(source.path or "the image", f"{format_name} output needs a DICOM image as input", REMEDY)
    if len(source.headers) != volume.grid[0] or (source.frames and len(source.frames) != volume.grid[0]):
        raise InputError(source.path, f"{format_name} output needs one DICOM image for each slice", REMEDY)
    planes = []
    for z, header in enumerate(source.headers):
        assert isinstance(header, Dataset)
        frame = source.frames[z] if source.frames else None
        planes.append(Plane(header, frame, _plane_affine(header, frame)))
    for plane in (planes[0], planes[-1]):
        shape = (int(plane.header.get("Rows", 0)), int(plane.header.get("Columns", 0)))
        if shape != volume.grid[1:]:
            raise InputError(source.path, f"the slices are {volume.grid[1:]}, the DICOM images are {shape}", REMEDY)
    if any(plane.affine is None for plane in planes):
        if len(planes) > 1:
            raise InputError(source.path, f"{format_name} output needs a position for each slice", REMEDY)
    else:
        _check_same_place(volume, planes)
    return planes


def functional_group(header: Dataset, frame: int, name: str) -> Dataset | None:
    """The item of a functional group that applies to a frame (1-based): its own, else the shared one."""
    groups = []
    if "PerFrameFunctionalGroupsSequence" in header:
        groups.append(header.PerFrameFunctionalGroupsSequence[frame - 1])
    if header.get("SharedFunctionalGroupsSequence"):
        groups.append(header.SharedFunctionalGroupsSequence[0])
    for group in groups:
        if group.get(name):
            return group[name].value[0]
    return None


def _plane_affine(header: Dataset, frame: int | None) -> NDArray[np.float64] | None:
    position, orientation, measures = header, header, header
    if frame is not None and "SharedFunctionalGroupsSequence" in header:
        position = functional_group(header, frame, "PlanePositionSequence") or Dataset()
        orientation = functional_group(header, frame, "PlaneOrientationSequence") or Dataset()
        measures = functional_group(header, frame, "PixelMeasuresSequence") or Dataset()
    origin = position.get("ImagePositionPatient")
    cosines = orientation.get("ImageOrientationPatient")
    spacing = measures.get("PixelSpacing")
    if not origin or not cosines or not spacing:
        return None
    affine = np.eye(4)
    row_spacing, column_spacing = (float(value) for value in spacing)
    affine[:3, 0] = np.array([float(value) for value in cosines[:3]]) * column_spacing
    affine[:3, 1] = np.array([float(value) for value in cosines[3:]]) * row_spacing
    affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
    affine[:3, 3] = [float(value) for value in origin]
    return affine


def _check_same_place(volume: Volume, planes: list[Plane]) -> None:
    _, rows, columns = volume.grid
    corners = np.array([[0, 0], [columns - 1, 0], [0, rows - 1], [columns - 1, rows - 1]], dtype=np.float64)
    worst = 0.0
    for z, plane in enumerate(planes):
        assert plane.affine is not None
        homogeneous = np.column_stack([corners, np.zeros(4), np.ones(4)])
        world = homogeneous @ (LPS_TO_RAS @ plane.affine).T
        expected = np.column_stack([corners, np.full(4, float(z))])
        worst = max(worst, float(np.abs(volume.to_voxel(world[:, :3]) - expected).max()))
    if worst > TOLERANCE:
        cause = f"the image was resampled or moved, it lies up to {worst:.1f} voxels from its DICOM headers"
        raise InputError(volume.source.path, cause, REMEDY)

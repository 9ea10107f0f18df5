"""Volumes for the writers' tests: asymmetric on every axis, on grids of every orientation, with DICOM headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from lexitome.concepts import Code, Concept
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import LPS_TO_RAS, Source, Volume

GRID = (7, 11, 13)
LIVER = Concept("liver", code=Code("10200004", "SCT", "Liver"))


def affine_of(
    spacing: tuple[float, float, float] = (0.7, 1.3, 3.1),
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    signs: tuple[int, int, int] = (1, 1, 1),
    origin: tuple[float, float, float] = (-40.0, 25.5, 310.25),
) -> NDArray[np.float64]:
    """Rotation about x, y, z (radians), mirrored and scaled along the voxel axes."""
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rz @ ry @ rx @ np.diag(np.array(signs) * np.array(spacing))
    affine[:3, 3] = origin
    return affine


def orthogonal_affines() -> st.SearchStrategy[NDArray[np.float64]]:
    """Every orientation, handedness, anisotropy and offset."""
    spacing = st.floats(0.05, 8.0)
    angle = st.floats(-3.2, 3.2)
    sign = st.sampled_from([-1, 1])
    offset = st.floats(-900.0, 900.0)
    return st.builds(
        affine_of,
        st.tuples(spacing, spacing, spacing),
        st.tuples(angle, angle, angle),
        st.tuples(sign, sign, sign),
        st.tuples(offset, offset, offset),
    )


def asymmetric_mask(grid: tuple[int, int, int] = GRID) -> NDArray[np.bool_]:
    """Looks different after any flip, swap or shift: a block, an L, a hole and a lone voxel."""
    mask = np.zeros(grid, dtype=bool)
    z, y, x = grid
    mask[: max(1, z // 2), 1 : y - 3, 2 : x - 5] = True
    mask[0, 3:5, 4:6] = False
    mask[-1, y - 2, 1] = True
    mask[z // 3, y - 2, 2 : x - 1] = True
    return mask


def other_mask(grid: tuple[int, int, int] = GRID) -> NDArray[np.bool_]:
    mask = np.zeros(grid, dtype=bool)
    mask[-2:, 2:4, -4:-1] = True
    return mask


def world_points(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) RAS+ coordinates of the voxels inside, sorted so that sets compare."""
    xyz = np.argwhere(mask)[:, ::-1]
    points = xyz @ affine[:3, :3].T + affine[:3, 3]
    return points[np.lexsort(np.round(points, 2).T)]


def segmentation_on(volume: Volume, *, empty: bool = True) -> Segmentation:
    findings = [
        Finding("Liver", asymmetric_mask(volume.grid), 0.98, 0.9, LIVER),
        Finding("간 종양", other_mask(volume.grid), 0.7, 0.6),
    ]
    if empty:
        findings.append(Finding("spleen", np.zeros(volume.grid, dtype=bool), 0.04, 0.0))
    return Segmentation(volume, tuple(findings), {"model": "compact"})


def volume_on(affine: NDArray[np.float64], grid: tuple[int, int, int] = GRID, *, spacing_known: bool = True) -> Volume:
    array = np.arange(np.prod(grid), dtype=np.int16).reshape(1, *grid)
    return Volume(array, affine, "CT", spacing_known)


def dicom_volume(affine: NDArray[np.float64], grid: tuple[int, int, int] = GRID, folder: Path | None = None) -> Volume:
    """A CT volume with one single-frame header for each slice; saved with pixels where a folder is given."""
    volume = volume_on(affine, grid)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    headers = []
    for z in range(grid[0]):
        header = _common(CTImageStorage, study, series, frame, grid)
        position, orientation, spacing = _dicom_plane(affine, z)
        header.ImagePositionPatient, header.ImageOrientationPatient = position, orientation
        header.PixelSpacing = spacing
        header.SliceThickness = f"{np.linalg.norm(affine[:3, 2]):.10g}"
        header.InstanceNumber = z + 1
        headers.append(header)
        if folder is not None:
            header.PixelData = volume.array[0, z].tobytes()
            header.save_as(folder / f"{z:03d}.dcm", enforce_file_format=True)
            del header.PixelData
    source = Source("series", "dicom", series, tuple(headers))
    return Volume(volume.array, affine, "CT", True, source)


def multi_frame_volume(affine: NDArray[np.float64], order: list[int]) -> Volume:
    """An enhanced CT of `max(order)` frames; slice z of the volume is frame order[z] (1-based)."""
    grid = (len(order), *GRID[1:])
    header = _common(EnhancedCTImageStorage, generate_uid(), generate_uid(), generate_uid(), grid)
    header.NumberOfFrames = max(order)
    groups = []
    for number in range(1, max(order) + 1):
        # Frames that the volume leaves out lie elsewhere.
        z = order.index(number) if number in order else 1000 + number
        position, orientation, spacing = _dicom_plane(affine, z)
        group, plane, direction, measures = Dataset(), Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient, direction.ImageOrientationPatient = position, orientation
        measures.PixelSpacing, measures.SliceThickness = spacing, "1"
        group.PlanePositionSequence = Sequence([plane])
        group.PlaneOrientationSequence = Sequence([direction])
        group.PixelMeasuresSequence = Sequence([measures])
        groups.append(group)
    header.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    header.PerFrameFunctionalGroupsSequence = Sequence(groups)
    source = Source("enhanced.dcm", "dicom", header.SeriesInstanceUID, (header,) * len(order), tuple(order))
    return Volume(volume_on(affine, grid).array, affine, "CT", True, source)


def _dicom_plane(affine: NDArray[np.float64], z: int) -> tuple[list[str], list[str], list[str]]:
    """ImagePositionPatient, ImageOrientationPatient and PixelSpacing of slice z, as decimal strings."""
    lps = LPS_TO_RAS @ affine
    row, column = (lps[:3, i] / np.linalg.norm(lps[:3, i]) for i in (0, 1))
    position = lps[:3, 3] + z * lps[:3, 2]
    spacing = [np.linalg.norm(lps[:3, 1]), np.linalg.norm(lps[:3, 0])]
    return ([f"{v:.8g}" for v in position], [f"{v:.9f}" for v in [*row, *column]], [f"{v:.10g}" for v in spacing])


def _common(sop_class: str, study: str, series: str, frame: str, grid: tuple[int, int, int]) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # A Korean hospital's character set: names must come out right in the UTF-8 of our objects.
    header.SpecificCharacterSet = ["", "ISO 2022 IR 149"]
    header.SOPClassUID, header.SOPInstanceUID = sop_class, generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
    header.PatientName, header.PatientID = "Hong^Gildong=洪^吉洞=홍^길동", "P1"
    header.PatientBirthDate, header.PatientSex = "19700101", "O"
    header.StudyDate, header.StudyTime, header.StudyID, header.AccessionNumber = "20260101", "101010", "1", "A1"
    header.Modality, header.SeriesNumber = "CT", 3
    header.Rows, header.Columns = grid[1], grid[2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    header.RescaleIntercept, header.RescaleSlope = 0, 1
    return header


AFFINES = {
    "plain": affine_of(),
    "oblique": affine_of(angles=(0.3, -0.5, 1.1)),
    "negated": affine_of(signs=(-1, 1, -1)),
    "left-handed oblique": affine_of(angles=(2.0, 0.4, -0.7), signs=(1, -1, 1)),
    "anisotropic": affine_of(spacing=(0.31, 0.44, 9.5), angles=(0.0, 0.2, 0.0)),
}

"""One `Plane` for each DICOM image plane, be it a file or a frame of a multi-frame file. World frame: LPS+ mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from lexitome.io.dicom_files import DicomFile, frame_count

if TYPE_CHECKING:
    from pydicom import Dataset

_PROJECTIONS = ("ImagerPixelSpacing", "NominalScannedPixelSpacing")
_REPEATS = (
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "DiffusionBValue",
    "AcquisitionNumber",
    "AcquisitionTime",
    "InstanceNumber",
)
"""What tells images at one place from each other, in the order in which they are counted."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Where one image plane lies and how its values are to be read.

    Args:
        path, header, index: the file, its header, the 0-based frame in it.
        position: (3,) centre of the first pixel, LPS+ mm; None where not given.
        axes: (2, 3) unit vectors of growing column and of growing row, LPS+; None where not given.
        spacing: mm between columns and between rows (x, y); None where not given.
        thickness: mm to the next slice if nothing else tells; None where not given.
        rescale: slope and intercept.
        repeat: sorts planes at the same place (echoes, time points).
        note: what the user should know about spacing or rescale.
    """

    path: Path
    header: Dataset
    index: int
    position: NDArray[np.float64] | None
    axes: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    rescale: tuple[float, float]
    repeat: tuple[float, ...]
    note: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.header.Rows), int(self.header.Columns)

    @property
    def is_multi_frame(self) -> bool:
        return frame_count(self.header) > 1 or "PerFrameFunctionalGroupsSequence" in self.header

    @property
    def is_localizer(self) -> bool:
        kinds = self.header.get("ImageType", ())
        return "LOCALIZER" in ([kinds] if isinstance(kinds, str) else list(kinds or ()))

    @property
    def normal(self) -> NDArray[np.float64] | None:
        return None if self.axes is None else np.cross(self.axes[0], self.axes[1])


def planes_of(file: DicomFile) -> list[Plane]:
    """Every plane of a file, in frame order."""
    return [_plane(file, index) for index in range(frame_count(file.header))]


def _plane(file: DicomFile, index: int) -> Plane:
    header = file.header
    measures = _group(header, index, "PixelMeasuresSequence")
    values = _group(header, index, "PixelValueTransformationSequence")
    spacing, note = _spacing(header, measures)
    position = _numbers(_group(header, index, "PlanePositionSequence"), "ImagePositionPatient", 3)
    axes = _axes(_numbers(_group(header, index, "PlaneOrientationSequence"), "ImageOrientationPatient", 6))
    if frame_count(header) > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        position = axes = None  # one position for all frames, as in a cine, places none of them
    slope, intercept = _number(values, "RescaleSlope"), _number(values, "RescaleIntercept")
    if slope == 0:  # would make every value the same
        note = "; ".join(filter(None, (note, "RescaleSlope is 0 and was ignored")))
    return Plane(
        path=file.path,
        header=header,
        index=index,
        position=position,
        axes=axes,
        spacing=spacing,
        thickness=_positive(measures, "SpacingBetweenSlices") or _positive(measures, "SliceThickness"),
        rescale=(slope or 1.0, intercept or 0.0),
        repeat=_repeat(header, index),
        note=note,
    )


def _group(header: Dataset, index: int, keyword: str) -> Dataset:
    """A functional group of one frame: its own, else the one all frames share, else the header itself."""
    for sequence, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        groups = header.get(sequence)
        if groups and item < len(groups) and groups[item].get(keyword):
            found: Dataset = groups[item].get(keyword)[0]
            return found
    return header


def _spacing(header: Dataset, measures: Dataset) -> tuple[tuple[float, float] | None, str]:
    """(x, y) in mm, and a note where it is not the spacing in the patient. DICOM lists rows first."""
    rows_columns = _numbers(measures, "PixelSpacing", 2)
    if rows_columns is not None and (rows_columns > 0).all():
        return (float(rows_columns[1]), float(rows_columns[0])), ""
    for keyword in _PROJECTIONS:
        rows_columns = _numbers(header, keyword, 2)
        if rows_columns is not None and (rows_columns > 0).all():
            note = f"pixel spacing is that of the detector or film ({keyword}), not corrected for magnification"
            return (float(rows_columns[1]), float(rows_columns[0])), note
    note = "the header gives no valid PixelSpacing: lengths are in pixels" if "PixelSpacing" in measures else ""
    return None, note


def _axes(orientation: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Unit vectors; None if they are zero or parallel."""
    if orientation is None:
        return None
    axes = orientation.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if (lengths < 0.5).any() or np.linalg.norm(np.cross(axes[0], axes[1])) < 0.5:
        return None
    return np.asarray(axes / lengths[:, None])


def _repeat(header: Dataset, index: int) -> tuple[float, ...]:
    found: dict[str, float] = {}
    datasets = [header]
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups and index < len(groups):
        for element in groups[index]:
            datasets += list(element.value)[:1] if element.VR == "SQ" else []
    for dataset in datasets:
        for keyword in _REPEATS:
            number = _number(dataset, keyword)
            if number is not None:
                found[keyword] = number
    return (*(found.get(keyword, 0.0) for keyword in _REPEATS), float(index))


def _numbers(dataset: Dataset, keyword: str, count: int) -> NDArray[np.float64] | None:
    """Exactly `count` finite numbers, or None."""
    try:
        values = np.array([float(value) for value in dataset.get(keyword) or ()])
    except (TypeError, ValueError):
        return None
    return values if values.shape == (count,) and np.isfinite(values).all() else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    value = dataset.get(keyword)
    if isinstance(value, (list, tuple)) or (hasattr(value, "__len__") and not isinstance(value, str)):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _positive(dataset: Dataset, keyword: str) -> float | None:
    number = _number(dataset, keyword)
    return number if number is not None and number > 0 else None


def slice_gaps(headers: Sequence[object]) -> list[float]:
    """mm along the normal between neighbouring single-frame slices; empty where positions are not given."""
    planes = [_plane(DicomFile(Path(), cast("Dataset", header)), 0) for header in headers]
    normal = planes[0].normal if planes else None
    places = [plane.position for plane in planes if plane.position is not None]
    if normal is None or len(places) != len(planes):
        return []
    return [float(gap) for gap in np.diff([place @ normal for place in places])]

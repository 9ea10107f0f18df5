"""DICOM images: a file, a folder, with one or several series, single- or multi-frame, to a `Volume`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.io.checks import refusing
from lexitome.io.dicom_files import (
    DicomFile,
    SeriesInfo,
    choose_series,
    describe_series,
    frame_count,
    read_image_header,
    scan_folder,
)
from lexitome.io.dicom_pixels import decode, same_pixels
from lexitome.io.dicom_planes import planes_of
from lexitome.io.dicom_stack import Stack, stack_planes
from lexitome.io.geometry import interpolate_slices, settle_shear, without_headers
from lexitome.io.limits import check_shape, check_stored
from lexitome.volume import LPS_TO_RAS, PIXEL_AFFINE, Source, Volume


def list_dicom_series(path: Path) -> tuple[SeriesInfo, ...]:
    """The image series of a file or folder, by number."""
    with refusing(path, "reading the DICOM headers"):
        return describe_series(_files(path))


def read_dicom(
    path: Path, *, series: str | int | None = None, frame: int | None = None, fix_slices: bool = False
) -> Volume:
    """Array (1 or 3, Z, Y, X): z along cross(row, column), so the voxel axes are right-handed. HU for CT.

    `Source.headers` holds one header for each z, and is empty where slices were interpolated; `Source.frames` the
    1-based frame numbers of a multi-frame object.

    Raises:
        InputError: several series and no choice; no image; missing, duplicate, uneven or sheared slices without
            `fix_slices`; pixels that cannot be decoded; a claim beyond the limits.
    """
    with refusing(path, "reading the DICOM image"):
        files = choose_series(path, _files(path), series)
        for file in files:
            _check_frames(file)
        planes = [plane for file in files for plane in planes_of(file)]
        stack = stack_planes(path, planes, frame=frame, fix_slices=fix_slices, same_pixels=same_pixels)
        array, notes = decode(path, stack.planes)
        volume = _volume(path, stack, array, stack.notes + notes)
    return settle_shear(path, volume, resample=fix_slices)


def _files(path: Path) -> list[DicomFile]:
    return scan_folder(path) if path.is_dir() else [read_image_header(path)]


def _check_frames(file: DicomFile) -> None:
    """A frame takes at least a byte, so the file's size bounds how many there can be."""
    header = file.header
    shape = (frame_count(header), int(header.Rows), int(header.Columns))
    check_shape(file.path, shape)
    check_stored(file.path, shape[0], file.path.stat().st_size)


def _volume(path: Path, stack: Stack, array: NDArray[np.generic], notes: tuple[str, ...]) -> Volume:
    first = stack.planes[0]
    frames = tuple(plane.index + 1 for plane in stack.planes)
    source = Source(
        path=str(path),
        format="dicom",
        series_uid=str(first.header.get("SeriesInstanceUID", "")),
        headers=tuple(plane.header for plane in stack.planes),
        frames=frames if first.is_multi_frame else (),
    )
    if stack.uneven is not None:
        check_shape(path, (array.shape[0], stack.count, *array.shape[2:]))
        array = interpolate_slices(array, stack.uneven, stack.count)
        source = without_headers(source)
    return Volume(
        array=array,
        affine=PIXEL_AFFINE if stack.affine is None else LPS_TO_RAS @ stack.affine,
        modality=str(first.header.get("Modality", "") or ""),
        spacing_known=stack.affine is not None,
        source=source,
        fixes=notes,
    )

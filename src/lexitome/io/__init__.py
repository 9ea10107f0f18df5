"""Reading and writing images. Importing this loads no image library; each format loads its own when used.

`read` turns any supported input into a `Volume` or raises `InputError`; nothing else, and nothing on standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lexitome.errors import InputError
from lexitome.io.checks import settle_dtype, settle_values
from lexitome.io.dicom_files import SeriesInfo, files_below, looks_like_dicom
from lexitome.io.formats import KNOWN, check_exists, format_of, is_input
from lexitome.io.geometry import planar_affine
from lexitome.io.limits import check_shape
from lexitome.io.write import write
from lexitome.volume import PIXEL_AFFINE, Source, Volume

__all__ = ["SeriesInfo", "find_inputs", "from_array", "geometry_report", "list_series", "read", "write"]


def read(
    path: str | Path, *, series: str | int | None = None, frame: int | None = None, fix_slices: bool = False
) -> Volume:
    """Reads an image file, a DICOM folder, or a zip of a DICOM series or of one image.

    Args:
        series: which DICOM series, by number or UID, where there are several.
        frame: which frame, page, time point or echo, counted from 1, where there are several.
        fix_slices: repair missing, uneven, duplicate, stray or sheared slices by dropping or interpolating. Without
            it they are refused. Every repair is a sentence in `Volume.fixes`.

    Returns:
        The image with 8- and 16-bit values as stored, rescaled values as int16, int32 or float32.

    Raises:
        InputError: anything that cannot be read as one image in one place; says why and what to do.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "zip":
        return _read_zip(path, series=series, frame=frame, fix_slices=fix_slices)
    if kind == "dicom":
        from lexitome.io.dicom import read_dicom

        return settle_values(path, read_dicom(path, series=series, frame=frame, fix_slices=fix_slices))
    if series is not None:
        raise InputError(path, "is not DICOM and has no series", "Leave --series out.")
    return settle_values(path, _read_image(path, kind, frame, fix_slices=fix_slices))


def _read_image(path: Path, kind: str, frame: int | None, *, fix_slices: bool) -> Volume:
    if kind == "raster":
        from lexitome.io.raster import read_raster

        return read_raster(path, frame)
    if kind == "nifti":
        from lexitome.io.nifti import read_nifti

        return read_nifti(path, frame, fix_slices=fix_slices)
    from lexitome.io.itk import read_itk

    return read_itk(path, frame, fix_slices=fix_slices)


def _read_zip(path: Path, *, series: str | int | None, frame: int | None, fix_slices: bool) -> Volume:
    from lexitome.io.archive import unpacked

    with unpacked(path) as folder:
        volume = read(_content(path, folder), series=series, frame=frame, fix_slices=fix_slices)
    return replace(volume, source=replace(volume.source, path=str(path)))


def _content(path: Path, folder: Path) -> Path:
    """What to read in an unpacked zip: the folder if it holds DICOM, else its one image."""
    files = files_below(folder)
    if any(looks_like_dicom(file) for file in files):
        return folder
    images = [file for file in files if is_input(file)]
    if len(images) == 1 and format_of(images[0]) != "zip":
        return images[0]
    cause = f"holds {len(images)} images" if len(images) > 1 else "holds no image"
    raise InputError(path, cause, "Give a zip with one DICOM study or one image, or unpack it.")


def list_series(path: str | Path) -> tuple[SeriesInfo, ...]:
    """The image series of a DICOM file, folder or zip, by number; empty for an image in another format."""
    path = Path(path)
    kind = format_of(path)
    if kind == "zip":
        from lexitome.io.archive import unpacked

        with unpacked(path) as folder:
            return list_series(_content(path, folder))
    if kind != "dicom":
        return ()
    from lexitome.io.dicom import list_dicom_series

    return list_dicom_series(path)


def from_array(
    array: ArrayLike,
    *,
    affine: NDArray[np.floating] | None = None,
    spacing: Sequence[float] | None = None,
    modality: str = "",
) -> Volume:
    """A `Volume` from an array already in memory.

    Args:
        array: (Y, X) grey; (Y, X, 3) RGB or (Y, X, 4) RGBA, whose alpha is dropped; (Z, Y, X) grey. An array with
            three axes is a colour image if its last axis is 3 or 4 long and no `affine` is given.
        affine: (4, 4) voxel (x, y, z, 1) to world RAS+ mm.
        spacing: (x, y) or (x, y, z) in mm, instead of `affine`. Without either, spacing is unknown.

    Raises:
        InputError: wrong number of axes, no pixels, values that are not real numbers, or an unusable affine.
    """
    path, values = Path("array"), np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise InputError(path, f"its type is {values.dtype}", "Give real numbers.")
    check_shape(path, values.shape)
    notes = []
    if values.ndim == 3 and values.shape[2] in (3, 4) and affine is None:
        if values.shape[2] == 4:
            notes.append("the alpha channel (transparency) was dropped")
        channels = np.moveaxis(values[..., :3], -1, 0)[:, None]
    elif values.ndim in (2, 3):
        channels = values.reshape(1, -1, *values.shape[-2:])
    else:
        raise InputError(path, f"has {values.ndim} axes", "Give (Y, X), (Y, X, 3), (Y, X, 4) or (Z, Y, X).")
    if affine is not None and spacing is not None:
        raise InputError(path, "affine and spacing are both given", "Give one of them.")
    placed = affine is not None or spacing is not None
    try:
        where = PIXEL_AFFINE if not placed else np.asarray(affine) if spacing is None else _spaced(spacing)
        volume = Volume(settle_dtype(channels), where, modality, placed, Source(), tuple(notes))
    except (TypeError, ValueError) as error:
        raise InputError(path, "affine or spacing is unusable", "Give finite, invertible geometry in mm.") from error
    return settle_values(path, volume)


def _spaced(spacing: Sequence[float]) -> NDArray[np.float64]:
    x, y, z = (*spacing, 1.0) if len(spacing) == 2 else tuple(spacing)
    if min(x, y, z) <= 0:
        raise ValueError("spacing must be above zero")
    return planar_affine((x, y, z))


def find_inputs(paths: Sequence[str | Path]) -> list[Path]:
    """Expands folders into inputs for `read`, sorted and without repeats.

    A file is taken as it is. In a folder and its subfolders, each image file is an input, and so is each folder that
    directly holds DICOM files; hidden files and unknown kinds are passed over.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        check_exists(path)
        if not path.is_dir():
            found.add(path)
            continue
        below = files_below(path)
        inputs = {file.parent for file in below if looks_like_dicom(file)} | {file for file in below if is_input(file)}
        if not inputs:
            raise InputError(path, "the folder holds no images", f"Give {KNOWN}.")
        found |= inputs
    return sorted(found)


def geometry_report(
    path: str | Path, *, series: str | int | None = None, frame: int | None = None, fix_slices: bool = False
) -> dict[str, object]:
    """What `read` makes of an input, as JSON-able facts: shape, spacing, orientation, bounds, series, fixes.

    Writes nothing, and holds no patient data. The arguments and errors are those of `read`.
    """
    from lexitome.io.report import describe

    volume = read(path, series=series, frame=frame, fix_slices=fix_slices)
    return describe(volume, list_series(path) if volume.source.format == "dicom" else ())

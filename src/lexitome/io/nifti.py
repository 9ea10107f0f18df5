"""NIfTI-1 and NIfTI-2, plain or gzipped, one file."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.io.checks import pick_frame, refusing, rescale, settle_dtype
from lexitome.io.geometry import settle_shear
from lexitome.io.limits import check_inflated, check_shape, check_stored
from lexitome.volume import Source, Volume

GZIP_MAGIC = b"\x1f\x8b"
_CIFTI_INTENTS = range(3000, 3100)
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # spatial code of xyzt_units; 0 is "unknown", by custom mm
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Layout:
    """How the pixels lie in the file: shape (x, y, z, frames), and whether one pixel is a colour."""

    shape: tuple[int, ...]
    colours: int


def is_nifti_header(start: bytes) -> bool:
    """Whether the first 348 bytes are those of a single-file NIfTI."""
    nifti_1 = start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and start[344:348] == b"n+1\0"
    nifti_2 = start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and start[4:8] == b"n+2\0"
    return nifti_1 or nifti_2


def read_nifti(path: Path, frame: int | None = None, *, fix_slices: bool = False) -> Volume:
    """Array (1 or 3, Z, Y, X) with the affine of the sform, else the qform, else the voxel sizes alone.

    Values are rescaled by scl_slope and scl_inter. RGB(A) pixels become three channels. The fourth and later
    dimensions are frames, of which one must be chosen. A sheared affine is squared (see `geometry.settle_shear`).
    """
    import nibabel

    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
    with refusing(path, "reading the NIfTI file"), _open(path, zipped) as stream:
        start = stream.read(348)
        if not is_nifti_header(start):
            raise InputError(path, "is not a NIfTI file", "Give a single-file NIfTI (.nii or .nii.gz).")
        stream.seek(0)
        kind = nibabel.Nifti1Image if start[344:348] == b"n+1\0" else nibabel.Nifti2Image
        header = kind.header_class.from_fileobj(stream)
        layout = _layout(path, header)
        _check_size(path, header, layout, zipped=zipped)
        index = pick_frame(path, frame, math.prod(layout.shape[3:]), "frames")
        array = _pixels(stream, header, layout, index)
        affine, notes = _affine(path, header)
    source = Source(path=str(path), format="nifti")
    volume = Volume(array=settle_dtype(array), affine=affine, source=source, fixes=notes)
    return settle_shear(path, volume, resample=fix_slices)


def _open(path: Path, zipped: bool) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _layout(path: Path, header: Any) -> _Layout:
    """Checks what kind of data it is; dimensions of length 1 after the third are dropped."""
    if int(header["intent_code"]) in _CIFTI_INTENTS:
        raise InputError(path, "is a CIFTI connectivity or surface file, not an image", "Give a volume.")
    dtype = header.get_data_dtype()
    if dtype.kind == "c":
        raise InputError(path, "holds complex numbers", "Export the magnitude image.")
    shape = tuple(int(size) for size in header.get_data_shape())
    if len(shape) < 2:
        raise InputError(path, f"has {len(shape)} dimension(s)", "Give an image with two or three dimensions.")
    shape = (*shape, 1) if len(shape) == 2 else shape
    return _Layout(shape=shape[:3] + tuple(size for size in shape[3:] if size != 1), colours=len(dtype.names or "g"))


def _check_size(path: Path, header: Any, layout: _Layout, *, zipped: bool) -> None:
    dtype = header.get_data_dtype()
    check_shape(path, (layout.colours, *layout.shape))
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**40:
        raise InputError(path, "the header places the pixels outside the file", "Export the image again.")
    claimed = int(offset) + math.prod(layout.shape) * dtype.itemsize
    stored = path.stat().st_size
    if zipped:
        check_inflated(path, claimed, stored)
    else:
        check_stored(path, claimed, stored)


def _pixels(stream: BinaryIO | gzip.GzipFile, header: Any, layout: _Layout, index: int) -> NDArray[np.generic]:
    """(C, Z, Y, X) of one frame, rescaled. NIfTI stores x fastest and colours interleaved."""
    dtype, grid = header.get_data_dtype(), layout.shape[:3]
    count = math.prod(grid)
    stream.seek(max(int(header["vox_offset"]), int(header.single_vox_offset)) + index * count * dtype.itemsize)
    buffer = bytearray()
    while len(buffer) < count * dtype.itemsize:
        chunk = stream.read(min(2**24, count * dtype.itemsize - len(buffer)))
        if not chunk:
            raise zlib.error("the pixels end early")
        buffer += chunk
    array = np.frombuffer(buffer, dtype=dtype).reshape(grid[::-1])
    if dtype.names:
        colours = [array[name] for name in dtype.names[:3]]
        return np.stack(colours)
    slope, intercept = header.get_slope_inter()
    return rescale(array, 1.0 if slope is None else slope, intercept or 0.0)[None]


def _affine(path: Path, header: Any) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """RAS+ mm, by the NIfTI rules: the sform if coded, else the qform, else voxel sizes and no orientation."""
    notes: list[str] = []
    sform, s_code = header.get_sform(coded=True)
    qform, q_code = header.get_qform(coded=True)
    if s_code and _usable(sform):
        affine = sform
        if q_code and _usable(qform) and np.abs(sform - qform).max() > _TOLERANCE * np.abs(sform).max():
            notes.append("the header gives two different places (sform and qform): the sform was used")
    elif q_code and _usable(qform):
        affine = qform
        if s_code:
            notes.append("the sform in the header is unusable: the qform was used")
    else:
        affine = header.get_base_affine()
        notes.append("the header gives no orientation (no usable sform or qform): x is taken to run to the left")
    scale = _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    if scale != 1.0:
        notes.append(f"the header gives lengths in {'metres' if scale > 1 else 'micrometres'}: converted to mm")
    affine = np.diag([scale, scale, scale, 1.0]) @ np.asarray(affine, dtype=np.float64)
    if not _usable(affine):
        raise InputError(path, "the header gives voxels of no size", "Set the voxel size (pixdim) and export it again.")
    return affine, tuple(notes)


def _usable(affine: NDArray[np.float64] | None) -> bool:
    return affine is not None and bool(np.isfinite(affine).all()) and abs(np.linalg.det(affine)) > 1e-12

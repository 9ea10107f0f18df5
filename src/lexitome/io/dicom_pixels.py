"""Decoding DICOM pixels: frame by frame, colour to RGB, modality LUT, then the inversion of MONOCHROME1."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.io import dicom_gdcm
from lexitome.io.checks import rescale, settle_dtype
from lexitome.io.dicom_files import frame_count, is_deflated
from lexitome.io.dicom_planes import Plane
from lexitome.io.limits import check_inflated, check_shape, check_stored

if TYPE_CHECKING:
    from pydicom import Dataset

_PHYSICAL = ("CT", "PT")
"""Modalities whose values after rescale are a physical quantity (HU, Bq/ml), whatever the display polarity."""


def decode(path: Path, planes: tuple[Plane, ...]) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """(C, Z, Y, X) in the order of `planes` and what was changed; 8- and 16-bit types stay where values fit."""
    _check_sizes(path, planes)
    volume: NDArray[np.generic] | None = None
    for index, (plane, pixels) in enumerate(_frames(planes)):
        image = settle_dtype(_values(plane, pixels))
        channels = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
        if volume is None:
            volume = np.zeros((channels.shape[0], len(planes), *channels.shape[1:]), dtype=channels.dtype)
        if channels.shape != (volume.shape[0], *volume.shape[2:]):
            raise InputError(plane.path, "the decoded size is not the one in the header", "Export the file again.")
        if not np.can_cast(channels.dtype, volume.dtype):
            volume = volume.astype(np.promote_types(volume.dtype, channels.dtype))
        volume[:, index] = channels
    assert volume is not None
    return settle_dtype(volume) if volume.dtype.kind in "iu" else volume, _notes(planes)


def same_pixels(first: Plane, second: Plane) -> bool:
    """Whether two planes hold the same values."""
    (_, a), (_, b) = next(_frames((first,))), next(_frames((second,)))
    return a.shape == b.shape and bool((_values(first, a) == _values(second, b)).all())


def _check_sizes(path: Path, planes: tuple[Plane, ...]) -> None:
    """The sizes that the headers claim, against the limits and against the files, before anything is decoded."""
    samples = int(planes[0].header.get("SamplesPerPixel", 1))
    check_shape(path, (len(planes), *planes[0].shape, samples))
    for file in {plane.path: plane for plane in planes}.values():
        header = file.header
        shape = (frame_count(header), *file.shape, int(header.get("SamplesPerPixel", 1)))
        check_shape(file.path, shape)
        bits = int(header.get("BitsAllocated") or 8)
        claimed = int(np.prod(shape, dtype=np.int64)) * bits // 8
        stored = file.path.stat().st_size
        if _is_compressed(header) or is_deflated(file.path):
            check_inflated(file.path, claimed, stored)
        else:
            halved = "422" in str(header.get("PhotometricInterpretation", ""))  # chroma of every second pixel
            check_stored(file.path, claimed * 2 // 3 if halved else claimed, stored)


def _is_compressed(header: Dataset) -> bool:
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    return bool(syntax is not None and syntax.is_transfer_syntax and syntax.is_encapsulated)


def _frames(planes: Iterable[Plane]) -> Iterator[tuple[Plane, NDArray[np.generic]]]:
    """Raw stored values (Y, X) or (Y, X, 3) of each plane; YBR is already RGB. A file is opened once for a run."""
    from pydicom.pixels import pixel_array

    for file, run in itertools.groupby(planes, key=lambda plane: plane.path):
        dataset = _with_pixels(file)
        by_gdcm = dataset.file_meta.TransferSyntaxUID in dicom_gdcm.SYNTAXES
        decoded = None
        for plane in run:
            try:
                if by_gdcm:
                    decoded = dicom_gdcm.decode_frames(dataset) if decoded is None else decoded
                    pixels = decoded[plane.index]
                else:
                    pixels = pixel_array(dataset, index=plane.index)
            except (NotImplementedError, RuntimeError) as error:
                # pydicom words both "no plugin for this syntax" and "every plugin failed" as a RuntimeError.
                raise _undecodable(file, dataset) from error
            except (AttributeError, IndexError, ValueError) as error:
                cause = "its pixel data are missing, cut short, or do not fit the header"
                raise InputError(file, cause, "Copy or export the file again.") from error
            yield plane, pixels


def _with_pixels(path: Path) -> Dataset:
    """The whole dataset, with a transfer syntax even where the file names none."""
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset = dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _undecodable(path: Path, header: Dataset) -> InputError:
    name = header.file_meta.TransferSyntaxUID.name
    cause = f"its pixels ({name}) cannot be decoded: no free decoder, or damaged data"
    return InputError(path, cause, "Convert it to Explicit VR Little Endian (dcmdjpeg or gdcmconv --raw) and retry.")


def _values(plane: Plane, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Stored values of one plane to what they stand for."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    header = plane.header
    photometric = str(header.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        return apply_color_lut(pixels, header)
    if pixels.ndim == 3:
        return pixels
    if header.get("ModalityLUTSequence"):
        values = apply_modality_lut(pixels, header)
        ends = (0.0, float(np.iinfo(values.dtype).max))
    else:
        values = rescale(pixels, *plane.rescale)
        ends = _range_of(plane, pixels)
    if not _is_inverted(header):
        return values
    if values.dtype.kind == "f":
        return (np.float64(sum(ends)) - values).astype(np.float32)
    return round(sum(ends)) - values.astype(np.int64)


def _range_of(plane: Plane, pixels: NDArray[np.generic]) -> tuple[float, float]:
    """Smallest and largest value that the header's bit depth allows, rescaled: the same for all slices of a series
    that share a rescale, so that inversion keeps their grey levels comparable."""
    if pixels.dtype.kind == "f":
        return float(pixels.min()), float(pixels.max())
    bits = int(plane.header.get("BitsStored") or 8 * pixels.dtype.itemsize)
    low = -(2 ** (bits - 1)) if int(plane.header.get("PixelRepresentation", 0)) else 0
    slope, intercept = plane.rescale
    return low * slope + intercept, (low + 2**bits - 1) * slope + intercept


def _is_inverted(header: Dataset) -> bool:
    return header.get("PhotometricInterpretation") == "MONOCHROME1" and header.get("Modality") not in _PHYSICAL


def _notes(planes: tuple[Plane, ...]) -> tuple[str, ...]:
    first = planes[0]
    notes = [first.note] if first.note else []
    if _is_inverted(first.header):
        notes.append("MONOCHROME1 (white is low): grey values were inverted after the modality LUT, so bright is high")
    elif first.header.get("PhotometricInterpretation") == "MONOCHROME1":
        notes.append("MONOCHROME1 is how to show it: the values are a physical quantity and were not inverted")
    if not getattr(first.header, "file_meta", None):
        notes.append("the file has no DICOM file header: its encoding was guessed")
    return tuple(notes)

"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd) by way of ITK, whose LPS+ frame becomes RAS+.

The text header is read here first: ITK allocates whatever it claims, prints to standard error where pixels are
missing, and follows a detached data file anywhere on the disk.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.io.checks import native_silence, pick_frame, refusing, settle_dtype
from lexitome.io.geometry import settle_shear
from lexitome.io.limits import check_inflated, check_shape, check_stored, inflated_size
from lexitome.volume import LPS_TO_RAS, PIXEL_AFFINE, Source, Volume

_HEADER_BYTES = 2**16
_ANY_WINDOW = zlib.MAX_WBITS | 32  # zlib or gzip, by its own header
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_US": "US", "MET_MOD_NM": "NM"}
_ENGINES = {"nrrd": "NrrdImageIO", "metaimage": "MetaImageIO"}
_BROKEN = "The header is damaged: export the image again."


@dataclass(frozen=True)
class _Header:
    """What the text header says.

    Args:
        format: "nrrd" or "metaimage".
        fields: lower-case key to value.
        data: the file that holds the pixels.
        data_start: where they begin in it.
    """

    format: str
    fields: dict[str, str]
    data: Path
    data_start: int

    @property
    def compressed(self) -> bool:
        if self.format == "nrrd":
            return self.fields.get("encoding", "raw").lower() not in ("raw", "txt", "text", "ascii", "hex")
        return self.fields.get("compresseddata", "false").lower() in ("true", "1")

    @property
    def binary(self) -> bool:
        if self.format == "nrrd":
            return self.fields.get("encoding", "raw").lower() == "raw"
        return self.fields.get("binarydata", "true").lower() in ("true", "1")

    @property
    def has_spacing(self) -> bool:
        if self.format == "nrrd":
            numbers = self.fields.get("space directions", "") + self.fields.get("spacings", "")
            return any(character.isdigit() for character in numbers)
        return "elementspacing" in self.fields or "elementsize" in self.fields


def read_itk(path: Path, frame: int | None = None, *, fix_slices: bool = False) -> Volume:
    """Array (1 or 3, Z, Y, X), affine as stored. A fourth dimension or vector pixels are frames to choose from."""
    import SimpleITK as sitk

    with refusing(path, "reading the header"):
        header = _read_header(path)
    with refusing(path, f"reading the {header.format} file"):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO(_ENGINES[header.format])
        with native_silence():
            reader.ReadImageInformation()
        size, components = reader.GetSize(), reader.GetNumberOfComponents()
        if not 2 <= len(size) <= 4:
            raise InputError(path, f"has {len(size)} dimensions", "Give an image with two, three or four dimensions.")
        _check_size(path, header, (*size, components), sitk.GetPixelIDValueAsString(reader.GetPixelID()))
        with native_silence():
            image = reader.Execute()
        array = sitk.GetArrayFromImage(image)
        if array.dtype.kind == "c":
            raise InputError(path, "holds complex numbers", "Export the magnitude image.")
        array = array[..., None] if components == 1 else array
        array = _chosen(path, array[None] if len(size) == 2 else array, frame)
        affine = _affine(image)
    volume = Volume(
        array=settle_dtype(array),
        affine=affine if header.has_spacing else PIXEL_AFFINE,
        modality=_MODALITIES.get(header.fields.get("modality", "").upper(), ""),
        spacing_known=header.has_spacing,
        source=Source(path=str(path), format=header.format),
    )
    return settle_shear(path, volume, resample=fix_slices)


def _chosen(path: Path, array: NDArray[np.generic], frame: int | None) -> NDArray[np.generic]:
    """(Z, Y, X, components) or (T, Z, Y, X, components) to (C, Z, Y, X)."""
    if array.ndim == 4:
        array = array[None]
    components = array.shape[-1]
    # Three or four small integers are a colour; anything else (echoes, gradients, displacements) is not.
    if components in (3, 4) and array.dtype in (np.uint8, np.uint16):
        index = pick_frame(path, frame, array.shape[0], "frames")
        return np.moveaxis(array[index, ..., :3], -1, 0)
    index = pick_frame(path, frame, array.shape[0] * components, "frames")
    return array[None, index // components, ..., index % components]


def _affine(image: object) -> NDArray[np.float64]:
    """RAS+ mm of the first three dimensions of a SimpleITK image."""
    spacing = np.array(image.GetSpacing())  # type: ignore[attr-defined]
    origin = np.array(image.GetOrigin())  # type: ignore[attr-defined]
    direction = np.array(image.GetDirection()).reshape(len(spacing), len(spacing))  # type: ignore[attr-defined]
    kept = min(len(spacing), 3)
    affine = np.eye(4)
    affine[:kept, :kept] = direction[:kept, :kept] * spacing[:kept]
    affine[:kept, 3] = origin[:kept]
    return np.asarray(LPS_TO_RAS @ affine)


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    if start[:4] == b"NRRD":
        return _nrrd_header(path, start)
    return _meta_header(path, start)


def _nrrd_header(path: Path, start: bytes) -> _Header:
    ends = [start.find(end) + len(end) for end in (b"\n\n", b"\r\n\r\n") if end in start]
    detached = not ends
    text = start if detached else start[: min(ends)]
    fields: dict[str, str] = {}
    for line in text.decode("latin-1").splitlines()[1:]:
        key, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            fields[key.strip().lower()] = value.lstrip("=").strip()
    name = fields.get("data file", fields.get("datafile", ""))
    if not name and detached:
        raise InputError(path, "the NRRD header does not end", _BROKEN)
    data = _beside(path, name) if name else path
    return _Header("nrrd", fields, data, 0 if name else min(ends))


def _meta_header(path: Path, start: bytes) -> _Header:
    fields: dict[str, str] = {}
    position = 0
    for line in start.splitlines(keepends=True):
        position += len(line)
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            break
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            break
    if "ndims" not in fields or "dimsize" not in fields or "elementdatafile" not in fields:
        raise InputError(path, "is not a MetaImage: its header is incomplete", _BROKEN)
    dims = fields["dimsize"].split()
    if fields["ndims"] != str(len(dims)) or not all(size.isdigit() for size in dims):
        raise InputError(path, "the MetaImage header contradicts itself (NDims, DimSize)", _BROKEN)
    check_shape(path, [int(size) for size in dims])
    name = fields["elementdatafile"]
    if name.upper() == "LOCAL":
        return _Header("metaimage", fields, path, position)
    return _Header("metaimage", fields, _beside(path, name), 0)


def _beside(path: Path, name: str) -> Path:
    """The detached data file; a header may name one file in its own folder, nothing else."""
    if not name or name.upper().startswith("LIST") or "%" in name or Path(name).name != name or name in (".", ".."):
        remedy = "Save the image as one file (.nrrd or .mha)."
        raise InputError(path, "keeps its pixels in several files or in another folder", remedy)
    data = path.with_name(name)
    if not data.is_file():
        raise InputError(path, f"the file with its pixels ({name}) is missing", "Put it in the same folder.")
    return data


def _check_size(path: Path, header: _Header, shape: tuple[int, ...], pixel_type: str) -> None:
    check_shape(path, shape)
    bits = next((int(word[:-4]) for word in pixel_type.split() if word.endswith("-bit") and word[:-4].isdigit()), 64)
    claimed = int(np.prod(shape, dtype=np.int64)) * bits // 8
    stored = header.data.stat().st_size - header.data_start
    if header.format == "metaimage" and int(header.fields.get("headersize", "0") or 0) > 0:
        stored -= int(header.fields["headersize"])
    if not header.compressed:
        if header.binary:
            check_stored(path, claimed, stored)
        return
    check_inflated(path, claimed, stored)
    if header.format == "metaimage":
        check_stored(path, int(header.fields.get("compresseddatasize", "0") or 0), stored)
        with header.data.open("rb") as file:
            file.seek(header.data_start)
            size = inflated_size(path, file, wbits=_ANY_WINDOW, stored_bytes=stored, stop_after=claimed)
        check_stored(path, claimed, size)

"""Which format a file is in: by its content, since names lie; by its name only where content does not tell."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path, PurePosixPath

from lexitome.errors import InputError
from lexitome.io.dicom_files import SUFFIXES as DICOM_SUFFIXES
from lexitome.io.dicom_files import looks_like_dicom
from lexitome.io.nifti import GZIP_MAGIC, is_nifti_header

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
IMAGE_SUFFIXES = (*RASTER_SUFFIXES, ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
KNOWN = "PNG, JPEG, TIFF, NIfTI, NRRD, MHA/MHD or DICOM (file, folder or zip)"

_RASTER_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")


def suffix_of(name: str) -> str:
    """The suffix in lower case if it is one of ours, ".nii.gz" in one piece; else ""."""
    lower = PurePosixPath(name.replace("\\", "/")).name.lower()
    known = (*IMAGE_SUFFIXES, *DICOM_SUFFIXES, ".zip")
    return next((suffix for suffix in known if lower.endswith(suffix)), "")


def format_of(path: Path) -> str:
    """ "raster", "nifti", "itk", "zip" or "dicom"; InputError for a file that is missing, empty or none of these."""
    check_exists(path)
    if path.is_dir():
        return "dicom"
    if not path.is_file():
        raise InputError(path, "is neither a file nor a folder", "Save the image to a file first.")
    start = _start_of(path)
    if not start:
        raise InputError(path, "the file is empty (0 bytes)", "Copy or export it again.")
    if start[128:132] == b"DICM":
        return "dicom"
    if start.startswith(_RASTER_MAGIC):
        return "raster"
    if start.startswith(_ZIP_MAGIC):
        return "zip"
    if is_nifti_header(start) or (start.startswith(GZIP_MAGIC) and is_nifti_header(_inflated_start(path))):
        return "nifti"
    suffix = suffix_of(path.name)
    if start.startswith(GZIP_MAGIC) and suffix != ".nii.gz":
        raise InputError(path, "is a gzip file that does not hold NIfTI", "Unpack it with gunzip and give the content.")
    if start.startswith(b"NRRD") or suffix in (".mha", ".mhd"):
        return "itk"
    if suffix in DICOM_SUFFIXES:
        return "dicom"
    if suffix:
        remedy = "The file is damaged or has the wrong name: copy or export it again."
        raise InputError(path, f"its content is not what its name ({suffix}) says", remedy)
    raise InputError(path, "is in no format that can be read", f"Give {KNOWN}.")


def check_exists(path: Path) -> None:
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise InputError(path, f"cannot be read ({error.strerror})", "Check the name and the permissions.") from error
    if not exists:
        raise InputError(path, "there is no such file or folder", "Check the name.")


def is_input(path: Path) -> bool:
    """Whether a file found in a folder is an image of its own, other than DICOM, by its name."""
    suffix = suffix_of(path.name)
    return suffix != "" and suffix not in DICOM_SUFFIXES and not looks_like_dicom(path)


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(540)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check its permissions.") from error


def _inflated_start(path: Path) -> bytes:
    """The first bytes inside a gzip file, "" if it is damaged."""
    try:
        with gzip.open(path, "rb") as file:
            return file.read(540)
    except (OSError, EOFError, zlib.error):
        return b""

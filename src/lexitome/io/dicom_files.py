"""Finding DICOM images: reading headers safely, telling images from other objects, listing and choosing series."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lexitome.errors import InputError
from lexitome.io.checks import refusing
from lexitome.io.limits import inflated_size, limits

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")
_PREAMBLE = 128
_MARKER = b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LONG_VALUES = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")

_NOT_IMAGES = {
    "1.2.840.10008.1.3.10": "a DICOMDIR (an index of files)",
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation (DICOM SEG)",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation (DICOM SEG)",
    "1.2.840.10008.5.1.4.1.1.66.5": "a surface segmentation",
    "1.2.840.10008.5.1.4.1.1.66": "raw data",
    "1.2.840.10008.5.1.4.1.1.66.1": "a spatial registration",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.481.3": "a radiotherapy structure set (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.481.5": "a radiotherapy plan (RTPLAN)",
    "1.2.840.10008.5.1.4.1.1.104.1": "an encapsulated PDF",
    "1.2.840.10008.5.1.4.1.1.104.2": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a tiled whole-slide image",
}
_NOT_IMAGE_FAMILIES = {
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.9.": "a waveform",
    "1.2.840.10008.5.1.4.1.1.481.": "a radiotherapy object",
}
_GIVE_IMAGES = "Give the image series it refers to, or the folder that holds it."


@dataclass(frozen=True)
class SeriesInfo:
    """One image series of a folder, zip or file. Holds nothing that identifies the patient.

    Args:
        slices: images in it: files, or frames of multi-frame files.
    """

    uid: str
    number: int | None
    modality: str
    description: str
    slices: int
    rows: int
    columns: int

    def __str__(self) -> str:
        words = (self.modality or "unknown modality", self.description or "no description")
        number = "unnumbered" if self.number is None else str(self.number)
        return f"{number} ({', '.join(words)}, {self.slices} slice{'s' if self.slices != 1 else ''})"


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM image file and its header (without pixel data)."""

    path: Path
    header: Dataset


def has_marker(path: Path) -> bool:
    """Whether the file carries the DICOM marker after its preamble."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == _MARKER
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check its permissions.") from error


def read_header(path: Path) -> DicomFile:
    """The header of one DICOM file; InputError if the file is not DICOM, damaged or a deflate bomb."""
    from pydicom import dcmread

    marked = has_marker(path)
    if path.stat().st_size == 0:
        raise InputError(path, "the file is empty (0 bytes)", "Copy or export it again.")
    if marked:
        check_deflated(path)
    with refusing(path, "reading the DICOM header"):
        header = dcmread(path, stop_before_pixels=True, force=not marked)
        # Old files lack the marker; text read as DICOM yields tags at random but never these.
        if not marked and not ("SOPClassUID" in header and "SOPInstanceUID" in header):
            raise InputError(path, "is not a DICOM file", "Give a DICOM image; the file may have the wrong name.")
        _load(header)
    return DicomFile(path, header)


def _load(header: Dataset) -> None:
    """Touches every top-level element, since pydicom decodes values only on access: damage must show here."""
    for keyword in (
        "SOPClassUID",
        "Modality",
        "SeriesInstanceUID",
        "SeriesNumber",
        "Rows",
        "Columns",
        "NumberOfFrames",
    ):
        header.get(keyword)
    int(header.get("NumberOfFrames") or 1)


def check_deflated(path: Path) -> None:
    """Refuses a deflated DICOM file that inflates beyond the limits, before pydicom inflates it in one piece."""
    with path.open("rb") as file:
        file.seek(_PREAMBLE + 4)
        if _transfer_syntax(file) != _DEFLATED:
            return
        stored = path.stat().st_size - file.tell()
        inflated_size(path, file, wbits=-zlib.MAX_WBITS, stored_bytes=stored)


def _transfer_syntax(file: BinaryIO) -> str:
    """Walks the file meta group (always explicit, little endian), leaving the file at the first other element."""
    syntax = ""
    while True:
        start = file.tell()
        element = file.read(8)
        if len(element) < 8 or element[:2] != b"\x02\x00":
            file.seek(start)
            return syntax
        if element[4:6] in _LONG_VALUES:
            length = int.from_bytes(file.read(4), "little")
        else:
            length = int.from_bytes(element[6:8], "little")
        if element[2:4] == b"\x10\x00":
            syntax = file.read(min(length, 64)).decode("ascii", "replace").strip(" \0")
        file.seek(start + (12 if element[4:6] in _LONG_VALUES else 8) + length)


def is_deflated(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(_PREAMBLE + 4)
        return _transfer_syntax(file) == _DEFLATED


def kind_of_object(header: Dataset) -> str:
    """What a DICOM object is if it is not an image to segment, e.g. "a structured report"; "" for an image."""
    uid = str(header.get("SOPClassUID", ""))
    if uid in _NOT_IMAGES:
        return _NOT_IMAGES[uid]
    if uid == "1.2.840.10008.5.1.4.1.1.481.1":  # RT Image: a projection radiograph
        return ""
    for family, kind in _NOT_IMAGE_FAMILIES.items():
        if uid.startswith(family):
            return kind
    if "DirectoryRecordSequence" in header:
        return _NOT_IMAGES["1.2.840.10008.1.3.10"]
    return "" if header.get("Rows") and header.get("Columns") else "a DICOM object without an image"


def read_image_header(path: Path) -> DicomFile:
    """Like `read_header`, and refuses what is not an image."""
    file = read_header(path)
    kind = kind_of_object(file.header)
    if kind:
        raise InputError(path, f"is {kind}, not an image", _GIVE_IMAGES)
    return file


def files_below(folder: Path) -> list[Path]:
    """Every visible file in a folder and its subfolders, sorted; at most `limits().files` are looked at."""

    def refuse(error: OSError) -> None:  # os.walk would pass over a folder that it may not list
        raise InputError(error.filename or folder, f"cannot be listed ({error.strerror})", "Check its permissions.")

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        if len(found) > limits().files:
            raise InputError(folder, f"holds more than {limits().files} files", "Give a folder with one study.")
    return found


def looks_like_dicom(path: Path) -> bool:
    """By its name, or, where the name says nothing, by its marker. DICOMDIR, an index, does not count."""
    if not path.is_file() or path.name.upper().startswith("DICOMDIR"):
        return False
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    # Scanners write names without suffix, or UIDs, whose last number looks like one.
    return (suffix == "" or suffix[1:].isdigit()) and has_marker(path)


def scan_folder(folder: Path) -> list[DicomFile]:
    """The DICOM images directly in a folder or, where it has none, in its subfolders.

    Files of other kinds and DICOM objects without an image are passed over; a damaged DICOM file is not, since it
    could be a slice.
    """
    found = files_below(folder)
    candidates = [path for path in found if path.parent == folder and looks_like_dicom(path)]
    candidates = candidates or [path for path in found if looks_like_dicom(path)]
    headers = [read_header(path) for path in candidates]
    images = [file for file in headers if not kind_of_object(file.header)]
    if not images:
        kinds = sorted({kind_of_object(file.header) for file in headers})
        cause = f"holds no DICOM images, only {' and '.join(kinds)}" if kinds else "holds no DICOM images"
        raise InputError(folder, cause, "Give a folder with an image series, or image files by name.")
    return images


def frame_count(header: Dataset) -> int:
    return max(int(header.get("NumberOfFrames") or 1), 1)


def describe_series(files: Iterable[DicomFile]) -> tuple[SeriesInfo, ...]:
    """One entry for each series, by number and then UID."""
    groups: dict[str, list[DicomFile]] = {}
    for file in files:
        groups.setdefault(_series_uid(file), []).append(file)
    found = [_describe(uid, members) for uid, members in groups.items()]
    return tuple(sorted(found, key=lambda info: (info.number is None, info.number or 0, info.uid)))


def _series_uid(file: DicomFile) -> str:
    return str(file.header.get("SeriesInstanceUID", ""))


def _describe(uid: str, files: list[DicomFile]) -> SeriesInfo:
    header = files[0].header
    number = str(header.get("SeriesNumber", "") or "").strip()
    shapes = Counter((int(file.header.Rows), int(file.header.Columns)) for file in files)
    rows, columns = shapes.most_common(1)[0][0]
    return SeriesInfo(
        uid=uid,
        number=int(number) if number.lstrip("+-").isdigit() else None,
        modality=str(header.get("Modality", "") or ""),
        description=str(header.get("SeriesDescription", "") or ""),
        slices=sum(frame_count(file.header) for file in files),
        rows=rows,
        columns=columns,
    )


def choose_series(path: Path, files: list[DicomFile], series: str | int | None) -> list[DicomFile]:
    """The files of the one series, or of the one that `series` (a series number or UID) names."""
    known = describe_series(files)
    if series is None:
        if len(known) == 1:
            return files
        raise InputError(path, f"holds {len(known)} series: {_listing(known)}", _series_remedy(known))
    wanted = str(series).strip()
    matches = [info for info in known if wanted == info.uid or (wanted.isdigit() and int(wanted) == info.number)]
    if len(matches) != 1:
        cause = f"holds {len(matches) or 'no'} series {wanted}; it has: {_listing(known)}"
        raise InputError(path, cause, _series_remedy(known))
    return [file for file in files if _series_uid(file) == matches[0].uid]


def _listing(known: tuple[SeriesInfo, ...]) -> str:
    numbers = Counter(info.number for info in known)
    shown = [
        f"{info} UID {info.uid}" if numbers[info.number] > 1 or info.number is None else str(info) for info in known
    ]
    return "; ".join(shown)


def _series_remedy(known: tuple[SeriesInfo, ...]) -> str:
    numbers = {info.number for info in known}
    unique = len(numbers) == len(known) and None not in numbers
    return "Choose one with --series N." if unique else "Choose one with --series N, or --series UID."

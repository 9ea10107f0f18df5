"""Zip files: unpacked into a private temporary folder under our own names, bounded in bytes and members."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from lexitome.errors import InputError
from lexitome.io.checks import refusing
from lexitome.io.formats import suffix_of
from lexitome.io.limits import CHUNK, check_inflated, limits


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the members of a zip, gone when the block ends.

    Members get numbers for names, so that no name in the zip can point outside the folder; an InputError raised in
    the block about one of them is raised again under its name in the zip.
    """
    with tempfile.TemporaryDirectory(prefix="lexitome-") as temporary:
        folder = Path(temporary)
        with refusing(path, "unpacking the zip"):
            names = _extract(path, folder)
        try:
            yield folder
        except InputError as error:
            member = names.get(error.path)
            place = f"{path}!{member}" if member else str(path)
            raise InputError(place, error.cause, error.remedy) from error


def _extract(path: Path, folder: Path) -> dict[str, str]:
    """Writes the members; returns where each went and what it was called."""
    names: dict[str, str] = {}
    stored = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if _is_content(member)]
        if len(members) > limits().files:
            raise InputError(path, f"holds {len(members)} files, more than {limits().files}", "Give one study.")
        if any(member.flag_bits & 1 for member in members):
            raise InputError(path, "is encrypted", "Unpack it with its password and give the folder.")
        check_inflated(path, sum(member.file_size for member in members), stored)
        total = 0
        for number, member in enumerate(members):
            target = folder / f"{number:06d}{suffix_of(member.filename)}"
            names[str(target)] = member.filename
            with archive.open(member) as packed, target.open("wb") as file:
                while chunk := packed.read(CHUNK):
                    total += len(chunk)
                    check_inflated(path, total, stored)  # the directory of a zip may lie about sizes
                    file.write(chunk)
    return names


def _is_content(member: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    return not member.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts if part != "..")

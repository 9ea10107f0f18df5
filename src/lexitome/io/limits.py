"""Bounds on what a file may claim, checked before anything is allocated or inflated.

A file of a few hundred bytes can claim terabytes, and a megabyte of deflated zeros inflates to a gigabyte. Every
reader asks here first. The defaults fit a large CT; each is replaced by an environment variable:

=============================  ==================================================================  ==========
variable                       bound                                                               default
=============================  ==================================================================  ==========
LEXITOME_MAX_VOXELS            values in one image (voxels times colour channels)                  2**30
LEXITOME_MAX_INFLATED_BYTES    bytes that one compressed file or zip may inflate to                2**32
LEXITOME_MAX_INFLATION         inflated : stored; only asked above `FREE_BYTES`                    200
LEXITOME_MAX_FILES             files in a zip or in a folder and its subfolders                    20000
=============================  ==================================================================  ==========
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lexitome.errors import InputError

FREE_BYTES = 64 * 2**20
"""Inflation is not questioned below this: an empty label map rightly compresses a thousandfold."""

CHUNK = 2**20


@dataclass(frozen=True)
class Limits:
    """See the table at the top of this file."""

    voxels: int = 2**30
    inflated_bytes: int = 2**32
    inflation: int = 200
    files: int = 20_000


def limits() -> Limits:
    """The bounds in force: the defaults, or what the environment says."""
    default = Limits()
    return Limits(
        voxels=_from_environment("LEXITOME_MAX_VOXELS", default.voxels),
        inflated_bytes=_from_environment("LEXITOME_MAX_INFLATED_BYTES", default.inflated_bytes),
        inflation=_from_environment("LEXITOME_MAX_INFLATION", default.inflation),
        files=_from_environment("LEXITOME_MAX_FILES", default.files),
    )


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or int(value) == 0:
        raise InputError(name, f"{value!r} is not a whole number above zero", f"Unset it to use {default}.")
    return int(value)


def check_shape(path: Path, shape: Sequence[int]) -> None:
    """Refuses an empty image and one with more values than the limit; `shape` in any order, channels included."""
    if not shape or min(shape) <= 0:
        sizes = " x ".join(str(size) for size in shape)
        raise InputError(path, f"the image is empty ({sizes} pixels)", "Export it again.")
    values, bound = math.prod(shape), limits().voxels
    if values > bound:
        raise InputError(
            path,
            f"the header claims {values:.3g} values, more than the limit of {bound:.3g}",
            "Crop or resample the image, or raise LEXITOME_MAX_VOXELS.",
        )


def check_stored(path: Path, claimed_bytes: int, stored_bytes: int) -> None:
    """For uncompressed pixels: the file must hold the bytes that the header claims."""
    if stored_bytes < claimed_bytes:
        raise InputError(
            path,
            f"the header claims {claimed_bytes} bytes of pixels, the file holds {max(stored_bytes, 0)}",
            "The file is truncated or damaged: copy or export it again.",
        )


def check_inflated(path: Path, inflated_bytes: int, stored_bytes: int) -> None:
    """For compressed content: refuses more bytes than the limit, and a ratio that no real image reaches."""
    bounds = limits()
    if inflated_bytes > bounds.inflated_bytes:
        raise InputError(
            path,
            f"inflates to {inflated_bytes:.3g} bytes or more, above the limit of {bounds.inflated_bytes:.3g}",
            "Raise LEXITOME_MAX_INFLATED_BYTES if the file is trusted.",
        )
    if inflated_bytes > FREE_BYTES and inflated_bytes > bounds.inflation * max(stored_bytes, 1):
        raise InputError(
            path,
            f"inflates {inflated_bytes // max(stored_bytes, 1)}:1 or more, which no image does",
            "The file looks like a decompression bomb; raise LEXITOME_MAX_INFLATION if it is trusted.",
        )


def inflated_size(path: Path, file: BinaryIO, *, wbits: int, stored_bytes: int, stop_after: int | None = None) -> int:
    """Counts the bytes a zlib stream (from the file's position) inflates to, holding a few chunks at a time.

    Stops once more than `stop_after` bytes came out. Raises InputError past a limit or where the stream is damaged.
    """
    inflater, total = zlib.decompressobj(wbits), 0
    while not inflater.eof:
        chunk = inflater.unconsumed_tail or file.read(CHUNK)
        try:
            inflated = inflater.decompress(chunk, CHUNK)
        except zlib.error as error:
            raise InputError(path, "the compressed data are damaged", "Copy or export the file again.") from error
        if not chunk and not inflated:
            raise InputError(path, "the compressed data end early", "The file is truncated: copy or export it again.")
        total += len(inflated)
        check_inflated(path, total, stored_bytes)
        if stop_after is not None and total > stop_after:
            break
    return total

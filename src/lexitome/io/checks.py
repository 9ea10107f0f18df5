"""What all readers share: turning library failures into one clear line, choosing a frame, the last look at values."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.volume import Volume

DAMAGED = "The file is damaged or not what its name says: copy or export it again."

_CHATTY_LOGGERS = ("pydicom", "nibabel", "nibabel.global", "PIL")
_STANDARD_ERROR = 2
_one_at_a_time = threading.Lock()


@contextmanager
def refusing(path: Path, action: str) -> Iterator[None]:
    """Runs library code on untrusted bytes: silent, and every failure becomes an InputError about `path`.

    A decoder fed damaged bytes raises whatever its first broken assumption leads to (KeyError, struct.error,
    RuntimeError, ...), hence the broad except. Library messages are dropped, since they may quote the file's header.

    Args:
        path: the file the user named.
        action: what was being done, e.g. "reading the NIfTI header".
    """
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(path, f"{action} needs more memory than there is", "Crop or resample the image.") from error
    except OSError as error:
        raise InputError(path, f"{action} failed ({error.strerror or 'unreadable data'})", DAMAGED) from error
    except Exception as error:
        raise InputError(path, f"{action} failed ({type(error).__name__})", DAMAGED) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def native_silence() -> Iterator[None]:
    """Sends the process's standard error nowhere while C libraries (libtiff, ITK, GDCM) decode: they print about
    damaged files there, past Python. Other threads' messages are lost meanwhile, so keep the block short."""
    with _one_at_a_time:
        kept = os.dup(_STANDARD_ERROR)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, _STANDARD_ERROR)
            yield
        finally:
            os.dup2(kept, _STANDARD_ERROR)
            os.close(nowhere)
            os.close(kept)


def pick_frame(path: Path, frame: int | None, count: int, what: str) -> int:
    """The 0-based index of the 1-based `frame`; an image with one frame needs no choice.

    Args:
        what: the plural of what there is `count` of, e.g. "pages".
    """
    if count == 1 and frame in (None, 1):
        return 0
    choice = f"Choose one with --frame 1 to --frame {count}." if count > 1 else "Leave --frame out."
    if frame is None:
        raise InputError(path, f"holds {count} {what}", choice)
    if not 1 <= frame <= count:
        raise InputError(path, f"has no frame {frame} (it holds {count} {what})", choice)
    return frame - 1


def settle_dtype(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Native byte order; 8- and 16-bit integers as they are, wider ones as int16, uint16 or int32 if that holds them.

    Floats become float32, which keeps seven digits; integers too large for int32 become float64, which keeps 15.
    """
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what exceeds float32 becomes infinite, and `settle_values` reports it
            return array.astype(np.float32, copy=False)
    if array.dtype.itemsize <= 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    low, high = int(array.min()), int(array.max())
    for candidate in (np.int16, np.uint16, np.int32):
        bounds = np.iinfo(candidate)
        if bounds.min <= low and high <= bounds.max:
            return array.astype(candidate, copy=False)
    return array.astype(np.float64)


def rescale(array: NDArray[np.generic], slope: float, intercept: float) -> NDArray[np.generic]:
    """`array * slope + intercept`; whole numbers stay whole (int32 where they fit), else float32."""
    if slope == 1 and intercept == 0:
        return array
    if array.dtype.kind in "iub" and float(slope).is_integer() and float(intercept).is_integer():
        bounds = np.iinfo(np.int32)
        ends = [int(array.min()) * slope + intercept, int(array.max()) * slope + intercept]
        if bounds.min <= min(ends) and max(ends) <= bounds.max:
            return array.astype(np.int64) * int(slope) + int(intercept)
    with np.errstate(over="ignore", invalid="ignore"):
        return (array.astype(np.float64) * slope + intercept).astype(np.float32)


def settle_values(path: Path, volume: Volume) -> Volume:
    """Replaces values that are not numbers, and notes an image that shows nothing."""
    array, notes = volume.array, []
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        finite = np.isfinite(array)
        if not finite.any():
            raise InputError(path, "no pixel holds a finite number", "Export the image again.")
        low, high = float(array[finite].min()), float(array[finite].max())
        notes.append(
            f"{int((~finite).sum())} values were not finite: NaN and -infinity became the smallest finite value "
            f"({low:g}), +infinity the largest ({high:g})"
        )
        array = np.nan_to_num(array, nan=low, neginf=low, posinf=high)
    if array.min() == array.max():
        notes.append(f"every pixel has the same value ({array.flat[0]:g}): there is nothing to see in this image")
    return replace(volume, array=array, fixes=(*volume.fixes, *notes))

"""A file that one process holds at a time. The system lets go of it when its holder ends, however it ends: a lock that
is left behind by a killed process holds nobody up."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lexitome.errors import InputError

_PAUSE = 0.2
_FAR = 1 << 30
"""Windows locks bytes against reading, too: not those that hold the number of the process."""


class Held(Exception):
    """Another process holds the lock: `holder` says which, as far as the file tells."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(holder)


@contextmanager
def holding(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which has the number of this process in it and vanishes afterwards.

    On a file system that knows no locks nothing is held, and nobody is held up.

    Args:
        wait: for whoever holds it.
    Raises:
        Held: another process does, and `wait` is False.
        InputError: the file cannot be made.
    """
    descriptor = _open(path, wait)
    try:
        with suppress(OSError):  # a full disk: the lock counts, the number is for the reader
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        if sys.platform == "win32":  # which removes no open files
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
        else:
            with suppress(OSError):
                path.unlink()  # while it is held: a newcomer finds it locked, or another one
            os.close(descriptor)


def _open(path: Path, wait: bool) -> int:
    """Descriptor of the locked file that has the name `path` now: its last holder may have removed another one."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            remedy = "Choose another place or free some space."
            raise InputError(path, f"cannot be written ({error.strerror or error})", remedy) from error
        taken = _take(descriptor)
        if taken and _is_same(descriptor, path):
            return descriptor
        os.close(descriptor)
        if not taken and not wait:
            raise Held(_holder(path))
        time.sleep(0 if taken else _PAUSE)


def _take(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # not known there
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        number = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        number = ""
    return f"process {number}" if number.isdigit() else "another process"

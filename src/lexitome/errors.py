"""The errors that a user is meant to read: which file, what is wrong with it, what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """Input that cannot be used as it is.

    Printed as one line, ``PATH: CAUSE. REMEDY``; the command line turns it into exit code 2.
    """

    def __init__(self, path: str | Path, cause: str, remedy: str) -> None:
        self.path = str(path)
        self.cause = cause.rstrip(".")
        self.remedy = remedy
        super().__init__(" ".join(f"{self.path}: {self.cause}. {self.remedy}".split()))


class Interrupted(InputError):
    """Work that a signal ended early and that can be continued: the message says how, the exit code is 128 + number."""

    def __init__(self, path: str | Path, cause: str, remedy: str, number: int) -> None:
        super().__init__(path, cause, remedy)
        self.number = number


def some(names: Iterable[str], most: int = 10) -> str:
    """The first ten of many names, for a message."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more

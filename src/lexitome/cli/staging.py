"""Results appear whole or not at all: they are written to a hidden folder and moved when all of them are there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from lexitome.errors import InputError

REPORT = "report.json"
"""Moved last and removed first: a folder that holds it holds all that it lists."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `folder`; what is in it moves to `folder` when the block ends without an error.

    Being inside keeps it on the same file system, so that moving is renaming. After an error or Ctrl-C nothing is
    left, not even the folders that had to be made.

    Raises:
        InputError: the folder cannot be made or written.
    """
    made: list[Path] = []
    staging: Path | None = None
    try:
        made = _make_folders(folder)
        staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        yield staging
        _publish(staging, folder)
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        raise InputError(folder, cause, "Choose another folder with -o, or free some space.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # not empty: the results are there
                path.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` and its missing parents; returns what was made, deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _publish(staging: Path, folder: Path) -> None:
    (folder / REPORT).unlink(missing_ok=True)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == REPORT):
        os.replace(path, folder / path.name)


def finished(folder: Path, request: Mapping[str, object]) -> bool:
    """Whether `folder` holds all results of the same request, by its report; an interrupted run has no report.

    Raises:
        InputError: it holds the results of another request, which must not be overwritten.
    """
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        earlier, files = report["request"], [folder / name for name in report["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not all(path.exists() for path in files):
        return False
    if earlier != json.loads(json.dumps(request)):
        raise InputError(
            folder, "holds the results of another request or model", "Choose another -o, or drop --no-overwrite."
        )
    return True

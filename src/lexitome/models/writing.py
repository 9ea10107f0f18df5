"""Models to disk, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lexitome.errors import InputError
from lexitome.models.reading import SIDECAR


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_place(folder: Path) -> None:
    """A folder that is no model of ours is never replaced.

    Raises:
        InputError: it would be.
    """
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / SIDECAR).is_file())):
        raise InputError(folder, "holds something other than a model", "Choose another folder.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error; what was there
    is removed last. Mapped tensors of an old file stay readable.

    Raises:
        InputError: it cannot be written; what was there is as it was.
    """
    fresh, old = (path.with_name(f".{path.name}.{secrets.token_hex(6)}.{kind}") for kind in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        if path.is_dir():
            os.replace(path, old)
        os.replace(fresh, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        if old.exists() and not path.exists():
            os.replace(old, path)
        cause = f"cannot be written ({getattr(error, 'strerror', None) or str(error).splitlines()[0][:120]})"
        raise InputError(path, cause, "Free some space or choose another place.") from error
    finally:
        fresh.unlink(missing_ok=True) if fresh.is_file() else shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

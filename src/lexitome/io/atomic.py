"""Files appear under their final name only when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lexitome.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder with the same ending; on success it takes the name `path`.

    Raises:
        InputError: the file system or the encoder refused to write; nothing is left behind.
    """
    temporary = path.with_name(f".{secrets.token_hex(6)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except InputError:
        raise
    except OSError as error:
        cause = error.strerror or str(error)
        raise InputError(path, f"cannot be written ({cause})", "Choose another place or free some space.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()

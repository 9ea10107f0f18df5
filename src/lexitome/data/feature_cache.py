"""What is computed once and kept on disk: what a text encoder says of words, and hashes of gigabytes of weights.

A cache never decides whether work can be done: a folder that cannot be written or a damaged file only costs time.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.io.atomic import replacing


def user_cache() -> Path:
    """Where a user's programs keep what can be computed again (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lexitome"


def kept_hash(files: Sequence[Path], compute: Callable[[], str], folder: Path) -> str:
    """SHA-256 of files, computed again only if the path, size or time of change of one is another."""
    told = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    kept = folder / hashlib.sha256("\n".join(told).encode()).hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        found = kept.read_text(encoding="ascii")
        if re.fullmatch("[0-9a-f]{64}", found):
            return found
    computed = compute()
    with suppress(InputError), replacing(kept) as temporary:
        temporary.write_text(computed, encoding="ascii")
    return computed


@dataclass(frozen=True)
class FeatureCache:
    folder: Path

    def get(self, key: Sequence[str]) -> NDArray[np.float32] | None:
        try:
            with np.load(self._file(key), allow_pickle=False) as stored:
                found = stored["features"]
                return found.astype(np.float32) if np.isfinite(found).all() else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, key: Sequence[str], features: NDArray[np.float32]) -> None:
        with suppress(InputError), replacing(self._file(key)) as path, path.open("wb") as file:
            np.savez(file, features=features)

    def _file(self, key: Sequence[str]) -> Path:
        """Parts of a key cannot run into each other."""
        joined = "".join(f"{len(part)}:{part}" for part in key)
        return self.folder / f"{hashlib.sha256(joined.encode()).hexdigest()}.npz"

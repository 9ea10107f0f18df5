"""From prompts as typed to file names that every file system takes."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

MAX_BYTES = 120
"""UTF-8 bytes of a stem: leaves room below the usual limit of 255 for extensions and temporary names."""

_RESERVED_BY_WINDOWS = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{device}{digit}" for device in ("com", "lpt") for digit in "0123456789¹²³"
}
_RESERVED_BY_US = {"preview", "statistics", "report", "labels", "segmentation", "rtstruct"}
"""Names of the files that stand beside the masks."""

_UNSAFE = re.compile(r'[<>:"/\\|?*]')


def file_stems(names: Iterable[str]) -> list[str]:
    """One file stem for each name, in order, all different (also where upper and lower case are the same).

    Lower case, runs of spaces as ``_``, letters of every script kept; separators, wildcards and control characters
    become ``_``, so that no stem can leave its folder.
    """
    taken: set[str] = set()
    stems = []
    for name in names:
        base = _safe(name)
        stem, number = base, 1
        while _key(stem) in taken:
            number += 1
            stem = f"{base}_{number}"
        taken.add(_key(stem))
        stems.append(stem)
    return stems


def _safe(name: str) -> str:
    text = unicodedata.normalize("NFC", name).strip().lower()
    text = re.sub(r"\s+", "_", text)
    # "C" covers control, format (bidirectional overrides), surrogate and unassigned characters.
    text = "".join("_" if unicodedata.category(char).startswith("C") else char for char in text)
    text = _UNSAFE.sub("_", text).strip(".")
    if not text:
        return "finding"
    if len(text.encode()) > MAX_BYTES:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        text = text.encode()[: MAX_BYTES - 9].decode(errors="ignore") + "-" + digest
    if text.split(".")[0].rstrip("_ ") in _RESERVED_BY_WINDOWS or text in _RESERVED_BY_US:
        return f"mask_{text}"
    return text


def _key(stem: str) -> str:
    return unicodedata.normalize("NFKC", stem).casefold()

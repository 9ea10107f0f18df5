"""What was measured so far, on disk, so that an interrupted evaluation continues where it was.

One JSONL file for each dataset: the identity of the run, then one line for each case, written when the case is done.
A line that was cut short does not count.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lexitome.errors import InputError
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import plain
from lexitome.io.atomic import replacing


@dataclass(frozen=True)
class Done:
    """What became of a case: its rows, or the reason why it could not be read."""

    rows: tuple[ResultRow, ...] = ()
    unreadable: str = ""


class Journal:
    """The finished cases of one dataset. Threads may add to it.

    Args:
        asked: what the user asked for. A journal of another request is not touched.
        given: what else decides the numbers: weights, images, program. If that has changed, all is measured again.

    Raises:
        InputError: the file holds another request.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self._path, self._lock = path, threading.Lock()
        self._done: dict[str, Done] = {}
        self._identity = plain({"asked": asked, "given": given})
        self.changed: tuple[str, ...] = ()
        """What has changed since the file was written, so that all is measured again."""
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        before = _object(lines[0]) if lines else {}
        if before == self._identity:
            for line in lines[1:]:
                self._recall(_object(line))
            return
        if before:
            self._refuse_another(before)
            self.changed = _differences(before.get("given"), self._identity["given"])
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self._identity) + "\n", encoding="utf-8")

    def _refuse_another(self, before: Mapping[str, Any]) -> None:
        other = _differences(before.get("asked"), self._identity["asked"])
        if other:
            cause = f"holds a run with another {' and '.join(other)}"
            raise InputError(self._path.parent.parent, cause, "Choose another folder with -o, or delete this one.")

    def _recall(self, entry: Mapping[str, Any]) -> None:
        try:
            rows = tuple(ResultRow(**row) for row in entry["rows"])
            self._done[entry["case"]] = Done(rows, entry["unreadable"])
        except (KeyError, TypeError):
            return  # cut short by an interruption: the case is asked again

    @property
    def done(self) -> Mapping[str, Done]:
        """By the stem of the case."""
        return self._done

    def add(self, case: str, done: Done) -> None:
        entry = {"case": case, "rows": [asdict(row) for row in done.rows], "unreadable": done.unreadable}
        line = json.dumps(plain(entry)) + "\n"
        with self._lock:
            with self._path.open("r+b") as file:
                file.seek(0, 2)
                if file.tell() and not _ends_whole(file.tell(), self._path):
                    file.write(b"\n")
                file.write(line.encode())
            self._recall(_object(line))  # as it will be read: a continued run has the very same rows


def _ends_whole(size: int, path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _object(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _differences(before: object, now: Mapping[str, Any]) -> tuple[str, ...]:
    known: Sequence[str] = tuple(now)
    old = before if isinstance(before, dict) else {}
    return tuple(key for key in dict.fromkeys((*old, *known)) if old.get(key) != now.get(key))

"""The folder that `lexitome evaluate -o RUN` leaves, to read and to write.

run.json         what was run: command, model, data, protocols, seed, settings, versions, times, problems
rows.csv         one row for each (case, concept, protocol), see `evaluation.rows`
ledger/          what is measured so far, see `evaluation.journal`
leakage.json     pictures of the test set that the model was trained on
summary.json     means, intervals, counts
masks/PROTOCOL/  with --save-masks, as `--predictions` reads them
overlays/        pictures of the worst, median and best answers, listed in overlays.json (`report.overlays`)
report.html, report.md, figures/
baselines/NAME/  run folders of the baselines that were asked the same questions
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lexitome.errors import InputError
from lexitome.evaluation.rows import ResultRow, read_csv, to_csv
from lexitome.io.atomic import replacing

INFO, ROWS, LEAKAGE, SUMMARY = "run.json", "rows.csv", "leakage.json", "summary.json"
LEDGER, MASKS, BASELINE_RUNS = "ledger", "masks", "baselines"
_MAKE_ONE = "Make one with lexitome evaluate -o RUN."


@dataclass(frozen=True, eq=False)
class Run:
    """A finished evaluation of one model."""

    path: Path
    info: Mapping[str, Any]
    rows: list[ResultRow]

    @staticmethod
    def load(path: str | Path) -> Run:
        """
        Raises:
            InputError: no such folder, not a run, or one that was interrupted.
        """
        folder = Path(path)
        if not folder.is_dir():
            cause = "is not a folder" if folder.exists() else "there is no such folder"
            raise InputError(folder, cause, _MAKE_ONE)
        if not (folder / INFO).is_file():
            raise InputError(folder, f"holds no {INFO}: it is not the folder of an evaluation", _MAKE_ONE)
        info = read_object(folder / INFO)
        if not (folder / ROWS).is_file() or not info.get("finished"):
            raise InputError(folder, "was interrupted before its end", "Type the same command again to finish it.")
        return Run(folder, info, read_csv(folder / ROWS))

    @property
    def name(self) -> str:
        """Of the model; the folder's where it says none."""
        return str(self.info.get("model", {}).get("name") or self.path.name)

    @property
    def leakage(self) -> Mapping[str, Any] | None:
        """None where nobody looked."""
        return read_object(self.path / LEAKAGE) if (self.path / LEAKAGE).is_file() else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: unreadable or something else.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check its permissions.") from error
    except ValueError as error:
        raise InputError(path, f"is not JSON ({error})", _MAKE_ONE) from error
    if not isinstance(entry, dict):
        raise InputError(path, "is not a JSON object", _MAKE_ONE)
    return entry


def write_json(path: Path, value: object) -> None:
    """Anything made of dataclasses, mappings, sequences, paths and numbers, NumPy's too; what is not a finite number
    becomes null. Atomic."""
    with replacing(Path(path)) as temporary:
        text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_rows(folder: Path, rows: Sequence[ResultRow]) -> None:
    with replacing(folder / ROWS) as temporary:
        temporary.write_text(to_csv(rows), encoding="utf-8")


def plain(value: object) -> Any:
    """`value` in the types that JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no form in JSON")

"""What every result file says of where it comes from: command, machine, versions, and the hash of the data."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from speed import processor

from lexitome.data.dataset import Dataset
from lexitome.data.splits import write_splits
from lexitome.errors import InputError
from lexitome.io.atomic import replacing

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "train"
RESULTS = Path(__file__).parent / "results"
Entry = dict[str, Any]


def origin(packages: Iterable[str], datasets: Iterable[Dataset], *, seed: int, threads: int) -> Entry:
    """The part of a result that says how to get it again.

    Args:
        packages: distributions whose versions matter, besides Python and lexitome.
        datasets: whose files were read.
    """
    return {
        "command": command_line(sys.argv),
        "seed": seed,
        "data": {dataset.name: data_hash(dataset) for dataset in datasets},
        "machine": {
            "processor": processor(), "cores": os.cpu_count(), "threads": threads, "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("lexitome", *packages)}},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _version(name: str) -> str:
    """Of a distribution; some are needed for a part of a benchmark only."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def command_line(arguments: list[str]) -> str:
    """As it would be typed in the root of the repository; of paths elsewhere only the last part is told."""
    script, *rest = arguments
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *map(shown, rest)])


def shown(argument: str) -> str:
    if not os.path.isabs(argument):
        return argument
    path = Path(argument)
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT.parent) else path.name


def data_hash(dataset: Dataset) -> str:
    """First 16 characters of the SHA-256 over all files and over who is in which part (`data.splits`)."""
    with tempfile.TemporaryDirectory() as folder:
        return write_splits(dataset, Path(folder) / "splits.json").sha256[:16]


def claim(work: Path, wanted: Mapping[str, Any], *, growing: Mapping[str, Any] | None = None) -> None:
    """Note in a work folder what all its parts are made with, `settings.json`.

    Args:
        growing: of which more may be noted at another time; what is known already must be the same.

    Raises:
        InputError: it was begun with others.
    """
    place = work / "settings.json"
    wanted, more = json.loads(json.dumps([wanted, growing or {}]))
    held = read_json(place) if place.exists() else wanted
    differ = [key for key in wanted if held.get(key) != wanted[key]]
    differ += [key for key in more if held.get(key, more[key]) != more[key]]
    if differ:
        cause = f"was begun with other settings ({', '.join(differ)})"
        raise InputError(work, cause, "Name another folder with --work, or delete this one.")
    write_json(place, held | more)


def read_json(path: Path) -> Entry:
    entry: Entry = json.loads(path.read_text(encoding="utf-8"))
    return entry


def write_json(path: Path, entry: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(entry, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def rounded(value: Any, digits: int = 4) -> Any:
    """Every float within lists and dicts, rounded."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list | tuple) else value

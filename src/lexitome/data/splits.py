"""Training, validation and test parts: by subject, seeded, and stored with the hash of every file.

A stored split answers the question of a resumed run: are these still the images that I was trained on?
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from lexitome.data.dataset import Dataset
from lexitome.errors import InputError
from lexitome.io.atomic import replacing

FORMAT = 1
_SHOWN = 3


def split_units(dataset: str, units: list[str], seed: int) -> dict[str, str]:
    """Assign whole subjects to train, val or test, 70 / 10 / 20 by count, in the order of a seeded SHA-256.

    With fewer than three subjects everything is "train". Stems that begin with ``valid_`` are the publisher's test
    part.
    """
    if any(unit.startswith("valid_") for unit in units):
        rest = split_units(dataset, [u for u in units if not u.startswith("valid_")], seed)
        kept = {unit: "train" if split == "test" else split for unit, split in rest.items()}
        return kept | {u: "test" for u in units if u.startswith("valid_")}
    order = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}:{dataset}:{unit}".encode()).hexdigest())
    if len(order) < 3:
        return dict.fromkeys(order, "train")
    n_test, n_val = max(1, round(0.2 * len(order))), max(1, round(0.1 * len(order)))
    return {unit: "test" if i < n_test else "val" if i < n_test + n_val else "train" for i, unit in enumerate(order)}


def assign_splits(
    dataset: str, units: Mapping[str, str], seed: int, published: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The split of every case.

    Args:
        units: stem to unit.
        published: stem to the part that the publisher put it in. Parts are honoured; where validation is missing it is
            taken from the training part, and "train" alone says nothing.
    """
    published = published or {}
    parts = set(published.values())
    if "val" in parts:
        return {stem: published.get(stem, "train") for stem in units}
    if "test" not in parts:
        split_of = split_units(dataset, sorted(set(units.values())), seed)
        return {stem: split_of[unit] for stem, unit in units.items()}
    rest = {stem: unit for stem, unit in units.items() if published.get(stem) != "test"}
    split_of = split_units(dataset, sorted(set(rest.values())), seed)
    return {stem: "test" if stem not in rest else "val" if split_of[rest[stem]] == "val" else "train" for stem in units}


@dataclass(frozen=True)
class FileState:
    """Size and time only save hashing again a file that was not touched; the hash alone identifies."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class StoredSplits:
    """Stem to (unit, split), and the files below the root of the dataset (POSIX paths) as they were."""

    dataset: str
    cases: dict[str, tuple[str, str]]
    files: dict[str, FileState]

    @cached_property
    def sha256(self) -> str:
        """Of all contents and of who is in which part; not of file times."""
        contents = {name: state.sha256 for name, state in self.files.items()}
        text = json.dumps([self.dataset, self.cases, contents], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def write_splits(dataset: Dataset, path: Path) -> StoredSplits:
    """Hash every file of `dataset` and store who is in which part; written atomically.

    Raises:
        InputError: a file of the dataset cannot be read, or `path` cannot be written.
    """
    files = {name: _state(file) for name, file in _files(dataset).items()}
    stored = StoredSplits(dataset.name, {case.stem: (case.unit, case.split) for case in dataset.cases}, files)
    text = json.dumps({"format": FORMAT, "sha256": stored.sha256, **asdict(stored)}, indent=1)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return stored


def read_splits(path: Path) -> StoredSplits:
    """What `write_splits` stored.

    Raises:
        InputError: no such file, not one of ours, or edited since it was written.
    """
    remedy = "Delete it to split again, and train from the start."
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        cases = {stem: (unit, split) for stem, (unit, split) in entry["cases"].items()}
        files = {name: FileState(**state) for name, state in entry["files"].items()}
        stored, expected = StoredSplits(entry["dataset"], cases, files), entry["sha256"]
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check the name.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(path, "is not a stored split", remedy) from error
    if stored.sha256 != expected:
        raise InputError(path, "was edited: its content does not have its hash", remedy)
    return stored


def resume_splits(dataset: Dataset, path: Path) -> Dataset:
    """`dataset` with the units and parts that were stored at `path`.

    Raises:
        InputError: files were changed, removed or added since; says which.
    """
    stored = read_splits(path)
    found = changes(dataset, stored)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        cause = f"the data are not those that were split ({'; '.join(found[:_SHOWN])}{more})"
        raise InputError(dataset.root, cause, f"Restore them, or delete {path.name} and train from the start.")
    cases = tuple(
        replace(case, unit=stored.cases[case.stem][0], split=stored.cases[case.stem][1]) for case in dataset.cases
    )
    return replace(dataset, cases=cases)


def changes(dataset: Dataset, stored: StoredSplits) -> list[str]:
    """What differs from the stored state, a few words each; [] if nothing does."""
    now = _files(dataset)
    found = [f"{name} has vanished" for name in stored.files if name not in now or not now[name].exists()]
    found += [f"{name} is new" for name in now if name not in stored.files]
    for name, before in stored.files.items():
        if name in now and now[name].exists():
            state = now[name].stat()
            if (state.st_size, state.st_mtime_ns) == (before.size, before.mtime_ns):
                continue
            if _state(now[name]).sha256 != before.sha256:
                found.append(f"{name} has changed")
    stems = {case.stem for case in dataset.cases}
    found += [f"case {stem} has vanished" for stem in stored.cases if stem not in stems]
    return found + [f"case {stem} is new" for stem in sorted(stems - set(stored.cases))]


def _files(dataset: Dataset) -> dict[str, Path]:
    root = dataset.root
    paths = dict.fromkeys(path for case in dataset.cases for path in case.files)
    return {Path(os.path.relpath(path, root)).as_posix(): path for path in paths}


def _state(path: Path) -> FileState:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        status = path.stat()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check the file.") from error
    return FileState(digest, status.st_size, status.st_mtime_ns)

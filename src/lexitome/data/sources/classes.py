"""Images with a class each: one folder for each class, or `labels.csv` where an image may have several.

    <set>/<class>/<image>               as most classification sets come; names may begin with the part that the
    <set>/<class>/train__<image>        publisher put them in: `train__`, `val__` or `test__`
    <set>/labels.csv                    file, optionally patient and split, and then either `label` (names with |
                                        between them, nothing for none) or one column of 0 and 1 for each class

An image is anything that `io.read` reads, volumes included, or `.npz` with an array `voxel` (Z, Y, X). `dataset.json`
may give title, modality, anatomy, license. Subjects are told from names as in segmentation sets (`data.units`).
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome import io
from lexitome.data.dataset import SPLITS, UNKNOWN_CODE, Case, Dataset, Finding, Grid, Target, family_of
from lexitome.data.sources.folder import read_json
from lexitome.data.splits import assign_splits
from lexitome.data.units import Units, find_units
from lexitome.errors import InputError
from lexitome.io.checks import settle_dtype, settle_values
from lexitome.io.formats import suffix_of
from lexitome.volume import PIXEL_AFFINE, Volume

LABELS = "labels.csv"
_VOXELS = ".npz"
_PUBLISHED = re.compile(rf"^({'|'.join(SPLITS)})__")
_FILE, _PATIENT, _SPLIT, _LABEL = "file", "patient", "split", "label"
_TRUTH = {"1": True, "1.0": True, "0": False, "0.0": False, "": False}

# Names of these tell a unit that no rule would find: of turned and mirrored copies of one picture the first number is
# that of the picture; numbers that were given anew in each class and part tell nothing.
_UNIT_PATTERNS = {"bccd_wbc_types": r"^.+__(?:\d+(?=_)|.+)", "brain_tumor_mri": r"^.+"}


@dataclass(frozen=True)
class Picture:
    """The `Content` of a case without outlines: nobody judged any pixel of it."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def volume(self) -> Volume:
        return _voxels(self.path) if self.path.suffix == _VOXELS else io.read(self.path)

    def codes(self, grid: Grid) -> NDArray[np.uint8]:
        return np.full(grid, UNKNOWN_CODE, np.uint8)

    def instances(self, grid: Grid, target: Target | None) -> NDArray[np.uint16] | None:
        return None


@dataclass(frozen=True)
class ClassifiedSet:
    """
    Args:
        dataset: the images, by subject in parts; without targets.
        classes: names, in the order of columns.
        labels: stem of a case to the classes it has, as indices.
        exclusive: whether every image has exactly one class.
    """

    dataset: Dataset
    classes: tuple[str, ...]
    labels: Mapping[str, tuple[int, ...]]
    exclusive: bool

    def truth(self, stems: list[str]) -> NDArray[np.bool_]:
        """(cases, classes) which of them each case has."""
        found = np.zeros((len(stems), len(self.classes)), bool)
        for row, stem in enumerate(stems):
            found[row, list(self.labels[stem])] = True
        return found


def is_classified(root: Path) -> bool:
    """Whether a folder looks like one of these sets; outlines (`masks/`, `labelsTr/`) make it another kind."""
    if (root / LABELS).is_file():
        return True
    if any((root / name).is_dir() for name in ("masks", "labelsTr", "imagesTr")):
        return False
    return sum(1 for _ in _class_folders(root)) > 1


def load_classified(root: Path, *, seed: int = 0, unit_pattern: str | None = None) -> ClassifiedSet:
    """Read one folder; parts that the publisher gave are honoured, see `splits.assign_splits`.

    Args:
        unit_pattern: regular expression whose first group (or whole match) in `<class>/<name>`, or in the name that
            `labels.csv` gives, is the subject.

    Raises:
        InputError: there are no images, fewer than two classes, or the table cannot be understood.
    """
    root = root.resolve()
    listed = (root / LABELS).is_file()
    entries, classes = _from_table(root / LABELS) if listed else _from_folders(root)
    if len(classes) < 2 and not listed:
        raise InputError(root, "has fewer than two classes", f"Make one folder for each class, or write {LABELS}.")
    meta = read_json(root / "dataset.json") if (root / "dataset.json").is_file() else {}
    units, finding = _units(root.name, entries, unit_pattern)
    published = {stem: entry.split for stem, entry in entries.items() if entry.split}
    split_of = assign_splits(root.name, units, seed, published)
    cases = tuple(Case(stem, units[stem], split_of[stem], Picture(entry.path)) for stem, entry in entries.items())
    modality = str(meta.get("modality", ""))
    dataset = Dataset(
        name=root.name, root=root, title=str(meta.get("title", root.name)), modality=modality,
        family=family_of(modality), anatomy=str(meta.get("anatomy", "")), dims=_dims(cases),
        licence=str(meta.get("license", "unstated")), source=str(meta.get("original_source", "")), window=None,
        applied_window=None, targets=(), cases=cases, form="classes", findings=(finding, *_shared(cases)),
    )  # fmt: skip
    labels = {stem: tuple(classes.index(name) for name in entry.labels) for stem, entry in entries.items()}
    return ClassifiedSet(dataset, classes, labels, all(len(found) == 1 for found in labels.values()))


@dataclass(frozen=True)
class _Entry:
    path: Path
    labels: tuple[str, ...]
    split: str = ""
    patient: str = ""


def _class_folders(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise InputError(root, "is no folder", "Name a folder of classes.")
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and any(map(_is_image, folder.iterdir())):
            yield folder


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and (path.suffix == _VOXELS or bool(suffix_of(path.name)))


def _from_folders(root: Path) -> tuple[dict[str, _Entry], tuple[str, ...]]:
    entries: dict[str, _Entry] = {}
    classes = []
    for folder in _class_folders(root):
        classes.append(folder.name)
        for path in sorted(filter(_is_image, folder.iterdir())):
            part = _PUBLISHED.match(path.name)
            entry = _Entry(path, (folder.name,), part[1] if part else "")
            if entries.setdefault(f"{folder.name}/{_stem(path.name)}", entry) is not entry:
                raise InputError(path, "has the same name as another image but for its ending", "Rename one of them.")
    return entries, tuple(classes)


def _from_table(path: Path) -> tuple[dict[str, _Entry], tuple[str, ...]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(path, f"cannot be read as a table ({error})", "Save it as CSV in UTF-8.") from error
    if _FILE not in columns or not rows:
        raise InputError(path, f"has no column {_FILE!r} or no rows", f"Its first line: {_FILE},patient,split,label")
    named = [name for name in columns if name not in (_FILE, _PATIENT, _SPLIT)]
    told = [_labels_of(row, named, path) for row in rows]
    classes = tuple(sorted({name for some in told for name in some})) if named == [_LABEL] else tuple(named)
    entries = {}
    for row, labels in zip(rows, told, strict=True):
        image = path.parent / row[_FILE]
        if not image.resolve().is_relative_to(path.parent.resolve()) or not image.is_file():
            raise InputError(path, f"names {row[_FILE]!r}, which is not below its folder", "Correct the name.")
        split = (row.get(_SPLIT) or "").strip()
        if split not in ("", *SPLITS):
            raise InputError(path, f"has the split {split!r}", f"Write one of {', '.join(SPLITS)}, or nothing.")
        stem = _stem(row[_FILE])
        if stem in entries:
            raise InputError(path, f"names {row[_FILE]!r} twice", "Keep one of the lines.")
        entries[stem] = _Entry(image, labels, split, (row.get(_PATIENT) or "").strip())
    return entries, classes


def _labels_of(row: Mapping[str, str], named: list[str], path: Path) -> tuple[str, ...]:
    if named == [_LABEL]:
        return tuple(dict.fromkeys(name.strip() for name in (row[_LABEL] or "").split("|") if name.strip()))
    values = {name: (row[name] or "").strip() for name in named}
    wrong = next((name for name, value in values.items() if value not in _TRUTH), None)
    if wrong is not None:
        raise InputError(path, f"has {values[wrong]!r} in column {wrong!r}", "Write 0 or 1, or a column `label`.")
    return tuple(name for name, value in values.items() if _TRUTH[value])


def _units(name: str, entries: Mapping[str, _Entry], pattern: str | None) -> tuple[dict[str, str], Finding]:
    """Subjects of stems. A rule sees names without class and part: a patient may have images of several classes."""
    patients = {stem: entry.patient for stem, entry in entries.items() if entry.patient}
    if len(patients) == len(entries) and pattern is None:
        count = len(set(patients.values()))
        cause = f"the column `patient` tells {count} subjects in {len(patients)} images"
        return patients, Finding("hint", "subjects", cause, "Nothing to do.")
    pattern = pattern or _UNIT_PATTERNS.get(name)
    if pattern is not None:
        found = find_units(list(entries), pattern)
        return found.of, found.finding
    bare = {stem: _PUBLISHED.sub("", stem.rpartition("/")[2]) for stem in entries}
    told: Units = find_units(sorted(set(bare.values())))
    return {stem: told.of[short] for stem, short in bare.items()}, told.finding


def _shared(cases: tuple[Case, ...]) -> Iterator[Finding]:
    """Subjects that the publisher put into the test part and into another one."""
    parts: dict[str, set[str]] = {}
    for case in cases:
        parts.setdefault(case.unit, set()).add("test" if case.split == "test" else "rest")
    both = tuple(sorted(unit for unit, found in parts.items() if len(found) > 1))
    if both:
        cause = f"{len(both)} subjects are in the test part and in another one, as published"
        remedy = "Scores are too good if these are the same subjects; --unit-pattern tells them apart if they are not."
        yield Finding("warning", "subjects", cause, remedy, both)


def _stem(name: str) -> str:
    """Of a file name or a path, without the ending, ".nii.gz" in one piece."""
    ending = suffix_of(name) or Path(name).suffix
    return name[: -len(ending)] if ending else name


def _dims(cases: tuple[Case, ...]) -> int:
    flat = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
    return 2 if all(case.image.suffix.lower() in flat for case in cases) else 3


def _voxels(path: Path) -> Volume:
    try:
        with np.load(path, allow_pickle=False) as stored:
            voxels = stored["voxel"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(path, f"holds no array `voxel` ({error})", "Save one with numpy.savez.") from error
    if voxels.ndim != 3:
        raise InputError(path, f"its `voxel` has {voxels.ndim} axes", "Give (Z, Y, X).")
    return settle_values(path, Volume(settle_dtype(voxels[None]), PIXEL_AFFINE, spacing_known=False))

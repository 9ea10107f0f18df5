"""A Hugging Face `datasets` folder: `save_to_disk`, Parquet, or an image folder with metadata; needs that package.

One column holds images, one label maps (as images or nested lists). Label names come from a ClassLabel column, from
`id2label.json` beside the data, or, for masks of one thing, from the caller.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome import io
from lexitome.data.dataset import MOST_CODES, UNKNOWN_FAMILY, Case, Dataset, Finding, Grid, Target
from lexitome.data.sources.folder import read_json
from lexitome.data.sources.label_maps import read_label_map, to_binary, to_labels
from lexitome.data.splits import assign_splits
from lexitome.data.targets import BACKGROUND, named_targets
from lexitome.data.units import Units, find_units
from lexitome.errors import InputError
from lexitome.io.formats import suffix_of
from lexitome.volume import Volume

IMAGE_COLUMNS = ("image", "images", "img", "picture", "pixel_values")
MASK_COLUMNS = (
    "mask",
    "masks",
    "label_map",
    "segmentation_mask",
    "segmentation",
    "annotation",
    "gt",
    "label",
    "labels",
)
INSTANCE_COLUMNS = ("instances", "instance_map", "instance_mask")
UNIT_COLUMNS = ("patient_id", "patient", "subject_id", "subject", "case_id", "video_id", "video", "study_id", "study")
_PARTS = {"validation": "val", "valid": "val", "dev": "val", "val": "val", "test": "test", "train": "train"}
_INSTALL = "Install it: pip install datasets."


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are used."""

    image: str
    mask: str
    instances: str | None
    unit: str | None


@dataclass(frozen=True)
class TableRow:
    """Content of a case: a row of a table that is opened when it is read."""

    root: Path
    part: str
    index: int
    columns: Columns
    binary: bool
    files: tuple[Path, ...]

    @property
    def _place(self) -> Path:
        """What messages call the case."""
        return self.root / self.part / str(self.index)

    def _cell(self, column: str) -> Any:
        return open_tables(self.root)[self.part][self.index][column]

    def volume(self) -> Volume:
        with _as_file(self._place, self._cell(self.columns.image)) as path:
            return io.read(path)

    def codes(self, grid: Grid) -> NDArray[np.uint8]:
        values = self._map(self.columns.mask, grid)
        return to_binary(values) if self.binary else to_labels(self._place, values)

    def instances(self, grid: Grid, target: Target | None) -> NDArray[np.uint16] | None:
        if self.columns.instances is None:
            return None
        ids = self._map(self.columns.instances, grid).astype(np.uint16)
        return ids if target is None else np.where(np.isin(self.codes(grid), target.codes), ids, np.uint16(0))

    def _map(self, column: str, grid: Grid) -> NDArray[np.generic]:
        cell = self._cell(column)
        if cell is None:
            return np.zeros(grid, dtype=np.uint8)
        if isinstance(cell, Mapping):
            with _as_file(self._place, cell) as path:
                values = read_label_map(path)
        else:
            values = np.asarray(cell)
            values = values[None] if values.ndim == 2 else values
        if values.shape != grid:
            cause = f"mask grid {values.shape} differs from the image's {grid}"
            raise InputError(self._place, cause, "Resample the mask by nearest neighbour.")
        return values


@contextmanager
def _as_file(place: Path, cell: Mapping[str, Any] | None) -> Iterator[Path]:
    """The path of an undecoded image cell: its own file, or its bytes in a temporary one while the context lasts."""
    data, path = (cell.get("bytes"), cell.get("path")) if cell else (None, None)
    if data is None and path is None:
        raise InputError(place, "has no image", "Remove the row.")
    if data is None:
        yield Path(str(path))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("cell" + (suffix_of(str(path or "")) or ".png"))
        file.write_bytes(data)
        try:
            yield file
        except InputError as error:  # the temporary name would tell nobody anything
            raise InputError(place, error.cause, error.remedy) from error


def is_saved(root: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def is_table(root: Path) -> bool:
    """Whether the folder holds Parquet files or an image folder's metadata."""
    patterns = ("*.parquet", "*/*.parquet", "metadata.jsonl", "metadata.csv", "*/metadata.jsonl", "*/metadata.csv")
    return any(next(root.glob(pattern), None) is not None for pattern in patterns)


@lru_cache(maxsize=4)
def open_tables(root: Path) -> Mapping[str, Any]:
    """Part to table, images undecoded.

    Raises:
        InputError: the package is missing, or cannot read the folder.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(root, "is a Hugging Face dataset, which needs the package datasets", _INSTALL) from error
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        tables = datasets.load_from_disk(str(root)) if is_saved(root) else datasets.load_dataset(str(root))
    except Exception as error:  # of many libraries: Arrow, fsspec, the builders
        words = " ".join(str(error).split())[:200]
        remedy = "Check that datasets.load_dataset or load_from_disk opens it."
        raise InputError(root, f"cannot be opened as a Hugging Face dataset ({words})", remedy) from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    parts = tables if isinstance(tables, datasets.DatasetDict) else {"train": tables}
    opened = {}
    for part, table in parts.items():
        for name, feature in table.features.items():
            if _holds_files(feature):
                table = table.cast_column(name, datasets.Image(decode=False))
        opened[part] = table
    return opened


def _holds_files(feature: Any) -> bool:
    """Whether a column is images: declared so, or as the bare struct that Arrow stores."""
    fields = set(feature) if isinstance(feature, dict) else set()
    return type(feature).__name__ == "Image" or fields == {"bytes", "path"}


def load_huggingface(root: Path, *, seed: int = 0, concept: str = "", unit_pattern: str | None = None) -> Dataset:
    """Read a folder; `concept` names what masks of one thing show.

    Raises:
        InputError: the package is missing, no image or mask column, no label names.
    """
    tables = open_tables(root)
    first = next(iter(tables.values()))
    columns = _columns(root, first.features)
    names = {1: concept} if concept else _label_names(root, first.features)
    rows = {name: place for part, table in tables.items() for name, place in _rows(part, table, columns.image)}
    units = _units(tables, rows, columns.unit if unit_pattern is None else None, unit_pattern)
    published = {stem: _PARTS[part] for stem, (part, _) in rows.items() if part in _PARTS}
    split_of = assign_splits(root.name, units.of, seed, published)
    shards = tuple(sorted(path for pattern in ("*.arrow", "*.parquet") for path in root.rglob(pattern)))
    loose = {} if shards else {part: _loose_files(table, columns) for part, table in tables.items()}
    cases = tuple(
        Case(stem, units.of[stem], split_of[stem],
             TableRow(root, part, index, columns, bool(concept), loose[part][index] if loose else shards))
        for stem, (part, index) in rows.items()
    )  # fmt: skip
    codes = {i: (i,) for i in names}
    return Dataset(
        name=root.name, root=root, title=root.name, modality="", family=UNKNOWN_FAMILY, anatomy="", dims=2,
        licence=str(first.info.license or "unstated"), source=str(first.info.homepage or ""), window=None,
        applied_window=None, targets=named_targets(names, codes, codes), cases=cases, form="Hugging Face",
        findings=(units.finding,),
    )  # fmt: skip


def _columns(root: Path, features: Mapping[str, Any]) -> Columns:
    """Which column is what, by name; the only other column of images where the name does not tell."""
    named = {name.lower().removesuffix("_file_name"): name for name in features}
    pictures = [name for name, feature in features.items() if _holds_files(feature)]

    def first(names: Sequence[str]) -> str | None:
        return next((named[name] for name in names if name in named), None)

    image = next((named[n] for n in IMAGE_COLUMNS if named.get(n) in pictures), None)
    others = [name for name in pictures if name not in (image, first(INSTANCE_COLUMNS))]
    maps = [named[n] for n in MASK_COLUMNS if n in named and _holds_map(features[named[n]])]
    mask = maps[0] if maps else others[0] if image and len(others) == 1 else None
    if image is None or mask is None:
        cause = f"has no column of {'masks' if image else 'images'} among {', '.join(features)}"
        raise InputError(root, cause, "Name the columns image and mask, one image and one label map each.")
    return Columns(image, mask, first(INSTANCE_COLUMNS), first(UNIT_COLUMNS))


def _label_names(root: Path, features: Mapping[str, Any]) -> dict[int, str]:
    """Label value to name, without background."""
    path = root / "id2label.json"
    named = [names for feature in features.values() if len(names := _class_names(feature)) > 1]
    remedy = 'Write id2label.json: {"0": "background", "1": "liver"}; or give --concept NAME for masks of one thing.'
    if path.is_file():
        try:
            entries = {int(i): str(name) for i, name in read_json(path).items()}
        except ValueError as error:
            raise InputError(path, "does not map numbers to names", remedy) from error
    elif named:
        entries = dict(enumerate(named[0]))
    else:
        raise InputError(root, "does not say what the labels mean", remedy)
    if entries.get(0, "background").lower() not in BACKGROUND:
        raise InputError(root, f"label 0 is {entries[0]!r}, but 0 must be background", "Shift the labels by one.")
    kept = {i: name for i, name in entries.items() if i}
    if not kept or max(kept) > MOST_CODES or min(kept) < 0:
        raise InputError(root, f"label values are not in 1..{MOST_CODES}", "Renumber the labels.")
    return kept


def _class_names(feature: Any) -> list[str]:
    """Names of a ClassLabel, also inside a list."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
    return list(getattr(inner, "names", None) or [])


def _holds_map(feature: Any) -> bool:
    """Whether cells are images or nested lists, not single numbers."""
    nested = getattr(feature, "feature", None)
    return _holds_files(feature) or hasattr(feature, "shape") or getattr(nested, "feature", None) is not None


def _paths(table: Any, column: str) -> list[str | None]:
    """The path that each image cell carries; Arrow reads nothing else for it."""
    return [path for chunk in table.data.column(column).chunks for path in chunk.field("path").to_pylist()]


def _rows(part: str, table: Any, column: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """("part/name", (part, index)): by the images' own names if each has one, else by number."""
    stems = [str(path or "").replace("\\", "/").rsplit("/", 1)[-1].split(".")[0] for path in _paths(table, column)]
    distinct = all(stems) and len(set(stems)) == len(stems)
    for index, stem in enumerate(stems):
        yield f"{part}/{stem if distinct else f'{index:06d}'}", (part, index)


def _units(
    tables: Mapping[str, Any], rows: Mapping[str, tuple[str, int]], column: str | None, pattern: str | None
) -> Units:
    """Subjects by their column if there is one, else by the names of the images."""
    if column is None:
        return find_units(list(rows), pattern)
    subjects = {part: table[column] for part, table in tables.items()}
    of = {stem: str(subjects[part][index]) for stem, (part, index) in rows.items()}
    cause = f"column {column} tells {len(set(of.values()))} subjects in {len(of)} images"
    return Units(of, Finding("hint", "subjects", cause, "If that is wrong, give --unit-pattern REGEX."))


def _loose_files(table: Any, columns: Columns) -> list[tuple[Path, ...]]:
    """The files of each row of an image folder."""
    used = [c for c in (columns.image, columns.mask, columns.instances) if c and _holds_files(table.features[c])]
    return [
        tuple(Path(path) for path in paths if path) for paths in zip(*(_paths(table, c) for c in used), strict=True)
    ]

"""Masks that any other tool has written, scored as if they were answers.

    DIR/CASE.nii.gz               a label map (.nii, .png, .tif, .nrrd, .mha, ... alike), or
    DIR/CASE/CONCEPT.nii.gz       one mask for each concept: 0 and one other value
    DIR/CASE/CONCEPT_instances.*  ids of its objects (optional)
    DIR/labels.json               what the values of label maps mean: {"1": "liver", ...} or {"liver": 1, ...}, or the
                                  labels.json of `lexitome segment`, or the dataset.json that nnU-Net leaves; without
                                  any the dataset's own ids

Where several datasets are scored, their files lie in DIR/DATASET/. Nothing is dropped silently: what is not there is
"missing", what cannot be used "failed", with the reason in the row; both score as an empty mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome import io
from lexitome.data.dataset import Dataset
from lexitome.data.sources.label_maps import read_label_map
from lexitome.errors import InputError
from lexitome.evaluation.answering import About, Answer, Kind
from lexitome.evaluation.reference import cases_of
from lexitome.io.formats import IMAGE_SUFFIXES, format_of, suffix_of
from lexitome.prompts import Query
from lexitome.volume import Volume

LABEL_FILES = ("labels.json", "dataset.json")
OBJECTS = "_instances"
_MOVED = 0.1
"""A mask whose corners lie farther from the image's than this part of a voxel lies elsewhere."""


class Unusable(Exception):
    """A prediction that cannot be scored as it is; the message becomes the note of the row."""


@dataclass(frozen=True, eq=False)
class FolderAnswerer:
    """A folder of predictions. It does not look at places: whoever made the masks did."""

    folder: Path
    name: str
    extra: tuple[str, ...] = ()
    takes: frozenset[Kind] = frozenset({"label", "box", "point", "exemplar"})

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for path in _files(self.folder):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(path.relative_to(self.folder).as_posix().encode() + b"\0" + content)
        return digest.hexdigest()

    def provenance(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "predictions", "files_sha256": self._digest, "extra_files": list(self.extra)}

    def begin(self, volume: Volume, about: About, /) -> FolderSession:
        root = _root(self.folder, about.dataset)
        return FolderSession(root, volume, about, read_labels(root) or read_labels(self.folder))


def folder_answerer(
    folder: str | Path, datasets: Sequence[Dataset] = (), *, split: str = "test", name: str = ""
) -> FolderAnswerer:
    """
    Args:
        datasets: what will be scored; files that belong to none of their cases are listed as extra.
        split: the part that will be scored.
        name: what tables call it, by default the name of the folder.

    Raises:
        InputError: no such folder, nothing in it, or a damaged list of labels.
    """
    root = Path(folder)
    if not root.is_dir():
        cause = "is not a folder" if root.exists() else "there is no such folder"
        raise InputError(root, cause, "Name the folder that holds CASE.nii.gz or CASE/CONCEPT.nii.gz.")
    if not any(_is_mask(path) for path in _files(root)):
        raise InputError(root, "holds no masks", "Put CASE.nii.gz (or .png) or CASE/CONCEPT.nii.gz there.")
    for place in dict.fromkeys((root, *(_root(root, dataset.name) for dataset in datasets))):
        read_labels(place)  # a damaged one is refused before any work
    return FolderAnswerer(root, name or root.resolve().name, tuple(extra_files(root, datasets, split)))


def extra_files(folder: Path, datasets: Sequence[Dataset], split: str) -> Iterator[str]:
    """Names below `folder`, with the reason, of masks that belong to nothing that is scored, and of files with the name
    of a case without a mask whose format is not read."""
    places = {_root(folder, dataset.name): dataset for dataset in datasets}
    scored = {root: {case.stem for case in cases_of(dataset, split)} for root, dataset in places.items()}
    for path in _files(folder) if datasets else ():
        root = next((r for r in sorted(places, key=lambda r: -len(r.parts)) if path.is_relative_to(r)), None)
        name = path.relative_to(folder).as_posix()
        if not _is_mask(path):
            stem = "" if root is None else path.relative_to(root).with_suffix("").as_posix()
            if root is not None and stem in scored[root] and not _masks_of(root, stem):
                yield f"{name}: masks are not read from {path.suffix or 'files without an ending'}"
            continue
        if root is None:
            yield f"{name}: belongs to no dataset that is scored"
            continue
        inner = path.relative_to(root)
        whole, inside = _stem(inner), inner.parent.as_posix()
        if whole in scored[root]:
            continue
        if inside in scored[root]:
            concepts = {_key(target.name) for target in places[root].targets}
            if _key(_stem(Path(inner.name)).removesuffix(OBJECTS)) not in concepts:
                yield f"{name}: no concept has this name"
            continue
        known = {case.stem for case in places[root].cases} & {whole, inside}
        yield f"{name}: {f'its case is not in the {split} part' if known else 'no case has this name'}"


@dataclass(frozen=True, eq=False)
class FolderSession:
    """The masks of one case.

    Args:
        names: what the values of label maps mean, None for the dataset's own ids.
    """

    root: Path
    volume: Volume
    about: About
    names: Mapping[str, tuple[int, ...]] | None

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        return [self._answer(query.name) for query in queries]

    def _answer(self, concept: str) -> Answer:
        empty = np.zeros(self.volume.grid, dtype=bool)
        try:
            mask, ids = self._find(concept)
        except LookupError as error:
            return Answer(empty, notes=(str(error.args[0]),), status="missing")
        except Unusable as error:
            return Answer(empty, notes=(str(error),), status="failed")
        return Answer(mask, instances=ids)

    def _find(self, concept: str) -> tuple[NDArray[np.bool_], NDArray[np.integer] | None]:
        """
        Raises:
            LookupError: there is no prediction.
            Unusable: there is one that cannot be scored.
        """
        folder, files = self.root / self.about.case, _masks_of(self.root, self.about.case)
        if folder.is_dir() and files:
            raise Unusable(f"there are both {files[0].name} and the folder {folder.name}: which one counts?")
        if folder.is_dir():
            return self._from_folder(folder, concept)
        if not files:
            raise LookupError("there is no prediction for this case")
        if len(files) > 1:
            raise Unusable(f"there are {' and '.join(path.name for path in files)}: which one counts?")
        return np.isin(self._label_map, self._values(files[0], concept)), None

    @cached_property
    def _label_map(self) -> NDArray[np.integer]:
        path = _masks_of(self.root, self.about.case)[0]
        values = read_values(path, self.volume)
        allowed = self.names if self.names is not None else self.about.labels
        ids = {i for entry in allowed.values() for i in entry}
        present = set(np.unique(values).tolist()) - {0}
        if present == {255} and len(ids) == 1:  # a mask of the only thing there is, drawn to be seen
            return np.where(values > 0, next(iter(ids)), 0)
        odd = sorted(present - ids)
        if odd:
            listed = ", ".join(map(str, odd[:3])) + (" ..." if len(odd) > 3 else "")
            source = "the list of labels" if self.names is not None else "the dataset (or give labels.json)"
            raise Unusable(f"{path.name} holds {listed}, which is no label of {source}")
        return values

    def _values(self, path: Path, concept: str) -> list[int]:
        """The values of the label map that mean the concept: by its name, else by the names of what it is made of."""
        if self.names is None:
            own = self.about.labels.get(concept, ())
            if not own:
                raise LookupError(f"{concept!r} has no id of its own in a label map: write {path.parent.name}/CONCEPT")
            return list(own)
        for words in ([concept], self._made_of(concept)):
            if words and all(_key(word) in self.names for word in words):
                return [i for word in words for i in self.names[_key(word)]]
        raise LookupError(f"the list of labels has no {concept!r}")

    def _made_of(self, concept: str) -> list[str]:
        """Names of the labels whose union the concept is, [] if there are none."""
        single = {ids[0]: name for name, ids in self.about.labels.items() if len(ids) == 1}
        ids = self.about.labels.get(concept, ())
        return [single[i] for i in ids] if len(ids) > 1 and set(ids) <= set(single) else []

    def _from_folder(self, folder: Path, concept: str) -> tuple[NDArray[np.bool_], NDArray[np.integer] | None]:
        files: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if _is_mask(path):
                files.setdefault(_key(_stem(Path(path.name))), []).append(path)
        for words in ([concept], self._made_of(concept)):
            found = [files.get(_key(word), []) for word in words]
            if words and all(found):
                several = next((paths for paths in found if len(paths) > 1), None)
                if several:
                    raise Unusable(f"there are {' and '.join(path.name for path in several)}: which one counts?")
                masks = [_to_mask(paths[0], read_values(paths[0], self.volume)) for paths in found]
                return np.logical_or.reduce(masks), self._objects(files, concept)
        raise LookupError(f"{folder.name}/ has no file for {concept!r}")

    def _objects(self, files: Mapping[str, list[Path]], concept: str) -> NDArray[np.integer] | None:
        path = next(iter(files.get(_key(concept + OBJECTS), ())), None)
        return None if path is None else read_values(path, self.volume)


def read_values(path: Path, volume: Volume) -> NDArray[np.integer]:
    """(Z, Y, X) whole numbers on the grid of `volume`.

    Raises:
        Unusable: damaged, of another grid or place, several frames, or values that are no labels.
    """
    try:
        if format_of(path) == "raster":
            values, place = read_label_map(path), None
        else:
            read = io.read(path)
            if any("not finite" in fix for fix in read.fixes):
                raise Unusable(f"{path.name} holds values that are not finite (NaN or infinity)")
            if len(read.array) > 1:
                raise Unusable(f"{path.name} holds {len(read.array)} channels")
            values, place = read.array[0], read
    except InputError as error:
        raise Unusable(f"{path.name} {error.cause}") from error
    if values.shape != volume.grid:
        raise Unusable(f"{path.name} has {_sizes(values.shape)} voxels (x, y, z), the image {_sizes(volume.grid)}")
    moved = 0.0 if place is None else _moved(place, volume)
    if moved > _MOVED:
        raise Unusable(f"{path.name} lies elsewhere: its affine moves a corner by {moved:.3g} voxels")
    if values.dtype.kind == "f":
        whole = np.rint(values)
        if (values != whole).any():
            odd = float(values[values != whole].flat[0])
            raise Unusable(f"{path.name} holds {odd:.3g}, which is no label: write masks, not probabilities")
        return np.asarray(whole, dtype=np.int64)
    return np.asarray(values)


def _moved(place: Volume, volume: Volume) -> float:
    """By how many voxels of the image the farthest corner is off; 0 where either has no place in the world."""
    if not (place.spacing_known and volume.spacing_known):
        return 0.0
    z, y, x = (size - 1 for size in volume.grid)
    corners = np.array([[i, j, k] for i in (0, x) for j in (0, y) for k in (0, z)], dtype=np.float64)
    return float(np.abs(volume.to_voxel(place.to_world(corners)) - corners).max())


def _to_mask(path: Path, values: NDArray[np.integer]) -> NDArray[np.bool_]:
    present = set(np.unique(values).tolist()) - {0}
    if len(present) > 1:
        raise Unusable(f"{path.name} holds {len(present) + 1} values: a mask of one thing has 0 and one other")
    return np.asarray(values != 0)


def read_labels(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Name (as `_key` writes it) to values, from labels.json or nnU-Net's dataset.json; None without either.

    Raises:
        InputError: not in one of the forms above.
    """
    path = next((folder / name for name in LABEL_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        entry = json.loads(path.read_text(encoding="utf-8-sig"))
        labels = entry.get("labels", entry)
        if isinstance(labels, list):
            labels = {item["name"]: item["label"] for item in labels}
        pairs = [(a, b) if str(a).isdigit() else (b, a) for a, b in labels.items()]
        named = [(ids, entry["name"] if isinstance(entry, dict) else str(entry)) for ids, entry in pairs]
        return {_key(name): tuple(int(i) for i in np.atleast_1d(ids)) for ids, name in named}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = 'Write {"1": "liver", "2": "spleen"}.'
        raise InputError(path, "does not say which value means what", remedy) from error


def _masks_of(root: Path, case: str) -> list[Path]:
    """Files that answer for the case, also with the ending in capitals."""
    found: list[Path] = []
    for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)):
        path = root / f"{case}{suffix}"
        if path.is_file() and not any(path.samefile(other) for other in found):  # some disks ignore capitals
            found.append(path)
    return found


def _root(folder: Path, dataset: str) -> Path:
    return folder / dataset if (folder / dataset).is_dir() else folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def _stem(path: Path) -> str:
    """Below its folder, without the ending, ".nii.gz" in one piece."""
    name = path.as_posix()
    return name[: len(name) - len(suffix_of(name))]


def _key(name: str) -> str:
    """So that "left_kidney" of a file name and "Left kidney" are the same."""
    return " ".join(name.replace("_", " ").split()).casefold()


def _sizes(grid: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in reversed(grid))

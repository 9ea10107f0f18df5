"""COCO annotations: objects with outlines (polygons in several parts, run lengths) that may overlap.

A pixel may belong to several categories: every combination of categories that occurs in the set gets a code of its
own (see `data.dataset`). Objects keep their ids, 1..N within an image; a crowd is a region of its category without
ids. An object without an outline leaves its box unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome import io
from lexitome.data.dataset import MOST_CODES, UNKNOWN_CODE, Case, Dataset, Finding, Grid, Target, family_of
from lexitome.data.sources.folder import read_json
from lexitome.data.sources.outlines import fill_polygon, mask_from_runs, runs_from_text
from lexitome.data.splits import assign_splits
from lexitome.data.targets import named_targets
from lexitome.data.units import find_units
from lexitome.errors import InputError
from lexitome.volume import Volume

_MOST_FILES = 100
"""JSON files that are opened to see whether they are COCO; a folder with more has one for each image."""

Combination = tuple[int, ...]
"""Category ids in ascending order."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One object as the file gives it. ``segmentation`` is None where there is only a box (x, y, width, height)."""

    category: int
    segmentation: Any
    box: tuple[float, ...]
    crowd: bool

    def reach(self, size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest (x, y) of the outline; of run lengths, which say it only when decoded, the picture's.
        The box in the file is not asked: exporters write it carelessly."""
        if isinstance(self.segmentation, Mapping):
            return np.zeros(2), np.array(size[::-1], dtype=np.float64)
        corners = np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in self.segmentation])
        return (corners.min(0), corners.max(0)) if len(corners) else (np.full(2, np.inf), np.full(2, -np.inf))


@dataclass(frozen=True, eq=False)
class OutlinedImage:
    """Content of a case: an image and its objects; ``combinations`` gives the code of each combination."""

    path: Path
    source: Path
    size: tuple[int, int]  # height, width
    objects: tuple[Outline, ...]
    combinations: Mapping[Combination, int]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.path, self.source

    def volume(self) -> Volume:
        return io.read(self.path)

    def codes(self, grid: Grid) -> NDArray[np.uint8]:
        self._check(grid)
        place, found = combine(self.regions(), self.size)
        lookup = np.array([self.combinations[combination] if combination else 0 for combination in found])
        codes = lookup[place].astype(np.uint8)
        for item in self.objects:
            if item.segmentation is None and len(item.box) == 4:
                x, y, width, height = item.box
                box = codes[max(0, int(y)) : max(0, int(np.ceil(y + height))),
                            max(0, int(x)) : max(0, int(np.ceil(x + width)))]  # fmt: skip
                box[box == 0] = UNKNOWN_CODE
        return codes[None]

    def instances(self, grid: Grid, target: Target | None) -> NDArray[np.uint16]:
        self._check(grid)
        masks = [
            (number, self._mask(item))
            for number, item in enumerate(self.objects, start=1)
            if item.segmentation is not None and not item.crowd and (target is None or item.category in target.labels)
        ]
        if len(self.objects) > np.iinfo(np.uint16).max:
            raise InputError(self.path, "has more than 65535 objects", "Cut the image into tiles.")
        ids = np.zeros(self.size, dtype=np.uint16)
        for number, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):  # small objects on top
            ids[mask] = number
        return ids[None]

    def regions(self) -> dict[int, NDArray[np.bool_]]:
        """Category to the (Y, X) union of its objects."""
        regions: dict[int, NDArray[np.bool_]] = {}
        for item in self.objects:
            if item.segmentation is not None:
                mask = self._mask(item)
                regions[item.category] = regions[item.category] | mask if item.category in regions else mask
        return regions

    def may_overlap(self) -> bool:
        """Whether boxes of different categories meet; only then is it worth decoding to see which overlap."""
        drawn = [(item.category, item.reach(self.size)) for item in self.objects if item.segmentation is not None]
        return any(
            a != b and (low_a <= high_b).all() and (low_b <= high_a).all()
            for index, (a, (low_a, high_a)) in enumerate(drawn)
            for b, (low_b, high_b) in drawn[:index]
        )

    def _check(self, grid: Grid) -> None:
        if grid != (1, *self.size):
            cause = f"the image is {grid[2]} x {grid[1]}, but {self.source.name} says {self.size[1]} x {self.size[0]}"
            raise InputError(self.path, cause, "Correct width and height; check that the image was not turned by EXIF.")

    def _mask(self, item: Outline) -> NDArray[np.bool_]:
        height, width = self.size
        try:
            if isinstance(item.segmentation, Mapping):
                counts = item.segmentation["counts"]
                runs = [int(run) for run in counts] if isinstance(counts, list) else runs_from_text(counts)
                return mask_from_runs(runs, height, width)
            mask = np.zeros(self.size, dtype=bool)
            for part in item.segmentation:
                corners = np.asarray(part, dtype=np.float64).reshape(-1, 2)
                if len(corners) >= 3:
                    fill_polygon(mask, corners)
            return mask
        except (ValueError, TypeError, KeyError) as error:
            cause = f"the outline of an object in {self.path.name} is damaged ({error})"
            raise InputError(self.source, cause, "Export the annotations again.") from error


def combine(
    regions: Mapping[int, NDArray[np.bool_]], size: tuple[int, int]
) -> tuple[NDArray[np.intp], list[Combination]]:
    """((Y, X) index, combinations): which combination of the regions each pixel lies in; () is none."""
    found: list[Combination] = [()]
    place: NDArray[np.intp] = np.zeros(size, dtype=np.intp)
    for category in sorted(regions):
        mask = regions[category]
        for before in np.unique(place[mask]):
            place[mask & (place == before)] = len(found)
            found.append((*found[before], category))
    return place, found


def find_annotations(root: Path) -> dict[Path, dict]:
    """The COCO documents in the folder, in `annotations/` and one level down (`train/_annotations.coco.json`)."""
    found = {}
    for path in sorted(p for pattern in ("*.json", "*/*.json") for p in root.glob(pattern))[:_MOST_FILES]:
        try:
            document = read_json(path)
        except InputError:
            continue
        if all(isinstance(document.get(key), list) for key in ("images", "annotations", "categories")):
            found[path] = document
    return found


def load_coco(root: Path, documents: Mapping[Path, dict], *, seed: int = 0, unit_pattern: str | None = None) -> Dataset:
    """Join the annotation files of a folder. Parts named by the files ("instances_val.json", "valid/") are honoured.

    Args:
        documents: what `find_annotations` found.

    Raises:
        InputError: entries without what COCO asks for, or more combinations of categories than codes.
    """
    sources = list(documents)
    try:
        names = {int(c["id"]): str(c["name"]) for d in documents.values() for c in d["categories"]}
        drafts, published, unknown, findings = _read_images(root, documents, names)
    except (KeyError, TypeError, ValueError) as error:
        cause = f"an entry has no usable {error}" if isinstance(error, KeyError) else f"holds an odd entry ({error})"
        raise InputError(sources[0], cause, "Export the annotations again.") from error
    if not drafts:
        raise InputError(sources[0], "lists no images", "Export the annotations again.")
    units = find_units(list(drafts), unit_pattern)
    split_of = assign_splits(root.name, units.of, seed, published)
    used = {item.category for draft in drafts.values() for item in draft.objects}
    names = {i: name for i, name in names.items() if i in used or not _is_parent(name, documents)}
    combinations = _number_combinations(sources[0], sorted(names), drafts.values())
    codes = {i: tuple(code for c, code in combinations.items() if i in c) for i in names}
    cases = tuple(
        Case(stem, units.of[stem], split_of[stem],
             OutlinedImage(d.path, d.source, d.size, d.objects, combinations), unknown.get(stem, frozenset()))
        for stem, d in drafts.items()
    )  # fmt: skip
    info = next(iter(documents.values())).get("info") or {}
    licences = next(iter(documents.values())).get("licenses") or []
    described = str(info.get("description", "")) if isinstance(info, dict) else ""
    licence = "; ".join(str(entry.get("name", "")) for entry in licences if isinstance(entry, dict))
    return Dataset(
        name=root.name, root=root, title=described or root.name, modality=described, family=family_of(described),
        anatomy="", dims=2, licence=licence or "unstated", source="", window=None, applied_window=None,
        targets=named_targets(names, codes, {i: (i,) for i in names}), cases=cases, form="COCO",
        findings=(units.finding, *findings),
    )  # fmt: skip


Drafts = dict[str, OutlinedImage]


def _read_images(
    root: Path, documents: Mapping[Path, dict], names: Mapping[int, str]
) -> tuple[Drafts, dict[str, str], dict[str, frozenset[int]], list[Finding]]:
    """(stem to image with its objects, stem to published part, stem to unknown categories, findings)."""
    drafts: Drafts = {}
    published: dict[str, str] = {}
    unknown: dict[str, frozenset[int]] = {}
    lost = boxed = 0
    for source, document in documents.items():
        part = _part_of(source, root)
        objects: dict[Any, list[Outline]] = {image["id"]: [] for image in document["images"]}
        for entry in document["annotations"]:
            if entry["image_id"] not in objects or int(entry["category_id"]) not in names:
                lost += 1
                continue
            item = Outline(int(entry["category_id"]), entry.get("segmentation") or None,
                           tuple(float(v) for v in entry.get("bbox") or ()), bool(entry.get("iscrowd", 0)))  # fmt: skip
            boxed += item.segmentation is None
            objects[entry["image_id"]].append(item)
        for image in document["images"]:
            stem = str(image["file_name"]).rsplit(".", 1)[0]
            stem = f"{source.stem}/{stem}" if stem in drafts else stem
            path = _locate(root, source, str(image["file_name"]))
            size = int(image["height"]), int(image["width"])
            drafts[stem] = OutlinedImage(path, source, size, tuple(objects[image["id"]]), {})
            unknown[stem] = _unknown(image, names, objects[image["id"]])
            if part:
                published[stem] = part
    findings = []
    if lost:
        cause = f"{lost} annotations refer to an image or category that is not listed"
        findings.append(Finding("warning", "pairs", cause, "They are not used; export again if that is wrong."))
    if boxed:
        cause = f"{boxed} objects have a box but no outline; their boxes count as unknown"
        findings.append(Finding("warning", "labels", cause, "Draw their outlines, or remove them."))
    if len(set(published.values())) < 2:
        published = {}  # a single part says nothing
    return drafts, published, unknown, findings


def _unknown(image: dict, names: Mapping[int, str], objects: Iterable[Outline]) -> frozenset[int]:
    """Categories that nobody looked for: LVIS lists those that surely are absent, and those drawn in part."""
    partly = frozenset(int(i) for i in image.get("not_exhaustive_category_ids", ()))
    if "neg_category_ids" not in image:
        return partly
    judged = {int(i) for i in image["neg_category_ids"]} | {item.category for item in objects}
    return partly | (frozenset(names) - judged)


def _part_of(source: Path, root: Path) -> str:
    """ "train", "val", "test" or "" from the name of the file, else of its folder."""
    for name in (source.stem, source.parent.name if source.parent != root else ""):
        for word, part in (("train", "train"), ("val", "val"), ("test", "test")):
            if word in name.lower():
                return part
    return ""


def _locate(root: Path, source: Path, name: str) -> Path:
    """The image file; where it is nowhere, where one would look first (reading it then says so)."""
    part = source.stem.rsplit("_", 1)[-1]
    folders = (root, root / "images", source.parent, source.parent / "images", root / part, root / "images" / part)
    return next((folder / name for folder in folders if (folder / name).is_file()), root / name)


def _is_parent(name: str, documents: Mapping[Path, dict]) -> bool:
    """Whether a category is only the supercategory of others, as some exporters write it."""
    entries = [entry for document in documents.values() for entry in document["categories"]]
    return any(entry.get("supercategory") == name != entry["name"] for entry in entries)


def _number_combinations(
    source: Path, categories: Sequence[int], images: Iterable[OutlinedImage]
) -> dict[Combination, int]:
    """A code for each category alone, then for each combination that occurs."""
    overlaps: set[Combination] = set()
    for image in images:
        if image.may_overlap():
            overlaps.update(
                combination for combination in combine(image.regions(), image.size)[1] if len(combination) > 1
            )
    ordered = [*((category,) for category in categories), *sorted(overlaps, key=lambda c: (len(c), c))]
    if len(ordered) > MOST_CODES:
        cause = f"{len(categories)} categories overlap in {len(overlaps)} ways: more than {MOST_CODES} codes"
        raise InputError(source, cause, "Merge or drop categories.")
    return {combination: code for code, combination in enumerate(ordered, start=1)}

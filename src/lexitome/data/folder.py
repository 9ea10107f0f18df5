"""Annotated image folders: `images/`, `masks/` with the same stems, and `dataset.json`.

`dataset.json` gives `labels` (id -> name, synonyms), `groups` or `label_groups` (a prompt for the union of ids),
`union_with`, `extra_masks` (a second label map that overlaps the first) and `labels_not_annotated` (ids that were not
drawn in a case: unknown, never background). Everything a prompt can ask of a folder becomes a `Target`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

_NOT_PAIRED = {"ventricle cavity"}
"""The two ventricles of the heart are not one organ on two sides; nobody asks for both by this name."""

EXTRA_SHIFT = 16
"""A label of the second map is stored as 16 x label in the combined code `first + 16 x second`."""

SPLITS = ("train", "val", "test")
_FAMILIES = (
    ("dental", "dental-xray"), ("x-ray", "xray"), ("fundus", "fundus"), ("oct", "oct"), ("dermoscopy", "dermoscopy"),
    ("colonoscopy", "endoscopy"), ("blood smear", "blood-smear"), ("brightfield", "brightfield"),
    ("fluorescence", "fluorescence"), ("histopathology", "histology"), ("electron", "electron-microscopy"),
    ("ultrasound", "ultrasound"), ("mri", "mr"), ("pet", "pet"), ("ct", "ct"), ("photograph", "photo"),
)  # fmt: skip

# Where the subject (patient, video, section) is written in the stem; elsewhere every image is its own subject.
_UNIT_PATTERNS = {
    "btcv_abdomen_ct2d": r"^[^_]+", "chaos_liver_kidney_spleen_mr2d": r"^[^_]+", "imlab_lung_ct2d": r"^[^_]+",
    "mscmr_bssfp_cardiac_mr2d": r"^[^_]+", "curvas_abdomen_ct2d": r"^[^_]+", "acdc_cardiac_mr2d": r"^acdc_p\d+",
    "carotid_us": r"^.+(?=_slice)", "duke_dme_fluid": r"^s\d+", "drosophila_vnc_sstem": r"^z\d+",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One thing that can be asked of a dataset: the union of `codes` (see `EXTRA_SHIFT`) of its label maps."""

    name: str
    synonyms: tuple[str, ...]
    codes: tuple[int, ...]
    labels: tuple[int, ...]
    derived: bool = False
    """True for a union that the files do not name ("kidneys" of "left kidney" and "right kidney")."""


@dataclass(frozen=True)
class Case:
    """One image file and its masks."""

    stem: str
    image: Path
    mask: Path | None
    extra_mask: Path | None
    unit: str
    split: str
    unknown_labels: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Dataset:
    name: str
    root: Path
    title: str
    modality: str
    family: str
    anatomy: str
    dims: int
    licence: str
    source: str
    window: tuple[float, float] | None
    """CT window (HU) still to be applied to the stored values."""
    applied_window: tuple[float, float] | None
    """CT window (HU) that was applied before the pictures were stored as 8 bit."""
    targets: tuple[Target, ...]
    cases: tuple[Case, ...]


def load_dataset(root: Path, *, seed: int = 0, external: bool = False) -> Dataset:
    """Read one folder. External sets are all "test"; else subjects are split 70 / 10 / 20 (see `split_units`).

    Raises:
        FileNotFoundError, KeyError: the folder is not in this form.
    """
    meta = json.loads((root / "dataset.json").read_text())
    images = sorted(p for p in (root / "images").iterdir() if not p.name.startswith("."))
    units = {path: _unit(root.name, _stem(path)) for path in images}
    if external:
        split_of = dict.fromkeys(units.values(), "test")
    else:
        split_of = split_units(root.name, sorted(set(units.values())), seed)
    unknown = meta.get("labels_not_annotated", {})
    cases = [
        Case(_stem(path), path, _mask_of(root / "masks", path), _mask_of(root / "masks_clavicles", path),
             units[path], split_of[units[path]], frozenset(unknown.get(_stem(path), ())))
        for path in images
    ]  # fmt: skip
    if (root / "negatives").is_dir():  # images without the target: an empty mask is right
        negatives = sorted((root / "negatives").iterdir())
        split_of = split_units(root.name, [p.name for p in negatives], seed)
        cases += [Case(p.stem, p, None, None, p.name, split_of[p.name]) for p in negatives]
    return Dataset(
        name=root.name, root=root, title=meta.get("title", root.name), modality=meta["modality"],
        family=_family(meta["modality"]), anatomy=meta.get("anatomy", ""), dims=int(meta.get("dims", 2)),
        licence=meta.get("license", "unstated"), source=meta.get("original_source", ""),
        window=_window(meta.get("window")), applied_window=_applied_window(meta.get("window")),
        targets=tuple(_targets(meta)), cases=tuple(cases),
    )  # fmt: skip


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


def _targets(meta: dict) -> list[Target]:
    labels = {int(i): entry for i, entry in meta["labels"].items()}
    extra = {int(i): e for i, e in meta.get("extra_masks", {}).get("masks_clavicles", {}).items() if i.isdigit()}
    groups = {**meta.get("groups", {}), **meta.get("label_groups", {})}
    extra_groups = meta.get("extra_masks", {}).get("masks_clavicles", {}).get("groups", {})

    def first(ids: list[int]) -> tuple[int, ...]:  # every combined code whose first map holds one of ids
        return tuple(i + EXTRA_SHIFT * e for i in ids for e in (0, *extra))

    def second(ids: list[int]) -> tuple[int, ...]:
        return tuple(i + EXTRA_SHIFT * e for i in (0, *labels) for e in ids)

    targets = []
    shared = _shared_words(labels)
    for i, entry in labels.items():
        ids = [i, *(int(other) for other in entry.get("union_with", ()))]
        words = tuple(word for word in entry["synonyms"] if word not in shared)
        targets.append(Target(entry["name"], words, first(ids), tuple(ids)))
    for word, ids in shared.items():
        targets.append(Target(word, (), first(ids), tuple(ids), derived=True))
    for name, group in groups.items():
        ids = list(group.get("ids") or group["labels"])
        targets.append(Target(name, tuple(group["synonyms"]), first(ids), tuple(ids)))
    for i, entry in extra.items():
        targets.append(Target(entry["name"], tuple(entry["synonyms"]), second([i]), ()))
    for name, group in extra_groups.items():
        targets.append(Target(name, tuple(group["synonyms"]), second(list(group["ids"])), ()))
    return targets + _lateral_unions(targets)


def _shared_words(labels: dict[int, dict]) -> dict[str, list[int]]:
    """Words that several labels give as synonym ("hippocampus" of its two halves): they mean the union."""
    owners: dict[str, list[int]] = {}
    for i, entry in labels.items():
        for word in {entry["name"], *entry["synonyms"]}:
            owners.setdefault(word, []).append(i)
    return {word: ids for word, ids in sorted(owners.items()) if len(ids) > 1}


def _lateral_unions(targets: list[Target]) -> list[Target]:
    """For "left X" and "right X" without a group of their own: the target "X"."""
    by_name = {t.name: t for t in targets}
    unions = []
    for name, target in by_name.items():
        part = name.removeprefix("right ")
        partner = by_name.get(f"left {part}")
        words = {part, f"{part}s", f"both {part}s"}
        named = any(words & {t.name, *t.synonyms} for t in targets)
        if part == name or partner is None or named or part in _NOT_PAIRED:
            continue
        codes, labels = target.codes + partner.codes, target.labels + partner.labels
        unions.append(Target(part, tuple(sorted(words)), codes, labels, derived=True))
    return unions


def _family(modality: str) -> str:
    lowered = modality.lower()
    return next(family for word, family in _FAMILIES if word in lowered)


def _window(entry: object) -> tuple[float, float] | None:
    """A window of raw values still to be applied ({"center", "width"}); text only describes what was done."""
    if not isinstance(entry, dict):
        return None
    return entry["center"] - entry["width"] / 2, entry["center"] + entry["width"] / 2


def _applied_window(entry: object) -> tuple[float, float] | None:
    """From a text such as "HU -125..275, then min-max to 8 bit"."""
    match = re.search(r"HU (-?\d+)\.\.(-?\d+)", entry) if isinstance(entry, str) else None
    return (float(match[1]), float(match[2])) if match else None


def _unit(dataset: str, stem: str) -> str:
    if dataset == "cheng_brain_tumor_mr2d":  # neighbouring slice numbers are one patient
        return f"block{int(stem.removeprefix('cheng')) // 50}"
    pattern = _UNIT_PATTERNS.get(dataset)
    match = re.search(pattern, stem) if pattern else None
    return match.group() if match else stem


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _mask_of(folder: Path, image: Path) -> Path | None:
    """The mask with the image's stem, whatever its suffix."""
    return next(
        (folder / (_stem(image) + s) for s in (".png", ".nii.gz", ".nii") if (folder / (_stem(image) + s)).exists()),
        None,
    )

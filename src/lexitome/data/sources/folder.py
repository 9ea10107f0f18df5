"""Annotated image folders: `images/`, `masks/` with the same stems, and `dataset.json`.

`dataset.json` gives `labels` (id -> name, synonyms), `groups` or `label_groups` (a prompt for the union of ids),
`union_with`, `extra_masks` (a second label map that overlaps the first), `sequences` (numbers of frames of one video),
`ignore_label` (the value of pixels that nobody judged) and `labels_not_annotated` or `labels_annotated` (ids that were
not, or names that were drawn in a case: the rest is unknown, never background).
`instances/` holds ids of objects, `negatives/` images without the target. Everything a prompt can ask of a folder
becomes a `Target`. Without `dataset.json`, a folder of masks of one thing needs its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lexitome.data.dataset import MOST_CODES, UNKNOWN_FAMILY, Case, Dataset, Finding, Target, family_of
from lexitome.data.sources.label_maps import EXTRA_SHIFT, LabelMaps
from lexitome.data.splits import assign_splits, split_units
from lexitome.data.targets import lateral_unions, named_targets
from lexitome.data.units import Units, find_units
from lexitome.errors import InputError
from lexitome.io.formats import suffix_of

MASK_SUFFIXES = (".png", ".nii.gz", ".nii", ".tif", ".tiff", ".nrrd", ".mha", ".mhd", ".jpg", ".jpeg")

# Where the subject (patient, video, section) is written in the stem, and sets whose names say nothing about it.
_UNIT_PATTERNS = {
    "btcv_abdomen_ct2d": r"^[^_]+", "chaos_liver_kidney_spleen_mr2d": r"^[^_]+", "imlab_lung_ct2d": r"^[^_]+",
    "mscmr_bssfp_cardiac_mr2d": r"^[^_]+", "curvas_abdomen_ct2d": r"^[^_]+", "acdc_cardiac_mr2d": r"^acdc_p\d+",
    "carotid_us": r"^.+(?=_slice)", "duke_dme_fluid": r"^s\d+", "drosophila_vnc_sstem": r"^z\d+",
    "ufba425_teeth": r"^.+",
}  # fmt: skip


def load_dataset(root: Path, *, seed: int = 0, external: bool = False, unit_pattern: str | None = None) -> Dataset:
    """Read one folder. External sets are all "test"; else subjects are split 70 / 10 / 20 (see `split_units`).

    Raises:
        InputError: the folder is not in this form.
    """
    meta = read_json(root / "dataset.json")
    labels = _labels(root, meta)
    images, strays = _images(root)
    units = _units(root.name, list(images), unit_pattern, _sequences(meta.get("sequences")))
    split_of = dict.fromkeys(images, "test") if external else assign_splits(root.name, units.of, seed)
    unknown = _unknown(meta, labels)
    ignore, counts = meta.get("ignore_label"), (root / "instances").is_dir()
    cases = []
    for stem, path in images.items():
        mask, extra, ids = (_mask_of(root / part, stem) for part in ("masks", "masks_clavicles", "instances"))
        hidden = unknown.get(stem, frozenset()) if mask else frozenset(labels)  # no mask: nobody looked
        content = LabelMaps((path,), (mask, extra), ids, counts, ignore=ignore)
        cases.append(Case(stem, units.of[stem], split_of[stem], content, hidden))
    if (root / "negatives").is_dir():  # images without the target: an empty mask is right
        negatives = sorted((root / "negatives").iterdir())
        split_of = split_units(root.name, [p.name for p in negatives], seed)
        cases += [Case(p.stem, p.name, split_of[p.name], LabelMaps((p,), counts=counts)) for p in negatives]
    modality = str(meta.get("modality", ""))
    return Dataset(
        name=root.name, root=root, title=meta.get("title", root.name), modality=modality,
        family=family_of(modality), anatomy=meta.get("anatomy", ""), dims=int(meta.get("dims", 2)),
        licence=meta.get("license", "unstated"), source=meta.get("original_source", ""),
        window=_window(meta.get("window")), applied_window=_applied_window(meta.get("window")),
        targets=tuple(_targets(root, meta)), cases=tuple(cases), findings=(units.finding, *strays),
    )  # fmt: skip


def load_plain(root: Path, concept: str, *, seed: int = 0, unit_pattern: str | None = None) -> Dataset:
    """`images/` and `masks/` of the same stems without `dataset.json`: every mask shows `concept`, in any value.

    Raises:
        InputError: there are no images.
    """
    images, strays = _images(root)
    units = _units(root.name, list(images), unit_pattern)
    split_of = assign_splits(root.name, units.of, seed)
    cases = []
    for stem, path in images.items():
        mask = _mask_of(root / "masks", stem)
        content = LabelMaps((path,), (mask,), binary=True)
        cases.append(Case(stem, units.of[stem], split_of[stem], content, frozenset() if mask else frozenset({1})))
    dims = 2 if all(_is_flat(path) for path in images.values()) else 3
    return Dataset(
        name=root.name, root=root, title=root.name, modality="", family=UNKNOWN_FAMILY, anatomy="", dims=dims,
        licence="unstated", source="", window=None, applied_window=None,
        targets=named_targets({1: concept}, {1: (1,)}, {1: (1,)}), cases=tuple(cases), form="plain folder",
        findings=(units.finding, *strays),
    )  # fmt: skip


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises:
        InputError: missing, damaged, or something else.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check the name.") from error
    except ValueError as error:
        raise InputError(path, f"is not JSON ({error})", "Correct it with a JSON validator.") from error
    if not isinstance(entry, dict):
        raise InputError(path, "is not a JSON object", "It must begin with { and hold named entries.")
    return entry


def _labels(root: Path, meta: dict) -> dict[int, dict]:
    """Id to entry of `labels`; an entry that is only a name counts as {"name": name}, which is put back in `meta`."""
    example = '"labels": {"1": {"name": "liver", "synonyms": []}}'
    try:
        entries = {int(i): e if isinstance(e, dict) else {"name": str(e)} for i, e in meta["labels"].items()}
        entries = {i: {"synonyms": [], **entry, "name": str(entry["name"])} for i, entry in entries.items() if i}
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(root / "dataset.json", "has no labels with ids and names", f"Write {example}.") from error
    if not entries or max(entries) > MOST_CODES or min(entries) < 0:
        raise InputError(root / "dataset.json", "label ids are not in 1..254", f"Renumber; e.g. {example}.")
    meta["labels"] = {str(i): entry for i, entry in entries.items()}
    return entries


def _images(root: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Stem to image, in order of names; and what lies about that belongs to no image."""
    folder = root / "images"
    found = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    readable = [path for path in found if suffix_of(path.name)]
    if not readable:
        raise InputError(folder, "holds no images", "Put PNG, JPEG, TIFF or NIfTI images there.")
    images: dict[str, Path] = {}
    for path in readable:
        if images.setdefault(stem_of(path), path) is not path:
            cause = f"has the same stem as {images[stem_of(path)].name}, so that both share one mask"
            raise InputError(path, cause, "Give every image a name of its own.")
    findings = []
    ignored = tuple(path.name for path in found if path not in readable)
    if ignored:
        cause = f"{len(ignored)} files in images/ are no images that can be read"
        findings.append(Finding("warning", "pairs", cause, "Convert or remove them.", ignored))
    masks = sorted(p for p in (root / "masks").iterdir() if suffix_of(p.name)) if (root / "masks").is_dir() else []
    lost = tuple(path.name for path in masks if stem_of(path) not in images)
    if lost:
        remedy = "Give image and mask the same stem, or remove what has no partner."
        findings.append(Finding("error", "pairs", f"{len(lost)} masks have no image", remedy, lost))
    return images, findings


def _units(
    dataset: str, stems: list[str], pattern: str | None, sequences: Sequence[tuple[int, int, str]] = ()
) -> Units:
    if pattern is None and sequences:
        of = {
            stem: next((name for first, last, name in sequences if stem.isdigit() and first <= int(stem) <= last), stem)
            for stem in stems
        }
        cause = f"dataset.json tells {len(set(of.values()))} sequences in {len(of)} images"
        return Units(of, Finding("hint", "subjects", cause, "Nothing to do."))
    if pattern is None and dataset == "cheng_brain_tumor_mr2d":  # neighbouring slice numbers are one patient
        of = {stem: f"block{int(stem.removeprefix('cheng')) // 50}" for stem in stems}
        return Units(of, Finding("hint", "subjects", "blocks of 50 slice numbers count as one subject", "Keep them."))
    return find_units(stems, pattern or _UNIT_PATTERNS.get(dataset))


def _sequences(entry: object) -> list[tuple[int, int, str]]:
    """(first, last, name) of frame ranges written as "1-25 s1; 26-50 s2"."""
    found = re.findall(r"(\d+)-(\d+) (\w+)", entry) if isinstance(entry, str) else []
    return [(int(first), int(last), name) for first, last, name in found]


def _unknown(meta: dict, labels: dict[int, dict]) -> dict[str, frozenset[int]]:
    """Stem to the ids that were not drawn there: those that are listed, or all but those that are listed as drawn."""
    unknown = {stem: frozenset(map(int, ids)) for stem, ids in meta.get("labels_not_annotated", {}).items()}
    for stem, drawn in meta.get("labels_annotated", {}).items():
        words = {str(name).replace("_", " ").casefold() for name in drawn}
        known = {i for i, e in labels.items() if words & {w.casefold() for w in (e["name"], *e["synonyms"])}}
        unknown[stem] = unknown.get(stem, frozenset()) | (frozenset(labels) - known)
    return unknown


def _targets(root: Path, meta: dict) -> list[Target]:
    labels = {int(i): entry for i, entry in meta["labels"].items()}
    extra = {int(i): e for i, e in meta.get("extra_masks", {}).get("masks_clavicles", {}).items() if i.isdigit()}
    groups = {**meta.get("groups", {}), **meta.get("label_groups", {})}
    extra_groups = meta.get("extra_masks", {}).get("masks_clavicles", {}).get("groups", {})
    if extra and max(*labels, *extra) >= EXTRA_SHIFT:
        raise InputError(root / "dataset.json", "two label maps may hold 15 labels each", "Renumber the labels.")

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
    return targets + lateral_unions(targets)


def _shared_words(labels: dict[int, dict]) -> dict[str, list[int]]:
    """Words that several labels give as synonym ("hippocampus" of its two halves): they mean the union."""
    owners: dict[str, list[int]] = {}
    for i, entry in labels.items():
        for word in {entry["name"], *entry["synonyms"]}:
            owners.setdefault(word, []).append(i)
    return {word: ids for word, ids in sorted(owners.items()) if len(ids) > 1}


def _window(entry: object) -> tuple[float, float] | None:
    """A window of raw values still to be applied ({"center", "width"}); text only describes what was done."""
    if not isinstance(entry, dict):
        return None
    return entry["center"] - entry["width"] / 2, entry["center"] + entry["width"] / 2


def _applied_window(entry: object) -> tuple[float, float] | None:
    """From a text such as "HU -125..275, then min-max to 8 bit"."""
    match = re.search(r"HU (-?\d+)\.\.(-?\d+)", entry) if isinstance(entry, str) else None
    return (float(match[1]), float(match[2])) if match else None


def stem_of(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _is_flat(path: Path) -> bool:
    return suffix_of(path.name) in (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def _mask_of(folder: Path, stem: str) -> Path | None:
    """The mask with the image's stem, whatever its suffix."""
    return next((path for s in MASK_SUFFIXES if (path := folder / (stem + s)).exists()), None)

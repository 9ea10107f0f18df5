"""Raw datasets of nnU-Net, versions 2 and 1: `imagesTr/`, `labelsTr/`, `dataset.json`.

Version 2 (nnU-Net documentation/dataset_format.md) names channels `CASE_0000.nii.gz`, gives `labels` as name -> id, or
name -> list of ids where regions overlap, and calls pixels that nobody judged "ignore". Version 1 and the Medical
Segmentation Decathlon give id -> name and may stack channels in one 4D file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lexitome.data.dataset import MOST_CODES, Case, Dataset, Finding, family_of
from lexitome.data.sources.folder import read_json
from lexitome.data.sources.label_maps import LabelMaps
from lexitome.data.splits import assign_splits
from lexitome.data.targets import BACKGROUND, named_targets
from lexitome.data.units import find_units
from lexitome.errors import InputError
from lexitome.io.formats import IMAGE_SUFFIXES

_CHANNEL = re.compile(r"_(\d{4})$")
_FLAT = (".png", ".jpg", ".jpeg", ".bmp")


def load_nnunet(root: Path, *, seed: int = 0, unit_pattern: str | None = None) -> Dataset:
    """Read a raw dataset. `splits_final.json` (its first fold) and a labelled test part are honoured.

    Raises:
        InputError: the folder is not in this form.
    """
    meta = read_json(root / "dataset.json")
    channels = _channels(root, meta)
    labels, ignore = _labels(root, meta)
    files, findings = _find_cases(root, str(meta.get("file_ending", "")), len(channels))
    stems = list(files)
    units = find_units(stems, unit_pattern)
    published = {stem: "test" for stem, (_, _, part) in files.items() if part == "Ts"} | _final_splits(root, stems)
    split_of = assign_splits(root.name, units.of, seed, published)
    word = "CT" if channels == ["CT"] else ""
    cases = []
    for stem, (images, mask, _) in files.items():
        frames = len(channels) if len(images) == 1 and _CHANNEL.search(_stem(images[0])) is None else 1
        content = LabelMaps(images, (mask,), ignore=ignore, frames=frames, modality=word)
        hidden = frozenset() if mask else frozenset(i for ids in labels.values() for i in ids)
        cases.append(Case(stem, units.of[stem], split_of[stem], content, hidden))
    modality = ", ".join(channels)
    keys = dict(enumerate(labels))
    ids = {key: labels[name] for key, name in keys.items()}
    flat = all(path.name.lower().endswith(_FLAT) for case in cases for path in case.content.files)
    return Dataset(
        name=root.name, root=root, title=str(meta.get("name", root.name)), modality=modality,
        family=family_of(modality), anatomy="", dims=2 if flat else 3,
        licence=str(meta.get("licence", meta.get("license", "unstated"))), source=str(meta.get("reference", "")),
        window=None, applied_window=None, targets=named_targets(keys, ids, ids), cases=tuple(cases), form="nnU-Net",
        findings=(units.finding, *_unseen_channels(channels), *findings),
    )  # fmt: skip


def _channels(root: Path, meta: dict) -> list[str]:
    names = meta.get("channel_names", meta.get("modality"))
    if not isinstance(names, dict) or not names or not all(str(key).isdigit() for key in names):
        remedy = 'Write e.g. "channel_names": {"0": "CT"}.'
        raise InputError(root / "dataset.json", "names no channels", remedy)
    return [str(names[key]) for key in sorted(names, key=int)]


def _unseen_channels(channels: list[str]) -> Iterator[Finding]:
    """Pictures have three channels: `intensity.to_pictures` takes the first three, of two the first."""
    shown = 1 if len(channels) == 2 else 3
    if len(channels) > shown:
        cause = f"of {len(channels)} channels only {', '.join(channels[:shown])} can be seen by the network"
        yield Finding("warning", "channels", cause, "Number the channels so that the most telling come first.")


def _labels(root: Path, meta: dict) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """(name to ids, the id of "ignore")."""
    path = root / "dataset.json"
    try:
        entries = {
            # version 1 has id -> name, version 2 name -> id or ids
            str(b if str(a).isdigit() else a): a if str(a).isdigit() else b
            for a, b in meta["labels"].items()
        }
        labels = {
            name: tuple(int(i) for i in (ids if isinstance(ids, list) else [ids])) for name, ids in entries.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path, "has no usable labels", 'Write "labels": {"background": 0, "liver": 1}.') from error
    ignore = labels.pop("ignore", None)
    kept = {name: ids for name, ids in labels.items() if ids != (0,) and name.lower() not in BACKGROUND}
    numbers = [i for ids in kept.values() for i in ids]
    if not numbers or min(numbers) < 1 or max(numbers) > MOST_CODES:
        raise InputError(path, f"label ids are not in 1..{MOST_CODES}", "Renumber the labels; 0 is background.")
    return kept, ignore[0] if ignore else None


Files = tuple[tuple[Path, ...], Path | None, str]


def _find_cases(root: Path, ending: str, channels: int) -> tuple[dict[str, Files], list[Finding]]:
    """Stem to (channel files, label map, "Tr" or "Ts"). Test images without labels are left out and counted."""
    found: dict[str, Files] = {}
    findings = []
    for part in ("Tr", "Ts"):
        masks = {_stem(path): path for path in _files(root / f"labels{part}", ending)}
        grouped: dict[str, list[Path]] = {}
        for path in _files(root / f"images{part}", ending):
            grouped.setdefault(_CHANNEL.sub("", _stem(path)), []).append(path)
        unlabelled = tuple(stem for stem in grouped if stem not in masks) if part == "Ts" else ()
        short = tuple(s for s, paths in grouped.items() if len(paths) != channels and not _is_stacked(paths))
        lost = tuple(path.name for stem, path in masks.items() if stem not in grouped)
        if unlabelled:
            cause = f"{len(unlabelled)} test images have no labels and are not used"
            findings.append(Finding("hint", "pairs", cause, "Nothing to do.", unlabelled))
        if lost:
            remedy = "Name images CASE_0000 and the label map CASE."
            findings.append(Finding("error", "pairs", f"{len(lost)} label maps have no image", remedy, lost))
        if short:
            cause = f"{len(short)} cases have not the {channels} channels that dataset.json names"
            findings.append(Finding("error", "channels", cause, "Add the missing channels.", short))
        used = {stem: paths for stem, paths in grouped.items() if stem not in unlabelled}
        found |= {stem: (tuple(paths), masks.get(stem), part) for stem, paths in used.items()}
    if not found:
        cause = f"no images{f' ending in {ending}' if ending else ''}"
        raise InputError(root / "imagesTr", cause, "Put CASE_0000.nii.gz there and CASE.nii.gz in labelsTr.")
    return found, findings


def _is_stacked(paths: list[Path]) -> bool:
    """One file without a channel number: version 1, all channels in it."""
    return len(paths) == 1 and _CHANNEL.search(_stem(paths[0])) is None


def _files(folder: Path, ending: str) -> Iterator[Path]:
    endings = (ending,) if ending else IMAGE_SUFFIXES
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    yield from (path for path in paths if path.name.endswith(endings) and not path.name.startswith("."))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _final_splits(root: Path, stems: list[str]) -> dict[str, str]:
    """Stem to "train" or "val" from the first fold of `splits_final.json`, in the folder or where nnU-Net puts it."""
    prepared = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 - its name
    places = [root, *([Path(prepared) / root.name] if prepared else [])]
    path = next((p / "splits_final.json" for p in places if (p / "splits_final.json").is_file()), None)
    if path is None:
        return {}
    try:
        fold = json.loads(path.read_text(encoding="utf-8"))[0]
        split_of = {str(stem): split for split in ("train", "val") for stem in fold[split]}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(path, "is not a list of folds with train and val", "Delete it to split by seed.") from error
    return {stem: split for stem, split in split_of.items() if stem in set(stems)}

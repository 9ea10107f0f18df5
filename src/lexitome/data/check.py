"""Is a dataset fit to train on? Every case is read once; what is wrong comes with what to do about it.

Errors would stop a training or make its numbers worthless (unreadable files, label values without a name, a subject in
two parts). Warnings may be intended. Hints only inform.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lexitome import io
from lexitome.concepts import Vocabulary, parse
from lexitome.data.cases import read_case, read_instances
from lexitome.data.dataset import SPLITS, UNKNOWN_CODE, Case, Dataset, Finding, Level
from lexitome.data.hashing import Fingerprint, exact_duplicates, fingerprint, near_duplicates
from lexitome.data.sources.label_maps import LabelMaps
from lexitome.errors import InputError
from lexitome.volume import Volume

THREADS = 2
_ORDER: dict[Level, int] = {"error": 0, "warning": 1, "hint": 2}
_SHIFT_WARNING, _SHIFT_ERROR = 0.1, 1.0  # voxels between where image and mask say that they are
_SPACING_FACTOR = 3.0
_MANY_EMPTY = 0.5


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What one look at a case showed. ``refusal`` is why it cannot be read; then nothing else is known."""

    case: Case
    refusal: InputError | None = None
    grid: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    print: Fingerprint | None = None
    fixes: tuple[str, ...] = ()
    constant: bool = False
    shift: float = 0.0
    mask_is_jpeg: bool = False
    stray_ids: bool = False


@dataclass(frozen=True)
class TargetFacts:
    name: str
    labels: tuple[int, ...]
    cases: int
    share: float
    """Mean share of the pixels in the cases that show it."""


@dataclass(frozen=True)
class Report:
    """JSON-able by `dataclasses.asdict`."""

    dataset: str
    form: str
    dims: int
    modality: str
    cases: int
    units: int
    splits: dict[str, int]
    targets: tuple[TargetFacts, ...]
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        return sum(finding.level == level for finding in self.findings)


def check_dataset(dataset: Dataset, progress: Callable[[int], None] | None = None) -> Report:
    """Look at every case of `dataset`; `progress` is told how many are done."""
    facts = []
    with ThreadPoolExecutor(THREADS) as pool:
        for done, fact in enumerate(pool.map(look_at, dataset.cases), start=1):
            facts.append(fact)
            if progress:
                progress(done)
    readable = [fact for fact in facts if fact.refusal is None]
    findings = [
        *dataset.findings, *_pairs(dataset), *_refusals(facts), *_geometry(readable), *_label_values(dataset, readable),
        *_emptiness(dataset, readable), *_pictures(readable), *_duplicates(readable), *_leaks(dataset),
        *_names(dataset),
    ]  # fmt: skip
    splits = Counter(case.split for case in dataset.cases)
    return Report(
        dataset=dataset.name, form=dataset.form, dims=dataset.dims, modality=dataset.modality,
        cases=len(dataset.cases), units=len({case.unit for case in dataset.cases}),
        splits={split: splits[split] for split in SPLITS}, targets=_target_facts(dataset, readable),
        findings=tuple(sorted(findings, key=lambda finding: _ORDER[finding.level])),
    )  # fmt: skip


def look_at(case: Case) -> CaseFacts:
    """Read one case; a refusal is a fact, too."""
    try:
        volume, codes = read_case(case)
        ids = read_instances(case, volume)
        shift = _shift(case, volume)
    except InputError as error:
        return CaseFacts(case, error)
    except OSError as error:
        return CaseFacts(case, InputError(case.image, f"cannot be read ({error.strerror})", "Check the file."))
    values, amounts = np.unique(codes, return_counts=True)
    content = case.content
    masks = content.masks if isinstance(content, LabelMaps) else ()
    return CaseFacts(
        case, None, volume.grid, volume.spacing if volume.spacing_known else None,
        counts=dict(zip(values.tolist(), amounts.tolist(), strict=True)), print=fingerprint(volume),
        fixes=volume.fixes, constant=bool(volume.array.min() == volume.array.max()), shift=shift,
        mask_is_jpeg=any(path is not None and path.suffix.lower() in (".jpg", ".jpeg") for path in masks),
        stray_ids=ids is not None and bool((ids[codes == 0] > 0).mean() > 0.01) if (codes == 0).any() else False,
    )  # fmt: skip


def _shift(case: Case, volume: Volume) -> float:
    """How far apart image and masks say that the same voxel is, in voxels, at the worst corner; 0 where unknown."""
    if not volume.spacing_known or not isinstance(case.content, LabelMaps):
        return 0.0
    worst = 0.0
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * (np.array(volume.grid[::-1]) - 1)
    for path in case.content.masks:
        mask = io.read(path) if path is not None else volume
        if mask.spacing_known:
            gaps = volume.to_voxel(mask.to_world(corners)) - corners
            worst = max(worst, float(np.abs(gaps).max()))
    return worst


def _stems(facts: Sequence[CaseFacts]) -> tuple[str, ...]:
    return tuple(fact.case.stem for fact in facts)


def _pairs(dataset: Dataset) -> Iterator[Finding]:
    bare = tuple(
        case.stem
        for case in dataset.cases
        if isinstance(case.content, LabelMaps) and case.content.masks and case.content.masks[0] is None
    )
    if bare:
        remedy = "Add the masks (all 0 if the image shows nothing of it), or remove the images."
        yield Finding("error", "pairs", f"{len(bare)} images have no mask", remedy, bare)


def _refusals(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """One finding for each kind of refusal, however many files it concerns."""
    kinds: dict[str, list[InputError]] = {}
    for fact in facts:
        if fact.refusal is not None:
            kinds.setdefault(fact.refusal.remedy, []).append(fact.refusal)
    for remedy, refusals in kinds.items():
        cause = refusals[0].cause
        if len(refusals) > 1:
            cause = f"{len(refusals)} cases cannot be used, e.g. {refusals[0].path}: {cause}"
        yield Finding("error", "reading", cause, remedy, tuple(refusal.path for refusal in refusals))


def _geometry(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    remedy = (
        "Resample the mask on the image's grid by nearest neighbour, or copy the image's header if only that is off."
    )
    for level, low, high in (("error", _SHIFT_ERROR, np.inf), ("warning", _SHIFT_WARNING, _SHIFT_ERROR)):
        off = [fact for fact in facts if low < fact.shift <= high]
        if off:
            worst = max(fact.shift for fact in off)
            cause = (
                f"in {len(off)} cases the headers put the mask elsewhere than the image, by up to {worst:.3g} voxels"
            )
            yield Finding("error" if level == "error" else "warning", "geometry", cause, remedy, _stems(off))
    placed = [fact for fact in facts if fact.spacing is not None]
    if placed and len(placed) < len(facts):
        cause = f"{len(facts) - len(placed)} of {len(facts)} images have no spacing, the others have"
        without = [fact for fact in facts if fact.spacing is None]
        yield Finding("warning", "geometry", cause, "Export all images with their spacing.", _stems(without))
    if len(placed) > 2:
        spacing = np.array([fact.spacing for fact in placed])
        ratio = spacing / np.median(spacing, axis=0)
        odd = np.flatnonzero((np.maximum(ratio, 1 / ratio) > _SPACING_FACTOR).any(axis=1))
        if len(odd):
            cause = f"the spacing of {len(odd)} images is more than {_SPACING_FACTOR:g} times off the median"
            yield Finding("warning", "geometry", cause, "Check their headers.", _stems([placed[i] for i in odd]))
    turned = [fact for fact in facts if any("EXIF" in fix for fix in fact.fixes)]
    if turned:
        cause = f"{len(turned)} images were turned upright by EXIF, their masks were not"
        yield Finding(
            "warning", "geometry", cause, "Save them upright, and look at a mask on its image.", _stems(turned)
        )


def _label_values(dataset: Dataset, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    known = {0, UNKNOWN_CODE}.union(*(target.codes for target in dataset.targets))
    strange: dict[int, list[CaseFacts]] = {}
    for fact in facts:
        for code in fact.counts.keys() - known:
            strange.setdefault(code, []).append(fact)
    for code, where in sorted(strange.items())[:10]:
        remedy = "Add it to the labels if it means something, else set these pixels to 0."
        cause = f"label value {code} in {len(where)} masks has no name"
        yield Finding("error", "labels", cause, remedy, _stems(where))
    if len(strange) > 10:
        remedy = "Save the label map itself: was a picture, or a probability, saved as mask?"
        yield Finding("error", "labels", f"{len(strange)} label values have no name", remedy)
    seen = {code for fact in facts for code in fact.counts}
    unused = tuple(t.name for t in dataset.targets if not t.derived and not seen & set(t.codes))
    if unused and facts:
        cause = f"{len(unused)} labels never occur: {', '.join(unused)}"
        yield Finding("warning", "labels", cause, "Remove them from the list, or check the masks.", unused)
    jpeg = [fact for fact in facts if fact.mask_is_jpeg]
    if jpeg:
        cause = f"{len(jpeg)} masks are JPEG, which blurs their edges and changes label values"
        yield Finding("warning", "labels", cause, "Save masks as PNG.", _stems(jpeg))
    stray = [fact for fact in facts if fact.stray_ids]
    if stray:
        cause = f"in {len(stray)} cases objects of instances/ lie where the mask is background"
        yield Finding("warning", "labels", cause, "Check that instances/ and masks/ belong together.", _stems(stray))


def _emptiness(dataset: Dataset, facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    empty = [fact for fact in facts if not fact.counts.keys() - {0, UNKNOWN_CODE} and not _has_no_mask(fact.case)]
    if not empty:
        return
    cause = f"{len(empty)} of {len(facts)} images show nothing (empty mask)"
    if len(empty) == len(facts):
        yield Finding("error", "empty", cause, "Check how the masks were exported.", _stems(empty))
    elif len(empty) > _MANY_EMPTY * len(facts):
        remedy = "Fine if these are true negatives; else check the export."
        yield Finding("warning", "empty", cause, remedy, _stems(empty))
    else:
        yield Finding("hint", "empty", cause, "Fine if these are true negatives.", _stems(empty))


def _has_no_mask(case: Case) -> bool:
    return isinstance(case.content, LabelMaps) and bool(case.content.masks) and case.content.masks[0] is None


def _pictures(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    flat = [fact for fact in facts if fact.constant]
    if flat:
        cause = f"{len(flat)} images have the same value in every pixel"
        yield Finding("warning", "pictures", cause, "Export them again, or remove them.", _stems(flat))
    broken = [fact for fact in facts if any("not finite" in fix for fix in fact.fixes)]
    if broken:
        cause = f"{len(broken)} images hold NaN or infinity, which count as the smallest or largest value"
        yield Finding("warning", "pictures", cause, "Set these voxels to a true value.", _stems(broken))


def _duplicates(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Same pictures are reported where subjects differ: neighbouring slices of one subject are expected to be alike."""
    usable = [fact for fact in facts if fact.print is not None and not fact.constant]
    prints = [fact.print for fact in usable if fact.print is not None]
    same = [tuple(usable[i].case for i in group) for group in exact_duplicates(prints)]
    alike = [(usable[i].case, usable[j].case) for i, j in near_duplicates(prints)]
    for exact, groups in ((True, same), (False, [pair for pair in alike if pair[0].unit != pair[1].unit])):
        across = [group for group in groups if len({case.split for case in group}) > 1]
        within = [group for group in groups if len({case.split for case in group}) == 1]
        what = "are the same picture twice" if exact else "look nearly the same though of different subjects"
        if across:
            remedy = "Remove one of each, or put them in one part by --unit-pattern."
            cause = f"{len(across)} groups of images in different parts {what}"
            yield Finding("error" if exact else "warning", "duplicates", cause, remedy, _joined(across))
        if within:
            cause = f"{len(within)} groups of images in one part {what}"
            yield Finding("warning" if exact else "hint", "duplicates", cause, "Remove one of each.", _joined(within))


def _joined(groups: Sequence[Sequence[Case]]) -> tuple[str, ...]:
    return tuple(" = ".join(case.stem for case in group) for group in groups)


def _leaks(dataset: Dataset) -> Iterator[Finding]:
    parts: dict[str, set[str]] = {}
    for case in dataset.cases:
        parts.setdefault(case.unit, set()).add(case.split)
    leaking = tuple(f"{unit} ({', '.join(sorted(splits))})" for unit, splits in parts.items() if len(splits) > 1)
    if leaking:
        cause = f"{len(leaking)} subjects are in more than one part"
        remedy = "Correct the published split, or --unit-pattern if these are different subjects."
        yield Finding("error", "leakage", cause, remedy, leaking)
    missing = [split for split in SPLITS if not any(case.split == split for case in dataset.cases)]
    if missing:
        cause = f"no images for {' and '.join(missing)}"
        remedy = "Add subjects (three at least), or a published part, if results are to be measured."
        yield Finding("warning", "splits", cause, remedy)


def _names(dataset: Dataset) -> Iterator[Finding]:
    vocabulary = Vocabulary.load()
    sided = []
    for target in dataset.targets:
        if target.derived:
            continue
        found = vocabulary.resolve(target.name, dataset.modality)
        if found.concept is None:
            near = f"; similar: {', '.join(found.alternatives[:3])}" if found.alternatives else ""
            cause = f"{target.name!r} is not in the vocabulary{near}"
            remedy = "It can be trained; a known name or synonym lets users ask in other words."
            yield Finding("hint", "names", cause, remedy, (target.name,))
        if parse(target.name).side:
            sided.append(target.name)
    if sided:
        cause = f"labels name a side ({', '.join(sided[:4])}): pictures are not mirrored in training"
        remedy = "Sides must be the patient's."
        if dataset.dims == 2:
            remedy += " 2D pictures do not tell: the patient's right must be at the left of the picture."
        yield Finding("hint", "names", cause, remedy, tuple(sided))


def _target_facts(dataset: Dataset, facts: Sequence[CaseFacts]) -> tuple[TargetFacts, ...]:
    found = []
    for target in dataset.targets:
        shares = [
            sum(fact.counts.get(code, 0) for code in set(target.codes)) / max(1, sum(fact.counts.values()))
            for fact in facts
            if not set(target.labels) & fact.case.unknown_labels
        ]
        shown = [share for share in shares if share > 0]
        found.append(TargetFacts(target.name, target.labels, len(shown), float(np.mean(shown)) if shown else 0.0))
    return tuple(found)

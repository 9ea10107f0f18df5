"""`lexitome train --data DIR` without a recipe: look at the data and the machine, choose sensible values, say why.

Every reason is written from the recipe as it will be run, with what --set changed, and from the numbers that decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lexitome.data.dataset import Dataset
from lexitome.data.intensity import CUBIC
from lexitome.data.traits import TRAITS, SetTraits, Size, traits_of
from lexitome.models.catalog import find_model
from lexitome.models.compact import CompactConfig
from lexitome.models.compact_weights import load_folder
from lexitome.recipes.compact import IMAGENET, CompactRecipe, compact_optim
from lexitome.recipes.look import Look, Spacing, look_at
from lexitome.recipes.machine import Machine
from lexitome.recipes.overrides import override
from lexitome.training.compact import Resolution, Sampling, Share
from lexitome.training.engine import Precision, RunConfig
from lexitome.training.memory import RECOMPUTED, StepMemory, at_once, memory_of, shown_sizes

KEPT = 4.5
"""Pixels that the narrowest target should keep; with fewer at the usual resolution it is shown at the high one."""
LOST = 2.0
"""A structure with fewer pixels than this can hardly be drawn."""
COARSE = 160
"""Slices of volumes up to this many voxels across gain nothing from more."""
COUNTED, COMPACT = 3.0, 0.4
"""Targets with at least this many parts in a picture are taken for separate objects if the parts are compact (4 pi
area / border^2, 1 for a disc), which the branches of a vessel are not."""
FEWEST_STEPS, MOST_STEPS = 60, 6000
FINETUNE_LR = 4e-4
MOST_SLICES, MOST_STEP = 800, 4
"""Neighbouring slices are near-duplicates: of sets with more than about this many, only every n-th is decoded, but of
those that even the smallest target is long enough to be met in two."""
MEMORY_SHARE = 0.7
"""Of the free memory; the rest is for decoded pictures, which the system keeps there, and for other programs."""
QUICKER = 1.1
BOTH: tuple[Precision, ...] = ("bf16", "fp32")
GB = 1e9


def chosen_size(dataset: Dataset, look: Look, usual: int) -> Size:
    """`usual`: side of the pictures of size class "medium"."""
    if dataset.dims == 3 and look.across <= COARSE:
        return "small"
    return "fine" if look.width * usual < KEPT else "medium"


def chosen_slice_step(look: Look) -> int:
    """Every how many slices one is decoded."""
    wanted = min(max(1, round(look.cases * look.slices / MOST_SLICES)), MOST_STEP)
    if look.spacing is None or not look.spacing.smallest:
        return wanted
    return int(np.clip(look.spacing.smallest / (2 * look.spacing.gap), 1, wanted))


def neighbours_tell(spacing: Spacing | None) -> bool:
    """Whether the next slice of a volume can show what this one shows: not if it is farther away than the largest
    target is wide."""
    return spacing is None or not spacing.largest or spacing.gap <= spacing.largest


def traits_for(dataset: Dataset, look: Look, usual: int = Sampling().high.medium.side) -> SetTraits:
    """Listed traits, or those that the look suggests."""
    known = traits_of(dataset)
    if dataset.name in TRAITS:
        return known
    countable = look.parts >= COUNTED and look.compactness >= COMPACT
    found = replace(known, size=chosen_size(dataset, look, usual), countable=countable)
    if dataset.dims == 2:
        return found
    return replace(found, slice_step=chosen_slice_step(look), neighbours=neighbours_tell(look.spacing))


@dataclass(frozen=True)
class Plan:
    """A recipe without its number of steps (which is a matter of time), the traits of each set, and the reasons."""

    recipe: CompactRecipe
    traits: dict[str, SetTraits]
    reasons: tuple[str, ...]


def plan_finetune(
    datasets: Sequence[Dataset], start: str, name: str, machine: Machine, settings: Sequence[str] = ()
) -> Plan:
    """Choose values for teaching a model these sets on this machine.

    Args:
        settings: what the user decides, as `overrides.override` takes it.
    Raises:
        InputError: there is no model `start`, or a setting does not fit.
    """
    looks = {d.name: look_at(d) for d in datasets}
    model = CompactConfig() if start == IMAGENET else load_folder(find_model(start).files).config
    draft = CompactRecipe(
        name,
        start=start,
        model=model,
        sampling=Sampling(high_from=0.0),
        optim=compact_optim(FINETUNE_LR, warmup=30),
        run=RunConfig(steps=FEWEST_STEPS, threads=_threads(machine), precision=machine.precision or "bf16"),
    )
    usual = override(draft, settings).sampling.high.medium.side
    traits = {d.name: traits_for(d, looks[d.name], usual) for d in datasets}
    share = _share([t.size for t in traits.values()])
    recipe = override(replace(draft, sampling=replace(draft.sampling, share=share)), settings)
    fitted = fit_memory(recipe, machine, counting(recipe, machine, settings), settings)
    reasons = [line for d in datasets for line in data_reasons(d, looks[d.name], traits[d.name], fitted.recipe)]
    reasons += [*_recipe_reasons(fitted.recipe), *_machine_reasons(fitted.recipe, machine, settings), fitted.reason]
    return Plan(fitted.recipe, traits, tuple(reasons))


def _share(sizes: Sequence[Size]) -> Share:
    """Sets that want high resolution are shown at both; volumes are cheap and get at least their half."""
    fine, small = 0.4 * ("fine" in sizes), 0.5 * ("small" in sizes)
    rest = 1.0 - fine - small if {"medium", "fine"} & set(sizes) else 0.0
    return Share(small=small or 0.0, medium=max(rest, 0.0), fine=fine)


def data_reasons(dataset: Dataset, look: Look, traits: SetTraits, recipe: CompactRecipe) -> list[str]:
    """Lines about one set."""
    split = {part: sum(case.split == part for case in dataset.cases) for part in ("train", "val", "test")}
    names = ", ".join(t.name for t in dataset.targets[:4]) + (" ..." if len(dataset.targets) > 4 else "")
    kind = "volumes" if dataset.dims == 3 else "images"
    turned = "any way up" if traits.rotate else "upright" + (", mirrored" if traits.mirror else "")
    why = (
        "the modality has no way up and no label names a side"
        if traits.rotate
        else "labels or modality know left from right"
    )
    if dataset.name in TRAITS:
        why = "as the list of known sets says"
    return [
        f"data         {dataset.name}: {look.cases} {kind} ({split['train']} to train, {split['val']} to validate, "
        f"{split['test']} to test, no subject in two parts); {len(dataset.targets)} targets: {names}",
        *_spacing_reasons(dataset, look, traits),
        *_resolution_reasons(dataset, look, traits, recipe.sampling),
        f"pictures     shown {turned}: {why}",
        *([f"objects      told apart: about {look.parts:.0f} parts in a picture"] if traits.countable else []),
    ]


def _spacing_reasons(dataset: Dataset, look: Look, traits: SetTraits) -> list[str]:
    """What the millimetres decide about volumes; for single pictures see `_resolution_reasons`."""
    if dataset.dims == 2:
        return []
    known = look.spacing
    if known is None:
        return ["spacing      not known: slices are cut as they are stored, and shown with their neighbours"]
    measured = f"spacing      pixels of {known.pixel:.2g} mm, slices {known.gap:.2g} mm apart: "
    if look.cubic == 1:
        cut = f"nearly cubic (at most {CUBIC:g} to 1), cut along all three axes"
    elif look.cubic == 0:
        cut = f"not nearly cubic (more than {CUBIC:g} to 1), cut along one axis"
    else:
        cut = f"the {100 * look.cubic:.0f} % that are nearly cubic are cut along all three axes, the others along one"
    lines = [measured + cut]
    if dataset.name in TRAITS:
        return lines
    wide = f"the largest target is {known.largest:.2g} mm across"
    lines.append(
        f"neighbours   each slice is shown between its neighbours, {known.gap:.2g} mm away: {wide}"
        if traits.neighbours
        else f"neighbours   each slice is shown alone: {wide}, the next slice is {known.gap:.2g} mm away"
    )
    many = f"about {look.cases * look.slices:.0f} slices, more than {MOST_SLICES}"
    smallest = f"the smallest target is {known.smallest:.2g} mm across"
    step = traits.slice_step
    if step > 1:
        lines.append(f"slices       one in {step}, {step * known.gap:.2g} mm apart: {many}, and {smallest}")
    elif look.cases * look.slices / MOST_SLICES >= 1.5:
        lines.append(f"slices       all, {known.gap:.2g} mm apart: {many}, but {smallest}, to be met in two")
    return lines


def _resolution_reasons(dataset: Dataset, look: Look, traits: SetTraits, sampling: Sampling) -> list[str]:
    """At which side, and how many pixels that leaves to the narrowest target."""
    high = sampling.high
    side = getattr(high, traits.size).side
    if dataset.name in TRAITS:
        return [f"resolution   {side} pixels: as the list of known sets says"]
    if traits.size == "small":
        return [f"resolution   {side} pixels: slices are only {look.across} voxels across, at most {COARSE}"]
    narrow = f"the narrowest target is {100 * look.width:.2g} % of the picture wide"
    if dataset.dims == 2 and look.spacing is not None:
        narrow += f" ({look.spacing.narrowest:.2g} mm)"
    usual = look.width * high.medium.side
    if traits.size == "medium":
        return [f"resolution   {side} pixels: {narrow}, {usual:.1f} pixels of {side}, at least {KEPT:g}"]
    lines = [
        f"resolution   {side} pixels and {high.medium.side}: {narrow}, only {usual:.1f} pixels of {high.medium.side}, "
        f"fewer than {KEPT:g}; {look.width * side:.1f} of {side}"
    ]
    if look.width * side < LOST:
        lines.append(f"thin         even {side} pixels leave it fewer than {LOST:g}: cut the pictures into tiles first")
    return lines


def _recipe_reasons(recipe: CompactRecipe) -> list[str]:
    knows = "edges and textures" if recipe.start == IMAGENET else "edges, organs and words"
    optim, kept = recipe.optim, compact_optim(FINETUNE_LR, warmup=30)
    rates = "".join(f", {glob} {lr:g}" for glob, lr in optim.groups)
    if (optim.lr, optim.groups) == (kept.lr, kept.groups):
        rates = " (half of what training from the beginning takes), backbone a quarter of it"
    return [
        f"start        {recipe.start}: what it knows of {knows} is kept and taught on",
        f"optimiser    AdamW {optim.lr:g}{rates}",
    ]


def _threads(machine: Machine) -> int | None:
    """Of torch on each rank; a GPU leaves them as they are."""
    if machine.device != "cpu":
        return None
    return machine.threads or max(1, machine.cores // machine.ranks)


def _machine_reasons(recipe: CompactRecipe, machine: Machine, settings: Sequence[str]) -> list[str]:
    run = recipe.run
    if machine.device != "cpu":
        computes = "computes bf16" if machine.precision == "bf16" else "is not known to compute bf16"
        lines = [f"device       {machine.device}: a GPU was found"]
        why = "as you set" if sets(settings, "run.precision") else f"the GPU {computes}"
        return [*lines, f"precision    {run.precision}: {why}"]
    shared = f" for {machine.ranks} processes" if machine.ranks > 1 else ""
    why = f"{machine.cores} cores may be used{shared}"
    why = "as OMP_NUM_THREADS says" if machine.threads else why
    why = "as you set" if sets(settings, "run.threads") else why
    count = "one thread" if run.threads == 1 else f"{run.threads or 'usual'} threads"
    return [f"device       cpu, {count}: no GPU was found; {why}"]


Count = Callable[[tuple[str, ...]], StepMemory]
"""What a step takes, by the modules whose activations are computed twice."""


@dataclass(frozen=True)
class Fitted:
    """A recipe whose steps fit into the memory, as far as that can be, and the line that says so."""

    recipe: CompactRecipe
    reason: str


def counting(recipe: CompactRecipe, machine: Machine, settings: Sequence[str]) -> Count:
    """What a step takes. As long as nothing says that it will be bf16, fp32 counts."""
    decided = machine.precision is not None or sets(settings, "run.precision")
    half = decided and recipe.run.precision == "bf16"
    return lambda way: memory_of(recipe.model, recipe.queries, recipe.objective, half=half, recompute=way)


def fit_memory(recipe: CompactRecipe, machine: Machine, count: Count, settings: Sequence[str]) -> Fitted:
    """The fewest parts of a step that fit; if none do, activations are computed twice. The result of training is the
    same. What `settings` say of run.accumulate and run.recompute stays."""
    shown, ranks = shown_sizes(recipe.sampling), machine.ranks
    most = max(at_once(each, ranks, 1) for each in shown)
    ways = [recipe.run.recompute] if sets(settings, "run.recompute") else [(), RECOMPUTED]
    own = sets(settings, "run.accumulate")

    def needed(way: tuple[str, ...], parts: int) -> tuple[int, Resolution]:
        found = [(count(way).needed(each, ranks, parts, recipe.run.prefetch), each) for each in shown]
        return max(found, key=lambda one: one[0])

    tried = [(way, n) for way in ways for n in ([recipe.run.accumulate] if own else range(1, most + 1))]
    allowed = None if machine.memory is None else MEMORY_SHARE * machine.memory
    fits = next((one for one in tried if allowed is None or needed(*one)[0] <= allowed), None)
    way, parts = fits or tried[-1]
    size, largest = needed(way, parts)
    once = at_once(largest, ranks, parts)
    text = f"{largest.images} pictures of {largest.side} pixels make a step, {once} at once"
    text += " in each process" if ranks > 1 else ""
    text += " and computed twice (recompute)" if way else ""
    text += f": {size / GB:.1f} GB at most"
    whole, _ = needed(tried[0][0], tried[0][1])
    if (way, parts) != tried[0]:
        text += f" instead of {whole / GB:.1f}"
    if machine.memory is None:
        text += "; how much is free is not known"
    else:
        where = "" if machine.device == "cpu" else " on the GPU"
        text += f"; {machine.memory / GB:.1f} GB are free{where}, {100 * MEMORY_SHARE:.0f} % of it are used"
    if fits is None:
        text += ", too few: close other programs, or set smaller sides (--set sampling.high.medium.side=256)"
    run = replace(recipe.run, accumulate=parts, recompute=way)
    return Fitted(replace(recipe, run=run), f"memory       {text}")


def precision_for(seconds: Mapping[Precision, float]) -> tuple[Precision, str]:
    """The precision for a CPU that takes so many seconds for a step in each, and the line that says so. What is not
    exact has to be clearly quicker; then a second run of the same command chooses alike."""
    half, full = seconds["bf16"], seconds["fp32"]
    if half * QUICKER <= full:
        return "bf16", f"precision    bf16: {half:.2g} s a step, {full:.2g} s in fp32"
    return "fp32", f"precision    fp32: {full:.2g} s a step, in bf16 {half:.2g} s, which is not clearly less"


def sets(settings: Sequence[str], path: str) -> bool:
    """Whether the user decides the field `path`."""
    return any(setting.partition("=")[0].strip() == path for setting in settings)


def steps_for(minutes: float, seconds_per_step: float) -> int:
    """Steps that fit into the time, nine tenths of which is for training and the rest for validation and export."""
    return int(np.clip(0.9 * 60 * minutes / seconds_per_step, FEWEST_STEPS, MOST_STEPS))


def with_steps(recipe: CompactRecipe, steps: int) -> CompactRecipe:
    """The recipe with a number of steps, and the intervals and averaging that suit it."""
    run = replace(
        recipe.run, steps=steps, ema=float(np.clip(1 - 10 / steps, 0.9, 0.998)), validate_every=max(20, steps // 8),
        checkpoint_every=max(20, min(200, steps // 8)), log_every=max(1, min(20, steps // 50)),
    )  # fmt: skip
    return replace(recipe, run=run, optim=replace(recipe.optim, warmup=min(recipe.optim.warmup, steps // 5)))

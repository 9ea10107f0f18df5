"""`lexitome train --data DIR` without a recipe: look at the data, choose sensible values, say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lexitome.data.cases import read_case
from lexitome.data.dataset import Dataset
from lexitome.data.traits import TRAITS, SetTraits, Size, traits_of
from lexitome.models.catalog import find_model
from lexitome.models.compact import CompactConfig
from lexitome.models.compact_weights import load_folder
from lexitome.recipes.compact import IMAGENET, CompactRecipe, compact_optim
from lexitome.training.compact import Sampling, Share
from lexitome.training.engine import RunConfig

SAMPLE = 24
"""Cases that are looked at."""
THIN = 0.014
"""Structures narrower than this fraction of the picture's side (4.5 pixels of 320) are shown at high resolution."""
COARSE = 160
"""Slices of volumes up to this many voxels across gain nothing from more."""
COUNTED, COMPACT = 3.0, 0.4
"""Targets with at least this many parts in a picture are taken for separate objects if the parts are compact (4 pi
area / border^2, 1 for a disc), which the branches of a vessel are not."""
FEWEST_STEPS, MOST_STEPS = 60, 6000
FINETUNE_LR = 4e-4
MOST_SLICES = 800
"""Neighbouring slices are near-duplicates: of sets with more than about this many, only every n-th is decoded."""


@dataclass(frozen=True)
class Look:
    """What a sample of a dataset's cases looks like.

    Attributes:
        slices: of a case, the mean.
        across: voxels, the median of the longer side of a slice.
        width: of the narrowest target, as a fraction of the picture's side.
        parts: connected parts of a target in a picture, the mean of the target that has most.
        compactness: of those parts, weighted by area.
    """

    cases: int
    slices: float
    across: int
    width: float
    parts: float
    compactness: float


@dataclass(frozen=True)
class Shape:
    """A target in one picture, see `Look`."""

    width: float
    parts: int
    compactness: float


def look_at(dataset: Dataset) -> Look:
    """Read up to `SAMPLE` cases, evenly spread."""
    chosen = np.linspace(0, len(dataset.cases) - 1, min(SAMPLE, len(dataset.cases))).round().astype(int)
    depths, sides = [], []
    shapes: dict[str, list[Shape]] = {target.name: [] for target in dataset.targets}
    for codes in (read_case(dataset.cases[i])[1] for i in chosen):
        depths.append(codes.shape[0])
        sides.append(max(codes.shape[1], codes.shape[2]))
        for target in dataset.targets:
            shown = np.isin(codes, target.codes)
            plane = shown[int(shown.sum((1, 2)).argmax())]
            if plane.any():
                shapes[target.name].append(shape_of(plane))
    drawn = [found for found in shapes.values() if found]
    most = max(drawn, key=lambda found: np.mean([s.parts for s in found]), default=[Shape(1.0, 0, 1.0)])
    return Look(
        cases=len(dataset.cases),
        slices=float(np.mean(depths)),
        across=int(np.median(sides)),
        width=min((float(np.mean([s.width for s in found])) for found in drawn), default=1.0),
        parts=float(np.mean([s.parts for s in most])),
        compactness=float(np.mean([s.compactness for s in most])),
    )


def shape_of(mask: NDArray[np.bool_]) -> Shape:
    """(Y, X), not empty. A band of width w and length l has the area l w and twice l of border."""
    labels, count = ndimage.label(mask)
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    border = np.bincount(labels[mask & ~ndimage.binary_erosion(mask)], minlength=count + 1)[1:]
    roundness = np.minimum(4 * np.pi * area / np.maximum(border, 1) ** 2, 1.0)
    width = 2.0 * area.sum() / max(border.sum(), 1) / max(mask.shape[0], mask.shape[1])
    return Shape(float(width), count, float(np.average(roundness, weights=area)))


def traits_for(dataset: Dataset, look: Look) -> SetTraits:
    """Listed traits, or those that the look suggests."""
    known = traits_of(dataset)
    if dataset.name in TRAITS:
        return known
    size: Size = "small" if dataset.dims == 3 and look.across <= COARSE else "fine" if look.width < THIN else "medium"
    step = max(1, round(look.cases * look.slices / MOST_SLICES)) if dataset.dims == 3 else 1
    countable = look.parts >= COUNTED and look.compactness >= COMPACT
    return replace(known, size=size, countable=countable, slice_step=min(step, 4))


@dataclass(frozen=True)
class Plan:
    """A recipe without its number of steps (which is a matter of time), the traits of each set, and the reasons."""

    recipe: CompactRecipe
    traits: dict[str, SetTraits]
    reasons: tuple[str, ...]


def plan_finetune(datasets: Sequence[Dataset], start: str, name: str) -> Plan:
    """Choose values for teaching a model these sets.

    Raises:
        InputError: there is no model `start`.
    """
    looks = {d.name: look_at(d) for d in datasets}
    traits = {d.name: traits_for(d, looks[d.name]) for d in datasets}
    reasons = [line for d in datasets for line in _reasons(d, looks[d.name], traits[d.name])]
    share = _share([t.size for t in traits.values()])
    recipe = CompactRecipe(
        name,
        start=start,
        model=CompactConfig() if start == IMAGENET else load_folder(find_model(start).files).config,
        sampling=Sampling(high_from=0.0, share=share),
        optim=compact_optim(FINETUNE_LR, warmup=30),
        run=RunConfig(steps=FEWEST_STEPS),
    )
    knows = "edges and textures" if start == IMAGENET else "edges, organs and words"
    reasons.append(f"start        {start}: what it knows of {knows} is kept and taught on")
    reasons.append(
        f"optimiser    AdamW {FINETUNE_LR:g} (half of what training from the beginning takes), backbone a quarter of it"
    )
    return Plan(recipe, traits, tuple(reasons))


def _reasons(dataset: Dataset, look: Look, traits: SetTraits) -> list[str]:
    split = {part: sum(case.split == part for case in dataset.cases) for part in ("train", "val", "test")}
    names = ", ".join(t.name for t in dataset.targets[:4]) + (" ..." if len(dataset.targets) > 4 else "")
    kind = "volumes" if dataset.dims == 3 else "images"
    sizes = {
        "small": f"192 pixels: slices are only {look.across} voxels across; each sees its neighbours",
        "medium": f"320 pixels: the narrowest target is {100 * look.width:.0f} % of the picture wide",
        "fine": f"512 pixels and 320: the narrowest target is only {100 * look.width:.1f} % of the picture wide",
    }
    turned = "any way up" if traits.rotate else "upright" + (", mirrored" if traits.mirror else "")
    why = (
        "the modality has no way up and no label names a side"
        if traits.rotate
        else "labels or modality know left from right"
    )
    return [
        f"data         {dataset.name}: {look.cases} {kind} ({split['train']} to train, {split['val']} to validate, "
        f"{split['test']} to test, no subject in two parts); {len(dataset.targets)} targets: {names}",
        f"resolution   {sizes[traits.size]}",
        f"pictures     shown {turned}: {why}",
        *([f"objects      told apart: about {look.parts:.0f} parts in a picture"] if traits.countable else []),
    ]


def _share(sizes: Sequence[Size]) -> Share:
    """Sets that want high resolution are shown at both; volumes are cheap and get at least their half."""
    fine, small = 0.4 * ("fine" in sizes), 0.5 * ("small" in sizes)
    rest = 1.0 - fine - small if {"medium", "fine"} & set(sizes) else 0.0
    return Share(small=small or 0.0, medium=max(rest, 0.0), fine=fine)


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

"""What is chosen on the validation split when a model is exported: how each target is asked, and from which presence
probability the model says "found". The graphs themselves are asked, as they will be stored."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import Dataset, Target
from lexitome.data.negatives import surely_absent
from lexitome.training.answers import Ask, Question, annotated, answers, asking, shows, validation_rows
from lexitome.training.graphs import Pair, Session
from lexitome.training.sides import best_sides, better_mirrored
from lexitome.training.validation import spread

FEWEST_PAIRS = 8
"""A target with fewer present or absent validation pairs shares the default threshold."""
LOWEST, HIGHEST, HIGHEST_ASKED = 0.01, 0.5, 0.9
"""Bounds. One half is what the network was trained to mean; only where a set asks for its targets mostly in pictures
that show them (many organs, few slices without) does raw presence run high, and validation pairs can tell how much."""
MISS_COST = 2.0
"""A missed target costs twice a false one: a person deletes a wrong mask faster than she draws a missing one."""
TOLERANCE = 0.05
"""Of `1 + MISS_COST`: up to five in a hundred absent targets more may be taken for present."""
MOST_PICTURES = 30
"""Validation pictures used of each set."""
ABSENT_OF_OTHER_SETS = 3
"""Surely absent targets of other sets asked of each picture, of its own modality and of others each."""


@dataclass(frozen=True)
class TargetChoice:
    """How a target is asked: see `models.catalog.TrainedConcept`. ``dice`` is the mean over validation pictures at
    `side` (None: no picture shows it)."""

    threshold: float
    side: int
    stacked: bool
    views: bool
    countable: bool
    mirrored: bool
    dice: float | None


@dataclass(frozen=True)
class Calibration:
    """Choices by target name, and the presence threshold of everything else."""

    targets: dict[str, TargetChoice]
    default_threshold: float


def calibrate(graphs: Pair, sets: Sequence[CachedDataset], threads: int | None = None) -> Calibration:
    """Sides first, since the rest depends on them, then whether to ask about the mirrored picture, too, then thresholds
    (of the picture alone; those of the average are near enough). What volumes are shown as follows from how they were
    trained: `views` is chosen for sets that were cut along every axis, not measured on whole volumes."""
    threads = threads or os.cpu_count() or 1
    ask = asking(Session(graphs))  # one thread each: several pictures at a time keep the cores busier than one
    sides, dice = best_sides(ask, sets, threads)
    mirrored = better_mirrored(ask, sets, sides, threads)
    thresholds, default = presence_thresholds(ask, sets, sides, threads)
    choices = {}
    for name, threshold in thresholds.items():
        homes = [s for s in sets if any(target.name == name for target in s.dataset.targets)]
        choices[name] = TargetChoice(
            threshold, sides[name],
            stacked=any(row.stacked for s in homes for row in s.rows),
            views=any(len({row.axis for row in s.rows}) > 1 for s in homes),
            countable=any(s.traits.countable or s.instances is not None for s in homes),
            mirrored=name in mirrored,
            dice=dice.get(name),
        )  # fmt: skip
    return Calibration(choices, default)


@dataclass
class Scores:
    """Predicted presence of one target on validation pictures that show it (``present``), of its own sets that do not
    (``own``), of other sets of the same modality (``near``) and of other modalities (``far``) that surely do not."""

    present: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    far: list[float] = field(default_factory=list)

    @property
    def absent(self) -> list[float]:
        """The hard ones where there are enough; a target that is alone in its modality is told from other ones."""
        hard = self.own + self.near
        return hard if len(hard) >= FEWEST_PAIRS else hard + self.far

    @property
    def highest(self) -> float:
        return HIGHEST_ASKED if len(self.own) >= FEWEST_PAIRS else HIGHEST


def presence_thresholds(
    ask: Ask, sets: Sequence[CachedDataset], sides: dict[str, int], threads: int = 1
) -> tuple[dict[str, float], float]:
    """(threshold of each target name, default): the best weighted accuracy on validation pairs, see `MISS_COST`.

    A target with few pairs takes the median of its set's others, or the default, which also serves for words the model
    was not trained with.

    Args:
        sides: at which side each target is asked.
    """
    scores = {target.name: Scores() for cached in sets for target in cached.dataset.targets}
    pairs = list(_validation_pairs(sets, sides))
    told = answers(ask, [question for question, _ in pairs], threads)
    for (_, kinds), (question, answer) in zip(pairs, track(told, "presence", total=len(pairs)), strict=True):
        for target, kind, probability in zip(question.targets, kinds, answer.presence, strict=True):
            getattr(scores[target.name], kind).append(float(probability))
    chosen = {
        name: best_threshold(np.array(s.absent), np.array(s.present), s.highest)
        for name, s in scores.items()
        if min(len(s.absent), len(s.present)) >= FEWEST_PAIRS
    }
    for cached in sets:
        names = [target.name for target in cached.dataset.targets]
        known = [chosen[name] for name in names if name in chosen]
        for name in names:
            chosen.setdefault(name, round(float(np.median(known)), 4) if known else HIGHEST)
    return chosen, HIGHEST


def best_threshold(absent: NDArray[np.float64], present: NDArray[np.float64], highest: float) -> float:
    """The lowest threshold from `LOWEST` to `highest` within `TOLERANCE` of the best accuracy, misses weighted.

    The lowest, since pictures from elsewhere show their targets with less certainty than validation pictures: a target
    that is certain here (0.99 against 0.01) would often be missed there by a threshold half-way.
    """
    candidates = 1 / (1 + np.exp(-np.linspace(np.log(LOWEST / (1 - LOWEST)), np.log(highest / (1 - highest)), 171)))
    accuracy = np.array([(absent < t).mean() + MISS_COST * (present >= t).mean() for t in candidates])
    best = np.flatnonzero(accuracy >= accuracy.max() - TOLERANCE)
    return round(float(candidates[best[0]]), 4)


def _validation_pairs(
    sets: Sequence[CachedDataset], sides: dict[str, int]
) -> Iterator[tuple[Question, tuple[str, ...]]]:
    """Questions, each with the kind in `Scores` of its targets: those of each picture's set, and some of others."""
    rng = np.random.default_rng(0)
    datasets: list[Dataset] = [s.dataset for s in sets]
    for cached in sets:
        near, far = (surely_absent(cached.dataset, datasets, same_family=same) for same in (True, False))
        for index in spread(validation_rows(cached), MOST_PICTURES):
            asked: list[tuple[Target, str]] = [
                (target, "present" if shows(cached, index, target) else "own") for target in annotated(cached, index)
            ]
            for others, kind in ((near, "near"), (far, "far")):
                asked += [(others[int(i)], kind) for i in rng.permutation(len(others))[:ABSENT_OF_OTHER_SETS]]
            for side in sorted({sides[target.name] for target, _ in asked}):
                here = [(target, kind) for target, kind in asked if sides[target.name] == side]
                targets, kinds = zip(*here, strict=True)
                yield Question(cached, index, targets, side), kinds

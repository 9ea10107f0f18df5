"""At which side each target is best seen, and whether with its mirror image: Dice on validation pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import UNKNOWN_CODE, Target
from lexitome.data.traits import Size
from lexitome.training.answers import Answer, Ask, Question, annotated, answers, resized, shows, validation_rows
from lexitome.training.validation import USUAL_SIDE, spread

SIDES: dict[Size, tuple[int, ...]] = {
    "small": (160, 192, 256),
    "medium": (256, 320, 384, 448),
    "fine": (320, 384, 448, 512),
}
"""None above the side of the cached pictures, where more detail could not show."""
MOST_PICTURES = 20
"""Validation pictures that show a target, for each target of each set."""
CLEARLY = 0.02
"""Dice that another side must be better by than the usual one: each further side costs another look at the picture, and
with few pictures from one hospital smaller differences are chance."""
TIE = 0.005
"""Dice that a larger side must be better by than a smaller one: it costs its square."""
LEAST_DICE = 0.05
"""A target that is not found better than this at any side does not tell at which it should be asked."""

MIRROR_GAIN = 0.005
"""Dice that the average with the mirrored picture must be better by: it takes twice the time."""
FEWEST_MIRRORED = 5
"""Pictures that decide about it."""

Scores = dict[str, dict[int, list[float]]]
"""Target name to side to Dice of each picture."""


def best_sides(ask: Ask, sets: Sequence[CachedDataset], threads: int) -> tuple[dict[str, int], dict[str, float]]:
    """The side of every target name, and the mean Dice there of those that validation pictures show."""
    scores: Scores = defaultdict(lambda: defaultdict(list))
    questions = [question for cached in sets for question in _questions(cached)]
    told = track(answers(ask, questions, threads), "sides", total=len(questions))
    for question, answer in told:
        for target, value in zip(question.targets, picture_dice(question, answer), strict=True):
            scores[target.name][question.side].append(value)
    sides: dict[str, int] = {}
    dice: dict[str, float] = {}
    for cached in sets:
        for target in cached.dataset.targets:
            side = USUAL_SIDE[cached.traits.size]
            if target.name in scores:
                best, dice[target.name] = choose_side(scores[target.name], side)
                side = best if dice[target.name] >= LEAST_DICE else side
            sides.setdefault(target.name, side)
    return sides, dice


def better_mirrored(ask: Ask, sets: Sequence[CachedDataset], sides: Mapping[str, int], threads: int) -> frozenset[str]:
    """Names of the targets of picture sets that the average with the mirrored picture finds better by `MIRROR_GAIN`,
    each target at its side. Volumes are not asked: neighbouring slices and cutting directions are averaged already."""
    gains: dict[str, list[float]] = defaultdict(list)
    flat = [cached for cached in sets if cached.dataset.dims == 2]
    questions = [question for cached in flat for question in _mirror_questions(cached, sides)]
    told = track(answers(ask, questions, threads), "mirrors", total=len(questions))
    for question, answer in told:
        sign = 1 if question.mirrored else -1
        for target, value in zip(question.targets, picture_dice(question, answer), strict=True):
            gains[target.name].append(sign * value)
    return frozenset(
        name for name, some in gains.items()
        if len(some) >= 2 * FEWEST_MIRRORED and 2 * float(np.mean(some)) >= MIRROR_GAIN
    )  # fmt: skip


def _mirror_questions(cached: CachedDataset, sides: Mapping[str, int]) -> list[Question]:
    found = []
    for index in _few_rows(cached):
        by_side: dict[int, list[Target]] = defaultdict(list)
        for target in annotated(cached, index):
            if shows(cached, index, target):
                by_side[sides[target.name]].append(target)
        for side, targets in by_side.items():
            found += [Question(cached, index, tuple(targets), side, mirrored) for mirrored in (False, True)]
    return found


def choose_side(scores: dict[int, list[float]], usual: int) -> tuple[int, float]:
    """(side, mean Dice there): the usual side, unless others are `CLEARLY` better; then the smallest within `TIE` of
    the best. Sides that only some of the pictures were shown at (a target of sets of different size classes) do not
    take part."""
    most = max(len(values) for values in scores.values())
    means = {side: float(np.mean(values)) for side, values in scores.items() if len(values) == most}
    if usual in means and max(means.values()) < means[usual] + CLEARLY:
        return usual, means[usual]
    side = min(side for side, mean in means.items() if mean >= max(means.values()) - TIE)
    return side, means[side]


def picture_dice(question: Question, answer: Answer) -> list[float]:
    """Dice of each target at the resolution of the cached picture."""
    codes = question.cached.codes[question.index]
    found = (resized(answer.logits, codes.shape) > 0) & (codes != UNKNOWN_CODE)
    truths = [np.isin(codes, target.codes) for target in question.targets]
    return [_dice(mask, truth) for mask, truth in zip(found, truths, strict=True)]


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2.0 * np.count_nonzero(one & other) / total if total else 1.0


def _questions(cached: CachedDataset) -> list[Question]:
    """Each chosen picture at each side, asked for the targets that it shows."""
    sides = SIDES[cached.traits.size]
    found = []
    for index in _few_rows(cached):
        shown = tuple(target for target in annotated(cached, index) if shows(cached, index, target))
        found += [Question(cached, index, shown, side) for side in sides]
    return found


def _few_rows(cached: CachedDataset) -> list[int]:
    """Few validation pictures that show each target `MOST_PICTURES` times where there are as many. Rare targets choose
    first, and the others are content with what is in their pictures."""
    rows = validation_rows(cached)
    showing: dict[Target, list[int]] = {
        target: [i for i in rows if target in annotated(cached, i) and shows(cached, i, target)]
        for target in cached.dataset.targets
    }
    chosen: set[int] = set()
    for candidates in sorted(showing.values(), key=len):
        missing = MOST_PICTURES - len(chosen.intersection(candidates))
        chosen.update(spread([i for i in candidates if i not in chosen], max(missing, 0)))
    return sorted(chosen)

"""Presence thresholds, chosen on the validation split: from which probability the model says "found"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from lexitome.data.cache import CachedDataset
from lexitome.data.folder import Dataset, Target
from lexitome.data.negatives import surely_absent
from lexitome.models.compact import CompactNet
from lexitome.text import TextEncoder

FEWEST_PAIRS = 8
"""A concept with fewer present or absent validation pairs shares the default threshold."""
BOUNDS = (-3.0, 6.0)
"""In logits. Concepts of many-organ sets are asked mostly where they are present, so their raw presence runs high."""
MISS_COST = 2.0
"""A missed target costs twice a false one: a person deletes a wrong mask faster than she draws a missing one."""
TOLERANCE = 0.03
"""Of `1 + MISS_COST`, that is one per cent."""
MOST_PICTURES = 40
"""Validation pictures used of each set."""
ABSENT_OF_OTHER_SETS = 3
"""Surely absent targets of other sets asked of each picture, of its own modality and of others each."""


@dataclass
class Scores:
    """Predicted presence of one target on validation pictures that show it (``present``), that surely do not though
    of the same set or modality (``hard``), and of another modality (``easy``)."""

    present: list[float] = field(default_factory=list)
    hard: list[float] = field(default_factory=list)
    easy: list[float] = field(default_factory=list)

    @property
    def absent(self) -> list[float]:
        """The hard ones where there are enough; a target that is alone in its modality is told from other ones."""
        return self.hard if len(self.hard) >= FEWEST_PAIRS else self.hard + self.easy


def presence_thresholds(model: CompactNet, sets: Sequence[CachedDataset], side: int) -> tuple[dict[str, float], float]:
    """(threshold of each target name, default): the best weighted accuracy on validation pairs, see `MISS_COST`.

    The default, for targets with few pairs and for words the model was not trained with, is the median of the others.
    """
    scores = {target.name: Scores() for cached in sets for target in cached.dataset.targets}
    for name, kind, probability in _validation_pairs(model, sets, side):
        getattr(scores[name], kind).append(probability)
    own = {
        name: best_threshold(np.array(s.absent), np.array(s.present))
        for name, s in scores.items()
        if min(len(s.absent), len(s.present)) >= FEWEST_PAIRS
    }
    default = round(float(np.median(list(own.values()))), 4) if own else 0.5
    return {name: own.get(name, default) for name in scores}, default


def best_threshold(absent: NDArray[np.float64], present: NDArray[np.float64]) -> float:
    """The threshold with the best accuracy, misses weighted. Among those within `TOLERANCE` of the best, the one a
    third of the way up in logits: pictures from elsewhere show their targets with less certainty."""
    candidates = 1 / (1 + np.exp(-np.linspace(*BOUNDS, 181)))
    accuracy = np.array([(absent < t).mean() + MISS_COST * (present >= t).mean() for t in candidates])
    best = np.flatnonzero(accuracy >= accuracy.max() - TOLERANCE)
    return round(float(candidates[best[len(best) // 3]]), 4)


def _validation_pairs(model: CompactNet, sets: Sequence[CachedDataset], side: int) -> Iterator[tuple[str, str, float]]:
    """(target name, kind of `Scores`, predicted presence) for targets of each picture and some others."""
    text, rng = TextEncoder.load(), np.random.default_rng(0)
    datasets: list[Dataset] = [s.dataset for s in sets]
    for cached in sets:
        near, far = (surely_absent(cached.dataset, datasets, same_family=same) for same in (True, False))
        rows = [i for i, row in enumerate(cached.rows) if row.split == "val"]
        for index in rows[:: max(1, math.ceil(len(rows) / MOST_PICTURES))]:
            row = cached.rows[index]
            own = [t for t in cached.dataset.targets if not set(t.labels) & set(row.unknown)]
            asked = [(t, "present" if set(t.codes) & set(row.present) else "hard") for t in own]
            for others, kind in ((near, "hard"), (far, "easy")):
                asked += [(others[int(i)], kind) for i in rng.permutation(len(others))[:ABSENT_OF_OTHER_SETS]]
            answers = _presence(model, cached, index, [target for target, _ in asked], text, side)
            for (target, kind), probability in zip(asked, answers, strict=True):
                yield target.name, kind, probability


def _presence(
    model: CompactNet, cached: CachedDataset, index: int, asked: list[Target], text: TextEncoder, side: int
) -> list[float]:
    picture = torch.from_numpy(np.array(cached.images[index])).permute(2, 0, 1)[None].float()
    picture = torch.nn.functional.interpolate(picture, (side, side), mode="bilinear", antialias=True)
    vectors = torch.from_numpy(text.embed([t.name for t in asked]))
    spatial = torch.zeros(len(asked), 3, side // 4, side // 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = model(picture, vectors, spatial)
    return decoded.presence.float().sigmoid().tolist()

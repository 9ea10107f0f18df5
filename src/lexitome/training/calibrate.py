"""Presence thresholds, chosen on the validation split: from which probability the model says "found"."""

from __future__ import annotations

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
LOWEST, HIGHEST, HIGHEST_ASKED = 0.01, 0.5, 0.9
"""Bounds. One half is what the network was trained to mean; only where a set asks for its targets mostly in pictures
that show them (many organs, few slices without) does raw presence run high, and validation pairs can tell how much."""
MISS_COST = 2.0
"""A missed target costs twice a false one: a person deletes a wrong mask faster than she draws a missing one."""
TOLERANCE = 0.05
"""Of `1 + MISS_COST`: up to five in a hundred absent targets more may be taken for present."""
MOST_PICTURES = 40
"""Validation pictures used of each set."""
ABSENT_OF_OTHER_SETS = 3
"""Surely absent targets of other sets asked of each picture, of its own modality and of others each."""


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


def presence_thresholds(model: CompactNet, sets: Sequence[CachedDataset], side: int) -> tuple[dict[str, float], float]:
    """(threshold of each target name, default): the best weighted accuracy on validation pairs, see `MISS_COST`.

    A target with few pairs takes the median of its set's others, or the default, which also serves for words the model
    was not trained with.
    """
    scores = {target.name: Scores() for cached in sets for target in cached.dataset.targets}
    for name, kind, probability in _validation_pairs(model, sets, side):
        getattr(scores[name], kind).append(probability)
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


def _validation_pairs(model: CompactNet, sets: Sequence[CachedDataset], side: int) -> Iterator[tuple[str, str, float]]:
    """(target name, kind of `Scores`, predicted presence) for targets of each picture and some others."""
    text, rng = TextEncoder.load(), np.random.default_rng(0)
    datasets: list[Dataset] = [s.dataset for s in sets]
    for cached in sets:
        near, far = (surely_absent(cached.dataset, datasets, same_family=same) for same in (True, False))
        rows = [i for i, row in enumerate(cached.rows) if row.split == "val"]
        spread = np.unique(np.linspace(0, len(rows) - 1, MOST_PICTURES).round().astype(int))
        for index in [rows[i] for i in spread if rows]:
            row = cached.rows[index]
            own = [t for t in cached.dataset.targets if not set(t.labels) & set(row.unknown)]
            asked = [(t, "present" if set(t.codes) & set(row.present) else "own") for t in own]
            for others, kind in ((near, "near"), (far, "far")):
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

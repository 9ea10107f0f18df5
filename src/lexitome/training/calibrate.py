"""Presence thresholds, chosen on the validation split: from which probability the model says "found"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lexitome.data.cache import CachedDataset
from lexitome.data.folder import Target
from lexitome.data.negatives import surely_absent
from lexitome.models.compact import CompactNet
from lexitome.text import TextEncoder

FEWEST_PAIRS = 8
"""A concept with fewer present or absent validation pairs shares the default threshold."""
BOUNDS = (-2.0, 6.0)
"""In logits. Concepts of many-organ sets are asked mostly where they are present, so their raw presence runs high."""
MISS_COST = 2.0
"""A missed target costs twice a false one: a person deletes a wrong mask faster than she draws a missing one."""
MOST_PICTURES = 40
"""Validation pictures used of each set."""
ABSENT_OF_OTHER_SETS = 3
"""Surely absent targets of other sets asked of each picture."""


def presence_thresholds(model: CompactNet, sets: Sequence[CachedDataset], side: int) -> tuple[dict[str, float], float]:
    """(threshold of each target name, default): the best weighted accuracy on validation pairs, see `MISS_COST`."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for name, is_present, probability in _validation_pairs(model, sets, side):
        scores.setdefault(name, ([], []))[is_present].append(probability)
    default = _best(np.concatenate([s[0] for s in scores.values()]), np.concatenate([s[1] for s in scores.values()]))
    chosen = {}
    for cached in sets:
        for target in cached.dataset.targets:
            absent, present = scores.get(target.name, ([], []))
            enough = min(len(absent), len(present)) >= FEWEST_PAIRS
            chosen[target.name] = _best(np.array(absent), np.array(present)) if enough else default
    return chosen, default


def _best(absent: NDArray[np.float64], present: NDArray[np.float64]) -> float:
    """The threshold with the best accuracy, misses weighted; between equals the middle one."""
    candidates = 1 / (1 + np.exp(-np.linspace(*BOUNDS, 161)))
    accuracy = np.array([(absent < t).mean() + MISS_COST * (present >= t).mean() for t in candidates])
    best = np.flatnonzero(accuracy >= accuracy.max() - 1e-9)
    return round(float(candidates[best[len(best) // 2]]), 4)


def _validation_pairs(model: CompactNet, sets: Sequence[CachedDataset], side: int) -> Iterator[tuple[str, bool, float]]:
    """(target name, is it present, predicted presence) for every target of each validation picture, and as many
    targets of other sets of the same modality that are surely absent."""
    text, rng = TextEncoder.load(), np.random.default_rng(0)
    datasets = [s.dataset for s in sets]
    for cached in sets:
        near = surely_absent(cached.dataset, datasets, same_family=True)
        rows = [i for i, row in enumerate(cached.rows) if row.split == "val"]
        step = max(1, math.ceil(len(rows) / MOST_PICTURES))
        for index in rows[::step]:
            row = cached.rows[index]
            own = [t for t in cached.dataset.targets if not set(t.labels) & set(row.unknown)]
            others = [near[int(i)] for i in rng.permutation(len(near))[:ABSENT_OF_OTHER_SETS]]
            asked = own + others
            truth = [bool(set(t.codes) & set(row.present)) for t in own] + [False] * len(others)
            for target, present, p in zip(
                asked, truth, _presence(model, cached, index, asked, text, side), strict=True
            ):
                yield target.name, present, p


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

"""Text-only accuracy on the validation pictures of the cache, quick enough to be asked for during a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.batches import BatchSource
from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.data.prompt_maps import no_place
from lexitome.data.traits import Size

PICTURES = 10
"""Validation pictures of each set."""
USUAL_SIDE: dict[Size, int] = {"small": 192, "medium": 320, "fine": 448}
"""The side that training ended at, or the step below it."""


def validate_text_only(
    model: nn.Module, source: BatchSource, pictures: int = PICTURES, split: str = "val"
) -> dict[str, float]:
    """Mean Dice over the targets that the pictures of a split show, and balanced accuracy of presence at 0.5 over all
    pairs of picture and target of its set. Volumes count by their slices here. What no picture tells is left out."""
    dice: list[float] = []
    right: dict[bool, list[bool]] = {True: [], False: []}
    for cached in source.sets:
        targets = [t for t in cached.dataset.targets if not t.derived]
        scores: dict[str, list[float]] = {t.name: [] for t in targets}
        vectors = torch.from_numpy(source.text.embed([t.name for t in targets]))
        for index in _of_split(cached, pictures, split):
            masks, presence = _answer(model, cached, index, vectors)
            for i, target in enumerate(targets):
                if set(target.labels) & set(cached.rows[index].unknown):
                    continue
                truth = np.isin(cached.codes[index], target.codes)
                right[bool(truth.any())].append(bool(presence[i] > 0.5) == bool(truth.any()))
                if truth.any():
                    overlap = 2.0 * np.count_nonzero(truth & masks[i])
                    scores[target.name].append(overlap / (np.count_nonzero(truth) + np.count_nonzero(masks[i])))
        dice += [float(np.mean(values)) for values in scores.values() if values]
    presence_accuracy = [float(np.mean(values)) for values in right.values() if values]
    measured = {"dice": dice, "presence": presence_accuracy}
    return {name: float(np.mean(values)) for name, values in measured.items() if values}


def spread(rows: Sequence[int], count: int) -> list[int]:
    """At most `count` of the rows, always the same, in order. At random, not at equal distances: those would meet the
    slices of volumes of one size at the same height, and miss subjects whose rows come in a regular turn."""
    chosen = np.random.default_rng(len(rows)).permutation(len(rows))[:count]
    return sorted(rows[i] for i in chosen)


def _of_split(cached: CachedDataset, count: int, split: str) -> list[int]:
    return spread([i for i, row in enumerate(cached.rows) if row.split == split], count)


@torch.no_grad()
def _answer(model: nn.Module, cached: CachedDataset, index: int, vectors: Tensor) -> tuple[np.ndarray, Tensor]:
    """Masks (T, S, S) bool at the cache's resolution, without what nobody judged, and presence (T,) of each target."""
    side, device = USUAL_SIDE[cached.traits.size], next(model.parameters()).device
    picture = torch.from_numpy(np.array(cached.images[index])).permute(2, 0, 1)[None].float()
    picture = F.interpolate(picture, (side, side), mode="bilinear", antialias=True)
    spatial = torch.from_numpy(no_place(side)).expand(len(vectors), -1, -1, -1)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        decoded = model(picture.to(device), vectors.to(device), spatial.to(device))
    masks = F.interpolate(decoded.logits.float()[:, None], cached.codes.shape[1:], mode="bilinear")[:, 0] > 0
    return masks.cpu().numpy() & (cached.codes[index] != UNKNOWN_CODE), decoded.presence.float().sigmoid().cpu()

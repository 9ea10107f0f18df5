"""Pictures of one dataset and the masks of all of its targets: what every network for fixed targets is trained with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.dataset import UNKNOWN_CODE, Target
from lexitome.losses.mask import bce, soft_dice

EMPTY = -30.0
"""A logit where nobody judged: no loss, no gradient."""
SMOOTH = 1e-5
"""Added above and below in the Dice of exclusive classes, nnU-Net's."""


class Batch(NamedTuple):
    """Pictures (N, 3, *S), masks (N, T, *S), known (N, T): whether anyone looked for the target in the picture,
    judged (N, 1, *S). S is a square, or a stack of squares."""

    pictures: Tensor
    masks: Tensor
    known: Tensor
    judged: Tensor


def masks_of(codes: NDArray[np.integer], targets: Sequence[Target]) -> Tensor:
    """Codes of any shape to (T, ...) float32."""
    return torch.from_numpy(np.stack([np.isin(codes, target.codes) for target in targets]).astype(np.float32))


def known_of(unknown: Collection[int], targets: Sequence[Target]) -> Tensor:
    """(T,) of a picture with these `Case.unknown_labels`."""
    return torch.tensor([float(not set(unknown) & set(target.labels)) for target in targets])


def judged_of(codes: NDArray[np.integer]) -> Tensor:
    """(1, ...) bool."""
    return torch.from_numpy(codes != UNKNOWN_CODE)[None]


def row_at(rows: Sequence[int], seed: int, place: int) -> int:
    """The row that has its turn at that place in an endless sequence: all of them in a new order, epoch by epoch."""
    epoch, index = divmod(place, len(rows))
    return rows[int(np.random.default_rng((seed, epoch)).permutation(len(rows))[index])]


def pairs(batch: Batch) -> Tensor:
    """(1,) pairs of picture and target that somebody looked for: what `region_terms` is normalised by."""
    return batch.known.sum()[None]


def region_terms(logits: Tensor, batch: Batch, totals: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and Dice of each (picture, target) pair by itself, since targets may lie in each other.

    Args:
        logits: (N, T, *S).
        totals: `pairs` of the whole step.
    """
    shown = logits.float().masked_fill(~batch.judged, EMPTY).flatten(0, 1)
    masks, known = (batch.masks * batch.judged).flatten(0, 1), batch.known.flatten()
    count = totals[0].clamp_min(1)
    return {"bce": (bce(shown, masks) * known).sum() / count, "dice": (soft_dice(shown, masks) * known).sum() / count}


def exclusive(targets: Sequence[Target], unknown: Collection[int]) -> bool:
    """Whether no pixel can be of two targets, and nobody left one of them out: then they and the background can be
    the classes of a softmax.

    Args:
        unknown: labels that somebody did not look for in some picture.
    """
    codes = [code for target in targets for code in target.codes]
    hidden = any(set(unknown) & set(target.labels) for target in targets)
    return len(codes) == len(set(codes)) and not hidden


def shown_pixels(batch: Batch) -> Tensor:
    """(2,) judged pixels, and pairs of picture and target that it shows: what `class_terms` is normalised by."""
    shown = (batch.masks * batch.judged).flatten(2).any(2)
    return torch.stack([batch.judged.sum(), shown.sum()]).float()


def class_terms(logits: Tensor, batch: Batch, totals: Tensor) -> dict[str, Tensor]:
    """nnU-Net's loss of exclusive classes, each with weight 1: cross-entropy of all judged pixels, and soft Dice of the
    targets, without background. Dice is taken picture by picture, of the targets that a picture shows: over a whole
    batch, as nnU-Net's 2D networks take it, it would depend on how the batch is cut into parts.

    Args:
        logits: (N, 1 + T, *S), background first.
        totals: `shown_pixels` of the whole step.
    """
    logits, judged = logits.float(), batch.judged
    masks = batch.masks * judged
    truth = torch.where(masks.any(1), masks.argmax(1) + 1, 0)
    entropy = F.cross_entropy(logits, truth, reduction="none") * judged[:, 0]
    likely = (logits.softmax(1)[:, 1:] * judged).flatten(2)
    flat = masks.flatten(2)
    overlap = 2 * (likely * flat).sum(2) + SMOOTH
    dice = 1 - overlap / (likely.sum(2) + flat.sum(2) + SMOOTH)
    return {
        "ce": entropy.sum() / totals[0].clamp_min(1),
        "dice": (dice * flat.any(2)).sum() / totals[1].clamp_min(1),
    }


@dataclass
class TargetScores:
    """Dice of targets over pictures: the mean over targets of the mean over the pictures that show them."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(
        self, target: Target, mask: NDArray[np.bool_], codes: NDArray[np.integer], unknown: Collection[int]
    ) -> None:
        """Of one picture; left out where the target is not shown, or was not looked for."""
        truth = np.isin(codes, target.codes)
        if truth.any() and not set(unknown) & set(target.labels):
            mask = mask & (codes != UNKNOWN_CODE)
            overlap = 2.0 * np.count_nonzero(mask & truth)
            score = overlap / (np.count_nonzero(mask) + np.count_nonzero(truth))
            self.values.setdefault(target.name, []).append(score)

    def metrics(self) -> dict[str, float]:
        """ "dice", or nothing if no picture showed anything."""
        means = [float(np.mean(each)) for each in self.values.values()]
        return {"dice": float(np.mean(means))} if means else {}

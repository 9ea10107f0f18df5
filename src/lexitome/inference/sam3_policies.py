"""Which of SAM3's answers about a picture is the mask (needs torch): `models.sam3.settings.Policy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lexitome.inference.sam3_asking import NOWHERE, Places
from lexitome.models.sam3.network import Outputs
from lexitome.models.sam3.settings import Settings

SAME = 0.5
"""An object of which more than this lies in surer ones is one of these."""


class Said(NamedTuple):
    """What the network says of one query about one picture, after its last layer; float32."""

    scores: NDArray[np.float32]  # (K,) probability of the object x of presence
    boxes: NDArray[np.float32]  # (K, 4) centre x, y, width, height in 0..1
    presence: float  # probability
    masks: Tensor  # (K, 4h, 4w) logits
    semantic: Tensor  # (4h, 4w) logits

    @staticmethod
    def of(outputs: Outputs, row: int) -> Said:
        presence = outputs.presence[-1, row].float().sigmoid()
        scores = outputs.logits[-1, row].float().sigmoid() * presence
        boxes = outputs.boxes[-1, row].float()
        semantic = outputs.semantic[row].float()
        return Said(scores.cpu().numpy(), boxes.cpu().numpy(), float(presence), outputs.masks[row], semantic)


@dataclass(frozen=True, eq=False)
class Plane:
    """The answer about one picture, at the network's resolution.

    Args:
        logits: (4h, 4w) of the mask, before presence is asked.
        presence: that it is there at all; 0.5 at the threshold, from which there is a mask.
        owners: (4h, 4w) ids of the objects, every cell that of the nearest; None where none was told apart.
        sure: how sure the network is of this answer, to compare wordings.
    """

    logits: Tensor
    presence: float
    owners: NDArray[np.uint16] | None
    sure: float

    @property
    def found(self) -> bool:
        return self.presence >= 0.5


def settle(said: Said, settings: Settings, places: Places = NOWHERE) -> Plane:
    """Choose the mask.

    Where a user points at something, it is there: the likeliest object counts whatever its score. Points choose
    objects, so with them the semantic head, which knows none, gives way to the union.
    """
    policy = "union" if len(places.points) and settings.policy.startswith("semantic") else settings.policy
    allowed = _allowed(said, places)
    scores = np.where(allowed, said.scores, 0)
    best = int(scores.argmax())
    top = float(scores[best])
    kept = np.flatnonzero(scores >= settings.keep)
    kept = kept[kept == best] if policy == "best" else kept
    if not len(kept) and places.points_at_it and top > 0:
        kept = np.array([best])
    owners = told_apart(said, kept)
    sure = max(said.presence, top) if policy.startswith("semantic") else top
    if policy.startswith("semantic"):
        logits = said.semantic
        # Without the presence token there is what there is to see, be it one cell.
        gated = policy == "semantic-presence"
        presence = shifted(said.presence, settings.present) if gated else float(logits.max().sigmoid())
    else:
        presence = shifted(top, settings.keep)
        shown = [best] if policy == "best" or not len(kept) else kept.tolist()
        logits = said.masks[shown].float().amax(0)
    presence = 1.0 if places.points_at_it and (policy.startswith("semantic") or len(kept)) else presence
    return Plane(logits, presence, owners, sure)


def shifted(probability: float, even: float) -> float:
    """A probability as one that is 0.5 where it was `even`."""
    bounded = np.clip(probability, 1e-6, 1 - 1e-6)
    odds = bounded / (1 - bounded) * (1 - even) / even
    return float(odds / (1 + odds))


def told_apart(said: Said, kept: NDArray[np.integer]) -> NDArray[np.uint16] | None:
    """(4h, 4w) ids from 1 of different objects, the surest first; each cell outside all of them has the nearest's."""
    owners = np.zeros(tuple(said.semantic.shape), np.uint16)
    for index in kept[np.argsort(-said.scores[kept], kind="stable")]:
        inside = (said.masks[int(index)] >= 0).cpu().numpy()
        free = inside & (owners == 0)
        if free.sum() > (1 - SAME) * inside.sum():
            owners[free] = owners.max() + 1
    return spread(owners) if owners.any() else None


def spread(owners: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Every cell without an id takes that of the nearest one."""
    from scipy import ndimage

    nearest = ndimage.distance_transform_edt(owners == 0, return_distances=False, return_indices=True)
    return np.asarray(owners[tuple(nearest)])


def enlarge(logits: Tensor, height: int, width: int) -> Tensor:
    """(h, w) logits to probabilities (height, width), float32: bilinear, then the sigmoid, as in the official code."""
    return F.interpolate(logits[None, None].float(), (height, width), mode="bilinear", align_corners=False)[
        0, 0
    ].sigmoid_()


def _allowed(said: Said, places: Places) -> NDArray[np.bool_]:
    """(K,) the objects that a user's places leave; all, where they would leave none."""
    allowed = np.ones(len(said.scores), np.bool_)
    if len(places.bounds):
        x, y = said.boxes[:, 0, None], said.boxes[:, 1, None]
        x0, y0, x1, y1 = places.bounds.T
        allowed &= ((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).any(1)
    if len(places.points):
        height, width = said.semantic.shape
        at = (places.points * (width, height)).astype(int).clip(0, (width - 1, height - 1))
        under = (said.masks[:, torch.from_numpy(at[:, 1]), torch.from_numpy(at[:, 0])] >= 0).cpu().numpy()
        if places.inside.any():
            allowed &= under[:, places.inside].any(1)
        allowed &= ~under[:, ~places.inside].any(1)
    return allowed if allowed.any() or not places.points_at_it else np.ones_like(allowed)

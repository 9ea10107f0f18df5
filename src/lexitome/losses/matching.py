"""Which query answers for which object.

Sources: set matching, Carion et al. 2020 (DETR), section 3.1, with the focal class cost of Zhu et al. 2021 (Deformable
DETR); one-to-many matching, Hu et al. 2023 (DAC-DETR), section 3; figures of Meta's SAM3 fine-tuning configuration.

All layers and prompts are treated at once: objects of all Q prompts lie in one list (N, 4), `owner` (N,) ascending says
whose each one is, and each object is compared only with the K queries of its own prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from lexitome.losses.boxes import giou, iou, to_corners

WORST = 1e9
"""Cost in place of one that is not a number, so that a diverged network is reported by its loss, not by the solver."""


@dataclass(frozen=True)
class Hungarian:
    """Weights of the cost whose sum over one-to-one pairs is smallest (BinaryHungarianMatcherV2)."""

    classification: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True)
class OneToMany:
    """An object takes its `top_k` queries of best score = alpha p + (1 - alpha) IoU, if that is above `threshold`."""

    alpha: float = 0.3
    threshold: float = 0.4
    top_k: int = 4


@dataclass(frozen=True)
class Pairs:
    """P pairs of a query and an object: int64 (P,) each; `object` counts in the list of all objects."""

    layer: Tensor
    prompt: Tensor
    query: Tensor
    object: Tensor

    def last(self, layers: int) -> Pairs:
        """Only those of the last of `layers` layers."""
        keep = self.layer == layers - 1
        return Pairs(self.layer[keep], self.prompt[keep], self.query[keep], self.object[keep])

    def followed_by(self, other: Pairs, shift: int) -> Pairs:
        """These and those of `other`, whose layers count from `shift`."""
        return Pairs(
            torch.cat([self.layer, other.layer + shift]),
            torch.cat([self.prompt, other.prompt]),
            torch.cat([self.query, other.query]),
            torch.cat([self.object, other.object]),
        )


@torch.no_grad()
def matching_cost(logits: Tensor, boxes: Tensor, objects: Tensor, owner: Tensor, config: Hungarian) -> Tensor:
    """(L, Q, K) logits and (L, Q, K, 4) boxes against (N, 4) objects, boxes in centre form -> (L, N, K) costs."""
    logits, boxes = logits.float(), boxes.float()
    probability = logits.sigmoid()
    as_object = config.alpha * (1 - probability) ** config.gamma * -F.logsigmoid(logits)
    as_nothing = (1 - config.alpha) * probability**config.gamma * -F.logsigmoid(-logits)
    found = boxes[:, owner]  # (L, N, K, 4)
    objects = objects.float()[:, None]
    cost = config.classification * (as_object - as_nothing)[:, owner]
    cost += config.l1 * (found - objects).abs().sum(-1)
    return cost - config.giou * giou(to_corners(found), to_corners(objects))


@torch.no_grad()
def hungarian(logits: Tensor, boxes: Tensor, objects: Tensor, owner: Tensor, config: Hungarian) -> Pairs:
    """Pairs of least total cost, one-to-one in each layer and prompt; of n objects and K queries min(n, K) are paired.

    Shapes as in `matching_cost`.
    """
    cost = matching_cost(logits, boxes, objects, owner, config).nan_to_num(WORST, WORST, -WORST).cpu().numpy()
    bounds = np.searchsorted(owner.cpu().numpy(), np.arange(logits.shape[1] + 1))
    layers, queries, chosen = [], [], []
    for layer, costs in enumerate(cost):
        for start, end in pairwise(bounds):
            if start < end:
                rows, columns = linear_sum_assignment(costs[start:end])
                layers.append(np.full(len(rows), layer))
                queries.append(columns)
                chosen.append(rows + start)
    layer_, query, item = (_index(parts, owner.device) for parts in (layers, queries, chosen))
    return Pairs(layer_, owner[item], query, item)


@torch.no_grad()
def one_to_many(logits: Tensor, boxes: Tensor, objects: Tensor, owner: Tensor, config: OneToMany) -> Pairs:
    """Each object with up to `top_k` queries; a query may serve several objects. Shapes as in `matching_cost`.

    A tie between the last query that fits and the first that does not leaves out both.
    """
    overlap = iou(to_corners(boxes.float()[:, owner]), to_corners(objects.float())[:, None])
    score = config.alpha * logits.float().sigmoid()[:, owner] + (1 - config.alpha) * overlap  # (L, N, K)
    good = score > config.threshold
    if config.top_k < score.shape[-1]:
        good &= score > score.topk(config.top_k + 1, dim=-1).values[..., -1:]
    layer, item, query = good.nonzero(as_tuple=True)
    return Pairs(layer, owner[item], query, item)


def _index(parts: list[np.ndarray], device: torch.device) -> Tensor:
    joined = np.concatenate(parts) if parts else np.zeros(0)
    return torch.from_numpy(joined.astype(np.int64)).to(device)

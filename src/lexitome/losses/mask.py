"""Losses of mask logits, vectorised over queries: the first axis is the query, every other axis is averaged over.

Sources: focal loss, Lin et al. 2017 (RetinaNet), equation 5; soft Dice with one added above and below, as in MaskFormer
and SAM3; sampling of uncertain points, Kirillov et al. 2020 (PointRend), section 3.1.
Everything is computed in float32, whatever the precision of the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """(Q, ...) logits and targets in [0, 1] -> (Q,) mean binary cross-entropy."""
    return _mean(F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none"))


def sigmoid_focal(logits: Tensor, targets: Tensor, alpha: float | None, gamma: float) -> Tensor:
    """(Q, ...) logits and targets in [0, 1] -> (Q,) mean focal loss; see `focal_map`."""
    return _mean(focal_map(logits, targets, alpha, gamma))


def soft_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """(Q, ...) logits and targets in [0, 1] -> (Q,) values of 1 - (2 |p t| + 1) / (|p| + |t| + 1)."""
    probability, targets = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    overlap = torch.einsum("qn,qn->q", probability, targets)
    return 1 - (2 * overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)


def focal_map(logits: Tensor, targets: Tensor, alpha: float | None, gamma: float) -> Tensor:
    """Focal loss of each element, same shape as `logits`.

    `alpha` weighs positives, 1 - `alpha` negatives (None: no such weights, every element counts 1). `targets` may be
    soft: the distance to the target is p + t - 2 p t, which is 1 - p where t is 1 and p where t is 0.
    """
    logits, targets = logits.float(), targets.float()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma:
        probability = logits.sigmoid()
        loss = loss * (probability + targets - 2 * probability * targets) ** gamma
    if alpha is not None:
        loss = loss * ((1 - alpha) + (2 * alpha - 1) * targets)
    return loss


def uncertain_points(
    logits: Tensor, count: int, oversample: float, importance: float, generator: torch.Generator | None = None
) -> Tensor:
    """(P, h, w) logits -> (P, count, 2) points (x, y) in [0, 1]; no gradient.

    The share `importance` of them are the points nearest to the decision boundary among `count` x `oversample` random
    ones, the others are random. The logit is interpolated first and judged after: between -1 and 1 lies 0.
    """
    device, near = logits.device, int(importance * count)
    with torch.no_grad():
        points = torch.rand(len(logits), int(count * oversample), 2, generator=generator, device=device)
        order = sample(logits, points).abs().topk(near, dim=1, largest=False).indices
        chosen = points.gather(1, order[..., None].expand(-1, -1, 2))
        others = torch.rand(len(logits), count - near, 2, generator=generator, device=device)
        return torch.cat([chosen, others], 1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """(P, h, w) maps at (P, N, 2) points (x, y) in [0, 1] -> (P, N), bilinear; beyond pixel centres the border."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps.float()[:, None], grid, padding_mode="border", align_corners=False)[:, 0, :, 0]


def _mean(loss: Tensor) -> Tensor:
    return loss.flatten(1).mean(1) if loss.ndim > 1 else loss

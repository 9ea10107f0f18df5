"""RoIAlign (He et al. 2017, Mask R-CNN, section 3) in plain torch, as `torchvision.ops.roi_align` with its defaults.

Bilinear sampling and averaging are both separable, so the pooled cells of a box are two small matrix products: one
averages rows, one averages columns. Hence no custom kernel, every dtype, and gradients for the features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Mean of bilinear samples in `size` x `size` cells of each box.

    Args:
        features: (Q, C, H, W).
        boxes: (Q, B, 4) x0, y0, x1, y1 in cells of the feature map, 0 to W and 0 to H.

    Returns:
        (Q, B, C, size, size) in the dtype of the features.
    """
    height, width = features.shape[-2:]
    x0, y0, x1, y1 = boxes.float().unbind(-1)
    rows, columns = _averages(y0, y1, height, size), _averages(x0, x1, width, size)
    narrow = torch.einsum("qchw,qbjw->qbchj", features.float(), columns)
    return torch.einsum("qbchj,qbih->qbcij", narrow, rows).to(features.dtype)


def _averages(first: Tensor, last: Tensor, length: int, size: int) -> Tensor:
    """(Q, B) edges along one axis to (Q, B, size, length): how much each sample of the axis counts in each cell.

    A cell takes as many points as it is long in samples, rounded up. Points more than one sample outside count nothing,
    nearer ones take the value at the edge; boxes are at least one sample long.
    """
    cell = (last - first).clamp(min=1.0) / size
    count = cell.ceil()
    steps = torch.arange(int(count.max()) if count.numel() else 1, device=first.device)
    cells = torch.arange(size, device=first.device)
    within = (steps + 0.5) / count[..., None]  # (Q, B, steps), in units of a cell
    points = first[..., None, None] + (cells[:, None] + within[..., None, :]) * cell[..., None, None]
    counts = (steps < count[..., None])[..., None, :] & (points >= -1) & (points <= length)
    samples = torch.arange(length, device=first.device)
    hats = (1 - (points.clamp(0, length - 1)[..., None] - samples).abs()).clamp(min=0)
    return (hats * counts[..., None]).sum(-2) / count[..., None, None]

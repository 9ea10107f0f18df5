"""Objects told apart by their centres (Cheng et al. 2020, Panoptic-DeepLab, section 3): right answers and loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SPREAD = 0.2
"""Standard deviation of a centre's bump, in square roots of the object's area."""
NARROWEST, WIDEST = 1.0, 8.0
"""Bounds of it, in pixels."""
BUMP_WEIGHT = 9.0
"""A pixel at a centre counts as much as ten others: they are few."""


def centre_targets(instances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From object ids (Q, H, W), 0 outside: heat (Q, H, W) in 0..1, highest at each object's centre of mass; way
    (Q, 2, H, W) from each pixel to it as (y, x) in pixels; and which pixels belong to an object (Q, H, W) bool."""
    count, height, width = instances.shape
    most = int(instances.max()) + 1 if count else 1
    flat = (instances.long() + most * torch.arange(count, device=instances.device)[:, None, None]).flatten()
    rows = torch.arange(height, dtype=torch.float32, device=instances.device)[:, None].expand(count, height, width)
    columns = torch.arange(width, dtype=torch.float32, device=instances.device).expand(count, height, width)
    size = torch.bincount(flat, minlength=count * most).clamp_min(1).float()
    middle_y = torch.bincount(flat, rows.flatten(), minlength=count * most) / size
    middle_x = torch.bincount(flat, columns.flatten(), minlength=count * most) / size
    way = torch.stack([middle_y[flat].view_as(rows) - rows, middle_x[flat].view_as(rows) - columns], 1)
    spread = (SPREAD * size.sqrt()).clamp(NARROWEST, WIDEST)[flat].view_as(rows)
    inside = instances > 0
    heat = torch.exp(-way.square().sum(1) / (2 * spread.square())) * inside
    return heat, way, inside


def centre_loss(heat: Tensor, offsets: Tensor, instances: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Losses (Q,) of the centre logits (Q, H, W): cross-entropy against the heat; and of the offsets (Q, 2, H, W), in
    units of `unit` pixels: smooth L1 inside the objects, mean over their pixels."""
    wanted, way, inside = centre_targets(instances)
    weight = 1 + BUMP_WEIGHT * wanted
    bump = (F.binary_cross_entropy_with_logits(heat, wanted, reduction="none") * weight).mean((1, 2))
    error = F.smooth_l1_loss(offsets, way / unit, reduction="none", beta=0.1).sum(1) * inside
    return bump, error.sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)

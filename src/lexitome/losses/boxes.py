"""Boxes as tensors (..., 4) in fractions of the picture's width and height: centre form (cx, cy, w, h), corner form
(x0, y0, x1, y1). IoU and GIoU take corner form and broadcast: (N, 1, 4) with (M, 4) gives all (N, M) pairs.

Source of GIoU: Rezatofighi et al. 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_AREA = 1e-9
"""Areas are divided by no less, so that two boxes without area have IoU 0 and finite gradients; a box of one pixel in
a picture of 8192 x 8192 is ten times larger."""


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre form -> corner form."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def to_centres(boxes: Tensor) -> Tensor:
    """(..., 4) corner form -> centre form."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of broadcast corner-form boxes, in [0, 1]."""
    inter, union = _inter_union(a, b)
    return inter / union.clamp_min(SMALLEST_AREA)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of broadcast corner-form boxes, in (-1, 1]: IoU minus the empty share of their common hull."""
    inter, union = _inter_union(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = _area(low, high)
    return inter / union.clamp_min(SMALLEST_AREA) - (hull - union) / hull.clamp_min(SMALLEST_AREA)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, 4) centre-form boxes that enclose the true pixels whole; zeros for an empty mask."""
    sides = []
    for occupied in (masks.any(1), masks.any(2)):  # (N, W) along x, (N, H) along y
        length = occupied.shape[1]
        first = occupied.int().argmax(1)
        last = length - occupied.flip(1).int().argmax(1)
        sides.append(torch.stack([first, last], 1) / length)
    x, y = sides
    boxes = to_centres(torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1))
    return boxes * masks.flatten(1).any(1, keepdim=True)


def _inter_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    inter = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return inter, _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - inter


def _area(low: Tensor, high: Tensor) -> Tensor:
    """Area between two corners, zero where they are in the wrong order."""
    width, height = (high - low).clamp_min(0).unbind(-1)
    return width * height

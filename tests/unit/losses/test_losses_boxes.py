"""Boxes: by hand, and against torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops as ops
from hypothesis import given
from hypothesis import strategies as st

from lexitome.losses.boxes import boxes_of_masks, giou, iou, to_centres, to_corners


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """(count, 4) corner form."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def test_by_hand() -> None:
    a = torch.tensor([0.0, 0.0, 0.4, 0.4])
    b = torch.tensor([0.2, 0.2, 0.6, 0.4])  # meets in 0.2 x 0.2; union 0.16 + 0.08 - 0.04; hull 0.6 x 0.4
    assert iou(a, b).item() == pytest.approx(0.04 / 0.20)
    assert giou(a, b).item() == pytest.approx(0.04 / 0.20 - (0.24 - 0.20) / 0.24)
    apart = torch.tensor([0.8, 0.8, 1.0, 1.0])
    assert iou(a, apart).item() == 0
    assert giou(a, apart).item() == pytest.approx(-(1 - 0.20) / 1)
    assert to_centres(b).tolist() == pytest.approx([0.4, 0.3, 0.4, 0.2])
    assert to_corners(torch.tensor([0.4, 0.3, 0.4, 0.2])).tolist() == pytest.approx(b.tolist())


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6))
def test_as_torchvision(seed: int, n: int, m: int) -> None:
    a, b = random_boxes(n, seed), random_boxes(m, seed + 1)
    # torchvision divides by areas as they are, ours by 1e-9 at least
    torch.testing.assert_close(iou(a[:, None], b), ops.box_iou(a, b), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(giou(a[:, None], b), ops.generalized_box_iou(a, b), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(to_centres(a), ops.box_convert(a, "xyxy", "cxcywh"))
    torch.testing.assert_close(to_corners(to_centres(a)), a)


def test_boxes_without_area_have_finite_gradients() -> None:
    a = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.4, 0.6]], requires_grad=True)  # a point; corners swapped
    value = iou(a, a.detach()) + giou(a, a.detach())
    (gradient,) = torch.autograd.grad(value.sum(), a)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_boxes_of_masks_enclose_the_pixels() -> None:
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, 2, 4] = True
    masks[1, 0:5, 10:20] = True
    masks[1, 2, 15] = False
    wanted = [[4.5 / 20, 2.5 / 10, 1 / 20, 1 / 10], [15 / 20, 2.5 / 10, 10 / 20, 5 / 10], [0, 0, 0, 0]]
    torch.testing.assert_close(boxes_of_masks(masks), torch.tensor(wanted))
    filled = boxes_of_masks(masks[:2]) * torch.tensor([20.0, 10.0, 20.0, 10.0])
    pixels = ops.masks_to_boxes(masks[:2]) + torch.tensor([0, 0, 1.0, 1.0])  # theirs are indices, the last inclusive
    torch.testing.assert_close(to_corners(filled), pixels)
    assert boxes_of_masks(masks[:0]).shape == (0, 4)

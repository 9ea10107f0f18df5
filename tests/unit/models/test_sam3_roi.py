"""RoIAlign in plain torch against torchvision's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.models.sam3.roi import roi_align

ops = pytest.importorskip("torchvision.ops")

EDGE = st.floats(-3, 20, width=32)


def theirs(features: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    pooled = ops.roi_align(features, list(boxes), size)
    return pooled.unflatten(0, boxes.shape[:2])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(EDGE, EDGE, EDGE, EDGE), min_size=1, max_size=4), st.integers(1, 7))
def test_equals_torchvision(edges: list[tuple[float, ...]], size: int) -> None:
    """Any boxes: partly outside, empty, upside down."""
    features = torch.randn(2, 3, 11, 17, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor(edges)[None].expand(2, -1, -1).contiguous()
    torch.testing.assert_close(roi_align(features, boxes, size), theirs(features, boxes, size), atol=1e-5, rtol=1e-5)


def test_gradient_equals_torchvision() -> None:
    boxes = torch.tensor([[[1.5, 2.0, 9.0, 8.5], [0.0, 0.0, 17.0, 11.0]]])
    gradients = []
    for align in (roi_align, theirs):
        features = torch.randn(1, 3, 11, 17, generator=torch.Generator().manual_seed(0)).requires_grad_()
        align(features, boxes, 7).square().sum().backward()
        gradients.append(features.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_no_boxes() -> None:
    assert roi_align(torch.zeros(2, 3, 4, 4), torch.zeros(2, 0, 4), 7).shape == (2, 0, 3, 7, 7)


def test_bfloat16_features_keep_their_type() -> None:
    features = torch.randn(1, 2, 8, 8)
    boxes = torch.tensor([[[1.0, 1.0, 6.0, 5.0]]])
    half = roi_align(features.bfloat16(), boxes, 3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), roi_align(features, boxes, 3), atol=0.02, rtol=0.02)

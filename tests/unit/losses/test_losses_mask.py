"""Mask losses: by hand on tiny inputs, against torchvision, and what sampled points look like."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import sigmoid_focal_loss

from lexitome.losses.mask import bce, focal_map, sample, sigmoid_focal, soft_dice, uncertain_points

LOG3 = math.log(3.0)  # the logit of probability 3/4


def test_by_hand() -> None:
    logits = torch.tensor([[[LOG3, -LOG3]], [[0.0, 0.0]]])  # probabilities 3/4 1/4; 1/2 1/2
    targets = torch.tensor([[[True, True]], [[False, True]]])
    log = math.log
    assert bce(logits, targets).tolist() == pytest.approx([(-log(0.75) - log(0.25)) / 2, log(2)])
    focal = (0.25 * 0.25**2 * -log(0.75) + 0.25 * 0.75**2 * -log(0.25)) / 2
    assert sigmoid_focal(logits, targets, 0.25, 2).tolist() == pytest.approx(
        [focal, (0.75 + 0.25) * 0.5**2 * log(2) / 2]
    )
    assert soft_dice(logits, targets).tolist() == pytest.approx(
        [1 - (2 * 1 + 1) / (1 + 2 + 1), 1 - (2 * 0.5 + 1) / (1 + 1 + 1)]
    )


@given(st.integers(0, 2**31), st.sampled_from([None, 0.0, 0.25, 0.6]), st.sampled_from([0.0, 1.6, 2.0]), st.booleans())
def test_focal_is_torchvisions(seed: int, alpha: float | None, gamma: float, soft: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, 4, 5, generator=generator) * 4).requires_grad_()
    targets = torch.rand(3, 4, 5, generator=generator)
    targets = targets if soft else targets.round()
    theirs = sigmoid_focal_loss(logits, targets, -1 if alpha is None else alpha, gamma)
    ours = focal_map(logits, targets, alpha, gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sigmoid_focal(logits, targets, alpha, gamma), theirs.mean((1, 2)), rtol=1e-4, atol=1e-6)
    wanted, got = (torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (theirs, ours))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_extreme_logits_and_half_precision_stay_finite() -> None:
    logits = torch.tensor([[-500.0, 500.0, 0.0, -500.0]], dtype=torch.bfloat16, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    loss = torch.cat([bce(logits, targets), sigmoid_focal(logits, targets, 0.25, 2), soft_dice(logits, targets)])
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


def test_dice_is_zero_for_the_right_mask_and_for_nothing_found_where_nothing_is() -> None:
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert soft_dice(100 * (target - 0.5), target).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_sample_reads_pixel_centres() -> None:
    maps = torch.arange(6.0).reshape(1, 2, 3)
    points = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.5, 0.5]]])  # (x, y)
    assert sample(maps, points).tolist() == [pytest.approx([0, 5, 2.5], abs=1e-6)]


def test_uncertain_points_lie_near_the_boundary() -> None:
    ramp = torch.linspace(-8, 8, 64).expand(2, 64, 64)  # zero in the middle column
    generator = torch.Generator().manual_seed(1)
    points = uncertain_points(ramp, 200, 3.0, 0.75, generator)
    assert points.shape == (2, 200, 2)
    assert ((points >= 0) & (points <= 1)).all()
    # 150 of 600 uniform ones, the nearest quarter: within 1/8 of the boundary, give or take
    assert (points[:, :150, 0] - 0.5).abs().max() < 0.17
    assert (points[:, 150:, 0] - 0.5).abs().max() > 0.4
    assert torch.equal(points, uncertain_points(ramp, 200, 3.0, 0.75, generator.manual_seed(1)))

"""An optimiser that remembers little: it finds minima, and loses no small step in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lexitome.training.factored import DECAY, Factored


def test_the_first_step_of_a_matrix_of_rank_one_is_its_sign() -> None:
    """Squares of rank one are remembered exactly."""
    weight = nn.Parameter(torch.zeros(3, 4))
    gradient = torch.tensor([1.0, -2.0, 0.5])[:, None] * torch.tensor([1.0, 3.0, -1.0, 2.0])
    weight.grad = gradient.clone()
    Factored([weight], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), -0.1 * gradient.sign())
    torch.testing.assert_close(weight.grad, gradient)


def test_moments_of_vectors_are_means_that_forget() -> None:
    bias = nn.Parameter(torch.zeros(2))
    optimizer = Factored([bias], lr=0.1)
    for gradient in ([1.0, 2.0], [3.0, 0.0]):
        bias.grad = torch.tensor(gradient)
        optimizer.step()
    keep = 1 - 2**DECAY
    expected = keep * torch.tensor([1.0, 4.0]) + (1 - keep) * torch.tensor([9.0, 0.0])
    torch.testing.assert_close(optimizer.state[bias]["moment"], expected)


def test_large_updates_are_bounded_and_weights_decay() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = Factored([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.full((4,), 1e-3)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4,), 0.95 - 0.1))
    weight.grad = torch.tensor([1e3, 0.0, 0.0, 0.0])  # far beyond what the moment expects
    before = weight.detach().clone()
    optimizer.step()
    assert ((weight - 0.95 * before).square().mean().sqrt() <= 0.1 + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_and_biases_find_their_minimum(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, goal = nn.Conv2d(2, 3, 3).to(dtype), nn.Conv2d(2, 3, 3)
    optimizer = Factored(net.parameters(), lr=0.02)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 200)
        pictures = torch.randn(8, 2, 6, 6)
        loss = (net(pictures.to(dtype)).float() - goal(pictures)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < (1e-4 if dtype == torch.float32 else 1e-2)
    kept = sum(v.numel() for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    assert kept == (3 + 2 * 9) + 3


def test_steps_too_small_for_bfloat16_are_taken_by_chance() -> None:
    """A hundred steps of a 1000th of the weight's smallest step: to the nearest, nothing would ever move."""
    weight = nn.Parameter(torch.ones(20000, dtype=torch.bfloat16))
    optimizer = Factored([weight], lr=1e-5)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert float(weight.float().mean()) == pytest.approx(1 - 1e-3, abs=1e-4)
    assert (torch.ones(1, dtype=torch.bfloat16) - 1e-5).bfloat16() == 1

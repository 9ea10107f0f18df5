"""Objects by their centres: right answers of drawn squares, loss, and the way back to the objects."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lexitome.inference.objects import CentreMaps, separate
from lexitome.losses.instances import BUMP_WEIGHT, NARROWEST, SPREAD, WIDEST, centre_loss, centre_targets

UNIT = 16.0


def squares(*corners: tuple[int, int, int], side: int = 32) -> Tensor:
    """(1, side, side) ids 1, 2, ... of squares given as (top, left, length)."""
    ids = torch.zeros(1, side, side, dtype=torch.int32)
    for number, (top, left, length) in enumerate(corners, start=1):
        ids[0, top : top + length, left : left + length] = number
    return ids


def test_a_square() -> None:
    heat, way, inside = centre_targets(squares((4, 10, 5)))
    assert heat.shape == inside.shape == (1, 32, 32) and way.shape == (1, 2, 32, 32)
    assert heat[0].max() == heat[0, 6, 12] == 1 and inside.sum() == 25
    assert way[0, :, 6, 12].tolist() == [0, 0]
    assert way[0, :, 4, 10].tolist() == [2, 2] and way[0, :, 8, 12].tolist() == [-2, 0]  # y first
    assert not heat[~inside].any()
    assert heat[0, 6, 13].item() == pytest.approx(math.exp(-0.5 / max(SPREAD * 5, NARROWEST) ** 2))


def test_an_even_square_has_its_centre_between_pixels() -> None:
    heat, way, _ = centre_targets(squares((4, 10, 4)))
    assert way[0, :, 5, 11].tolist() == [0.5, 0.5] and way[0, :, 4, 10].tolist() == [1.5, 1.5]
    assert (heat[0] == heat.max()).sum() == 4


def test_the_bump_is_bounded() -> None:
    _, _, small = centre_targets(squares((4, 4, 2)))
    assert small.sum() == 4
    heat, way, _ = centre_targets(squares((0, 0, 120), side=128))
    distance = way.square().sum(1).sqrt()[0, 59, 100]
    assert heat[0, 59, 100].item() == pytest.approx(math.exp(-(distance.item() ** 2) / (2 * WIDEST**2)), rel=1e-4)


def test_touching_objects_point_at_their_own_centres() -> None:
    ids = squares((4, 4, 6), (4, 10, 6))
    _, way, inside = centre_targets(ids)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    aims = torch.stack([y, x]) + way[0]
    assert torch.equal(aims[:, ids[0] == 1].unique(dim=1), torch.tensor([[6.5], [6.5]]))
    assert torch.equal(aims[:, ids[0] == 2].unique(dim=1), torch.tensor([[6.5], [12.5]]))
    assert inside.sum() == 72


def test_queries_do_not_mix_and_ids_need_not_be_in_order() -> None:
    first, second = squares((2, 2, 5)), squares((20, 20, 3)) * 60000
    together = centre_targets(torch.cat([first, second]))
    for both, alone in zip(together, zip(*(centre_targets(x) for x in (first, second)), strict=True), strict=True):
        mask = torch.cat([first, second]) > 0
        mask = mask[:, None].expand_as(both) if both.ndim == 4 else mask
        assert torch.equal(both[mask], torch.cat(alone)[mask])


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_to_learn_from(count: int) -> None:
    heat, way, inside = centre_targets(torch.zeros(count, 8, 8, dtype=torch.int32))
    assert heat.shape == (count, 8, 8) and way.shape == (count, 2, 8, 8) and not inside.any() and not heat.any()
    logits, offsets = (torch.zeros(s, requires_grad=True) for s in ((count, 8, 8), (count, 2, 8, 8)))
    bump, error = centre_loss(logits, offsets, torch.zeros(count, 8, 8, dtype=torch.int32), UNIT)
    assert bump.shape == error.shape == (count,) and not error.any()
    (bump.sum() + error.sum()).backward()
    assert torch.isfinite(logits.grad).all() and not offsets.grad.any()  # type: ignore[union-attr]


def test_loss_by_hand() -> None:
    """Zero logits cost log 2 a pixel, centres more; offsets only count inside the object."""
    ids = squares((4, 4, 1), side=8)
    bump, error = centre_loss(torch.zeros(1, 8, 8), torch.full((1, 2, 8, 8), 2.0), ids, UNIT)
    assert bump.item() == pytest.approx(math.log(2) * (64 + BUMP_WEIGHT) / 64)
    assert error.item() == pytest.approx(2 * (2 - 0.05))  # smooth L1 beyond beta 0.1, y and x
    far = torch.full((1, 2, 8, 8), 2.0)
    far[0, :, 4, 4] = 0
    assert centre_loss(torch.zeros(1, 8, 8), far, ids, UNIT)[1].item() == 0


def test_the_right_answer_is_the_minimum_and_gradients_are_finite() -> None:
    ids = squares((3, 3, 9), (3, 12, 7), (20, 8, 2))
    heat, way, _ = centre_targets(ids)
    right = torch.logit(heat.clamp(1e-6, 1 - 1e-6))
    best = [loss.item() for loss in centre_loss(right, way / UNIT, ids, UNIT)]
    assert best[1] == 0
    for amount in (-1.0, 1.0, 50.0):
        logits = (right + amount).requires_grad_()
        offsets = (way / UNIT + amount).requires_grad_()
        losses = centre_loss(logits, offsets, ids, UNIT)
        assert losses[0].item() > best[0] and losses[1].item() > best[1]
        (losses[0] + losses[1]).sum().backward()
        assert torch.isfinite(logits.grad).all() and torch.isfinite(offsets.grad).all()  # type: ignore[arg-type]


def test_everything_is_made_on_the_device_of_the_objects() -> None:
    """Whatever is made without naming a device would land on "meta" here, and could not be mixed."""
    ids, logits, offsets = squares((4, 4, 5)), torch.zeros(1, 32, 32), torch.zeros(1, 2, 32, 32)
    with torch.device("meta"):
        assert all(loss.device.type == "cpu" for loss in centre_loss(logits, offsets, ids, UNIT))


@pytest.mark.parametrize("corners", [
    [(4, 4, 8)], [(4, 4, 8), (4, 12, 8)], [(2, 2, 6), (8, 2, 6), (2, 8, 6), (8, 8, 6)], [(0, 0, 3), (20, 20, 12)],
])  # fmt: skip
def test_perfect_maps_give_the_objects_back(corners: list[tuple[int, int, int]]) -> None:
    ids = squares(*corners)
    heat, way, _ = centre_targets(ids)
    maps = CentreMaps(heat[0].numpy(), (way[0] / UNIT).numpy())
    wanted = np.kron(ids[0].numpy(), np.ones((2, 2), np.int32))  # the mask is twice as fine as the maps
    found = separate(wanted > 0, maps)
    assert found.max() == len(corners)
    for number in range(1, len(corners) + 1):
        assert len(np.unique(found[wanted == number])) == 1
    assert not found[wanted == 0].any()

"""Objectives of fixed targets: closed forms, sums over parts, and what has no say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lexitome.data.dataset import UNKNOWN_CODE, Target
from lexitome.training.dense import (
    Batch,
    TargetScores,
    class_terms,
    exclusive,
    judged_of,
    known_of,
    masks_of,
    pairs,
    region_terms,
    row_at,
    shown_pixels,
)

ONE, TWO, BOTH = Target("one", (), (1,), (1,)), Target("two", (), (2,), (2,)), Target("both", (), (1, 2), (1, 2))


def batch_of(codes: np.ndarray, targets: tuple[Target, ...] = (ONE, TWO), unknown: tuple[int, ...] = ()) -> Batch:
    """(N, H, W) codes."""
    count = len(codes)
    return Batch(
        torch.zeros(count, 3, *codes.shape[1:]),
        torch.stack([masks_of(each, targets) for each in codes]),
        torch.stack([known_of(unknown, targets)] * count),
        torch.stack([judged_of(each) for each in codes]),
    )


def test_classes_in_closed_form() -> None:
    """Even logits, p = 1/3: cross-entropy ln 3, Dice of a target of n among m pixels 1 - 2 n p / (m p + n)."""
    codes = np.zeros((1, 4, 4), np.int32)
    codes[0, 0] = 1
    batch = batch_of(codes)
    terms = class_terms(torch.zeros(1, 3, 4, 4), batch, shown_pixels(batch))
    assert shown_pixels(batch).tolist() == [16, 1]
    assert float(terms["ce"]) == pytest.approx(math.log(3))
    assert float(terms["dice"]) == pytest.approx(1 - (2 * 4 / 3) / (16 / 3 + 4), rel=1e-4)
    perfect = torch.full((1, 3, 4, 4), -50.0)
    perfect[0, 1, 0], perfect[0, 0, 1:] = 50, 50
    assert all(float(term) < 1e-4 for term in class_terms(perfect, batch, shown_pixels(batch)).values())


@pytest.mark.parametrize("shape", [(8, 8), (3, 6, 6)])
def test_parts_of_a_step_sum_to_the_whole(shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).choice(np.array([0, 1, 2, UNKNOWN_CODE]), (4, *shape))
    codes[3][codes[3] == 2] = 0
    whole, logits = batch_of(codes), torch.randn(4, 3, *shape, generator=torch.manual_seed(0))
    parts = [(batch_of(codes[part]), logits[part]) for part in (slice(0, 1), slice(1, 4))]
    for terms, counts, outputs in ((class_terms, shown_pixels, slice(0, 3)), (region_terms, pairs, slice(1, 3))):
        totals = counts(whole)
        assert torch.equal(totals, sum(counts(batch) for batch, _ in parts))
        found = terms(logits[:, outputs], whole, totals)
        summed = [terms(part[:, outputs], batch, totals) for batch, part in parts]
        assert all(float(found[n]) == pytest.approx(float(sum(s[n] for s in summed)), rel=1e-5) for n in found)


def test_pixels_that_nobody_judged_and_targets_that_nobody_looked_for_have_no_gradient() -> None:
    codes = np.random.default_rng(0).choice(np.array([0, 1, 2, UNKNOWN_CODE]), (2, 8, 8))
    batch, unjudged = batch_of(codes), torch.from_numpy(codes == UNKNOWN_CODE)
    logits = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(sum(class_terms(logits, batch, shown_pixels(batch)).values()), logits)
    assert not gradient.transpose(0, 1)[:, unjudged].any() and gradient.transpose(0, 1)[:, ~unjudged].any()
    hidden = batch_of(codes, unknown=(2,))
    (gradient,) = torch.autograd.grad(sum(region_terms(logits[:, 1:], hidden, pairs(hidden)).values()), logits)
    assert gradient[:, 1].any() and not gradient[:, 2].any() and not gradient.transpose(0, 1)[:, unjudged].any()


def test_nothing_to_learn_from_is_no_division_by_zero() -> None:
    codes = np.full((1, 4, 4), UNKNOWN_CODE)
    batch = batch_of(codes, unknown=(1, 2))
    for terms in (
        class_terms(torch.zeros(1, 3, 4, 4), batch, shown_pixels(batch)),
        region_terms(torch.zeros(1, 2, 4, 4), batch, pairs(batch)),
    ):
        assert all(float(term) == 0 for term in terms.values())


def test_when_targets_are_exclusive() -> None:
    assert exclusive((ONE, TWO), ()) and exclusive((ONE, TWO), (3,))
    assert not exclusive((ONE, BOTH), ()) and not exclusive((ONE, TWO), (2,))


def test_dice_by_target() -> None:
    codes = np.array([[1, 1, 2, 0], [0, 0, UNKNOWN_CODE, 0]])
    scores = TargetScores()
    assert scores.metrics() == {}
    scores.add(ONE, np.array([[1, 0, 0, 0], [1, 0, 1, 0]], bool), codes, ())  # 2 * 1 / (2 + 2); one is not judged
    scores.add(ONE, codes == 1, codes, (1,))  # nobody looked
    scores.add(ONE, codes == 1, np.zeros_like(codes), ())  # not shown
    scores.add(TWO, codes == 2, codes, ())
    assert scores.metrics() == {"dice": pytest.approx(0.75)}


def test_rows_have_their_turns_epoch_by_epoch() -> None:
    rows = [3, 5, 8]
    taken = [row_at(rows, 0, place) for place in range(9)]
    assert all(sorted(taken[i : i + 3]) == rows for i in (0, 3, 6)) and taken != rows * 3
    assert taken == [row_at(rows, 0, place) for place in range(9)] != [row_at(rows, 1, place) for place in range(9)]

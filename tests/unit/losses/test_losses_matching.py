"""Matching: the cost by hand, one-to-one against every permutation, one-to-many against a loop."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexitome.losses.boxes import iou, to_corners
from lexitome.losses.matching import Hungarian, OneToMany, Pairs, hungarian, matching_cost, one_to_many


def random_case(seed: int, sizes: list[int], queries: int, layers: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits, boxes, objects, owner."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2

    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    logits = torch.randn(layers, len(sizes), queries, generator=generator) * 2
    return logits, boxes(layers, len(sizes), queries), boxes(sum(sizes)), owner


def test_cost_by_hand() -> None:
    logits = torch.tensor([[[math.log(3.0)]]])  # p = 3/4
    boxes = torch.tensor([[[[0.2, 0.2, 0.4, 0.4]]]])  # corners 0 0 0.4 0.4
    objects = torch.tensor([[0.4, 0.3, 0.4, 0.2]])  # corners 0.2 0.2 0.6 0.4
    as_object = 0.25 * 0.25**2 * -math.log(0.75)
    as_nothing = 0.75 * 0.75**2 * -math.log(0.25)
    overlap = 0.04 / 0.20 - (0.24 - 0.20) / 0.24
    wanted = 2 * (as_object - as_nothing) + 5 * (0.2 + 0.1 + 0 + 0.2) - 2 * overlap
    cost = matching_cost(logits, boxes, objects, torch.tensor([0]), Hungarian())
    assert cost.flatten().tolist() == pytest.approx([wanted])


@given(st.integers(0, 2**31), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 4))
def test_hungarian_is_no_dearer_than_any_permutation(seed: int, sizes: list[int], queries: int) -> None:
    case = random_case(seed, sizes, queries)
    cost, owner = matching_cost(*case, Hungarian()), case[3]
    pairs = hungarian(*case, Hungarian())
    assert torch.equal(owner[pairs.object], pairs.prompt)
    for layer in range(2):
        for prompt, count in enumerate(sizes):
            here = (pairs.layer == layer) & (pairs.prompt == prompt)
            rows, columns = pairs.object[here].tolist(), pairs.query[here].tolist()
            assert len(rows) == len(set(rows)) == len(set(columns)) == min(count, queries)
            mine = cost[layer][(owner == prompt).nonzero()[:, 0]]  # (n, K)
            mine = mine if count <= queries else mine.T
            few, many = mine.shape
            best = min(sum(mine[i, p[i]].item() for i in range(few)) for p in permutations(range(many), few))
            assert sum(cost[layer, i, j].item() for i, j in zip(rows, columns, strict=True)) == pytest.approx(
                best, abs=1e-4
            )


@given(st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(1, 9))
def test_one_to_many_takes_the_best_few_above_the_threshold(seed: int, sizes: list[int], queries: int) -> None:
    logits, boxes, objects, owner = random_case(seed, sizes, queries)
    pairs = one_to_many(logits, boxes, objects, owner, OneToMany())
    wanted = set()
    for layer in range(2):
        for item, prompt in enumerate(owner.tolist()):
            overlap = iou(to_corners(boxes[layer, prompt]), to_corners(objects[item]))
            score = (0.3 * logits[layer, prompt].sigmoid() + 0.7 * overlap).tolist()
            best = sorted(range(queries), key=lambda k: -score[k])[:4]
            wanted |= {(layer, prompt, k, item) for k in best if score[k] > 0.4}
    rows = torch.stack([pairs.layer, pairs.prompt, pairs.query, pairs.object], 1).tolist()
    assert len(rows) == len(wanted)
    assert {tuple(row) for row in rows} == wanted


def test_one_to_many_leaves_out_a_tie_at_its_end() -> None:
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 1, 5, 4)
    logits = torch.tensor([[[2.0, 1.0, 1.0, 0.0, 0.0]]])
    case = logits, boxes, boxes[0, 0, :1], torch.tensor([0])
    assert one_to_many(*case, OneToMany(top_k=3)).query.tolist() == [0, 1, 2]
    assert one_to_many(*case, OneToMany(top_k=2)).query.tolist() == [0]


def test_a_diverged_network_does_not_stop_the_solver() -> None:
    logits, boxes, objects, owner = random_case(0, [2], 3)
    pairs = hungarian(logits * math.nan, boxes * math.inf, objects, owner, Hungarian())
    assert len(pairs.query) == 2 * 2


def test_pairs_of_the_last_layer_and_joined() -> None:
    def column(*values: int) -> Tensor:
        return torch.tensor(values)

    pairs = Pairs(column(0, 1, 1), column(0, 0, 2), column(5, 6, 7), column(0, 0, 3))
    last = pairs.last(2)
    assert (last.layer.tolist(), last.prompt.tolist(), last.query.tolist(), last.object.tolist()) == (
        [1, 1], [0, 2], [6, 7], [0, 3],
    )  # fmt: skip
    joined = pairs.followed_by(pairs, 2)
    assert joined.layer.tolist() == [0, 1, 1, 2, 3, 3]
    assert joined.object.tolist() == [0, 0, 3, 0, 0, 3]

"""The task of SAM3: queries with the right objects, an objective that can be divided, and that can be learned."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.data.batches import Draw, Picture, Question
from lexitome.data.cache import CachedDataset
from lexitome.losses.boxes import iou, to_corners
from lexitome.losses.set_prediction import ObjectTargets
from lexitome.models.sam3.network import PADDING, Prompts
from lexitome.training.engine import moved
from lexitome.training.sam3 import (
    BOX_NOISE,
    MOST_NOISE,
    Sam3Batch,
    Sam3Task,
    answer_words,
    encode_words,
    noisy,
    query_targets,
    sam3_loss,
    score_text_only,
)

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sam3 import SIDE, open_tiny, task_for, tiny_net, tokens_for
from tiny_sets import disc, write_sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    return open_tiny(write_sets(tmp_path_factory.mktemp("tiny") / "sets"))


@pytest.fixture(scope="module")
def task(sets: list[CachedDataset]) -> Sam3Task:
    return task_for(sets, tokens_for(sets))


def picture(mask: np.ndarray, ids: np.ndarray | None, *, positive: bool = True) -> Picture:
    question = Question("thing", np.zeros((4, 1, 1), np.float32), mask, positive)
    return Picture(torch.zeros(3, *mask.shape), np.zeros(mask.shape, bool), [question], [ids])


def test_objects_are_known_where_they_are_drawn_or_the_answer_is_in_one_piece() -> None:
    one, two = disc(SIDE, 16, 16, 8), disc(SIDE, 16, 16, 8) | disc(SIDE, 48, 48, 8)
    ids = (one + 2 * disc(SIDE, 48, 48, 8)).astype(np.int32)[::2, ::2]
    masks, known = query_targets(picture(two, ids), 0)
    assert known and len(masks) == 2
    assert torch.equal(masks.any(0), torch.from_numpy(two[::2, ::2])) and not (masks[0] & masks[1]).any()
    masks, known = query_targets(picture(one, None), 0)
    assert known and torch.equal(masks[0], torch.from_numpy(one[::2, ::2]))
    masks, known = query_targets(picture(two, None), 0)
    assert not known and torch.equal(masks[0], torch.from_numpy(two[::2, ::2]))
    masks, known = query_targets(picture(np.zeros_like(one), None, positive=False), 0)
    assert known and not len(masks)


def test_a_target_that_half_resolution_hides_still_counts_as_present() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[1::2, 1] = True
    masks, known = query_targets(picture(mask, None), 0)
    assert len(masks) == 1 and not masks.any() and not known


def test_batches_hold_what_was_drawn(task: Sam3Task) -> None:
    batch = task.batch(5, range(4))
    assert batch.pictures.shape == (4, 3, SIDE, SIDE)
    assert -1 <= batch.pictures.min() < -0.5 and 0 < batch.pictures.max() <= 1
    assert batch.prompts.image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and batch.prompts.boxes.shape == (8, 0, 4)
    words = [q.words for p in task.source.pictures(5, _draw(task, 5), range(4)) for q in p.questions]
    ids, mask = encode_words(task.tokens, words)
    assert torch.equal(ids, batch.prompts.tokens) and torch.equal(mask, batch.prompts.token_mask)
    assert mask[:, -1].any() and not (ids[~mask]).any()
    for boxes, masks in zip(batch.targets.boxes, batch.targets.masks, strict=True):
        assert masks is not None and len(boxes) == len(masks)


def _draw(task: Sam3Task, step: int) -> Draw:
    return Draw(task.source.size_of(step, asdict(task.sampling.share)), SIDE, 4)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 3), unique=True))
def test_any_division_of_a_step_gives_the_same_queries(sets: list[CachedDataset], step: int, cuts: list[int]) -> None:
    task = task_for(sets, tokens_for(sets), prompts="mixed")
    whole = task.batch(step, range(4))
    parts = [task.batch(step, range(a, b)) for a, b in pairwise([0, *sorted(cuts), 4])]
    assert torch.equal(whole.pictures, torch.cat([part.pictures for part in parts]))
    assert torch.equal(whole.prompts.boxes, torch.cat([part.prompts.boxes for part in parts]))
    assert torch.equal(whole.prompts.box_labels, torch.cat([part.prompts.box_labels for part in parts]))
    boxes = [each for part in parts for each in part.targets.boxes]
    assert all(torch.equal(a, b) for a, b in zip(whole.targets.boxes, boxes, strict=True))


def test_mixed_prompts_give_boxes_of_what_is_there(sets: list[CachedDataset]) -> None:
    task = task_for(sets, tokens_for(sets), prompts="mixed")
    visual, _ = task.tokens.encode(["visual"])
    given_, silent, asked = 0, 0, 0
    for step in range(12):
        batch = task.batch(step, range(4))
        assert batch.prompts.boxes.shape == (8, 1, 4)
        for query in range(8):
            wanted, box = batch.targets.boxes[query], batch.prompts.boxes[query]
            has_box = int(batch.prompts.box_labels[query]) != PADDING
            words = batch.prompts.tokens[query]
            is_visual = torch.equal(words[words > 0], visual[0][visual[0] > 0])
            assert has_box or not is_visual
            asked += len(wanted) > 0
            given_ += has_box
            silent += is_visual
            if has_box:
                assert len(wanted)
                whole = to_corners(wanted)
                hull = torch.cat([whole[:, :2].amin(0), whole[:, 2:].amax(0)])
                assert iou(to_corners(box), torch.cat([whole, hull[None]])).max() > 0.5
    assert 0.3 < given_ / asked < 0.7 and 0.2 < silent / given_ < 0.8


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_noise_of_boxes_is_bounded(seed: int) -> None:
    box = torch.tensor([0.5, 0.4, 0.3, 0.2])
    moved_edges = to_corners(noisy(box, np.random.default_rng(seed))) - to_corners(box)
    assert (moved_edges.abs() <= MOST_NOISE + 1e-6).all()
    small = torch.tensor([0.5, 0.5, 0.02, 0.02])
    far = to_corners(noisy(small, np.random.default_rng(seed))) - to_corners(small)
    assert (far.abs() <= 6 * BOX_NOISE * 0.02).all()


def test_the_objective_is_the_sum_of_its_parts(sets: list[CachedDataset]) -> None:
    """Losses and gradients of two parts add up to those of the whole."""
    tokens = tokens_for(sets)
    task, net = task_for(sets, tokens, prompts="mixed"), tiny_net(tokens)
    whole, parts = task.batch(3, range(4)), [task.batch(3, range(0, 3)), task.batch(3, range(3, 4))]
    totals = task.counts(whole)
    torch.testing.assert_close(totals, sum(task.counts(part) for part in parts))

    def gradients(batches: list[Sam3Batch]) -> tuple[dict[str, float], list[torch.Tensor]]:
        net.zero_grad()
        sums: dict[str, float] = {}
        for batch in batches:
            terms = task.loss(net, batch, totals)
            torch.stack(list(terms.values())).sum().backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item()
        return sums, [p.grad.clone() for p in net.parameters() if p.grad is not None]

    (one, grads), (other, added) = gradients([whole]), gradients(parts)
    assert {"classification", "presence", "l1", "giou", "semantic_dice", "mask_focal", "o2m_mask_dice"} <= one.keys()
    assert one == pytest.approx(other, rel=1e-4)
    for a, b in zip(grads, added, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_nobody_judges_what_nobody_annotated(sets: list[CachedDataset]) -> None:
    """Where all is unjudged, masks have no loss and no gradient; where nothing is, masking changes nothing."""
    tokens = tokens_for(sets)
    task, net = task_for(sets, tokens), tiny_net(tokens)
    batch = task.batch(2, range(4))
    outputs = net(batch.pictures, batch.prompts, twins=True)
    hidden = replace(batch, unjudged=torch.ones_like(batch.unjudged), targets=_without_masks(batch.targets))
    outputs.semantic.retain_grad()
    outputs.masks.retain_grad()
    terms = sam3_loss(outputs, hidden, task.counts(hidden), task.objective)
    (terms["semantic_focal"] + terms["semantic_dice"] + terms["mask_focal"] + terms["mask_dice"]).backward()
    assert not outputs.semantic.grad.any() and not outputs.masks.grad.any()


def _without_masks(targets: ObjectTargets) -> ObjectTargets:
    return ObjectTargets(targets.boxes, [torch.zeros_like(m) for m in targets.masks], targets.known)  # type: ignore[arg-type]


def test_batches_move_between_devices_whole(task: Sam3Task) -> None:
    batch = moved(task.batch(0, range(2)), torch.device("meta"))
    tensors = [batch.pictures, *batch.prompts, *batch.targets.boxes, *batch.targets.masks, batch.targets.known]
    assert all(tensor.is_meta for tensor in tensors) and isinstance(batch.prompts, Prompts)


def test_presence_decides_whether_anything_is_answered(sets: list[CachedDataset]) -> None:
    tokens = tokens_for(sets)
    net = tiny_net(tokens).eval()
    for bias in (9.0, -9.0):
        head: Any = net.model.detr_decoder.presence_head.layer3
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, bias)
        answer = answer_words(net, np.array(sets[0].images[0]), ["liver", "spleen"], tokens, SIDE)
        assert answer.logits.shape == (2, 32, 32) and (answer.presence > 0.5).all() == (bias > 0)
        assert (answer.logits > -29).any() == (bias > 0)
    assert score_text_only(net, sets, tokens, SIDE, 2)["dice"] == 0.0


@pytest.mark.slow
def test_it_learns_one_picture_by_heart(sets: list[CachedDataset]) -> None:
    tokens = tokens_for(sets)
    task, net = task_for(sets, tokens), tiny_net(tokens)
    batch = task.batch(1, range(4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    history = []
    for _ in range(60):
        terms = task.loss(net, batch, task.counts(batch))
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
        history.append({name: term.item() for name, term in terms.items()})
    first, last = history[0], history[-1]
    assert math.isfinite(sum(last.values())) and sum(last.values()) < 0.6 * sum(first.values())
    assert last["semantic_dice"] < 0.5 * first["semantic_dice"] and last["presence"] < 0.3 * first["presence"]

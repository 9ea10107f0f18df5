"""The task of the compact model: an objective that can be divided, judges only what was judged, and can be learned."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.batches import Batch, BatchSource, Draw
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.losses.instances import centre_targets
from lexitome.losses.set_prediction import SetPredictionConfig
from lexitome.models.compact import OFFSET_UNIT, CompactConfig, CompactNet, Decoded
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training import validation
from lexitome.training.compact import (
    CompactObjective,
    CompactTask,
    Resolution,
    Sampling,
    Share,
    Stage,
    build_compact,
    compact_loss,
    object_targets,
)
from lexitome.training.validation import validate_text_only

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set, write_sets

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=2)
SIDE = 64
PLAIN = CompactObjective()
WITH_OBJECTS = CompactObjective(objects=SetPredictionConfig(), objects_weight=0.05)


def one_size(side: int, images: int) -> Sampling:
    stage = Stage(*(Resolution(side, images) for _ in range(3)))
    return Sampling(low=stage, high=stage)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    root = write_sets(tmp_path_factory.mktemp("sets"))
    place = tmp_path_factory.mktemp("cache")
    return [open_cache(load_dataset(d), place, side=SIDE) for d in sorted(root.iterdir())]


def task_of(sets: list[CachedDataset], objective: CompactObjective = PLAIN, **source: object) -> CompactTask:
    return CompactTask(BatchSource(sets, seed=0, **source), one_size(SIDE, 6), objective, steps=100)  # type: ignore[arg-type]


def fresh(config: CompactConfig = TINY) -> CompactNet:
    torch.manual_seed(0)
    return CompactNet(config, EfficientNetLite(0, frozen_blocks=config.frozen_blocks))


def answer(batch: Batch, logits: Tensor, presence: Tensor) -> Decoded:
    """With perfect centres and offsets."""
    heat, way, _ = centre_targets(batch.instances)
    return Decoded(logits, presence, torch.logit(heat.clamp(1e-6, 1 - 1e-6)), way / OFFSET_UNIT)


def in_double(batch: Batch) -> Batch:
    return replace(batch, pictures=batch.pictures.double(), text=batch.text.double(), spatial=batch.spatial.double())


@pytest.mark.parametrize("objective", [PLAIN, WITH_OBJECTS])
def test_parts_of_a_step_add_up_to_the_whole(sets: list[CachedDataset], objective: CompactObjective) -> None:
    """Loss and gradients of pictures 0..5 at once, and of 0, 1..2, 3..5 one after the other; in double precision, where
    only a wrong divisor makes a difference."""
    task = task_of(sets, objective)
    model = fresh(replace(TINY, object_queries=4 if objective.objects else 0)).double().train()
    whole = in_double(task.batch(0, range(6)))
    parts = [in_double(task.batch(0, part)) for part in (range(1), range(1, 3), range(3, 6))]
    totals = task.counts(whole)
    torch.testing.assert_close(torch.stack([task.counts(part) for part in parts]).sum(0), totals)

    def run(batches: list[Batch]) -> tuple[dict[str, float], dict[str, Tensor]]:
        model.zero_grad()
        sums: dict[str, float] = {}
        for batch in batches:
            terms = task.loss(model, batch, totals)
            torch.stack([term.double() for term in terms.values()]).sum().backward()
            sums = {name: sums.get(name, 0.0) + (terms[name].item() if name in terms else 0.0)
                    for name in {*sums, *terms}}  # fmt: skip
        return sums, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    (once, gradient), (summed, other) = run([whole]), run(parts)
    wanted = {"bce", "dice", "presence", "centres", "offsets"} | ({"objects"} if objective.objects else set())
    assert once.keys() == summed.keys() == wanted and all(value > 0 for value in once.values())
    assert summed == pytest.approx(once, rel=1e-6)
    assert gradient.keys() == other.keys()
    scale = max(g.abs().max().item() for g in gradient.values())
    for name in gradient:
        torch.testing.assert_close(gradient[name], other[name], rtol=1e-6, atol=1e-8 * scale, msg=name)


def test_what_is_counted(sets: list[CachedDataset]) -> None:
    task = task_of(sets)
    batch = task.batch(3, range(6))
    known = sum(bool(p and c) for p, c in zip(batch.present, batch.countable, strict=True))
    assert task.counts(batch).tolist() == [18, batch.present.sum(), known] and task.images(3) == 6
    counted = task_of(sets, WITH_OBJECTS).counts(batch)
    targets = object_targets(batch)
    assert counted.tolist()[3:] == [18, 18, sum(len(boxes) for boxes in targets.boxes), batch.present.sum()]


def test_the_right_answer_costs_nothing_and_the_unsure_one_log_2(sets: list[CachedDataset]) -> None:
    task = task_of(sets)
    batch = task.batch(0, range(6))
    totals = task.counts(batch)
    sure = answer(batch, torch.where(batch.masks > 0, 20.0, -20.0), torch.where(batch.present > 0, 20.0, -20.0))
    right = compact_loss(sure, batch, totals, PLAIN)
    assert right["offsets"].item() == 0 and all(right[name].item() < 1e-3 for name in ("bce", "dice", "presence"))
    unsure = answer(batch, torch.zeros_like(batch.masks), torch.zeros_like(batch.present))
    terms = compact_loss(unsure, batch, totals, PLAIN)
    share = (batch.present + PLAIN.absent * (1 - batch.present)).mean().item()
    assert terms["bce"].item() == pytest.approx(math.log(2) * share, rel=1e-4)
    assert terms["presence"].item() == pytest.approx(PLAIN.presence * math.log(2), rel=1e-4)
    worse = replace_centres(sure, sure.centres + 3, sure.offsets + 1)
    found = compact_loss(worse, batch, totals, PLAIN)
    assert found["centres"] > right["centres"] and found["offsets"] > 0


def replace_centres(decoded: Decoded, centres: Tensor, offsets: Tensor) -> Decoded:
    return decoded._replace(centres=centres, offsets=offsets)


def test_only_absent_queries(sets: list[CachedDataset]) -> None:
    """No mask and no object is in this part: nothing is divided by zero."""
    batch = task_of(sets).batch(0, range(2))
    absent = replace(batch, masks=0 * batch.masks, present=0 * batch.present, instances=0 * batch.instances)
    logits = torch.zeros_like(batch.masks, requires_grad=True)
    terms = compact_loss(answer(absent, logits, torch.zeros(6)), absent, torch.tensor([6.0, 0, 0]), PLAIN)
    assert terms.keys() == {"bce", "dice", "presence"} and terms["dice"] == 0
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad.any()


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    """Discs, of whose pictures nobody judged the right half."""
    mask = disc(SIDE, 32, 24, 10).astype(np.uint8)
    mask[:, 36:] = 9
    picture = painted(np.where(mask == 9, 1, mask))
    folder = save_set(tmp_path_factory.mktemp("sets") / "half", {f"d{i}": (picture, mask) for i in range(6)},
                      {1: "disc"}, ignore_label=9)  # fmt: skip
    opened = open_cache(load_dataset(folder), tmp_path_factory.mktemp("cache"), side=SIDE)
    return [replace(opened, traits=replace(opened.traits, countable=True))]


def test_what_nobody_judged_costs_nothing_and_teaches_nothing(unjudged: list[CachedDataset]) -> None:
    task = task_of(unjudged)
    batch = task.batch(0, range(4))
    hidden = batch.unjudged.repeat_interleave(3, 0)
    assert hidden.any() and not hidden.all()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch.masks.shape, generator=generator).requires_grad_()
    centres = torch.randn(batch.instances.shape, generator=generator).requires_grad_()
    offsets = torch.randn((12, 2, SIDE // 2, SIDE // 2), generator=generator).requires_grad_()

    def cost(amount: float) -> dict[str, Tensor]:
        shifted = logits + amount * hidden, centres + amount * hidden[:, ::2, ::2]
        decoded = Decoded(shifted[0], torch.zeros(12), shifted[1], offsets + amount * hidden[:, None, ::2, ::2])
        return compact_loss(decoded, batch, task.counts(batch), PLAIN)

    plain, other = cost(0.0), cost(7.0)
    assert plain.keys() >= {"bce", "dice", "centres", "offsets"}
    for name in plain:
        assert plain[name].item() == pytest.approx(other[name].item(), rel=1e-6), name
    torch.stack(list(plain.values())).sum().backward()
    for values, where in ((logits, hidden), (centres, hidden[:, ::2, ::2])):
        assert values.grad is not None and not values.grad[where].any() and values.grad[~where].any()


def test_object_targets(sets: list[CachedDataset]) -> None:
    batch = task_of(sets).batch(0, range(6))
    targets = object_targets(batch)
    assert targets.known.all() and len(targets.boxes) == 18
    for query, (boxes, masks) in enumerate(zip(targets.boxes, targets.masks, strict=True)):
        assert masks is not None and boxes.shape == (len(masks), 4)
        whole = batch.masks[query, ::2, ::2] > 0
        if not batch.present[query]:
            assert len(boxes) == 0
            continue
        assert torch.equal(masks.any(0), whole) and masks.sum() == whole.sum()
        assert len(masks) == (len(batch.instances[query].unique()) - 1 if batch.countable[query] else 1)


def test_everything_is_made_on_the_device_of_the_batch(sets: list[CachedDataset]) -> None:
    batch = task_of(sets).batch(0, range(2))
    with torch.device("meta"):
        assert object_targets(batch).known.device.type == "cpu"


def test_sampling_changes_stage_and_keeps_to_the_share(sets: list[CachedDataset]) -> None:
    source = BatchSource(sets, seed=0)
    sampling = Sampling(share=Share(small=0.3, medium=0.5, fine=0.2))
    assert sampling.draw(0, 100, source) == Draw("medium", 256, 8)
    assert sampling.draw(71, 100, source).side == 256 and sampling.draw(72, 100, source).side == 320
    assert replace(sampling, high_from=0.0).draw(0, 100, source).side == 320


@pytest.mark.parametrize(("side", "images"), [(0, 1), (100, 1), (16, 1), (64, 0)])
def test_an_impossible_resolution_is_refused(side: int, images: int) -> None:
    with pytest.raises(InputError, match="multiple of 32" if images else "at least 1"):
        Resolution(side, images)


class Brightness(nn.Module):
    """Finds what is red; is sure of presence if anything is."""

    def __init__(self, everything: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.everything = everything

    def forward(self, pictures: Tensor, text: Tensor, spatial: Tensor) -> Decoded:
        red = F.avg_pool2d(pictures[:, :1], 5, 1, 2)[:, 0] > 90
        logits = torch.where(red | self.everything, 5.0, -5.0).repeat_interleave(len(text) // len(pictures), 0)
        return Decoded(logits, logits.amax((1, 2)), logits, logits)


def test_validation_measures_dice_and_presence(sets: list[CachedDataset]) -> None:
    polyps, organs = (next(s for s in sets if s.dataset.name == n) for n in ("kvasir_seg", "btcv_abdomen_ct2d"))
    found = validate_text_only(Brightness(), BatchSource([polyps], seed=0))
    assert found["dice"] > 0.85 and found["presence"] == 1
    half = validate_text_only(Brightness(), BatchSource([organs], seed=0), split="train")
    assert half["dice"] < 0.7 and half["presence"] == 0.5  # always finds the spleen, which half of the slices lack


def test_validation_leaves_out_what_it_cannot_measure(sets: list[CachedDataset]) -> None:
    """A dice of 0 would make the first checkpoint the best one for ever."""
    only_train = [replace(s, rows=tuple(replace(row, split="train") for row in s.rows)) for s in sets]
    assert validate_text_only(Brightness(), BatchSource(only_train, seed=0)) == {}
    unknown = [replace(s, rows=tuple(replace(row, unknown=(1, 2, 3)) for row in s.rows)) for s in sets]
    assert validate_text_only(Brightness(), BatchSource(unknown, seed=0)) == {}


def test_validation_does_not_judge_what_nobody_judged(unjudged: list[CachedDataset]) -> None:
    found = validate_text_only(Brightness(everything=True), BatchSource(unjudged, seed=0), split="train")
    disc_area, judged = np.isin(unjudged[0].codes[0], (1,)).sum(), (unjudged[0].codes[0] != 255).sum()
    assert found["dice"] == pytest.approx(2 * disc_area / (disc_area + judged), abs=1e-6)


def test_a_new_network_begins_with_imagenet_and_knows_the_words(sets: list[CachedDataset]) -> None:
    phrases = BatchSource(sets, seed=0).phrase_vectors()
    one, same, other = (build_compact(TINY, phrases, seed) for seed in (0, 0, 1))
    for (name, a), b in zip(one.state_dict().items(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.decoder.queries, other.decoder.queries)
    assert torch.equal(one.encoder.backbone._conv_stem.weight, other.encoder.backbone._conv_stem.weight)
    torch.testing.assert_close(one.decoder.text.mean, phrases.mean(0))


def learn(task: CompactTask, model: CompactNet, steps: int, lr: float) -> list[float]:
    """Sum of the terms of every step."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr), []
    model.train()
    for step in range(steps):
        batch = task.batch(step, range(task.images(step)))
        loss = torch.stack(list(task.loss(model, batch, task.counts(batch)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_two_concepts_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dark disc and a bright one, in every picture at other places: only their names tell which one is meant."""
    rng, cases = np.random.default_rng(0), {}
    for i in range(40):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        places = rng.permutation([(18, 18), (18, 46), (46, 18), (46, 46)])[:2] + rng.integers(-4, 5, (2, 2))
        for label, (y, x) in enumerate(places, start=1):
            mask[disc(SIDE, y, x, rng.uniform(8, 12))] = label
        cases[f"p{i:02d}"] = np.choose(mask, [110, 20, 220]).astype(np.uint8), mask
    folder = save_set(tmp_path / "discs", cases, {1: "polyp", 2: "liver"}, "photograph")
    opened = open_cache(load_dataset(folder), tmp_path / "cache", side=96)
    monkeypatch.setitem(validation.USUAL_SIDE, "medium", 96)
    source = BatchSource([opened], seed=0)
    model = build_compact(TINY, source.phrase_vectors(), 0)
    before = validate_text_only(model.eval(), source)["dice"]
    learn(CompactTask(source, one_size(96, 4), PLAIN, 120), model, 120, 3e-3)
    found = validate_text_only(model.eval(), source)
    assert before < 0.4 and found["dice"] > 0.6


@pytest.mark.slow
def test_set_prediction_learns_too(sets: list[CachedDataset]) -> None:
    task = task_of(sets, WITH_OBJECTS)
    losses = learn(task, fresh(replace(TINY, object_queries=6)), 30, 2e-3)
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6]) and np.isfinite(losses).all()

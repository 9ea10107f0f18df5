"""Pretraining as the engine runs it: batches, terms, the teacher, the Gram teacher, resuming; and that it learns."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from tiny_pretrain import KINDS, Drawn, Job, tiny_recipe, tiny_stage, tiny_task, train
from tiny_training import losses

from lexitome.data.multi_crop import Masks
from lexitome.data.unlabelled import HOUNSFIELD
from lexitome.errors import Interrupted
from lexitome.models.dinov3.presets import config_of
from lexitome.recipes.pretrain import BLOCKS
from lexitome.recipes.pretrain_run import network
from lexitome.training.pretrain import (
    Ramp,
    Refresh,
    SelfDistillation,
    alike,
    assignment,
    effective_rank,
    hand_over,
)


def fresh(gram: float = 0.0) -> SelfDistillation:
    stage = tiny_stage(gram=gram)
    return network(tiny_recipe(stage), stage, config_of("tiny"))


# --- schedules ---


def test_ramps_by_hand() -> None:
    assert [Ramp(0.04, 0.07, 0.3).at(step, 100) for step in (0, 15, 30, 99)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    cosine = Ramp(0.992, 1.0, shape="cosine")
    assert [cosine.at(step, 100) for step in (0, 50, 100)] == pytest.approx([0.992, 0.996, 1.0])
    assert Ramp(1.0, 0.5, 0.0).at(0, 100) == 0.5


@settings(max_examples=40, deadline=None)
@given(first=st.floats(0, 1), last=st.floats(0, 1), share=st.floats(0, 1), step=st.integers(0, 99))
def test_ramps_stay_between_their_ends(first: float, last: float, share: float, step: int) -> None:
    value = Ramp(first, last, share, "cosine").at(step, 100)
    assert min(first, last) - 1e-9 <= value <= max(first, last) + 1e-9


def test_the_gram_teacher_of_7b_is_renewed_three_times() -> None:
    """At 10 k, 20 k and 30 k of 200 k steps."""
    refresh = Refresh(0.05, 0.05, 3)
    assert [done for done in range(0, 200_001, 1000) if refresh.is_due(done, 200_000)] == [10_000, 20_000, 30_000]
    assert not any(Refresh().is_due(done, 100) for done in range(101))


# --- batches ---


def test_a_part_of_a_step_is_the_same_whoever_asks() -> None:
    task = tiny_task(tiny_stage(gram=1.0))
    whole, part = task.batch(2, range(8)), task.batch(2, range(3, 6))
    assert whole.large.shape == (2, 8, 3, 32, 32) and whole.small.shape == (2, 8, 3, 16, 16)
    assert whole.gram is not None and part.gram is not None and whole.gram.shape == (2, 8, 3, 64, 64)
    for mine, all_of_it in ((part.large, whole.large), (part.small, whole.small), (part.gram, whole.gram),
                            (part.masks, whole.masks)):  # fmt: skip
        assert torch.equal(mine, all_of_it[:, 3:6])
    assert not torch.equal(task.batch(3, range(8)).large, whole.large)
    hidden = whole.masks.sum(2).flatten()
    assert whole.masks.shape == (2, 8, 4) and (hidden > 0).sum() <= 8


def test_pictures_of_a_step_differ_while_there_are_enough() -> None:
    task = tiny_task(tiny_stage(images=64))
    assert len(set(task._chosen(0))) > 60
    few = replace(task, sets=[Drawn(pictures=4)])
    assert len(few._chosen(0)) == 64 and len(set(few._chosen(0))) == 4
    both = replace(task, sets=[Drawn(pictures=1000), Drawn("more", pictures=10)], pictures=4000, balance=0.5)
    assert replace(both, balance=1.0, pictures=300)._chosen(0).count((1, 0, False)) <= 1
    hundred = replace(both, pictures=100)
    assert 40 < sum(number for step in range(10) for number, _, _ in hundred._chosen(step)) < 110, "1 in 11, by roots"


def test_pictures_are_normalised_as_their_units_say() -> None:
    task = tiny_task(tiny_stage(), units=HOUNSFIELD)
    values = task.batch(0, range(4)).large * 178.0166 + 65.1084
    assert -1000.5 < values.min() < -500 and 500 < values.max() < 1000.5


# --- one step ---


def test_only_the_student_learns() -> None:
    net, task = fresh(gram=1.0), tiny_task(tiny_stage(gram=1.0))
    batch = task.batch(0, range(4))
    terms = task.loss(net, batch, task.counts(batch))
    assert terms.keys() == {"dino_global", "dino_local", "ibot", "koleo", "gram"}
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == name.startswith("student."), name
        assert (parameter.grad is not None) == name.startswith("student."), name
    net.train()
    assert net.student.backbone.training and not net.teacher.backbone.training
    assert net.gram is not None and not net.gram.training


def test_shares_of_the_dino_terms() -> None:
    """2 global and 2 local crops: 2 pairs of 6 are global, 4 local. An untrained head that knows nothing has the loss
    log(prototypes) in each."""
    net, task = fresh(), tiny_task(tiny_stage())
    for branch in (net.student, net.teacher):
        for head in (branch.dino, branch.ibot):
            nn.init.zeros_(head.last_layer.weight)
    batch = replace(task.batch(0, range(4)), step=0)
    terms = task.loss(net, batch, task.counts(batch))
    nothing = np.log(128)
    assert terms["dino_global"].item() == pytest.approx(nothing * 2 / 6, rel=1e-3)
    assert terms["dino_local"].item() == pytest.approx(nothing * 4 / 6, rel=1e-3)
    with_masks = (batch.masks.sum(2) > 0).float().mean().item()
    assert terms["ibot"].item() == pytest.approx(nothing * with_masks, rel=1e-3)
    half = replace(task, objective=replace(task.objective, local=Ramp(0.5, 0.5)))
    assert half.loss(net, batch, task.counts(batch))["dino_local"].item() == pytest.approx(nothing * 2 / 6, rel=1e-3)


def test_the_student_does_not_see_what_is_hidden() -> None:
    net, task = fresh().eval(), tiny_task(tiny_stage(), masks=Masks(1.0, (0.5, 0.5)))
    batch = task.batch(0, range(2))
    other = batch.large.clone().unfold(3, 16, 16).unfold(4, 16, 16).reshape(2, 2, 3, 4, 16, 16)
    assert batch.masks.any()
    blanked = other.masked_fill(batch.masks[:, :, None, :, None, None], 0.0)
    back = blanked.reshape(2, 2, 3, 2, 2, 16, 16).permute(0, 1, 2, 3, 5, 4, 6).reshape(2, 2, 3, 32, 32)
    with torch.no_grad():
        seen, unseen = net(batch), net(replace(batch, large=back))
    torch.testing.assert_close(seen.student_large, unseen.student_large)
    torch.testing.assert_close(seen.student_hidden, unseen.student_hidden)
    assert not torch.allclose(seen.teacher_large, unseen.teacher_large), "the teacher sees everything"


def test_the_teacher_follows_and_the_gram_teacher_waits() -> None:
    net = fresh(gram=1.0)
    assert net.gram is not None
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for parameter in net.student.parameters():
            parameter.add_(1.0)
    net.follow(0.9)
    for name, value in net.teacher.named_parameters():
        torch.testing.assert_close(value, before[f"teacher.{name}"] + 0.1, atol=1e-5, rtol=1e-5)
    for name, value in net.gram.named_parameters():
        assert torch.equal(value, before[f"gram.{name}"])
    net.anchor()
    for one, other in zip(net.gram.parameters(), net.teacher.backbone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_gram_teacher_is_asked_only_while_it_counts() -> None:
    late = replace(tiny_stage(10, gram=1.0).objective, gram=Ramp(0.0, 1.0, 0.5))
    task = tiny_task(tiny_stage(10, gram=1.0), objective=late)
    assert task.batch(0, range(2)).gram is None and task.batch(1, range(2)).gram is not None


# --- collapse is seen ---


def test_measures_of_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    spread, same = torch.randn(200, 16, generator=generator), torch.randn(1, 16, generator=generator).expand(200, 16)
    assert effective_rank(spread) > 15 and effective_rank(same) == pytest.approx(1, abs=0.01)
    assert abs(alike(spread)) < 0.05 and alike(same) == pytest.approx(1, abs=1e-4)
    sharp = 100 * nn.functional.one_hot(torch.arange(200) % 50, 50).float()
    for logits, entropy, used in (
        (sharp, 0.0, 1.0),
        (torch.zeros(200, 50), 1.0, 1.0),
        (sharp[:1].expand(200, 50), 0, 0),
    ):
        assert assignment(logits) == pytest.approx((entropy, used), abs=1e-3)


def test_validation_sees_held_out_pictures_and_is_the_same_again() -> None:
    net, task = fresh().eval(), tiny_task(tiny_stage())
    with torch.no_grad():
        one, again = task.validate(net), task.validate(net)
    assert one == again and one.keys() == {"loss", "sure", "used", "rank", "patch_rank", "alike"}
    assert all(np.isfinite(list(one.values())))
    with torch.no_grad():
        for parameter in net.teacher.backbone.parameters():
            parameter.zero_()
        net.teacher.backbone.model.norm.bias.fill_(1.0)
        collapsed = task.validate(net)
    assert collapsed["rank"] == pytest.approx(1, abs=0.01) and collapsed["alike"] == pytest.approx(1, abs=1e-3)
    assert one["rank"] > 2


# --- runs ---


def test_an_interrupted_run_ends_identically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are augmented anew as they would have been, the teachers are those of the checkpoint."""
    whole, parts = (Job(str(tmp_path / name), steps=4, images=4, gram=1.0) for name in ("whole", "parts"))
    train(whole)
    follow = SelfDistillation.follow

    def interrupted(self: SelfDistillation, momentum: float) -> None:
        follow(self, momentum)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(SelfDistillation, "follow", interrupted)
        train(parts)
    last = Path("checkpoints") / "last"
    assert json.loads((tmp_path / "parts" / last / "state.json").read_text())["step"] == 2, "seen in the next step"
    train(replace(parts, resume=True))
    for part in ("model", "optimizer"):
        one, other = (load_file(tmp_path / name / last / f"{part}.safetensors") for name in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    train(Job(str(tmp_path / "kept"), steps=2, images=4))
    train(Job(str(tmp_path / "again"), steps=2, images=4, run={"recompute": BLOCKS}))
    for one, other in zip(losses(tmp_path / "kept"), losses(tmp_path / "again"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_hand_over() -> None:
    net = fresh(gram=1.0)
    with torch.no_grad():
        for number, part in enumerate((net.student, net.teacher, net.gram)):
            assert part is not None
            for parameter in part.parameters():
                parameter.fill_(float(number))
    state = dict(net.state_dict())

    def values(found: dict[str, torch.Tensor], prefix: str) -> set[float]:
        return {float(v.flatten()[0]) for name, v in found.items() if name.startswith(prefix)}

    gram_stage = hand_over(state, student="student", gram="gram")
    assert [values(gram_stage, p) for p in ("student.", "teacher.", "gram.")] == [{0.0}, {1.0}, {2.0}]
    high_resolution = hand_over(state, student="teacher", gram="teacher")
    assert [values(high_resolution, p) for p in ("student.", "teacher.", "gram.")] == [{1.0}, {1.0}, {1.0}]
    assert gram_stage.keys() == high_resolution.keys() == state.keys()


def nearest_kind(net: SelfDistillation) -> float:
    """Share of held-out pictures whose nearest picture of the training, by the teacher's class token, is of their
    kind."""
    drawn = Drawn()

    def features(held_out: bool) -> torch.Tensor:
        pictures = [drawn.picture(i, held_out=held_out) for i in range(drawn.count(held_out=held_out))]
        shown = torch.from_numpy(np.stack(pictures)).expand(-1, 3, -1, -1)
        with torch.no_grad():
            return nn.functional.normalize(net.teacher.backbone.features((shown - 0.5) / 0.25).cls, dim=1)

    near = (features(True) @ features(False).T).argmax(1)
    return float((near % KINDS == torch.arange(len(near)) % KINDS).float().mean())


@pytest.mark.slow
def test_it_learns_and_does_not_collapse(tmp_path: Path) -> None:
    before = nearest_kind(fresh())
    _, net = train(Job(str(tmp_path), steps=80, images=16, run={"validate_every": 20}))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    train_loss = [row["loss"] for row in rows if row["kind"] == "train"]
    scores = [row["metrics"] for row in rows if row["kind"] == "validation"]
    assert np.mean(train_loss[-5:]) < np.mean(train_loss[:5]) - 0.5
    assert scores[-1]["loss"] < scores[0]["loss"]
    assert scores[-1]["rank"] > 4 and scores[-1]["alike"] < 0.7
    assert scores[-1]["used"] > 0.5 and scores[-1]["sure"] > 0.02
    assert nearest_kind(net) > max(0.9, before)

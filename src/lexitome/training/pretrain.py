"""What the engine trains when it pretrains DINOv3: student, teacher and Gram teacher, batches, losses, validation.

Two global and several local crops of a picture are seen by a student; a teacher, the moving average of the student,
sees the global ones. DINO compares class tokens, iBOT the patches that are hidden from the student, KoLeo spreads the
class tokens, Gram holds the similarities between patches to those of an older teacher (`losses.self_distillation`).
Teacher and Gram teacher are parts of the model, so that checkpoints hold them. Whatever changes with time is a function
of the step.

Unlike Meta's code, KoLeo looks for neighbours in the whole batch, not in that of one GPU: several processes then learn
what one would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, cycle, islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lexitome.data.multi_crop import GLOBALS, Crops, Masks, Views, block_mask, draw_views
from lexitome.data.unlabelled import Pictures, Units
from lexitome.errors import InputError
from lexitome.losses import self_distillation as losses
from lexitome.models.dinov3.backbone import Dinov3
from lexitome.models.dinov3.heads import ProjectionHead

PICTURE_DRAW, SIZE_DRAW, MASK_DRAW, HELD_OUT_DRAW = range(1, 5)
"""Streams of random numbers of a step, beside those of its pictures."""
TRIES = 20
"""Draws for each picture of a step until one may come twice, as in small sets it has to."""
MOST_PATCHES = 4096
"""Patches whose rank validation measures."""


@dataclass(frozen=True)
class Ramp:
    """A value that goes from `first` to `last` during the first `share` of the steps, and stays."""

    first: float
    last: float
    share: float = 1.0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError("share", f"{self.share} is not in 0..1", "Give the share of the steps.")

    def at(self, step: int, steps: int) -> float:
        """In step `step`, counted from 0, of `steps`."""
        length = self.share * steps
        done = min(1.0, step / length) if length > 0 else 1.0
        return self.last + (self.first - self.last) * (1 - done if self.shape == "linear" else _falling(done))


def _falling(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Refresh:
    """When the Gram teacher takes the teacher's weights, in shares of the steps; `most` times at most."""

    first: float = 0.0
    every: float = 1.0
    most: int = 0

    def is_due(self, done: int, steps: int) -> bool:
        """After `done` steps."""
        return any(done == max(1, round((self.first + k * self.every) * steps)) for k in range(self.most))


@dataclass(frozen=True)
class Objective:
    """Weights and temperatures. The DINO terms have the weights 2 / 18 and 16 / 18 of the pairs of views that they
    compare (2 global with global, 16 local with global, of 8 local crops).

    Attributes:
        student_temperature, teacher_temperature: of logits.
        momentum: share of the teacher that a step keeps.
        local: further factor of the local DINO term.
        koleo_among: see `losses.self_distillation.koleo`.
        gram: 0 switches the Gram teacher off.
        refresh: of the Gram teacher.
    """

    student_temperature: float = 0.1
    teacher_temperature: Ramp = field(default_factory=lambda: Ramp(0.04, 0.07, 0.3))
    momentum: Ramp = field(default_factory=lambda: Ramp(0.992, 1.0, shape="cosine"))
    dino: float = 1.0
    local: Ramp = field(default_factory=lambda: Ramp(1.0, 1.0))
    ibot: float = 1.0
    koleo: float = 0.1
    koleo_among: int = 0
    gram: Ramp = field(default_factory=lambda: Ramp(0.0, 0.0))
    refresh: Refresh = field(default_factory=Refresh)
    sinkhorn: int = 3

    @property
    def anchored(self) -> bool:
        """Whether a Gram teacher is asked."""
        return max(self.gram.first, self.gram.last) > 0

    @property
    def keeps_gram(self) -> bool:
        """Whether there is one, be it for a later stage."""
        return self.anchored or self.refresh.most > 0


class Branch(nn.Module):
    """A network and its two heads."""

    def __init__(self, backbone: Dinov3, dino: ProjectionHead, ibot: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino = dino
        self.ibot = ibot


class Said(NamedTuple):
    """Of N pictures with L local crops, G = 2 N global crops (first of all pictures, then second), M hidden patches.

    Args:
        student_large: (2, N, K) logits; student_small: (L, N, K); teacher_large: (2, N, K).
        student_hidden, teacher_hidden: (M, K') logits.
        cls: (2, N, D) class tokens of the student; teacher_cls: of the teacher.
        patches: (G, h, w, D) of the student; teacher_patches: of the teacher.
        gram: (G, h', w', D) of the Gram teacher, or None.
    """

    student_large: Tensor
    student_small: Tensor
    teacher_large: Tensor
    student_hidden: Tensor
    teacher_hidden: Tensor
    cls: Tensor
    teacher_cls: Tensor
    patches: Tensor
    teacher_patches: Tensor
    gram: Tensor | None


@dataclass(frozen=True, eq=False)
class PretrainBatch:
    """N pictures, normalised for the network."""

    step: int
    large: Tensor  # (2, N, 3, S, S)
    small: Tensor  # (L, N, 3, s, s)
    gram: Tensor | None  # (2, N, 3, G, G)
    masks: Tensor  # (2, N, patches) bool


class SelfDistillation(nn.Module):
    """The three networks. Only the student learns; `follow` moves the teacher, `anchor` sets the Gram teacher."""

    def __init__(self, student: Branch, teacher: Branch, gram: Dinov3 | None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.gram = gram
        for frozen in (teacher, gram):
            if frozen is not None:
                frozen.requires_grad_(False)
        teacher.backbone.freeze()
        if gram is not None:
            gram.freeze()

    def forward(self, batch: PretrainBatch) -> Said:
        masks = batch.masks.flatten(0, 1)
        student, teacher = self.student, self.teacher
        with torch.no_grad():
            wanted = teacher.backbone(batch.large.flatten(0, 1))
            teacher_large = teacher.dino(wanted.cls)
            teacher_hidden = teacher.ibot(wanted.patches.flatten(1, 2)[masks])
            gram = None
            if self.gram is not None and batch.gram is not None:
                gram = self.gram(batch.gram.flatten(0, 1)).patches
        said = student.backbone(batch.large.flatten(0, 1), masks)
        local = student.backbone(batch.small.flatten(0, 1))
        count = batch.large.shape[1]
        return Said(
            student.dino(said.cls).unflatten(0, (GLOBALS, count)),
            student.dino(local.cls).unflatten(0, (len(batch.small), count)),
            teacher_large.unflatten(0, (GLOBALS, count)),
            student.ibot(said.patches.flatten(1, 2)[masks]),
            teacher_hidden,
            said.cls.unflatten(0, (GLOBALS, count)),
            wanted.cls.unflatten(0, (GLOBALS, count)),
            said.patches,
            wanted.patches,
            gram,
        )

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """The teacher, heads included, becomes momentum x itself + (1 - momentum) x the student."""
        get_ema_multi_avg_fn(momentum)(list(self.teacher.parameters()), list(self.student.parameters()), 0)

    @torch.no_grad()
    def anchor(self) -> None:
        """The Gram teacher becomes the teacher."""
        assert self.gram is not None
        for old, new in zip(self.gram.parameters(), self.teacher.backbone.parameters(), strict=True):
            old.copy_(new)


@dataclass(frozen=True, eq=False)
class PretrainTask:
    """A `training.engine.Task` and `Following`.

    Attributes:
        sets: where pictures come from.
        units: of all of them.
        pictures: of a step.
        steps: of the stage, which its ramps refer to.
        balance: a set is drawn with probability ~ (its pictures) ** balance: 1 = all pictures alike, 0 = all sets.
        validated: held-out pictures; where none are held out, pictures of the training.
    """

    sets: Sequence[Pictures]
    units: Units
    crops: Crops
    masks: Masks
    objective: Objective
    pictures: int
    steps: int
    seed: int = 0
    balance: float = 0.5
    validated: int = 64
    patch: int = 16

    def images(self, step: int) -> int:
        return self.pictures

    def batch(self, step: int, indices: range) -> PretrainBatch:
        chosen = self._chosen(step)
        with_twins = self.objective.gram.at(step, self.steps) > 0
        return self._drawn(step, indices, [chosen[i] for i in indices], twins=with_twins)

    def _drawn(
        self, step: int, indices: Sequence[int], chosen: Sequence[tuple[int, int, bool]], *, twins: bool
    ) -> PretrainBatch:
        """The crops of pictures given as (set, number, held out), which are number `indices` of the step."""
        sizes = self.crops.sizes(np.random.default_rng((self.seed, step, 0, SIZE_DRAW)))
        drawn: list[Views] = []
        for index, (number, picture, held_out) in zip(indices, chosen, strict=True):
            rng = np.random.default_rng((self.seed, step, index + 1, 0))
            values = torch.from_numpy(self.sets[number].picture(picture, held_out=held_out))
            drawn.append(draw_views(values, self.crops, sizes, rng, twins=twins))
        grams = [views.gram for views in drawn if views.gram is not None]
        return PretrainBatch(
            step,
            self._normalised([views.large for views in drawn]),
            self._normalised([views.small for views in drawn]),
            self._normalised(grams) if grams else None,
            self._hidden(step, indices, sizes.large),
        )

    def _chosen(self, step: int) -> list[tuple[int, int, bool]]:
        """(set, number, False) of the pictures of a step, all different if that many are easily found."""
        counts = [each.count() for each in self.sets]
        wanted = min(self.pictures, sum(counts))
        rng = np.random.default_rng((self.seed, step, 0, PICTURE_DRAW))
        ends = np.array(list(accumulate(float(count) ** self.balance if count else 0.0 for count in counts)))
        chosen: dict[tuple[int, int, bool], None] = {}
        for _ in range(TRIES * self.pictures):
            number = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
            chosen[(number, int(rng.integers(counts[number])), False)] = None
            if len(chosen) == wanted:
                break
        return list(islice(cycle(chosen), self.pictures))

    def _normalised(self, views: list[Tensor]) -> Tensor:
        """N of (V, 3, S, S) in 0..1 to (V, N, 3, S, S)."""
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (self.units.mean, self.units.deviation))
        return (torch.stack(views, 1) - mean) / deviation

    def _hidden(self, step: int, indices: Sequence[int], side: int) -> Tensor:
        """(2, N, patches) bool; crop c of picture i is crop c x (pictures of the step) + i."""
        grid = (-(-side // self.patch),) * 2
        total = max(self.pictures, max(indices) + 1)
        ratios = self.masks.ratios(GLOBALS * total, np.random.default_rng((self.seed, step, 0, MASK_DRAW)))
        masks = [
            block_mask(grid, int(ratios[crop * total + i] * grid[0] * grid[1]),
                       np.random.default_rng((self.seed, step, i + 1, crop + 1)))
            for crop in range(GLOBALS) for i in indices
        ]  # fmt: skip
        return torch.from_numpy(np.stack(masks)).flatten(1).unflatten(0, (GLOBALS, len(indices)))

    def counts(self, batch: PretrainBatch) -> Tensor:
        return torch.tensor([float(batch.large.shape[1])])

    def loss(self, model: nn.Module, batch: PretrainBatch, totals: Tensor) -> dict[str, Tensor]:
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        return self._terms(model(batch), batch, totals[0], None if alone else dist.group.WORLD)

    def _terms(self, said: Said, batch: PretrainBatch, total: Tensor, group: losses.Group) -> dict[str, Tensor]:
        objective, step = self.objective, batch.step
        student_t, teacher_t = objective.student_temperature, objective.teacher_temperature.at(step, self.steps)
        wanted = losses.sinkhorn(said.teacher_large.flatten(0, 1), teacher_t, objective.sinkhorn, group)
        wanted = wanted.unflatten(0, said.teacher_large.shape[:2])
        hidden = losses.sinkhorn(said.teacher_hidden, teacher_t, objective.sinkhorn, group)
        masks = batch.masks.flatten(0, 1)
        weights = (1 / masks.sum(1).clamp_min(1))[:, None].expand_as(masks)[masks]
        small = len(batch.small)
        pairs = GLOBALS * (GLOBALS - 1) + GLOBALS * small
        global_share, local_share = GLOBALS * (GLOBALS - 1) / pairs, GLOBALS * small / pairs
        local_share *= objective.local.at(step, self.steps)
        terms = {
            "dino_global": objective.dino * global_share
            * losses.dino(said.student_large, wanted, student_t, total, same=True),
            "dino_local": objective.dino * local_share * losses.dino(said.student_small, wanted, student_t, total),
            "ibot": objective.ibot * losses.ibot(said.student_hidden, hidden, weights, student_t, GLOBALS * total),
        }  # fmt: skip
        if objective.koleo:
            spread = [losses.koleo(cls, total, group, objective.koleo_among) for cls in said.cls]
            terms["koleo"] = objective.koleo * torch.stack(spread).sum()
        if said.gram is not None:
            weight = objective.gram.at(step, self.steps)
            terms["gram"] = weight * losses.gram(said.patches, said.gram, GLOBALS * total)
        return terms

    def after_step(self, model: nn.Module, step: int) -> None:
        assert isinstance(model, SelfDistillation)
        model.follow(self.objective.momentum.at(step, self.steps))
        if self.objective.refresh.is_due(step + 1, self.steps):
            model.anchor()

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Without labels, so that a collapse is seen: `loss` of pictures held out; `sure` and `used`, how sharp the
        teacher's assignments are and how many prototypes share them (0 to 1 each; a collapse takes either to 0);
        `rank` and `patch_rank`, the effective ranks of class tokens and patches; `alike`, the mean cosine between
        class tokens of different pictures (1 = collapsed)."""
        device = next(model.parameters()).device
        total, count, logits, tokens, patches = 0.0, 0, [], [], []
        for batch in self._held_out():
            there = replace(batch, large=batch.large.to(device), small=batch.small.to(device),
                            masks=batch.masks.to(device))  # fmt: skip
            said = model(there)
            size = batch.large.shape[1]
            terms = self._terms(said, there, torch.tensor(float(size), device=device), None)
            total += size * sum(float(term) for term in terms.values())
            count += size
            logits.append(said.teacher_large[0].float())
            tokens.append(said.teacher_cls[0].float())
            patches.append(said.teacher_patches[:size].flatten(0, 2).float())
        temperature = self.objective.teacher_temperature.last
        entropy, used = assignment(torch.cat(logits) / temperature)
        cls, flat = torch.cat(tokens), torch.cat(patches)
        chosen = torch.linspace(0, len(flat) - 1, min(MOST_PATCHES, len(flat))).round().long()
        return {
            "loss": total / count, "sure": 1 - entropy, "used": used, "rank": effective_rank(cls),
            "patch_rank": effective_rank(flat[chosen.to(flat.device)]), "alike": alike(cls),
        }  # fmt: skip

    def _held_out(self) -> Iterator[PretrainBatch]:
        """The same crops every time, at the temperatures and weights of the last step, without a Gram teacher."""
        held = any(each.count(held_out=True) for each in self.sets)
        everything = [(n, i, held) for n, each in enumerate(self.sets) for i in range(each.count(held_out=held))]
        rng = np.random.default_rng((self.seed, 0, 0, HELD_OUT_DRAW))
        order = rng.permutation(len(everything))[: self.validated]
        for start in range(0, len(order), self.pictures):
            part = range(start, min(start + self.pictures, len(order)))
            yield self._drawn(self.steps - 1, part, [everything[order[i]] for i in part], twins=False)


def assignment(logits: Tensor) -> tuple[float, float]:
    """Of (N, K) logits, already divided by the temperature: the mean entropy of one assignment, and that of the mean
    assignment, both as shares of the largest possible: log K, and log of the smaller of N and K."""
    chances = logits.softmax(1)
    one = -(chances * logits.log_softmax(1)).sum(1).mean() / math.log(logits.shape[1])
    mean = chances.mean(0)
    most = math.log(max(2, min(logits.shape)))
    return float(one), min(1.0, float(-(mean * mean.clamp_min(1e-12).log()).sum()) / most)


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values of (N, D) features of length 1 (RankMe, Garrido et al. 2023): 1 when
    all are the same, at most the smaller of N and D."""
    values = torch.linalg.svdvals(F.normalize(features.float(), dim=1))
    shares = values / values.sum().clamp_min(1e-12)
    return float((-(shares * shares.clamp_min(1e-12).log()).sum()).exp())


def alike(features: Tensor) -> float:
    """Mean cosine between different rows of (N, D)."""
    count = len(features)
    own = F.normalize(features.float(), dim=1)
    return float(((own @ own.T).sum() - count) / max(1, count * (count - 1)))


def hand_over(
    before: Mapping[str, Tensor], *, student: Literal["student", "teacher"], gram: Literal["teacher", "gram"]
) -> dict[str, Tensor]:
    """State of the stage that follows one with the state `before`.

    Args:
        student: whose weights the student begins with; the teacher keeps its own.
        gram: which network becomes the Gram teacher: the teacher as it ended, or the one that was kept on the way.

    Returns:
        With entries of a Gram teacher, which a stage without one leaves out.
    """
    origin = "gram." if gram == "gram" else "teacher.backbone."
    state = {name: value for name, value in before.items() if name.startswith("teacher.")}
    state |= {f"student.{name.removeprefix(f'{student}.')}": value for name, value in before.items()
              if name.startswith(f"{student}.")}  # fmt: skip
    state |= {f"gram.{name.removeprefix(origin)}": value for name, value in before.items() if name.startswith(origin)}
    return state

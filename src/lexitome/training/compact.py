"""What the engine trains when it trains a compact model: batches, objective, validation.

The objective has a mask part (cross-entropy and Dice), a presence part ("not found" is an answer that has to be
learned), and for objects that are told apart the centres of `losses.instances`, or SAM3's set prediction where the
model has object queries.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.batches import Batch, BatchSource, Draw
from lexitome.errors import InputError
from lexitome.losses import set_prediction
from lexitome.losses.boxes import boxes_of_masks
from lexitome.losses.instances import centre_loss
from lexitome.losses.mask import bce, soft_dice
from lexitome.losses.set_prediction import ObjectTargets, SetPrediction, SetPredictionConfig
from lexitome.models.catalog import SIDE_STEP
from lexitome.models.compact import OFFSET_UNIT, CompactConfig, CompactNet, Decoded
from lexitome.models.efficientnet_lite import load_imagenet
from lexitome.training.validation import validate_text_only

SURELY_EMPTY = -30.0
"""A logit whose distance to an empty mask is 0."""


@dataclass(frozen=True)
class Resolution:
    """Side of the pictures of a size class, and how many make a step."""

    side: int
    images: int

    def __post_init__(self) -> None:
        if self.side < SIDE_STEP or self.side % SIDE_STEP:
            raise InputError("side", f"{self.side} is not a multiple of {SIDE_STEP}", "Choose e.g. 256 or 320.")
        if self.images < 1:
            raise InputError("images", f"{self.images} pictures make no step", "Choose at least 1.")


@dataclass(frozen=True)
class Stage:
    """Resolutions of the size classes in a part of the run."""

    small: Resolution
    medium: Resolution
    fine: Resolution


@dataclass(frozen=True)
class Share:
    """How many of the steps show pictures of each size class."""

    small: float = 0.15
    medium: float = 0.67
    fine: float = 0.18


@dataclass(frozen=True)
class Sampling:
    """Which pictures a step holds: most is learned at `low` resolution, thin structures in the last part of the run,
    from the fraction `high_from` of its steps on, at `high`."""

    low: Stage = field(default_factory=lambda: Stage(Resolution(160, 20), Resolution(256, 8), Resolution(384, 4)))
    high: Stage = field(default_factory=lambda: Stage(Resolution(192, 16), Resolution(320, 8), Resolution(512, 3)))
    high_from: float = 0.72
    share: Share = field(default_factory=Share)

    def draw(self, step: int, steps: int, source: BatchSource) -> Draw:
        stage = self.low if step < self.high_from * steps else self.high
        size = source.size_of(step, asdict(self.share))
        resolution: Resolution = getattr(stage, size)
        return Draw(size, resolution.side, resolution.images)


@dataclass(frozen=True)
class CompactObjective:
    """Weights of the terms. ``absent``: of the cross-entropy of a mask that must be empty, relative to one that must
    not (Dice of an empty mask has no gradient worth following)."""

    bce: float = 1.0
    dice: float = 1.0
    absent: float = 0.5
    presence: float = 0.3
    centres: float = 0.5
    offsets: float = 0.1
    objects: SetPredictionConfig | None = None
    """Of the object queries, if the model has any (`CompactConfig.object_queries`)."""
    objects_weight: float = 0.005
    """SAM3's terms add up to some two hundred times the others."""


@dataclass(frozen=True, eq=False)
class CompactTask:
    """A `training.engine.Task`."""

    source: BatchSource
    sampling: Sampling
    objective: CompactObjective
    steps: int

    def images(self, step: int) -> int:
        return self.sampling.draw(step, self.steps, self.source).images

    def batch(self, step: int, indices: range) -> Batch:
        return self.source.batch(step, self.sampling.draw(step, self.steps, self.source), indices)

    def counts(self, batch: Batch) -> Tensor:
        """Queries, queries whose target is present, those of them with known objects; then what set prediction
        counts."""
        own = [torch.tensor(float(len(batch.present))), batch.present.sum(), (batch.present * batch.countable).sum()]
        if self.objective.objects is None:
            return torch.stack(own)
        return torch.cat([torch.stack(own), set_prediction.counts(object_targets(batch))])

    def loss(self, model: nn.Module, batch: Batch, totals: Tensor) -> dict[str, Tensor]:
        decoded = model(batch.pictures, batch.text, batch.spatial)
        return compact_loss(decoded, batch, totals, self.objective)

    def validate(self, model: nn.Module) -> dict[str, float]:
        return validate_text_only(model, self.source)


def compact_loss(decoded: Decoded, batch: Batch, totals: Tensor, weights: CompactObjective) -> dict[str, Tensor]:
    """Terms as sums over this batch divided by `totals` (see `CompactTask.counts`)."""
    queries, present_count, counted = totals[:3].clamp_min(1).unbind()
    unjudged = batch.unjudged.repeat_interleave(len(batch.masks) // len(batch.unjudged), 0)
    logits = decoded.logits.float().masked_fill(unjudged, SURELY_EMPTY)  # no loss, no gradient: their target is 0
    present = batch.present
    entropy = bce(logits, batch.masks)
    presence = F.binary_cross_entropy_with_logits(decoded.presence.float(), present, reduction="sum")
    terms = {
        "bce": weights.bce * (entropy * (present + weights.absent * (1 - present))).sum() / queries,
        "dice": weights.dice * (soft_dice(logits, batch.masks) * present).sum() / present_count,
        "presence": weights.presence * presence / queries,
    }
    known = (present * batch.countable).bool()
    if known.any():
        centres = decoded.centres.float().masked_fill(unjudged[:, ::2, ::2], SURELY_EMPTY)
        bump, way = centre_loss(centres[known], decoded.offsets[known].float(), batch.instances[known], OFFSET_UNIT)
        terms["centres"] = weights.centres * bump.sum() / counted
        terms["offsets"] = weights.offsets * way.sum() / counted
    if weights.objects is not None and decoded.objects is not None:
        said = SetPrediction(decoded.objects.logits, decoded.objects.boxes, masks=decoded.objects.masks)
        found = set_prediction.set_prediction_loss(said, object_targets(batch), weights.objects, totals[3:])
        terms["objects"] = weights.objects_weight * torch.stack(list(found.values())).sum()
    return terms


def object_targets(batch: Batch) -> ObjectTargets:
    """The objects of each query, at half resolution. Where they cannot be counted (a vessel tree) the whole mask is
    one."""
    masks = []
    for query, (ids, whole) in enumerate(zip(batch.instances, batch.masks[:, ::2, ::2] > 0, strict=True)):
        if not batch.present[query]:
            masks.append(whole[:0].new_zeros((0, *whole.shape)))
        elif batch.countable[query] and ids.any():
            masks.append(ids[None] == ids[ids > 0].unique()[:, None, None])
        else:
            masks.append(whole[None])
    known = torch.ones(len(masks), dtype=torch.bool, device=batch.masks.device)
    return ObjectTargets([boxes_of_masks(m) for m in masks], masks, known)


def build_compact(config: CompactConfig, phrases: Tensor, seed: int) -> CompactNet:
    """A network with ImageNet weights in its backbone. `phrases` (N, T): text vectors of the names and synonyms it will
    be trained with (`BatchSource.phrase_vectors`)."""
    torch.manual_seed(seed)
    backbone = load_imagenet(config.backbone, frozen_blocks=config.frozen_blocks)
    model = CompactNet(config, backbone).to(memory_format=torch.channels_last)
    model.decoder.text.fit(phrases)
    return model

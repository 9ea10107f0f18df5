"""The objective of SAM3: a set of K queries answers each of Q prompts, a presence value says whether anything is there.

Written from the definition in SAM3 (Carion et al. 2025) and from the behaviour and figures of its published training
code; "Meta" below is its fine-tuning configuration for Roboflow-100.

    classification  IoU-aware: the target of a paired query is p^alpha IoU^(1 - alpha), the others are 0 with weight
                    p^gamma; none at all for a prompt whose concept is absent, because presence learns that one
    presence        binary focal, every prompt
    boxes           L1 and GIoU of the pairs
    masks           focal and soft Dice of the pairs, last layer only
    semantic        focal and soft Dice of the union of all objects, for prompts that have any
    one-to-many     classification, boxes and masks again for the twin queries that are used in training only (DAC)

Classification, presence and boxes count at every decoder layer. Every term is a sum over the given prompts divided by a
count over the whole step (`counts`, summed by the caller), so that the terms of the parts of a step, on several
processes or one after another, add up to those of the whole, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lexitome.losses.boxes import giou, iou, to_corners
from lexitome.losses.mask import focal_map, sample, sigmoid_focal, soft_dice, uncertain_points
from lexitome.losses.matching import Hungarian, OneToMany, Pairs, hungarian, one_to_many


@dataclass(frozen=True)
class Classification:
    """Each term is averaged over the K queries; where K is below `least_queries`, over that many (Meta's padding)."""

    weight: float = 20.0
    positive: float = 10.0  # weight of a paired query
    alpha: float = 0.25
    gamma: float = 2.0
    floor: float = 0.01  # of a positive target
    least_queries: int = 200


@dataclass(frozen=True)
class Presence:
    weight: float = 20.0
    alpha: float = 0.5
    gamma: float = 0.0


@dataclass(frozen=True)
class Boxes:
    l1: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class Masks:
    """Instance masks, compared at the size of the targets or, to save memory, at `points` sampled ones (PointRend)."""

    focal: float = 200.0
    dice: float = 10.0
    alpha: float = 0.25
    gamma: float = 2.0
    points: int | None = None
    oversample: float = 3.0
    importance: float = 0.75


@dataclass(frozen=True)
class Semantic:
    """Union of the objects; `presence` weighs the presence logit of the semantic head, if it has one."""

    focal: float = 20.0
    dice: float = 30.0
    presence: float = 1.0
    alpha: float = 0.6
    gamma: float = 2.0


@dataclass(frozen=True)
class SetPredictionConfig:
    """Weights and parameters; the defaults are Meta's. None switches masks or semantic off."""

    matcher: Hungarian = field(default_factory=Hungarian)
    one_to_many: OneToMany = field(default_factory=OneToMany)
    one_to_many_weight: float = 2.0
    one_to_many_at_every_layer: bool = False  # else the layers before the last are paired one-to-one
    classification: Classification = field(default_factory=Classification)
    presence: Presence = field(default_factory=Presence)
    boxes: Boxes = field(default_factory=Boxes)
    masks: Masks | None = None
    semantic: Semantic | None = None
    scale_by_prompts: bool = True
    """Times the square root of the prompts of the step. Meta takes those of one process; ours does not depend on how
    the step is divided. The difference is one constant factor, which AdamW and a clip that is always reached cancel."""


PROMPTS, KNOWN, OBJECTS, WITH_MASK = range(4)
"""Entries of `counts`."""

SAM3 = SetPredictionConfig()
"""Meta's configuration as published: boxes, classification and presence."""

SAM3_SEGMENTATION = replace(SAM3, masks=Masks(), semantic=Semantic(presence=0.0))
"""The block "in case of segmentation" that is commented out there. It lists 1 for the semantic presence, and
`presence_loss: False`, because the head of the released network has no such output."""

MEDICAL_SAM3 = replace(SAM3, semantic=Semantic())
"""Table 2 of the Medical SAM3 paper, which names no loss of instance masks."""

MEDICAL_SAM3_MASKS = replace(MEDICAL_SAM3, masks=Masks())
"""Our default for Medical SAM3: with the loss of the masks that the evaluation scores, weights of SAM3."""


@dataclass(frozen=True)
class SetPrediction:
    """What a decoder of L layers with K queries says of Q prompts; K' twin queries may differ in number from K."""

    logits: Tensor  # (L, Q, K)
    boxes: Tensor  # (L, Q, K, 4) centre form in [0, 1]
    presence: Tensor | None = None  # (L, Q) logits
    masks: Tensor | None = None  # (Q, K, h, w) logits of the last layer
    semantic: Tensor | None = None  # (Q, h, w) logits
    semantic_presence: Tensor | None = None  # (Q,) logits
    o2m_logits: Tensor | None = None  # (L, Q, K')
    o2m_boxes: Tensor | None = None  # (L, Q, K', 4)
    o2m_masks: Tensor | None = None  # (Q, K', h, w)

    def __post_init__(self) -> None:
        layers, prompts, queries = self.logits.shape
        _check("boxes", self.boxes, (layers, prompts, queries, 4))
        _check("presence", self.presence, (layers, prompts))
        _check("masks", self.masks, (prompts, queries, None, None))
        _check("semantic", self.semantic, (prompts, None, None))
        _check("semantic_presence", self.semantic_presence, (prompts,))
        twins = None if self.o2m_logits is None else self.o2m_logits.shape[-1]
        _check("o2m_logits", self.o2m_logits, (layers, prompts, twins))
        _check("o2m_boxes", self.o2m_boxes, (layers, prompts, twins, 4))
        _check("o2m_masks", self.o2m_masks, (prompts, twins, None, None))
        if (self.o2m_logits is None) != (self.o2m_boxes is None):
            raise ValueError("o2m_logits and o2m_boxes come together")


@dataclass(frozen=True)
class ObjectTargets:
    """The right answer to each of Q prompts; a prompt without boxes asks for an absent concept.

    Where `known` is false the objects are not told apart (only their union is annotated): boxes and masks are then any
    pieces of it, at least one if the concept is present, and count for presence and semantic only.
    """

    boxes: Sequence[Tensor]  # Q of (n, 4), centre form in [0, 1]
    masks: Sequence[Tensor | None]  # Q of (n, H, W) bool, one size for all, or None where there are boxes only
    known: Tensor  # (Q,) bool

    def __post_init__(self) -> None:
        if not len(self.boxes) == len(self.masks) == len(self.known):
            raise ValueError(f"{len(self.boxes)} boxes, {len(self.masks)} masks, {len(self.known)} known flags")
        for boxes, masks in zip(self.boxes, self.masks, strict=True):
            _check("boxes", boxes, (None, 4))
            _check("masks", masks, (len(boxes), None, None))


def counts(targets: ObjectTargets) -> Tensor:
    """(4,) float32: prompts, prompts whose objects are known, objects of those, prompts with a semantic mask."""
    flags = targets.known.tolist()
    objects = sum(len(boxes) for boxes, known in zip(targets.boxes, flags, strict=True) if known)
    values = (len(flags), sum(flags), objects, len(_with_mask(targets)))
    return torch.tensor(values, dtype=torch.float32, device=targets.known.device)


def set_prediction_loss(
    prediction: SetPrediction, targets: ObjectTargets, config: SetPredictionConfig, totals: Tensor
) -> dict[str, Tensor]:
    """Weighted terms of this part of a step; their sum is the loss.

    `totals` (4,) is the sum of `counts` over all parts. The names of the terms follow from `prediction` and `config`
    alone, and an output without targets has gradient zero, not none, so processes agree whatever they are given.

    Raises:
        ValueError: `targets` are those of another number of prompts.
    """
    if len(targets.boxes) != prediction.logits.shape[1]:
        raise ValueError(f"targets of {len(targets.boxes)} prompts, predictions of {prediction.logits.shape[1]}")
    totals = totals.clamp_min(1)
    answers = _Answers.of(targets, prediction)
    pairs = hungarian(prediction.logits, prediction.boxes, answers.boxes, answers.owner, config.matcher)
    terms = _instance_terms(prediction, pairs, answers, config, totals)
    if prediction.presence is not None:
        level = config.presence
        wanted = answers.present.float().expand_as(prediction.presence)
        focal = focal_map(prediction.presence, wanted, level.alpha, level.gamma)
        terms["presence"] = level.weight * focal.sum() / totals[PROMPTS]
    if prediction.o2m_logits is not None and prediction.o2m_boxes is not None:
        twin = SetPrediction(prediction.o2m_logits, prediction.o2m_boxes, masks=prediction.o2m_masks)
        extra = _instance_terms(twin, _pair_twin(twin, answers, config), answers, config, totals)
        terms |= {f"o2m_{name}": config.one_to_many_weight * term for name, term in extra.items()}
    if config.semantic is not None and prediction.semantic is not None:
        terms |= _semantic_terms(prediction.semantic, targets, config.semantic, totals)
    if config.semantic is not None and prediction.semantic_presence is not None:
        error = F.binary_cross_entropy_with_logits(
            prediction.semantic_presence.float(), answers.present.float(), reduction="sum"
        )
        terms["semantic_presence"] = config.semantic.presence * error / totals[PROMPTS]
    scale = totals[PROMPTS].sqrt() if config.scale_by_prompts else 1.0
    return {name: term * scale for name, term in terms.items()}


@dataclass(frozen=True)
class _Answers:
    """Targets in the form the terms need: N objects of all prompts whose objects are known, in one list."""

    boxes: Tensor  # (N, 4)
    owner: Tensor  # (N,) prompt of each, ascending
    masks: list[Tensor | None]  # N of (H, W)
    present: Tensor  # (Q,) bool
    classified: Tensor  # (Q,) bool: the prompt has a classification loss

    @classmethod
    def of(cls, targets: ObjectTargets, prediction: SetPrediction) -> _Answers:
        device = prediction.logits.device
        sizes = torch.tensor([len(boxes) for boxes in targets.boxes], dtype=torch.long, device=device)
        known = targets.known.to(device)
        chosen = [i for i, flag in enumerate(targets.known.tolist()) if flag]
        boxes = [targets.boxes[i].to(device, torch.float32) for i in chosen]
        masks: list[Tensor | None] = []
        for i in chosen:
            drawn = targets.masks[i]
            masks.extend([None] * len(targets.boxes[i]) if drawn is None else drawn.unbind())
        return cls(
            torch.cat(boxes) if boxes else torch.zeros(0, 4, device=device),
            torch.arange(len(sizes), device=device).repeat_interleave(sizes * known),
            masks,
            sizes > 0,
            known if prediction.presence is None else known & (sizes > 0),
        )


def _pair_twin(twin: SetPrediction, answers: _Answers, config: SetPredictionConfig) -> Pairs:
    """Pairs of the twin queries: one-to-many in the last layer, before it what `config` says."""
    shared = answers.boxes, answers.owner
    if config.one_to_many_at_every_layer:
        return one_to_many(twin.logits, twin.boxes, *shared, config.one_to_many)
    early = hungarian(twin.logits[:-1], twin.boxes[:-1], *shared, config.matcher)
    late = one_to_many(twin.logits[-1:], twin.boxes[-1:], *shared, config.one_to_many)
    return early.followed_by(late, len(twin.logits) - 1)


def _instance_terms(
    prediction: SetPrediction, pairs: Pairs, answers: _Answers, config: SetPredictionConfig, totals: Tensor
) -> dict[str, Tensor]:
    """Classification, boxes and masks of one set of queries, given who answers for whom."""
    layers, prompts, queries = prediction.logits.shape
    row = (pairs.layer * prompts + pairs.prompt) * queries + pairs.query
    found = prediction.boxes.flatten(0, 2).index_select(0, row).float()
    true = answers.boxes[pairs.object]
    corners, true_corners = to_corners(found), to_corners(true)
    overlap = iou(corners.detach(), true_corners)
    terms = {
        "classification": _classification(prediction, row, overlap, answers.classified, config.classification)
        / totals[KNOWN],
        "l1": config.boxes.l1 * (found - true).abs().sum() / totals[OBJECTS],
        "giou": config.boxes.giou * (1 - giou(corners, true_corners)).sum() / totals[OBJECTS],
    }
    if config.masks is not None and prediction.masks is not None:
        focal, dice = _mask_sums(prediction.masks, pairs.last(layers), answers.masks, config.masks)
        terms["mask_focal"] = config.masks.focal * focal / totals[OBJECTS]
        terms["mask_dice"] = config.masks.dice * dice / totals[OBJECTS]
    return terms


def _classification(
    prediction: SetPrediction, row: Tensor, overlap: Tensor, classified: Tensor, config: Classification
) -> Tensor:
    """Weighted sum over layers and prompts of the mean over queries.

    `row` (P,) are the paired queries in the flattened (L, Q, K), `overlap` (P,) their IoU. Of several objects of one
    query (one-to-many) the best counts. As in Meta's code the gradient also flows through the weight p^gamma.
    """
    logits = prediction.logits.float()
    probability = logits.sigmoid()
    with torch.no_grad():
        soft = probability.flatten()[row] ** config.alpha * overlap ** (1 - config.alpha)
        target = torch.zeros_like(logits).flatten()
        target = target.scatter_reduce(0, row, soft.clamp_min(config.floor), "amax").view_as(logits)
    error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = torch.where(target > 0, config.positive, probability**config.gamma)
    summed = (error * weight * classified[:, None]).sum()
    return config.weight * summed / max(logits.shape[-1], config.least_queries)


def _mask_sums(masks: Tensor, pairs: Pairs, wanted: list[Tensor | None], config: Masks) -> tuple[Tensor, Tensor]:
    """Sums over pairs of focal and Dice. `masks` (Q, K, h, w) logits, `wanted` N of (H, W)."""
    chosen = [(i, mask) for i, item in enumerate(pairs.object.tolist()) if (mask := wanted[item]) is not None]
    kept = torch.tensor([i for i, _ in chosen], dtype=torch.long, device=masks.device)
    row = pairs.prompt[kept] * masks.shape[1] + pairs.query[kept]
    logits = masks.flatten(0, 1).index_select(0, row)
    if not chosen:
        nothing = logits.float().sum()
        return nothing, nothing
    targets = torch.stack([mask for _, mask in chosen]).to(logits.device)
    if config.points is not None:
        points = uncertain_points(logits, config.points, config.oversample, config.importance)
        logits, targets = sample(logits, points), sample(targets, points)
    else:
        logits = _resize(logits, targets.shape[-2:])
    return sigmoid_focal(logits, targets, config.alpha, config.gamma).sum(), soft_dice(logits, targets).sum()


def _semantic_terms(semantic: Tensor, targets: ObjectTargets, config: Semantic, totals: Tensor) -> dict[str, Tensor]:
    """Union of the objects against the (Q, h, w) logits `semantic`, where there are any."""
    chosen = _with_mask(targets)
    logits = semantic.index_select(0, torch.tensor(chosen, dtype=torch.long, device=semantic.device))
    if not chosen:
        nothing = logits.float().sum()
        return {"semantic_focal": nothing, "semantic_dice": nothing}
    union = torch.stack([targets.masks[i].any(0) for i in chosen]).to(logits.device)  # type: ignore[union-attr]
    logits = _resize(logits, union.shape[-2:])
    focal = sigmoid_focal(logits, union, config.alpha, config.gamma).sum()
    return {
        "semantic_focal": config.focal * focal / totals[WITH_MASK],
        "semantic_dice": config.dice * soft_dice(logits, union).sum() / totals[WITH_MASK],
    }


def _with_mask(targets: ObjectTargets) -> list[int]:
    """Prompts that have a semantic mask to learn: something there, and drawn."""
    return [i for i, mask in enumerate(targets.masks) if mask is not None and len(mask)]


def _resize(logits: Tensor, size: torch.Size) -> Tensor:
    """(P, h, w) -> (P, H, W), bilinear, float32."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits.float()[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _check(name: str, value: Tensor | None, shape: tuple[int | None, ...]) -> None:
    """None in `shape` stands for any size."""
    if value is None:
        return
    if value.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, value.shape, strict=True)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")

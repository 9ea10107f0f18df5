"""SAM3's objective: published figures, each term by hand, exact sums over parts, symmetries, and that it teaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexitome.losses.boxes import boxes_of_masks, iou, to_corners
from lexitome.losses.set_prediction import (
    MEDICAL_SAM3,
    MEDICAL_SAM3_MASKS,
    SAM3,
    SAM3_SEGMENTATION,
    Classification,
    Masks,
    ObjectTargets,
    SetPrediction,
    SetPredictionConfig,
    counts,
    set_prediction_loss,
)

LOG3 = math.log(3.0)  # the logit of 3/4 is log 3
EVERYTHING = replace(MEDICAL_SAM3_MASKS, scale_by_prompts=False)


def targets_of(boxes: Sequence[Tensor], masks: Sequence[Tensor | None], known: list[bool]) -> ObjectTargets:
    return ObjectTargets(boxes, masks, torch.tensor(known))


def random_case(
    seed: int, sizes: Sequence[int] = (2, 0, 1, 3, 0, 2), queries: int = 5, known: Sequence[bool] | None = None
) -> tuple[SetPrediction, ObjectTargets]:
    """Leaves of a prediction of two layers with every output, and targets of 8 x 8 masks."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2

    prompts = len(sizes)
    twins = queries + 1
    prediction = SetPrediction(
        normal(2, prompts, queries), boxes(2, prompts, queries).requires_grad_(), normal(2, prompts),
        normal(prompts, queries, 4, 4), normal(prompts, 4, 4), normal(prompts),
        normal(2, prompts, twins), boxes(2, prompts, twins).requires_grad_(), normal(prompts, twins, 4, 4),
    )  # fmt: skip
    masks = [torch.rand(n, 8, 8, generator=generator) > 0.5 for n in sizes]
    return prediction, targets_of([boxes(n) for n in sizes], masks, list(known or [True] * prompts))


def outputs(prediction: SetPrediction) -> dict[str, Tensor]:
    values = {f.name: getattr(prediction, f.name) for f in fields(SetPrediction)}
    return {name: value for name, value in values.items() if value is not None}


def cut(prediction: SetPrediction, targets: ObjectTargets, chosen: list[int]) -> tuple[SetPrediction, ObjectTargets]:
    """Only the prompts `chosen`, in that order."""
    by_layer = {"logits", "boxes", "presence", "o2m_logits", "o2m_boxes"}
    values = {n: v[:, chosen] if n in by_layer else v[chosen] for n, v in outputs(prediction).items()}
    boxes, masks = [targets.boxes[i] for i in chosen], [targets.masks[i] for i in chosen]
    return SetPrediction(**values), ObjectTargets(boxes, masks, targets.known[chosen])


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def losses(
    prediction: SetPrediction, targets: ObjectTargets, config: SetPredictionConfig = EVERYTHING
) -> dict[str, float]:
    terms = set_prediction_loss(prediction, targets, config, counts(targets))
    return {name: term.item() for name, term in terms.items()}


# --- figures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SAM3, SAM3_SEGMENTATION, MEDICAL_SAM3, MEDICAL_SAM3_MASKS])
def test_figures_common_to_meta_and_medical_sam3(config: SetPredictionConfig) -> None:
    assert config.matcher.classification == 2
    assert config.matcher.l1 == 5
    assert config.matcher.giou == 2
    assert config.matcher.alpha == 0.25
    assert config.matcher.gamma == 2
    assert config.one_to_many.alpha == 0.3
    assert config.one_to_many.threshold == 0.4
    assert config.one_to_many.top_k == 4
    assert config.one_to_many_weight == 2
    assert config.one_to_many_at_every_layer is False
    assert config.classification.weight == 20
    assert config.classification.positive == 10
    assert config.classification.alpha == 0.25
    assert config.classification.gamma == 2
    assert config.classification.floor == 0.01
    assert config.classification.least_queries == 200
    assert config.presence.weight == 20
    assert config.presence.alpha == 0.5
    assert config.presence.gamma == 0
    assert config.boxes.l1 == 5
    assert config.boxes.giou == 2
    assert config.scale_by_prompts is True


@pytest.mark.parametrize("config", [SAM3_SEGMENTATION, MEDICAL_SAM3_MASKS])
def test_figures_of_instance_masks(config: SetPredictionConfig) -> None:
    assert config.masks is not None
    assert config.masks.focal == 200
    assert config.masks.dice == 10
    assert config.masks.alpha == 0.25
    assert config.masks.gamma == 2
    assert config.masks.points is None


@pytest.mark.parametrize(
    ("config", "presence"), [(SAM3_SEGMENTATION, 0.0), (MEDICAL_SAM3, 1.0), (MEDICAL_SAM3_MASKS, 1.0)]
)
def test_figures_of_the_semantic_mask(config: SetPredictionConfig, presence: float) -> None:
    assert config.semantic is not None
    assert config.semantic.focal == 20
    assert config.semantic.dice == 30
    assert config.semantic.alpha == 0.6
    assert config.semantic.gamma == 2
    assert config.semantic.presence == presence


def test_what_the_published_configurations_leave_out() -> None:
    assert SAM3.masks is None
    assert SAM3.semantic is None
    assert MEDICAL_SAM3.masks is None
    assert replace(MEDICAL_SAM3, masks=Masks()) == MEDICAL_SAM3_MASKS
    prediction, targets = random_case(0)
    instances = {"classification", "l1", "giou"}
    twins = {f"o2m_{name}" for name in instances}
    assert set(losses(prediction, targets, SAM3)) == instances | twins | {"presence"}
    semantic = {"semantic_focal", "semantic_dice", "semantic_presence"}
    assert set(losses(prediction, targets, MEDICAL_SAM3)) == instances | twins | {"presence"} | semantic
    masks = {"mask_focal", "mask_dice", "o2m_mask_focal", "o2m_mask_dice"}
    assert set(losses(prediction, targets)) == instances | twins | {"presence"} | semantic | masks


# --- by hand -------------------------------------------------------------------------------------------------------


def hand_case() -> tuple[SetPrediction, ObjectTargets]:
    """Prompt 0 has one object, which query 0 meets with IoU 0.2 and the only twin exactly; prompt 1 has none."""
    near, far, true = [0.2, 0.2, 0.4, 0.4], [0.9, 0.9, 0.1, 0.1], [0.4, 0.3, 0.4, 0.2]
    prediction = SetPrediction(
        logits=torch.tensor([[[LOG3, 0.0], [1.0, 2.0]]]),
        boxes=torch.tensor([[[near, far], [near, far]]]),
        presence=torch.tensor([[LOG3, 0.0]]),
        masks=torch.tensor([LOG3, -LOG3]).expand(2, 2, 1, 2),
        semantic=torch.zeros(2, 1, 2),
        semantic_presence=torch.tensor([0.0, LOG3]),
        o2m_logits=torch.zeros(1, 2, 1),
        o2m_boxes=torch.tensor([[[true], [far]]]),
    )
    masks = [torch.tensor([[[True, True]]]), torch.zeros(0, 1, 2, dtype=torch.bool)]
    return prediction, targets_of([torch.tensor([true]), torch.zeros(0, 4)], masks, [True, True])


def test_every_term_by_hand() -> None:
    log = math.log
    soft = 0.75**0.25 * 0.2**0.75
    paired = 10 * (-soft * log(0.75) - (1 - soft) * log(0.25))
    unpaired = 0.5**2 * -log(0.5)
    overlap = 0.04 / 0.20 - (0.24 - 0.20) / 0.24
    focal = 0.25 * (0.25**2 * -log(0.75) + 0.75**2 * -log(0.25)) / 2
    wanted = {
        "classification": 20 * (paired + unpaired) / 200 / 2,  # both prompts count, the absent one with zero
        "presence": 20 * 0.5 * (-log(0.75) - log(0.5)) / 2,
        "l1": 5 * (0.2 + 0.1 + 0.0 + 0.2),
        "giou": 2 * (1 - overlap),
        "mask_focal": 200 * focal,
        "mask_dice": 10 * (1 - (2 * 1 + 1) / (1 + 2 + 1)),
        "semantic_focal": 20 * 0.6 * 0.5**2 * log(2),
        "semantic_dice": 30 * (1 - (2 * 1 + 1) / (1 + 2 + 1)),
        "semantic_presence": (-log(0.5) - log(0.25)) / 2,
        "o2m_classification": 2 * 20 * 10 * log(2) / 200 / 2,  # at p = 1/2 the cross-entropy is log 2 for any target
        "o2m_l1": 0.0,
        "o2m_giou": 0.0,
    }
    prediction, targets = hand_case()
    assert losses(prediction, targets) == pytest.approx(wanted, abs=1e-5)
    assert counts(targets).tolist() == [2, 2, 1, 1]
    scaled = losses(prediction, targets, MEDICAL_SAM3_MASKS)
    assert scaled == pytest.approx({name: value * math.sqrt(2) for name, value in wanted.items()}, abs=1e-5)


def test_a_pair_that_does_not_overlap_has_the_smallest_target() -> None:
    near, far = torch.tensor([0.2, 0.2, 0.2, 0.2]), torch.tensor([0.8, 0.8, 0.2, 0.2])
    prediction = SetPrediction(torch.tensor([[[LOG3]]]), near.expand(1, 1, 1, 4), torch.zeros(1, 1))
    paired = 10 * (-0.01 * math.log(0.75) - 0.99 * math.log(0.25))
    assert losses(prediction, targets_of([far[None]], [None], [True]))["classification"] == pytest.approx(
        20 * paired / 200
    )


def test_layers_add_up_and_masks_count_once() -> None:
    prediction, targets = hand_case()
    twice = replace(
        prediction,
        **{n: torch.cat([v, v]) for n, v in outputs(prediction).items() if n in {"logits", "boxes", "presence"}},
        o2m_logits=None,
        o2m_boxes=None,
    )
    once, both = losses(prediction, targets), losses(twice, targets)
    for name in ("classification", "presence", "l1", "giou"):
        assert both[name] == pytest.approx(2 * once[name])
    for name in ("mask_focal", "mask_dice", "semantic_focal", "semantic_dice"):
        assert both[name] == pytest.approx(once[name])


def test_twin_queries_of_early_layers_are_paired_one_to_one() -> None:
    true = torch.tensor([0.4, 0.3, 0.4, 0.2])
    twins = torch.tensor([2.0, 1.0, 0.0])  # all three on the object
    prediction = SetPrediction(
        torch.zeros(2, 1, 1), true.expand(2, 1, 1, 4), torch.zeros(2, 1),
        o2m_logits=twins.expand(2, 1, 3), o2m_boxes=true.expand(2, 1, 3, 4),
    )  # fmt: skip
    targets = targets_of([true[None]], [None], [True])

    def row(paired: int) -> float:
        p = twins.sigmoid().tolist()
        error = 0.0
        for k, value in enumerate(p):
            soft = value**0.25 if k < paired else 0.0
            weight = 10 if k < paired else value**2
            error -= weight * (soft * math.log(value) + (1 - soft) * math.log(1 - value))
        return 2 * 20 * error / 200

    assert losses(prediction, targets, replace(SAM3, scale_by_prompts=False))["o2m_classification"] == pytest.approx(
        row(1) + row(3), rel=1e-5
    )
    everywhere = replace(SAM3, scale_by_prompts=False, one_to_many_at_every_layer=True)
    assert losses(prediction, targets, everywhere)["o2m_classification"] == pytest.approx(2 * row(3), rel=1e-5)


def test_the_best_of_two_objects_is_the_target_of_their_common_twin() -> None:
    true = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4]])
    prediction = SetPrediction(
        torch.zeros(1, 1, 1), true[:1].expand(1, 1, 1, 4),
        o2m_logits=torch.zeros(1, 1, 1), o2m_boxes=true[:1].expand(1, 1, 1, 4),
    )  # fmt: skip
    leaf = torch.zeros(1, 1, 1, requires_grad=True)
    terms = [
        set_prediction_loss(replace(prediction, o2m_logits=leaf), t, SAM3, torch.ones(4))["o2m_classification"]
        for t in (targets_of([true], [None], [True]), targets_of([true.flip(0)], [None], [True]))
    ]
    gradients = [torch.autograd.grad(term, leaf)[0].item() for term in terms]
    assert gradients == pytest.approx([2 * 20 * 10 / 200 * (0.5 - 0.5**0.25)] * 2)


def test_without_presence_absent_prompts_teach_classification() -> None:
    prediction, targets = hand_case()
    p = torch.tensor([1.0, 2.0]).sigmoid()
    extra = 20 * (p**2 * -(1 - p).log()).sum().item() / 200 / 2
    with_presence = losses(prediction, targets)["classification"]
    without = losses(replace(prediction, presence=None), targets)
    assert without["classification"] == pytest.approx(with_presence + extra, rel=1e-5)
    assert "presence" not in without


def test_more_queries_than_the_least_are_averaged_over_their_own_number() -> None:
    prediction, targets = hand_case()
    config = replace(EVERYTHING, classification=Classification(least_queries=2))
    assert losses(prediction, targets, config)["classification"] == pytest.approx(
        100 * losses(prediction, targets)["classification"], rel=1e-5
    )


# --- what is known of a prompt --------------------------------------------------------------------------------------


def test_unknown_objects_count_for_presence_and_semantic_only() -> None:
    prediction, targets = random_case(3, known=[False] * 6)
    terms = losses(prediction, targets)
    silent = {name for name, value in terms.items() if value == 0}
    assert silent == {n for n in terms if not n.startswith(("presence", "semantic"))}
    everything = losses(prediction, replace(targets, known=torch.ones(6, dtype=torch.bool)))
    for name in ("presence", "semantic_focal", "semantic_dice", "semantic_presence"):
        assert terms[name] == pytest.approx(everything[name])
    assert counts(targets).tolist() == [6, 0, 0, 4]


def test_unknown_prompts_do_not_dilute_the_known() -> None:
    prediction, targets = random_case(9, sizes=(2, 3, 1), known=[True, False, True])
    mixed, alone = losses(prediction, targets), losses(*cut(prediction, targets, [0, 2]))
    for name in ("classification", "l1", "giou", "mask_focal", "mask_dice", "o2m_classification"):
        assert mixed[name] == pytest.approx(alone[name], rel=1e-5)


def test_pieces_of_an_unknown_prompt_do_not_matter() -> None:
    prediction, targets = random_case(4, sizes=(3, 2), known=[False, True])
    union = targets.masks[0].any(0, keepdim=True)  # type: ignore[union-attr]
    merged = ObjectTargets([boxes_of_masks(union), targets.boxes[1]], [union, targets.masks[1]], targets.known)
    assert losses(prediction, merged) == pytest.approx(losses(prediction, targets))


def test_prompts_with_boxes_only_have_no_mask_terms() -> None:
    prediction, targets = random_case(5, sizes=(2, 1))
    boxes_only = replace(targets, masks=[None, targets.masks[1]])
    assert counts(boxes_only).tolist() == [2, 2, 3, 1]
    terms, second = losses(prediction, boxes_only), losses(*cut(prediction, targets, [1]))
    assert terms["mask_focal"] == pytest.approx(second["mask_focal"] / 3, rel=1e-5)
    assert terms["semantic_dice"] == pytest.approx(second["semantic_dice"], rel=1e-5)
    assert terms["l1"] == pytest.approx(losses(prediction, targets)["l1"])


# --- sums, symmetries, gradients ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 6), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.booleans(),
)
def test_parts_add_up_to_the_whole(
    seed: int, sizes: list[int], known: list[bool], part_of: list[int], scale: bool
) -> None:
    config = replace(EVERYTHING, scale_by_prompts=scale)
    prediction, targets = random_case(seed, sizes, known=known)
    leaves = list(outputs(prediction).values())
    parts = [[i for i in range(6) if part_of[i] == part] for part in range(3)]
    pieces = [cut(prediction, targets, chosen) for chosen in parts]  # a part may be empty
    totals = torch.stack([counts(t) for _, t in pieces]).sum(0)
    assert torch.equal(totals, counts(targets))
    whole = set_prediction_loss(prediction, targets, config, totals)
    split = [set_prediction_loss(p, t, config, totals) for p, t in pieces]
    assert all(set(terms) == set(whole) for terms in split)
    for name, value in whole.items():
        torch.testing.assert_close(sum(terms[name] for terms in split), value, rtol=1e-5, atol=1e-4)
    wanted = torch.autograd.grad(total(whole), leaves)
    got = torch.autograd.grad(sum(total(terms) for terms in split), leaves)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.permutations(range(5)), st.permutations(range(6)), st.permutations(range(4)))
def test_order_of_queries_prompts_and_objects_does_not_matter(
    seed: int, queries: list[int], prompts: list[int], objects: list[int]
) -> None:
    prediction, targets = random_case(seed, sizes=(4, 0, 4, 4, 1, 0))
    wanted = losses(prediction, targets)
    masks = prediction.masks
    assert masks is not None
    shuffled = replace(
        prediction, logits=prediction.logits[:, :, queries], boxes=prediction.boxes[:, :, queries],
        masks=masks[:, queries],
    )  # fmt: skip
    orders = [[i for i in objects if i < len(boxes)] for boxes in targets.boxes]
    turned = ObjectTargets(
        [boxes[order] for boxes, order in zip(targets.boxes, orders, strict=True)],
        [mask[order] for mask, order in zip(targets.masks, orders, strict=True)],  # type: ignore[index]
        targets.known,
    )
    assert losses(*cut(shuffled, turned, prompts)) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("points", [None, 12])
@pytest.mark.parametrize("kind", ["absent", "unknown", "boxes only", "full", "more objects than queries", "no area"])
def test_gradients_are_finite_and_reach_every_output(kind: str, points: int | None) -> None:
    sizes = {"absent": (0, 0), "more objects than queries": (9, 1)}.get(kind, (2, 0))
    prediction, targets = random_case(6, sizes, known=[False, False] if kind == "unknown" else None)
    if kind == "boxes only":
        targets = replace(targets, masks=[None, None])
    if kind == "no area":
        targets = replace(targets, boxes=[boxes * torch.tensor([1.0, 1.0, 0.0, 0.0]) for boxes in targets.boxes])
        zero = (prediction.boxes.detach() * torch.tensor([1.0, 1.0, 0.0, 0.0])).requires_grad_()
        prediction = replace(prediction, boxes=zero)
    config = replace(EVERYTHING, masks=Masks(points=points))
    terms = set_prediction_loss(prediction, targets, config, counts(targets))
    assert all(torch.isfinite(term) for term in terms.values())
    leaves = list(outputs(prediction).values())
    gradients = torch.autograd.grad(total(terms), leaves)  # raises if one is not used
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_half_precision_predictions_give_float32_terms() -> None:
    prediction, targets = random_case(7)
    half = SetPrediction(**{name: value.bfloat16() for name, value in outputs(prediction).items()})
    terms = set_prediction_loss(half, targets, EVERYTHING, counts(targets))
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert total(terms).item() == pytest.approx(sum(losses(prediction, targets).values()), rel=0.05)


def test_sampled_points_of_flat_masks_give_the_dense_loss() -> None:
    prediction, targets = hand_case()
    flat = replace(prediction, masks=torch.full((2, 2, 1, 2), LOG3), o2m_logits=None, o2m_boxes=None)
    dense = losses(flat, targets)
    for points in (2, 50):  # two points are as many as pixels, so that Dice with its added ones is the same too
        sampled = losses(flat, targets, replace(EVERYTHING, masks=Masks(points=points)))
        if points > 2:
            assert sampled.pop("mask_dice") == pytest.approx(10 * (1 - (2 * 37.5 + 1) / (37.5 + 50 + 1)))
            del dense["mask_dice"]
        assert sampled == pytest.approx(dense, rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": torch.zeros(2, 6, 4, 4)},
        {"presence": torch.zeros(2, 5)},
        {"masks": torch.zeros(6, 5, 4)},
        {"semantic": torch.zeros(5, 4, 4)},
        {"o2m_boxes": None},
        {"o2m_masks": torch.zeros(6, 5, 4, 4)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, Tensor | None]) -> None:
    prediction, _ = random_case(0)
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(prediction, **change)


def test_targets_that_do_not_fit_are_refused() -> None:
    prediction, targets = random_case(0)
    with pytest.raises(ValueError, match="masks has shape"):
        targets_of([torch.zeros(1, 4)], [torch.zeros(2, 8, 8, dtype=torch.bool)], [True])
    with pytest.raises(ValueError, match="known flags"):
        targets_of([torch.zeros(1, 4)], [None], [True, True])
    with pytest.raises(ValueError, match="targets of 1 prompts"):
        set_prediction_loss(prediction, cut(prediction, targets, [0])[1], SAM3, counts(targets))


# --- it teaches ----------------------------------------------------------------------------------------------------


def test_free_parameters_learn_two_objects_and_an_absent_concept() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 2:7, 3:9] = True
    masks[1, 9:14, 8:15] = True
    targets = targets_of(
        [boxes_of_masks(masks), torch.zeros(0, 4)], [masks, torch.zeros(0, 16, 16, dtype=torch.bool)], [True, True]
    )
    torch.manual_seed(0)
    free = {
        name: (0.5 * torch.randn(shape)).requires_grad_()
        for name, shape in {
            "logits": (2, 2, 5), "boxes": (2, 2, 5, 4), "presence": (2, 2), "masks": (2, 5, 16, 16),
            "semantic": (2, 16, 16), "o2m_logits": (2, 2, 5), "o2m_boxes": (2, 2, 5, 4),
        }.items()
    }  # fmt: skip

    def prediction() -> SetPrediction:
        return SetPrediction(**{n: v.sigmoid() if n.endswith("boxes") else v for n, v in free.items()})

    optimizer = torch.optim.Adam(free.values(), lr=0.05)
    for _ in range(250):
        optimizer.zero_grad()
        total(set_prediction_loss(prediction(), targets, MEDICAL_SAM3_MASKS, counts(targets))).backward()
        optimizer.step()

    learnt = prediction()
    assert learnt.masks is not None and learnt.semantic is not None and learnt.presence is not None
    score = learnt.logits[-1, 0].sigmoid()
    best = score.topk(2).indices
    assert score[best].min() > 0.9
    assert score.sum() - score[best].sum() < 0.5
    overlap = iou(to_corners(learnt.boxes[-1, 0, best])[:, None], to_corners(targets.boxes[0]))
    order = overlap.argmax(1)
    assert sorted(order.tolist()) == [0, 1]
    assert overlap.amax(1).min() > 0.95
    assert torch.equal(learnt.masks[0, best] > 0, masks[order])
    assert torch.equal(learnt.semantic[0] > 0, masks.any(0))
    assert learnt.presence[:, 0].min() > 2
    assert learnt.presence[:, 1].max() < -2

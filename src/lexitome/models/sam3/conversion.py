"""Values of SAM3's parameters from the official layout to that of transformers and back, by `names.Relation`.

Both directions take and give full names. What transformers leaves out is kept under its official name, so that a
checkpoint that is written back is the one that was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lexitome.errors import some
from lexitome.models.sam3.names import DETECTOR, OURS_DETECTOR, POINTS, Relation, relations

POSITIONS = DETECTOR + "backbone.vision_backbone.trunk.pos_embed"
BLOCKS = DETECTOR + "backbone.vision_backbone.trunk.blocks."
GEOMETRY = DETECTOR + "geometry_encoder."


def to_ours(official: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Views of the given tensors wherever possible, so that memory-mapped ones stay so.

    Returns:
        Tensors under our names; and what has no place there, under official names (of `POSITIONS` the first row).

    Raises:
        ValueError: tensors that no rule knows, that lack others of their group, or whose shape cannot be divided.
    """
    found, strange = relations(official, "official")
    if strange:
        raise ValueError(f"tensors without a place: {some(strange)}")
    ours: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for relation in found:
        values = [official[name] for name in relation.official if name in official]
        if len(values) < len(relation.official):
            raise ValueError(f"lacks {some(set(relation.official) - official.keys())}")
        if relation.how == "left out":
            kept[relation.official[0]] = values[0]
        elif relation.how == "table":
            kept[relation.official[0]] = values[0][:, :1]
        ours |= zip(relation.ours, _forward(relation, values), strict=True)
    return ours, kept


def _forward(relation: Relation, values: list[Tensor]) -> list[Tensor]:
    value = values[0]
    match relation.how:
        case "same":
            return [value]
        case "split":
            if value.shape[0] % 3:
                raise ValueError(f"{relation.official[0]} of shape {tuple(value.shape)} cannot be split in three")
            return list(value.chunk(3))
        case "table":
            if value.dim() != 3 or value.shape[1] < 2:
                raise ValueError(f"{relation.official[0]} of shape {tuple(value.shape)} is no table of positions")
            return [value[:, 1:]]
        case "transposed":
            return [value.t().contiguous()]
        case "stacked":
            return [torch.cat(values)]
        case "twice":
            return [value, value.clone()]
        case "left out":
            return []


def to_official(ours: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_ours`; without the first row of `POSITIONS` in `kept` that row is 0.

    Raises:
        ValueError: as of `to_ours`.
    """
    found, strange = relations(ours, "ours")
    if strange:
        raise ValueError(f"tensors without a place: {some(strange)}")
    official = {name: value for name, value in kept.items() if name != POSITIONS}
    for relation in found:
        values = [ours[name] for name in relation.ours if name in ours]
        if len(values) < len(relation.ours):
            raise ValueError(f"lacks {some(set(relation.ours) - ours.keys())}")
        official |= zip(relation.official, _backward(relation, values, kept), strict=True)
    return official


def _backward(relation: Relation, values: list[Tensor], kept: Mapping[str, Tensor]) -> Iterable[Tensor]:
    value = values[0]
    match relation.how:
        case "split":
            return [torch.cat(values)]
        case "table":
            first = kept.get(relation.official[0])
            return [torch.cat([torch.zeros_like(value[:, :1]) if first is None else first.to(value.dtype), value], 1)]
        case "transposed":
            return [value.t().contiguous()]
        case "stacked":
            return value.split(1)
        case _:
            return [value]


def left_out(model: nn.Module) -> dict[str, Tensor]:
    """What the official layout has and transformers does not, made anew: rotations of the attention are computed, and
    zeros stand for what encodes points, which SAM3 does not use.

    Args:
        model: transformers' `Sam3Model`.
    """
    made = {}
    for i, layer in enumerate(model.vision_encoder.backbone.layers):  # type: ignore[union-attr, arg-type]
        # (n, 2) places times (d / 4,) frequencies: the angles along x, then along y
        angles = (layer.position_ids[..., None].float() * layer.rotary_emb.inv_freq.float()).flatten(1)
        made[f"{BLOCKS}{i}.attn.freqs_cis"] = torch.polar(torch.ones_like(angles), angles)
    like = model.get_parameter("geometry_encoder.boxes_direct_project.bias")
    width, pooled = like.shape[0], like.new_zeros
    for kind, columns in zip(POINTS, (2, width, width), strict=True):
        made[f"{GEOMETRY}points_{kind}_project.weight"] = pooled(width, columns).detach()
        made[f"{GEOMETRY}points_{kind}_project.bias"] = pooled(width).detach()
    return made


def in_full(detector: Mapping[str, Tensor], tracker: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names in full: of a `Sam3Model` below `OURS_DETECTOR`, of a tracker as they are."""
    return {**{OURS_DETECTOR + name: value for name, value in detector.items()}, **tracker}

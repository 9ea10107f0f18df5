"""Values of DINOv3's parameters from any layout to ours and back, by `names.table`. Needs torch.

Keys have no bias. The official layout stores one all the same, with a mask that is 0 for keys (`bias_mask`); it is
left out. timm has one for queries and one for values, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lexitome.errors import some
from lexitome.models.dinov3 import names as naming
from lexitome.models.dinov3.names import BIAS_MASK, MASK_TOKEN, PERIODS, REGISTERS, Found, Layout

KEY_BIAS = "k_proj.bias"
PERIOD = 100.0
"""The longest wave of positions; the picture spans 2, the shortest is 1."""


@dataclass(frozen=True, eq=False)
class Converted:
    """
    Args:
        tensors: under our names.
        dropped: names that have no place in ours, as they are in the checkpoint.
        made: names of ours that the layout has no place for, here zeros: timm's has no mask token.
        head_dim: channels of an attention head, where the layout tells it.
    """

    tensors: dict[str, Tensor]
    found: Found
    dropped: tuple[str, ...]
    made: tuple[str, ...]
    head_dim: int | None


def to_ours(stored: Mapping[str, Tensor]) -> Converted:
    """Views of the given tensors wherever possible, so that memory-mapped ones stay so.

    Raises:
        ValueError: they are not DINOv3's; or of a DINOv3 that would compute something else here.
    """
    full = {naming.unwrapped(name): value for name, value in stored.items()}
    if len(full) < len(stored):
        raise ValueError("holds some tensors twice, under names that differ by their wrapping only")
    found = naming.recognise(full)
    inside = {name.removeprefix(found.prefix): v for name, v in full.items() if name.startswith(found.prefix)}
    places = found.table
    strange = [name for name in inside if name not in places and not naming.may_be_left(name)]
    if strange:
        raise ValueError(f"does not fit DINOv3: {len(strange)} tensors have no place: {some(strange)}")
    ours: dict[str, Tensor] = {}
    for name, parts in places.items():
        if name in inside:
            ours |= zip(parts, _divided(name, inside[name], len(parts)), strict=True)
    masks = {name: value for name, value in inside.items() if name.endswith(BIAS_MASK)}
    _check_masks(masks)
    _leave_out_keys(ours, found.layout, masked=bool(masks))
    made = _complete(ours, found.layout)
    placed = {found.prefix + name for name in places}
    periods = inside.get(PERIODS)
    head_dim = None if periods is None else _head_dim(periods)
    return Converted(ours, found, tuple(name for name in full if name not in placed), made, head_dim)


def _divided(name: str, value: Tensor, parts: int) -> list[Tensor]:
    if parts == 1:
        return [value]
    if value.dim() == 0 or value.shape[0] % parts:
        raise ValueError(f"does not fit DINOv3: {name} of shape {tuple(value.shape)} cannot be split in {parts}")
    return list(value.chunk(parts))


def _check_masks(masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        queries, keys, values = _divided(name, mask, 3)
        if not (bool((queries == 1).all()) and bool((keys == 0).all()) and bool((values == 1).all())):
            raise ValueError(f"does not fit DINOv3: {name} is not 1 for queries and values and 0 for keys")


def _leave_out_keys(ours: dict[str, Tensor], layout: Layout, *, masked: bool) -> None:
    """Biases of keys that the official code multiplies by 0, or that are 0; others are used, and stay."""
    keys = [name for name in ours if name.endswith(KEY_BIAS)]
    if layout == "original" and (masked or not any(bool(ours[name].any()) for name in keys)):
        for name in keys:
            del ours[name]


def _complete(ours: dict[str, Tensor], layout: Layout) -> tuple[str, ...]:
    """Shape what ours shapes differently, and make what the layout has no place for. Returns the names of the latter
    but for registers where there are none, which is an empty tensor in ours."""
    empty = ours["embeddings.cls_token"].new_zeros
    dim = ours["embeddings.cls_token"].shape[-1]
    ours.setdefault(REGISTERS, empty(1, 0, dim))
    if layout == "timm":
        ours[MASK_TOKEN] = empty(1, 1, dim)
        return (MASK_TOKEN,)
    if MASK_TOKEN in ours:
        ours[MASK_TOKEN] = ours[MASK_TOKEN].reshape(1, 1, -1)
    return ()


def _head_dim(periods: Tensor) -> int:
    """One period for every four channels of a head: two axes, sine and cosine. The official class keeps them in
    bfloat16 unless told otherwise."""
    count = periods.numel()
    if not torch.allclose(periods.float().flatten(), _periods(4 * count), rtol=0.01):
        raise ValueError(f"does not fit DINOv3: positions have other periods than those of 1 to {PERIOD:g}")
    return 4 * count


def _periods(head_dim: int) -> Tensor:
    return PERIOD ** (torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4))


def to_layout(ours: Mapping[str, Tensor], layout: Layout, head_dim: int) -> dict[str, Tensor]:
    """The inverse of `to_ours`, without its prefix; what is computed is written where the layout stores it.

    Raises:
        ValueError: a bias of keys has no place in timm's layout.
    """
    found = naming.recognise(ours)
    if layout == "timm" and any(name.endswith(KEY_BIAS) for name in ours):
        raise ValueError("timm has no biases of keys")
    made: dict[str, Tensor] = {}
    for name, parts in naming.table(layout, found.depth, found.gated).items():
        values = {part: ours[part] for part in parts if part in ours}
        if not values or (
            parts == (REGISTERS,) and not layout.startswith("transformers") and not ours[REGISTERS].numel()
        ):
            continue
        if len(parts) == 3 and len(values) == 2:  # no bias of keys
            zero = torch.zeros_like(values[parts[0]])
            values = {part: values.get(part, zero) for part in parts}
            made[f"{name}_mask"] = torch.cat([zero + 1, zero, zero + 1])
        made[name] = torch.cat(list(values.values())) if len(parts) > 1 else values[parts[0]]
    if layout == "original":
        made["mask_token"] = made["mask_token"].reshape(1, -1)
        made[PERIODS] = _periods(head_dim)
    return made

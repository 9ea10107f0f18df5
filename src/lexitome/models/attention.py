"""Attention on a CPU where torch's own kernel is slow: `benchmarks/attention.py` measures it. Needs torch.

torch's fused kernel for CPUs without AMX gains nothing from bfloat16, and going backward in it pays a price for every
head of every picture. Both modes replace `scaled_dot_product_attention` inside a `with`, whoever calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SHORT = 160
"""Keys up to which training is quicker in float32."""
LONG = 220
"""Keys from which `by_head` is quicker."""
CACHED = 3 << 19
"""Bytes of attention weights at a time, so that they stay in the second-level cache of a core or two."""


def by_head(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Softmax attention of (B, heads, T, size) each, head by head through three plain kernels on rows that stay in the
    processor's cache; scaled by the root of `size` where `scale` does not say otherwise. In memory the result is
    (B, T, heads, size). No gradient."""
    batch, heads, tokens, size = q.shape
    rows = max(32, CACHED // (k.shape[2] * k.element_size()))
    seen = q.new_empty(batch, tokens, heads, size)
    q = q * (size**-0.5 if scale is None else scale)
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h].t(), v[b, h]
            for first in range(0, tokens, rows):
                weights = torch.mm(q[b, h, first : first + rows], keys).softmax(-1)
                seen[b, first : first + rows, h] = torch.mm(weights, values)
    return seen.transpose(1, 2)


class LongAttentionByHead(TorchFunctionMode):
    """For frozen networks: attention to many keys in bfloat16 as `by_head`. Masks and gradients are left to torch."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and _is_plain(args, given):
            return by_head(*args, scale=given.get("scale"))
        return func(*args, **given)


class ShortAttentionInFloat32(TorchFunctionMode):
    """For training under autocast: attention to few keys is computed in float32 and its result rounded."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        attends = func is F.scaled_dot_product_attention and torch.is_autocast_enabled("cpu")
        if not attends or args[1].shape[-2] > SHORT:
            return func(*args, **given)
        with torch.autocast("cpu", enabled=False):
            seen: Tensor = func(*map(_exact, args), **{name: _exact(value) for name, value in given.items()})
        return seen.to(torch.bfloat16)


def _is_plain(given: tuple[Tensor, ...], options: dict[str, Any]) -> bool:
    """Whether `by_head` computes it, and quicker."""
    query, key, value = given
    changed = [option for name, option in options.items() if name != "scale" and option is not None]
    asked = any(isinstance(option, Tensor) or option for option in changed)  # a mask, dropout, causal order, groups
    alike = query.shape[:2] == key.shape[:2] == value.shape[:2] and query.ndim == 4
    return not asked and alike and key.shape[2] >= LONG and all(
        each.dtype == torch.bfloat16 and each.device.type == "cpu" and not each.requires_grad for each in given
    )  # fmt: skip


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

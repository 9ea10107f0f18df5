"""Products with 8-bit numbers on a CPU, for inference (needs torch with oneDNN).

Weights are rounded to 255 levels for each output channel, inputs for each token as they come (Dettmers et al. 2022,
LLM.int8, section 2.1, "vector-wise"): a token with one large number does not take the precision of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 127
"""On either side of 0."""
ROWS = 256
"""Tokens at a time, so that what is done to them one after the other stays in the processor's cache."""


def is_supported() -> bool:
    """Whether the processor multiplies 8-bit numbers without overflow (VNNI) and torch knows how."""
    probe = getattr(torch.cpu, "_is_vnni_supported", None)
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and probe is not None and bool(probe())


@dataclass(frozen=True, eq=False)
class Linear8:
    """A linear layer whose weights are kept as 8-bit numbers: a quarter of float32's memory."""

    packed: Tensor  # (out, in) int8, in oneDNN's order
    scale: Tensor  # (out,) float32, of a level
    bias: Tensor  # (out,) float32
    zero: Tensor  # (out,) long: which level of the weights is 0, as oneDNN wants to be told

    @staticmethod
    def of(weight: Tensor, bias: Tensor) -> Linear8:
        """`weight` (out, in) and `bias` (out,) of any precision; both are copied."""
        exact = weight.float()
        scale = exact.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LEVELS
        levels = (exact / scale[:, None]).round_().to(torch.int8)
        return Linear8(
            torch.ops.onednn.qlinear_prepack(levels, None), scale, bias.float().clone(),
            torch.zeros(len(scale), dtype=torch.long),
        )  # fmt: skip

    def __call__(self, x: Tensor, *, then: Literal["none", "gelu"] = "none", add: Tensor | None = None) -> Tensor:
        """x (..., in) to (..., out) in the precision of x; `add` (..., out) is added."""
        rows = x.reshape(-1, x.shape[-1])
        found = x.new_empty(len(rows), len(self.scale)) if add is None else add.reshape(-1, len(self.scale)).clone()
        for first in range(0, len(rows), ROWS):
            part = self._product(rows[first : first + ROWS].float())
            target = found[first : first + ROWS]
            if add is not None:
                target += part
            else:
                target.copy_(F.gelu(part) if then == "gelu" else part)
        return found.view(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        """(rows, in) to (rows, out), both float32."""
        scale = x.abs().amax(1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny) / LEVELS
        levels = (x / scale).add_(LEVELS + 1.5).to(torch.uint8)  # 0 is level 128; what follows the point is cut off
        made = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, LEVELS + 1, self.packed, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return made.mul_(scale).add_(self.bias)

"""An optimiser with almost no memory of its own, for weights in bfloat16: what lets the full SAM3 be tuned on a CPU.

AdamW keeps eight bytes for each weight. Here the second moment of a matrix is the product of a column and a row
(Shazeer & Stern 2018, Adafactor, algorithm 4, without its relative step sizes), there is no first moment, and weights
may be bfloat16: their updates are rounded up or down by chance (Gupta et al. 2015, section 3), since rounding to the
nearest would swallow every update below a 512th of the weight, which at the usual rates is nearly all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

TINY = 1e-30
"""Added to squared gradients, as published."""
DECAY = -0.8
"""Exponent: the second moment forgets at the rate ``step ** DECAY``."""


class Factored(torch.optim.Optimizer):
    """
    Args:
        params: parameters or groups of them (`training.optim.param_groups`).
        weight_decay: decoupled, as in AdamW.
        most: largest root mean square of an update, in learning rates.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, weight_decay: float = 0.0, most: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "most": most})
        self._chance = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Gradients are not changed."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        state["step"] = step = state.get("step", 0) + 1
        update = parameter.grad.float()  # type: ignore[union-attr]
        update = update * self._scale(state, update.square().add_(TINY), 1 - step**DECAY)
        update /= max(1.0, float(update.square().mean().sqrt()) / group["most"])
        moved = parameter.float() * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * update
        parameter.copy_(self._rounded(moved) if parameter.dtype == torch.bfloat16 else moved)

    @staticmethod
    def _scale(state: dict[str, Any], squared: Tensor, keep: float) -> Tensor:
        """One over the root of the second moment, after this step's squares; kernels count as matrices (out, rest)."""
        if squared.ndim < 2:
            state["moment"] = mean = squared.lerp(state.get("moment", squared), keep)
            return mean.rsqrt()
        flat = squared.flatten(1)
        for name, axis in (("rows", 1), ("columns", 0)):
            found = flat.mean(axis)
            state[name] = found.lerp(state.get(name, found), keep)
        rows = (state["rows"] / state["rows"].mean()).rsqrt()
        return (rows[:, None] * state["columns"].rsqrt()).view_as(squared)

    def _rounded(self, value: Tensor) -> Tensor:
        """To one of the two nearest bfloat16 values, so that the mean is the value."""
        noise = torch.randint(1 << 16, value.shape, dtype=torch.int32, generator=self._chance)
        bits = value.contiguous().view(torch.int32) + noise
        return (bits & -(1 << 16)).view(torch.float32).bfloat16()

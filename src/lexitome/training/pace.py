"""How long a training step takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lexitome.training.engine import Precision, Task

TIMED_STEPS = 3
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


def quicker(build: Callable[[], nn.Module], task: Task[Any]) -> tuple[Precision, float]:
    """The precision in which a step takes less time here (not every processor has bfloat16), and its seconds."""
    seconds = {precision: time_step(build(), task, precision) for precision in PRECISIONS}
    precision = min(PRECISIONS, key=lambda p: seconds[p])
    return precision, seconds[precision]


def time_step(model: nn.Module, task: Task[Any], precision: Precision) -> float:
    """Seconds of drawing, forward and backward, the mean of a few steps; the model is spoilt by it."""
    spent = []
    for step in range(TIMED_STEPS):
        began = time.perf_counter()
        batch = task.batch(step, range(task.images(step)))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            terms = task.loss(model, batch, task.counts(batch))
        torch.stack(list(terms.values())).sum().backward()
        spent.append(time.perf_counter() - began)
    return sum(spent[1:]) / (len(spent) - 1)  # the first one warms up

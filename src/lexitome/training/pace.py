"""How long a training step takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lexitome.training.engine import Precision, RunConfig, Task, moved, shares
from lexitome.training.optim import checkpoint_activations
from lexitome.training.parallel import assemble, forward_in_bf16

TIMED_STEPS = 3
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")


def quicker(
    build: Callable[[], nn.Module], task: Task[Any], run: RunConfig, tried: Sequence[Precision] = PRECISIONS
) -> tuple[Precision, float]:
    """The precision in which a step takes less time here (not every processor has bfloat16), and its seconds."""
    if run.threads:
        torch.set_num_threads(run.threads)
    seconds = {precision: time_step(build(), task, precision, run) for precision in tried}
    precision = min(tried, key=lambda p: seconds[p])
    return precision, seconds[precision]


def time_step(model: nn.Module, task: Task[Any], precision: Precision, run: RunConfig) -> float:
    """Seconds of drawing, forward and backward, the mean of a few steps; the model is spoilt by it. On the device that
    it will be trained on, in the parts of the run, of the share that this process has of a step."""
    team, spent = assemble(), []
    model.to(team.device).train()
    checkpoint_activations(model, run.recompute)
    with forward_in_bf16(model, team.device, precision == "bf16"):
        for step in range(TIMED_STEPS):
            began = time.perf_counter()
            for part in shares(task.images(step), team.size, team.rank, run.accumulate):
                batch = moved(task.batch(step, part or range(1)), team.device)
                terms = task.loss(model, batch, task.counts(batch).to(team.device))
                loss = torch.stack(list(terms.values())).sum()
                loss.backward()
                loss.item()  # ends when the device has done it
            spent.append(time.perf_counter() - began)
    return sum(spent[1:]) / (len(spent) - 1)  # the first one warms up

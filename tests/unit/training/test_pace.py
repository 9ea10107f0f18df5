"""Timing of steps: in the parts, threads and precision of a run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from lexitome.training.engine import RunConfig
from lexitome.training.pace import TIMED_STEPS, quicker, time_step

sys.path.insert(0, str(Path(__file__).parent))
from tiny_training import BrightPixels, Net, Pictures


@dataclass(frozen=True)
class Noted(BrightPixels):
    """What was drawn and how it was computed."""

    drawn: list[tuple[int, range]] = field(default_factory=list)
    kinds: list[torch.dtype] = field(default_factory=list)

    def batch(self, step: int, indices: range) -> Pictures:
        self.drawn.append((step, indices))
        return super().batch(step, indices)

    def loss(self, model: torch.nn.Module, batch: Pictures, totals: torch.Tensor) -> dict[str, torch.Tensor]:
        inner = model.stem.register_forward_hook(lambda module, given, found: self.kinds.append(found.dtype))
        terms = super().loss(model, batch, totals)
        inner.remove()
        return terms


def test_steps_are_timed_as_they_will_be_run() -> None:
    task, net = Noted(), Net()
    assert time_step(net, task, "bf16", RunConfig(1, accumulate=2, threads=1)) > 0
    assert len(task.drawn) == 2 * TIMED_STEPS and task.drawn[:2] == [(0, range(3)), (0, range(3, 6))]
    assert set(task.kinds) == {torch.bfloat16} and net.stem.weight.grad is not None


def test_one_precision_may_be_given_and_the_threads_are_those_of_the_run() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        task = Noted()
        precision, seconds = quicker(Net, task, RunConfig(1, threads=1), ("fp32",))
        assert (precision, set(task.kinds), torch.get_num_threads()) == ("fp32", {torch.float32}, 1) and seconds > 0
        both = Noted()
        assert quicker(Net, both, RunConfig(1))[0] in ("bf16", "fp32")
        assert set(both.kinds) == {torch.bfloat16, torch.float32}
    finally:
        torch.set_num_threads(before)

"""Pretraining small enough for tests: a tiny network on drawn pictures of a few kinds, which it can tell apart.

As a program it trains in another process, alone or under torchrun: one argument, JSON of a list of `Job` fields.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.data.multi_crop import Crops, Masks, Tone
from lexitome.data.trained_on import WORDS, Hashes
from lexitome.data.unlabelled import PICTURES
from lexitome.models.dinov3.heads import Head
from lexitome.models.dinov3.presets import config_of
from lexitome.recipes.pretrain import PretrainRecipe, Stage
from lexitome.recipes.pretrain_run import PretrainJob, begin, network, open_source, run_stages
from lexitome.training.engine import FitResult, RunConfig, fit
from lexitome.training.optim import OptimConfig
from lexitome.training.parallel import leave
from lexitome.training.pretrain import Objective, PretrainTask, Ramp, SelfDistillation

KINDS = 4
SIDE = 64


@dataclass(frozen=True)
class Drawn:
    """Stripes of four directions and widths, each picture with its own phase and noise. A kind is index % `KINDS`."""

    name: str = "stripes"
    licence: str = "CC0"
    pictures: int = 64

    def count(self, *, held_out: bool = False) -> int:
        return self.pictures // 4 if held_out else self.pictures

    def picture(self, index: int, *, held_out: bool = False) -> NDArray[np.float32]:
        rng = np.random.default_rng((index, int(held_out)))
        rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
        kind = index % KINDS
        angle, waves = kind * np.pi / KINDS, (4, 7, 11, 15)[kind]
        wave = np.sin(2 * np.pi * waves * (rows * np.sin(angle) + columns * np.cos(angle)) + rng.uniform(0, 6))
        noisy = 0.5 + 0.35 * wave + rng.normal(0, 0.05, wave.shape)
        return noisy.clip(0, 1).astype(np.float32)[None]

    def hashes(self) -> Hashes:
        return np.zeros((0, WORDS), dtype=np.uint64)


CROPS = Crops((32,), (16,), local_views=2, local_scale=(0.1, 0.4), tone=Tone(blur_sigma=(0.1, 0.5)))
HEAD = Head(64, 32, 128, spread=32**-0.5)


def tiny_stage(steps: int = 3, images: int = 8, gram: float = 0.0) -> Stage:
    crops = replace(CROPS, gram_sides=(64,)) if gram else CROPS
    objective = Objective(gram=Ramp(gram, gram), momentum=Ramp(0.9, 0.99))
    optim = OptimConfig(2e-3, weight_decay=0.04, betas=(0.9, 0.99), floor=0.1)
    return Stage(steps, images, crops, optim, objective, scale_rate=False, patch_rate=1.0, hold=0.5)


def tiny_recipe(stage1: Stage | None = None, **others: Stage) -> PretrainRecipe:
    none = tiny_stage(0)
    stages = {"stage1": stage1 or tiny_stage(), "stage2": none, "stage3": none} | others
    run = RunConfig(steps=1, ema=None, precision="fp32", threads=1, log_every=1, checkpoint_every=2)
    return PretrainRecipe("tiny", **stages, start="random:tiny", dino=HEAD, ibot=HEAD, masks=Masks(), run=run,
                          validated=16)  # fmt: skip


def tiny_task(stage: Stage, **changes: Any) -> PretrainTask:
    task = PretrainTask([Drawn()], PICTURES, stage.crops, Masks(), stage.objective, stage.images, stage.steps,
                        validated=16)  # fmt: skip
    return replace(task, **changes)


@dataclass(frozen=True)
class Job:
    folder: str
    strategy: str | None = None
    resume: bool = False
    steps: int = 3
    images: int = 8
    gram: float = 0.0
    run: dict[str, Any] = field(default_factory=dict)
    rescale: float | None = 2.0
    """Of positions: ranks draw their own, so that two are like one only without it."""


def train(job: Job) -> tuple[FitResult, SelfDistillation]:
    stage = tiny_stage(job.steps, job.images, job.gram)
    recipe = replace(tiny_recipe(stage), rescale=job.rescale)
    net = network(replace(recipe, seed=int(os.environ.get("RANK", "0"))), stage, config_of("tiny"))
    run = replace(recipe.run_of(stage), **job.run)
    result = fit(net, tiny_task(stage), stage.applied, run, Path(job.folder), resume=job.resume, strategy=job.strategy)  # type: ignore[arg-type]
    return result, net


def pretrained(folder: Path, data: Path | None = None) -> Path:
    """A finished run of all three stages, on drawn pictures or on those of a folder, which are kept in
    folder/decoded."""
    first, gram = tiny_stage(2, 4), tiny_stage(2, 4, gram=1.0)
    high = replace(gram.crops, global_sides=(48,), gram_sides=(96,))
    recipe = tiny_recipe(first, stage2=gram, stage3=replace(gram, crops=high, student_from="teacher"))
    job, weights = begin(PretrainJob(recipe, (str(data or "drawn"),)), folder, str)
    job.save(folder)
    pictures = [Drawn()] if data is None else open_source(job, folder / "decoded", str)
    run_stages(job, pictures, folder, str, weights)
    return folder


def as_arguments(*jobs: Job) -> list[str]:
    return [str(Path(__file__)), json.dumps([asdict(job) for job in jobs])]


if __name__ == "__main__":
    for fields in json.loads(sys.argv[1]):
        train(Job(**fields))
    leave(0)

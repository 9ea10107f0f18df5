"""A tiny SAM3, a tiny set, and their training in another process (one argument: JSON of a list of `Job` fields)."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lexitome.data.batches import BatchSource
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.losses.set_prediction import MEDICAL_SAM3_MASKS
from lexitome.models.sam3.network import Sam3Net
from lexitome.models.sam3.presets import build, config_of
from lexitome.models.sam3.tokens import Tokens
from lexitome.training.engine import FitResult, RunConfig, fit
from lexitome.training.optim import OptimConfig
from lexitome.training.parallel import leave
from lexitome.training.sam3 import Sam3Sampling, Sam3Task

SIDE = 64
RUN: dict[str, Any] = {"steps": 3, "precision": "fp32", "clip": 0.1, "ema": None, "log_every": 1, "threads": 1}


@dataclass(frozen=True)
class Job:
    folder: str
    data: str
    strategy: str | None = None
    prompts: str = "mixed"
    images: int = 4
    weights_seed: int = 0
    run: dict[str, Any] = field(default_factory=dict)


def tokens_for(sets: list[CachedDataset]) -> Tokens:
    return Tokens.learn([p for s in sets for t in s.dataset.targets for p in (t.name, *t.synonyms)], 600)


def tiny_net(tokens: Tokens, seed: int = 0) -> Sam3Net:
    """Without dropout, whose draws depend on how a step is divided."""
    config: Any = config_of("tiny", vocabulary=tokens.size)
    for part in (config.geometry_encoder_config, config.detr_encoder_config, config.detr_decoder_config):
        part.dropout = 0.0
    return build(config, seed)


def open_tiny(data: Path) -> list[CachedDataset]:
    return [open_cache(load_dataset(d), data.parent / "cache", side=SIDE) for d in sorted(data.iterdir())]


def task_for(sets: list[CachedDataset], tokens: Tokens, **sampling: Any) -> Sam3Task:
    source = BatchSource(sets, seed=0, queries=2, places=False, lone_slice=1.0)
    chosen = replace(Sam3Sampling(side=SIDE, images=4), **sampling)
    return Sam3Task(source, tokens, chosen, MEDICAL_SAM3_MASKS, validated=2)


def train(job: Job) -> FitResult:
    sets = open_tiny(Path(job.data))
    tokens = tokens_for(sets)
    task = task_for(sets, tokens, prompts=job.prompts, images=job.images)
    net = tiny_net(tokens, job.weights_seed)
    optim = OptimConfig(1e-3, warmup=2)
    return fit(net, task, optim, RunConfig(**RUN | job.run), Path(job.folder), strategy=job.strategy)  # type: ignore[arg-type]


def as_arguments(*jobs: Job) -> list[str]:
    return [str(Path(__file__)), json.dumps([asdict(job) for job in jobs])]


if __name__ == "__main__":
    for fields in json.loads(sys.argv[1]):
        # Ranks after the first begin with other weights, which have to be replaced by those of the first.
        job = Job(**fields | {"weights_seed": int(os.environ.get("RANK", "0"))})
        try:
            print("finished", train(job))
        except InputError as error:
            print(type(error).__name__, error, file=sys.stderr)
            leave(1)
    leave(0)

"""One full fine-tuning step of the full-size SAM3 on a CPU, as `medical-sam3` asks for it: time and peak memory.

    python benchmarks/sam3_step.py [--data DIR] [--preset full] [--queries 4] [--steps 3] [--threads 2]

Random weights in bfloat16, real pictures, every parameter trained: forward with one-to-many twins, the objective of
`recipes.sam3.medical_sam3`, backward with activations computed again, gradients clipped, its rates and layer decay, and
an update by `training.factored`. Peak memory is the resident set of the process. The full size needs some 10 GB.
Results go to benchmarks/results/sam3_step.json. Needs lexitome[train].
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from accelerate.utils import convert_outputs_to_fp32
from provenance import DATA, RESULTS, Entry, origin, rounded, write_json
from torch import Tensor

from lexitome.data.batches import BatchSource
from lexitome.data.cache import open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.models.sam3.network import Outputs, Sam3Net
from lexitome.models.sam3.presets import Preset, build, config_of
from lexitome.models.sam3.tokens import Tokens
from lexitome.recipes.sam3 import medical_sam3
from lexitome.training.factored import Factored
from lexitome.training.optim import param_groups, set_rates
from lexitome.training.progress import peak_bytes
from lexitome.training.sam3 import Sam3Batch, Sam3Sampling, Sam3Task, sam3_loss

PACKAGES = ("torch", "transformers", "numpy")
SET = "kvasir_seg"


@dataclass(frozen=True)
class Options:
    data: Path
    cache: Path
    preset: Preset
    queries: int
    steps: int
    threads: int
    name: str


@dataclass(frozen=True)
class Step:
    """Seconds of the parts of a step, and the resident memory at its worst so far."""

    loss: float
    forward: float
    objective: float
    backward: float
    update: float
    peak_gb: float


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    write_json(RESULTS / "sam3_step.json", rounded(measure(options)))


def measure(options: Options) -> Entry:
    dataset = load_dataset(options.data / options.name)
    cached = open_cache(dataset, options.cache)
    source = BatchSource([cached], seed=0, queries=options.queries, places=False, lone_slice=1.0)
    net = random_net(options.preset)
    tokens = Tokens.learn(source.phrases(), 2048)
    recipe = medical_sam3()
    task = Sam3Task(source, tokens, Sam3Sampling(side=net.side), recipe.wanted)
    weights = peak_bytes() or 0
    optimizer = Factored(param_groups(net, recipe.applied), weight_decay=recipe.optim.weight_decay)
    steps = []
    for number in range(options.steps):
        # The first step of the published schedule has rate 0.
        set_rates(optimizer, number + 1, 1000, recipe.optim)
        batch = task.batch(number, range(1))
        steps.append(timed(net, task, batch, optimizer, recipe.run.clip))
        print(steps[-1], flush=True)
    return {
        **origin(PACKAGES, [dataset], seed=0, threads=options.threads),
        "preset": options.preset, "side": net.side, "queries": options.queries,
        "parameters": sum(p.numel() for p in net.parameters()),
        "peak_gb_with_weights": weights / 1e9,
        "steps": [asdict(step) for step in steps],
    }  # fmt: skip


def random_net(preset: Preset) -> Sam3Net:
    """In bfloat16, made in float32."""
    net = build(config_of(preset), 0).train().bfloat16()
    net.recompute_activations()
    return net


def timed(net: Sam3Net, task: Sam3Task, batch: Sam3Batch, optimizer: Factored, clip: float) -> Step:
    clock = [time.perf_counter()]
    outputs: Outputs = convert_outputs_to_fp32(net)(batch.pictures, batch.prompts, twins=True)
    clock.append(time.perf_counter())
    loss: Tensor = torch.stack(list(sam3_loss(outputs, batch, task.counts(batch), task.objective).values())).sum()
    clock.append(time.perf_counter())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clock.append(time.perf_counter())
    torch.nn.utils.clip_grad_norm_(net.parameters(), clip, foreach=False)  # one tensor at a time: no second copy
    optimizer.step()
    clock.append(time.perf_counter())
    forward, objective, backward, update = (b - a for a, b in pairwise(clock))
    return Step(loss.item(), forward, objective, backward, update, (peak_bytes() or 0) / 1e9)


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=Path("runs/decoded"))
    parser.add_argument("--preset", choices=("full", "small", "tiny"), default="full")
    parser.add_argument("--set", default=SET, dest="name")
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()

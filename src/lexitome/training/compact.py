"""Train the compact model.

    python -m lexitome.training.compact --data DIR --run runs/compact

DIR holds folders in the form of `lexitome.data.folder`. The run is a sequence of stages (side, steps): most steps at
low resolution, the last at the resolution of use. Everything is seeded, a checkpoint is written every 200 steps, and
the same command continues an interrupted run with the batches it would have seen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.batches import Batch, BatchSource
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.folder import load_dataset
from lexitome.models.compact import CompactConfig, CompactNet, Decoded
from lexitome.models.efficientnet_lite import load_imagenet

CACHE_SIDE = 448


@dataclass(frozen=True)
class TrainConfig:
    stages: tuple[tuple[int, int], ...] = ((256, 3600), (320, 1400))  # (side, steps)
    images: int = 8
    queries: int = 3
    lr: float = 8e-4
    lr_backbone: float = 2e-4
    weight_decay: float = 0.02
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.998
    absent_weight: float = 0.5
    presence_weight: float = 0.3
    seed: int = 0
    checkpoint_every: int = 200

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.stages)

    def side(self, step: int) -> int:
        """Picture side of a step."""
        for side, steps in self.stages:
            if step < steps:
                return side
            step -= steps
        return self.stages[-1][0]


def loss_terms(decoded: Decoded, batch: Batch, config: TrainConfig) -> dict[str, Tensor]:
    """Binary cross-entropy and soft Dice of the masks where the target is present, cross-entropy alone where it is
    not (Dice of an empty mask has no gradient worth following), and cross-entropy of presence."""
    logits, target = decoded.logits.float(), batch.masks
    present = batch.present
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum((1, 2))
    dice = 1 - (overlap + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
    count = present.sum().clamp_min(1)
    return {
        "bce": (bce * (present + config.absent_weight * (1 - present))).mean(),
        "dice": (dice * present).sum() / count,
        "presence": config.presence_weight
        * F.binary_cross_entropy_with_logits(decoded.presence.float(), batch.present),
    }


def build_optimizer(model: CompactNet, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; the ImageNet backbone learns slower, biases and norms do not decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = config.lr_backbone if name.startswith("encoder.backbone.") else config.lr
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    )


def lr_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine to 2 %."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class Run:
    """Everything that a checkpoint holds."""

    model: CompactNet
    average: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0

    def save(self, path: Path, config: TrainConfig) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        state = {
            "step": self.step, "model": self.model.state_dict(), "average": self.average,
            "optimizer": self.optimizer.state_dict(), "model_config": asdict(self.model.config),
            "train_config": asdict(config),
        }  # fmt: skip
        torch.save(state, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def start(config: TrainConfig, model_config: CompactConfig, phrases: Tensor) -> Run:
    """A run at step 0. `phrases` (N, T): text vectors of the names and synonyms it will be trained with."""
    torch.manual_seed(config.seed)
    backbone = load_imagenet(model_config.backbone, frozen_blocks=model_config.frozen_blocks)
    model = CompactNet(model_config, backbone).to(memory_format=torch.channels_last)
    model.decoder.text.fit(phrases)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    return Run(model, average, build_optimizer(model, config))


def prefetch(source: BatchSource, config: TrainConfig, first: int) -> Iterator[Batch]:
    """Batches `first`, `first` + 1, ... of the run, the next one drawn while the current one trains."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(source.batch, first, config.images, config.side(first))
        for step in range(first + 1, config.steps + 1):
            batch = upcoming.result()
            if step < config.steps:
                upcoming = pool.submit(source.batch, step, config.images, config.side(step))
            yield batch


def train(run: Run, source: BatchSource, config: TrainConfig, folder: Path) -> Iterator[dict[str, float]]:
    """Continue `run` to its end; yields the means of each 20 steps and leaves checkpoints in `folder`.

    Raises:
        FloatingPointError: the loss is not finite; the last checkpoint is intact.
    """
    model, sums, began = run.model, {}, time.monotonic()  # type: ignore[var-annotated]
    batches = prefetch(source, config, run.step)
    while run.step < config.steps:
        for group in run.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor(run.step, config)
        batch = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            decoded = model(batch.pictures, batch.text, batch.spatial)
        terms = loss_terms(decoded, batch, config)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {run.step}; continue from {folder / 'last.pt'}")
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        run.optimizer.step()
        decay = min(config.ema, (1 + run.step) / (10 + run.step))
        for name, value in model.state_dict().items():
            run.average[name].lerp_(value, 1 - decay)
        run.step += 1
        for key, value in terms.items():
            sums[key] = sums.get(key, 0.0) + value.item() / 20
        if run.step % 20 == 0:
            yield {"step": run.step, **sums, "seconds": (time.monotonic() - began) / 20}
            sums, began = {}, time.monotonic()
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save(folder / "last.pt", config)


def open_sets(data: Path, cache: Path) -> list[CachedDataset]:
    return [
        open_cache(load_dataset(d), cache, CACHE_SIDE) for d in sorted(data.iterdir()) if (d / "dataset.json").exists()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of training sets")
    parser.add_argument("--run", type=Path, default=Path("runs/compact"), help="checkpoints and log")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="decoded pictures (about 8 GB)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stages", default="", help="SIDE:STEPS,SIDE:STEPS instead of the default")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    stages = tuple((int(a), int(b)) for a, b in (s.split(":") for s in args.stages.split(",") if s))
    config = TrainConfig(stages=stages) if stages else TrainConfig()
    args.run.mkdir(parents=True, exist_ok=True)
    source = BatchSource(open_sets(args.data, args.cache), seed=config.seed, queries=config.queries)
    run = start(config, CompactConfig(), source.phrase_vectors())
    if (args.run / "last.pt").exists():
        run.restore(args.run / "last.pt")
        print(f"continuing at step {run.step} of {config.steps}")
    with (args.run / "log.jsonl").open("a") as log:
        for row in train(run, source, config, args.run):
            log.write(json.dumps(row) + "\n")
            log.flush()
            left = (config.steps - row["step"]) * row["seconds"] / 60
            terms = " ".join(f"{k} {v:.3f}" for k, v in row.items() if k not in ("step", "seconds"))
            print(
                f"step {row['step']}/{config.steps} {terms} {row['seconds']:.2f} s/step, {left:.0f} min left",
                flush=True,
            )


if __name__ == "__main__":
    main()

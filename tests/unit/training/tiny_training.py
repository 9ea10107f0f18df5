"""A segmentation task small enough to train in tests: find the bright pixels, and say whether there are any.

As a program it trains in another process, alone or under torchrun: one argument, JSON of a list of `Job` fields.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.errors import InputError
from lexitome.training.engine import FitResult, RunConfig, fit
from lexitome.training.optim import OptimConfig
from lexitome.training.parallel import leave

SIDE = 8


class Net(nn.Module):
    """Residual blocks over pixels in a ModuleList, and a second head that only some batches use."""

    def __init__(self, width: int = 12, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.BatchNorm2d(width) if norm else nn.Identity(),
                nn.GELU(),
                nn.Dropout(dropout),
            )
            for _ in range(2)
        )
        self.mask = nn.Conv2d(width, 1, 1)
        self.size = nn.Linear(width, 1)

    def forward(self, pictures: Tensor, with_size: bool) -> tuple[Tensor, Tensor | None]:
        x = self.stem(pictures)
        for block in self.blocks:
            x = x + block(x)
        return self.mask(x)[:, 0], self.size(x.mean((2, 3)))[:, 0] if with_size else None


class Pictures(NamedTuple):
    pictures: Tensor  # (N, 3, S, S)
    masks: Tensor  # (N, S, S)


@dataclass(frozen=True)
class BrightPixels:
    """The number of pictures changes from step to step; a third of them show nothing, so that parts without any
    target occur and with them parts without the term "size"."""

    pictures: int = 6
    seed: int = 0
    broken_step: int | None = None

    def images(self, step: int) -> int:
        return max(1, self.pictures - step % 3)

    def batch(self, step: int, indices: range) -> Pictures:
        drawn = [self._picture(step, index) for index in indices]
        pictures, masks = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
        return Pictures(pictures * float("nan") if step == self.broken_step else pictures, masks)

    def _picture(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, step, index))
        picture = rng.normal(size=(3, SIDE, SIDE)).astype(np.float32)
        if rng.random() < 0.34:
            picture -= 3
        return picture, (picture.mean(0) > 0.2).astype(np.float32)

    def counts(self, batch: Pictures) -> Tensor:
        return torch.stack([torch.tensor(float(len(batch.masks))), batch.masks.any(-1).any(-1).float().sum()])

    def loss(self, model: nn.Module, batch: Pictures, totals: Tensor) -> dict[str, Tensor]:
        present = batch.masks.any(-1).any(-1)
        logits, size = model(batch.pictures, bool(present.any()))
        queries, found = totals.clamp_min(1).unbind()
        bce = F.binary_cross_entropy_with_logits(logits, batch.masks, reduction="none").mean((1, 2)).sum() / queries
        if size is None:
            return {"bce": bce}
        return {"bce": bce, "size": 0.3 * ((size - batch.masks.mean((1, 2)))[present] ** 2).sum() / found}

    def validate(self, model: nn.Module) -> dict[str, float]:
        pictures, masks = self.batch(10**6, range(16))
        found = model(pictures, True)[0] > 0
        overlap = (found & (masks > 0)).sum().item()
        return {"dice": 2 * overlap / max(1.0, found.sum().item() + masks.sum().item()), "training": model.training}


@dataclass(frozen=True)
class Job:
    folder: str
    strategy: str | None = None
    resume: bool = False
    dropout: float = 0.0
    norm: bool = False
    freeze: tuple[str, ...] = ()
    task: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.01
    weights_seed: int = 0


def train(job: Job) -> tuple[FitResult, Net]:
    torch.manual_seed(job.weights_seed)
    net = Net(dropout=job.dropout, norm=job.norm).to(memory_format=torch.channels_last)
    run = RunConfig(**{"steps": 6, "precision": "fp32", "log_every": 1, "checkpoint_every": 2, "threads": 1} | job.run)
    optim = OptimConfig(job.lr, freeze=tuple(job.freeze), warmup=2)
    task = BrightPixels(**job.task)
    return fit(net, task, optim, run, Path(job.folder), resume=job.resume, strategy=job.strategy), net  # type: ignore[arg-type]


def losses(folder: Path | str) -> list[dict[str, float]]:
    """Terms of every logged step."""
    return [{"step": row["step"], **row["terms"]} for row in logged(folder)]


def logged(folder: Path | str) -> list[dict[str, Any]]:
    """Every logged step."""
    rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def torchrun(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A program with its arguments in two processes with gloo, on a port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    return subprocess.run(
        [*launcher, *arguments], env=environment(), capture_output=True, text=True, check=False, timeout=900
    )


def as_arguments(*jobs: Job) -> list[str]:
    return [str(Path(__file__)), json.dumps([asdict(job) for job in jobs])]


if __name__ == "__main__":
    for fields in json.loads(sys.argv[1]):
        # Ranks after the first begin with other weights, which have to be replaced by those of the first.
        job = Job(**fields | {"weights_seed": fields["weights_seed"] + int(os.environ.get("RANK", "0"))})
        try:
            print("finished", train(job)[0])
        except InputError as error:
            print(type(error).__name__, error, file=sys.stderr)
            leave(1)
    leave(0)

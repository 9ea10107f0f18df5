"""Segmentation by a light head on frozen maps: how much of an outline the features tell. Needs torch.

After DINOv3's dense probe (eval/segmentation): the last map, BatchNorm, dropout of 0.1, 1 x 1 convolution, enlarged
bilinearly to the reference; cross-entropy, AdamW with a weight decay of 1e-3, a linear rise and a cosine fall. There
40,000 steps of 16 crops of 512 pixels at a rate of 1e-3; here maps of whole pictures, computed once, and fewer steps at
ten times the rate: at the published one a few hundred steps leave a head under-trained.

Pixels that nobody judged, and the background where a label was not annotated, teach nothing and are not scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.data.features import Features
from lexitome.evaluation.probing.outlines import outline_scores, pixel_counts
from lexitome.evaluation.statistics import DRAWS
from lexitome.models.dinov3.decoders import DecoderName, Linear, SegDino, build_decoder, enlarged

_IGNORED = -100
Entry = dict[str, Any]


@dataclass(frozen=True)
class DenseConfig:
    """
    Args:
        decoder: of `models.dinov3.decoders`, on the last map alone.
        loss_side: references are taken at most this large for the loss, by the nearest pixel, which saves time;
            scores are of all pixels.
    """

    decoder: DecoderName = "linear"
    rate: float = 1e-2
    decay: float = 1e-3
    steps: int = 1000
    batch: int = 16
    warmup: float = 0.0375
    loss_side: int = 224


def probe(
    features: Features, cached: CachedDataset, config: DenseConfig, *, seed: int = 0, draws: int = DRAWS,
    advance: Callable[[], None] = lambda: None,
) -> Entry:  # fmt: skip
    """Train on the rows of the training part, score on those of the test part.

    Args:
        features: with maps; their rows are those of `cached`.
        advance: called after each step.

    Returns:
        as `outlines.outline_scores`, and "pictures" of the test part.
    """
    assert len(features.stems) == len(cached.rows), "features of other pictures"
    rows = {part: [i for i, row in enumerate(cached.rows) if row.split == part] for part in ("train", "test")}
    classes, code_of = _classes(cached)
    net = _trained(features, cached, rows["train"], (classes, code_of), config, seed, advance)
    counts: dict[str, NDArray[np.float64]] = {}
    units: dict[str, str] = {}
    for begin in range(0, len(rows["test"]), config.batch):
        some = rows["test"][begin : begin + config.batch]
        predicted = _predicted(net, features, some, cached.codes.shape[1])
        for index, codes in zip(some, predicted, strict=True):
            row = cached.rows[index]
            found = pixel_counts(cached, index, np.asarray(classes)[codes])
            counts[row.stem] = counts.get(row.stem, 0) + found
            units[row.stem] = row.unit
    return outline_scores(cached, counts, units, seed=seed, draws=draws) | {"pictures": len(rows["test"])}


def _classes(cached: CachedDataset) -> tuple[list[int], NDArray[np.int64]]:
    """Codes that are learned (0 first), and for each of 256 codes its class or `_IGNORED`."""
    wanted = sorted({code for target in cached.dataset.targets for code in target.codes})
    classes = [0, *wanted]
    lookup = np.full(256, _IGNORED, np.int64)
    for index, code in enumerate(classes):
        lookup[code] = index
    lookup[UNKNOWN_CODE] = _IGNORED
    return classes, lookup


def _trained(
    features: Features, cached: CachedDataset, rows: Sequence[int], coding: tuple[list[int], NDArray[np.int64]],
    config: DenseConfig, seed: int, advance: Callable[[], None],
) -> nn.Module:  # fmt: skip
    assert features.patches is not None
    key = features.key
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Head(build_decoder(config.decoder, key.dim, 1, len(coding[0]), key.side // key.grid[0]), key.side)
        optimiser = torch.optim.AdamW(net.parameters(), config.rate, weight_decay=config.decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, config))
        net.train()
        order: list[int] = []
        for _ in range(config.steps if rows else 0):
            while len(order) < config.batch:
                order += rng.permutation(rows).tolist()
            some, order = order[: config.batch], order[config.batch :]
            wanted = torch.from_numpy(np.stack([_reference(cached, i, coding[1], config.loss_side) for i in some]))
            logits = net(_maps(features, some), wanted.shape[-1])
            loss = F.cross_entropy(logits, wanted, ignore_index=_IGNORED, reduction="sum")
            optimiser.zero_grad()
            (loss / max(int((wanted != _IGNORED).sum()), 1)).backward()
            optimiser.step()
            schedule.step()
            advance()
    return net.eval()


class _Head(nn.Module):
    """A decoder whose logits are brought to the side that is asked for; those of patches at once, not by way of the
    picture that the encoder saw, which at 448 pixels would take longer than all else."""

    def __init__(self, decoder: nn.Module, side: int) -> None:
        super().__init__()
        self.decoder, self.side = decoder, side

    def forward(self, maps: Tensor, side: int) -> Tensor:
        if isinstance(self.decoder, Linear | SegDino):
            return enlarged(self.decoder.coarse([maps]), self.decoder.patch * side / self.side, (side, side))
        logits = self.decoder([maps], (self.side, self.side))
        return logits if side == self.side else F.interpolate(logits, (side, side), mode="bilinear")


def _share(step: int, config: DenseConfig) -> float:
    """Of the rate."""
    rise = max(1, round(config.warmup * config.steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, config.steps - rise)))


def _maps(features: Features, rows: Sequence[int]) -> Tensor:
    assert features.patches is not None
    return torch.from_numpy(np.stack([features.patches[row] for row in rows]).astype(np.float32))


def _reference(cached: CachedDataset, row: int, lookup: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """(S, S) classes to learn, S at most `most`."""
    codes = cached.codes[row]
    if len(codes) > most:
        at = ((np.arange(most) + 0.5) * len(codes) / most).astype(int)
        codes = codes[np.ix_(at, at)]
    wanted = lookup[codes]
    return np.where(wanted == 0, _IGNORED, wanted) if cached.rows[row].unknown else wanted


@torch.inference_mode()
def _predicted(net: nn.Module, features: Features, rows: Sequence[int], side: int) -> NDArray[np.int64]:
    """(n, S, S) classes."""
    return np.concatenate([net(_maps(features, [row]), side).argmax(1).numpy() for row in rows])

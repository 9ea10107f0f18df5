"""From the slices of a volume to one vector, or to its classes: mean, maximum, or learned attention. Needs torch.

Attention is gated (Ilse et al., ICML 2018, Attention-based Deep Multiple Instance Learning, equation 9), on a
projection of the slice features as 2509.06467 has it for tiles of a slide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.evaluation.probing.linear import Fitted
from lexitome.evaluation.probing.scores import point_score

Pooling = Literal["mean", "max"]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def pooled(features: Floats, rows: Mapping[str, slice], stems: Sequence[str], how: Pooling) -> NDArray[np.float32]:
    """(cases, D) from (R, D) features of slices and the rows of each case."""
    reduce = np.mean if how == "mean" else np.max
    return np.stack([reduce(features[rows[stem]], axis=0) for stem in stems]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Bags:
    """Volumes as (slices, D) features, and truth (N, C)."""

    features: Sequence[Floats]
    truth: Bools


@dataclass(frozen=True)
class AttentionConfig:
    """
    Args:
        width: to which features of slices are projected.
        hidden: of the two branches of the attention.
        volumes: in a step.
        patience: epochs without a better validation score after which training ends.
    """

    width: int = 128
    hidden: int = 64
    dropout: float = 0.25
    rate: float = 1e-3
    decay: float = 1e-2
    epochs: int = 100
    volumes: int = 16
    patience: int = 20


class GatedAttention(nn.Module):
    """Logits of volumes, and how much each slice counted."""

    def __init__(self, dim: int, classes: int, config: AttentionConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, config.width), nn.ReLU(), nn.Dropout(config.dropout))
        self.value, self.gate = (nn.Linear(config.width, config.hidden) for _ in range(2))
        self.weigh = nn.Linear(config.hidden, 1)
        self.head = nn.Linear(config.width, classes)

    def forward(self, slices: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            slices: (N, L, D), filled up where a volume has fewer.
            real: (N, L) bool, False where filled up.

        Returns:
            (N, C) logits and (N, L) weights, which sum up to 1 and are 0 where filled up.
        """
        seen = self.project(slices)
        scores = self.weigh(self.value(seen).tanh() * self.gate(seen).sigmoid())[..., 0]
        weights = scores.masked_fill(~real, -torch.inf).softmax(1)
        return self.head((weights[..., None] * seen).sum(1)), weights


def attention(
    train: Bags, val: Bags, test: Bags, *, exclusive: bool, config: AttentionConfig | None = None, seed: int = 0
) -> Fitted:
    """Trained on `train`, the epoch chosen on `val`; `Fitted.chosen` is that epoch, from 1."""
    config = config or AttentionConfig()
    stacked = np.concatenate([np.asarray(each, np.float32) for each in train.features])
    mean, deviation = stacked.mean(0), stacked.std(0) + 1e-6
    parts = [_padded([(each - mean) / deviation for each in bags.features]) for bags in (train, val, test)]
    truth = torch.from_numpy(train.truth.astype(np.float32))
    loss = F.cross_entropy if exclusive else F.binary_cross_entropy_with_logits
    best: tuple[float, int, dict[str, Tensor]] = (-np.inf, 0, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = GatedAttention(stacked.shape[1], train.truth.shape[1], config)
        optimiser = torch.optim.AdamW(net.parameters(), config.rate, weight_decay=config.decay)
        for epoch in range(1, config.epochs + 1):
            net.train()
            for rows in torch.randperm(len(truth)).split(config.volumes):
                optimiser.zero_grad()
                loss(net(parts[0][0][rows], parts[0][1][rows])[0], truth[rows]).backward()
                optimiser.step()
            score = point_score(val.truth, _answers(net, parts[1], exclusive), exclusive=exclusive)
            if score > best[0] or not best[2]:
                best = (score, epoch, {name: each.clone() for name, each in net.state_dict().items()})
            if epoch - best[1] >= config.patience:
                break
    net.load_state_dict(best[2])
    return Fitted(_answers(net, parts[2], exclusive), float(best[1]), float(best[0]))


def _padded(bags: Sequence[Floats]) -> tuple[Tensor, Tensor]:
    """(N, L, D) features and (N, L) which slices are there."""
    lengths = [len(each) for each in bags]
    slices = torch.zeros(len(bags), max(lengths), bags[0].shape[1])
    for row, each in enumerate(bags):
        slices[row, : len(each)] = torch.from_numpy(np.asarray(each, np.float32))
    return slices, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@torch.inference_mode()
def _answers(net: GatedAttention, part: tuple[Tensor, Tensor], exclusive: bool) -> NDArray[np.float64]:
    net.eval()
    logits = torch.cat([net(x, real)[0] for x, real in zip(part[0].split(64), part[1].split(64), strict=True)])
    return (logits.double().softmax(1) if exclusive else logits.double().sigmoid()).numpy()

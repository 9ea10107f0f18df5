"""The projection head of DINO and iBOT: features to logits over prototypes. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.errors import InputError


@dataclass(frozen=True)
class Head:
    """
    Attributes:
        hidden: channels of the two hidden layers.
        bottleneck: channels that are scaled to length 1 and compared with prototypes.
        prototypes: what pictures (DINO) or patches (iBOT) are assigned to.
        spread: deviation of the weights of prototypes at the start. With the published 0.02 all are about equally near
            to everything, and the losses leave log(prototypes) only after thousands of steps; bottleneck ** -0.5 makes
            them of length 1.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65_536
    spread: float = 0.02

    def __post_init__(self) -> None:
        for name, least in (("hidden", 1), ("bottleneck", 1), ("prototypes", 2)):
            if getattr(self, name) < least:
                raise InputError(f"head.{name}", f"{getattr(self, name)} is too small", f"The least is {least}.")
        if self.spread <= 0:
            raise InputError("head.spread", f"{self.spread} is too small", "The published one is 0.02.")


class ProjectionHead(nn.Module):
    """Three linear layers with GELU between, length 1, then a linear layer without bias (and, unlike DINO's first
    version, without weight norm)."""

    def __init__(self, dim: int, head: Head) -> None:
        super().__init__()
        widths = (dim, head.hidden, head.hidden, head.bottleneck)
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.last_layer = nn.Linear(head.bottleneck, head.prototypes, bias=False)
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.last_layer.weight, std=head.spread)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) to (..., K)."""
        return self.last_layer(F.normalize(self.mlp(features), dim=-1, eps=1e-6))


def build_head(dim: int, head: Head, seed: int) -> ProjectionHead:
    """With weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProjectionHead(dim, head)

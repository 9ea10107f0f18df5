"""How much memory a training step takes, counted on a small one: every tensor that torch makes and lets go.

What is counted grows with pixels: one picture and two of them at a low resolution tell the bytes for each pixel of each
picture that is held at once, whatever the network. The resident memory of real steps of eight pictures of 320 pixels
was 13 % above the count in bf16 (1.19 GB against 1.05) and 6 % in fp32 (2.00 against 1.88); `MARGIN` covers it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lexitome.data.batches import Batch
from lexitome.data.prompt_maps import no_place
from lexitome.data.traits import SIZES
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training.compact import CompactObjective, Resolution, Sampling, compact_loss
from lexitome.training.optim import checkpoint_activations

MARGIN = 1.2
TRIED_SIDE = 128
RECOMPUTED = ("encoder", "decoder.up*")
"""Modules of the compact model whose activations are worth forgetting: what is kept falls to two fifths."""


class Held(TorchDispatchMode):
    """Bytes of all tensors that were made inside and are still there, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())
        return result

    def _let_go(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class StepMemory:
    """Bytes: of weights, gradients, moments and average; for each pixel of each picture that is computed at once; and
    of each that is drawn ahead."""

    fixed: int
    computed: float
    drawn: float

    def needed(self, shown: Resolution, ranks: int, accumulate: int, ahead: int) -> int:
        """Bytes that a rank needs for steps that show this; `ahead`: steps that are drawn while one is computed."""
        computed = MARGIN * self.computed * at_once(shown, ranks, accumulate)
        drawn = self.drawn * at_once(shown, ranks, 1) * (ahead + 2)  # the one that is trained on, and the next in work
        return int(self.fixed + shown.side**2 * (computed + drawn))


def at_once(shown: Resolution, ranks: int, accumulate: int) -> int:
    """Pictures that a rank computes together, see `engine.shares`."""
    own = math.ceil(shown.images / ranks)
    return math.ceil(own / min(accumulate, own))


@lru_cache(maxsize=8)
def memory_of(
    config: CompactConfig, queries: int, objective: CompactObjective, *, half: bool, recompute: tuple[str, ...] = ()
) -> StepMemory:
    """Count a step of one picture and one of two, on the CPU; `half`: as run.precision = bf16 does."""
    with torch.random.fork_rng(devices=[]):
        model = CompactNet(config, EfficientNetLite(config.backbone, frozen_blocks=config.frozen_blocks))
        model = model.to(memory_format=torch.channels_last).train()
        checkpoint_activations(model, recompute)
        one, two = (_most_held(model, _drawn(images, queries, config), objective, half) for images in (1, 2))
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    batch = _drawn(1, queries, config)
    size = sum(value.numel() * value.element_size() for value in (getattr(batch, f.name) for f in fields(batch)))
    return StepMemory(2 * weights + 3 * trained, (two - one) / TRIED_SIDE**2, size / TRIED_SIDE**2)


def shown_sizes(sampling: Sampling) -> list[Resolution]:
    """Every resolution that steps of a run show."""
    stages = [sampling.high] if sampling.high_from <= 0 else [sampling.low, sampling.high]
    return [getattr(stage, size) for stage in stages for size in SIZES if getattr(sampling.share, size) > 0]


def _most_held(model: nn.Module, batch: Batch, objective: CompactObjective, half: bool) -> int:
    totals = torch.full((3,), float(len(batch.present)))
    with Held() as held:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            decoded = model(batch.pictures, batch.text, batch.spatial)
        terms = compact_loss(decoded, batch, totals, objective)
        torch.stack(list(terms.values())).sum().backward()
    model.zero_grad(set_to_none=True)
    return held.most


def _drawn(images: int, queries: int, config: CompactConfig) -> Batch:
    """A batch as `data.batches` draws it, of nothing in particular."""
    side, count = TRIED_SIDE, images * queries
    return Batch(
        torch.zeros(images, 3, side, side).contiguous(memory_format=torch.channels_last),
        torch.ones(count, config.text_dim),
        torch.from_numpy(no_place(side)).expand(count, -1, -1, -1).contiguous(),
        torch.ones(count, side, side),
        torch.ones(count),
        torch.ones(count, side // 2, side // 2, dtype=torch.int32),
        torch.ones(count),
        torch.zeros(images, side, side, dtype=torch.bool),
    )

"""A vision transformer and a decoder: pictures to logits of fixed classes. Needs torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTConfig

from lexitome.models.dinov3.backbone import Dinov3
from lexitome.models.dinov3.decoders import DecoderName, build_decoder, usual_taps
from lexitome.models.dinov3.presets import build

TRUNK, DECODER = "trunk.*", "decoder.*"
"""Globs of the two parts, for their learning rates."""


class DinoSegmenter(nn.Module):
    """(N, 3, H, W) to (N, K, H, W); with `stacked3d`, (N, 3, Z, H, W) of neighbouring slices to (N, K, Z, H, W).

    Args:
        taps: blocks that are decoded, counted from 0, or from the end where negative; none takes `usual_taps`.
        outputs: K.
    """

    def __init__(self, trunk: Dinov3, decoder: DecoderName, outputs: int, taps: Sequence[int] = ()) -> None:
        super().__init__()
        chosen = tuple(taps) or usual_taps(trunk.depth)
        self.taps = tuple(block + trunk.depth if block < 0 else block for block in chosen)
        if not all(0 <= block < trunk.depth for block in self.taps):
            raise ValueError(f"taps are blocks from 0 to {trunk.depth - 1}, not {list(taps)}")
        self.name, self.trunk = decoder, trunk
        self.decoder = build_decoder(decoder, trunk.dim, len(self.taps), outputs, trunk.patch)
        # What no answer depends on has no gradient, which data-parallel training would wait for.
        idle: list[nn.Module | nn.Parameter] = [trunk.model.embeddings.mask_token, *trunk.blocks[max(self.taps) + 1 :]]
        for each in idle:
            each.requires_grad_(False)

    @property
    def is_3d(self) -> bool:
        return self.name == "stacked3d"

    def forward(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        if not self.is_3d:
            return self.decoder(self.trunk.taps(pictures, self.taps), (height, width))
        flat = pictures.transpose(1, 2).flatten(0, 1)
        maps = [each.unflatten(0, (len(pictures), -1)) for each in self.trunk.taps(flat, self.taps)]
        return self.decoder(maps, (height, width))


def build_segmenter(
    trunk: Dinov3, decoder: DecoderName, outputs: int, taps: Sequence[int] = (), *, seed: int = 0
) -> DinoSegmenter:
    """Around a trunk that has its weights; the decoder's are random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DinoSegmenter(trunk, decoder, outputs, taps)


def empty_segmenter(config: dict[str, Any], decoder: DecoderName, outputs: int, taps: Sequence[int]) -> DinoSegmenter:
    """The network of a stored one, whose weights are still to be loaded."""
    return DinoSegmenter(build(DINOv3ViTConfig.from_dict(config), 0), decoder, outputs, taps)

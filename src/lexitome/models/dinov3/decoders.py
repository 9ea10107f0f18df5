"""From maps of a vision transformer to masks. Needs torch.

MultiScale  MedDINOv3 (2509.02379, section 3.1; nnU-Net's Primus): maps of several blocks side by side, then transposed
            convolutions back to pixels. With one map it is the "last layer" of that paper's ablation.
Linear      DINOv3's dense probe: BatchNorm and a 1 x 1 convolution, enlarged bilinearly
SegDino     of each map 1 x 1 and 3 x 3, side by side, 1 x 1 (the released code of SegDINO)
Stacked3d   2509.06467, section 3: maps of neighbouring slices stacked, 3D convolutions, earlier blocks as skips. That
            paper gives no widths: those here are ours.

All take maps (N, h, w, D) of 0-based blocks, each through the final norm (`Dinov3.taps`), and the picture's size
(H, W), and return logits (N, K, H, W); maps that reach beyond the picture, which was padded to whole patches, are cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DecoderName = Literal["multiscale", "linear", "segdino", "stacked3d"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)
SLOPE = 1e-2
"""Negative slope of He's initialisation, nnU-Net's for all decoders."""


def usual_taps(depth: int) -> tuple[int, ...]:
    """The 0-based blocks that published decoders look at: the last of each quarter ((2, 5, 8, 11) of 12), and DINOv3's
    own choice for ViT-L."""
    return (4, 11, 17, 23) if depth == 24 else tuple(depth * quarter // 4 - 1 for quarter in range(1, 5))


def build_decoder(name: DecoderName, dim: int, taps: int, outputs: int, patch: int = 16) -> nn.Module:
    """
    Args:
        dim: channels of a map.
        taps: number of maps.
        outputs: K.
    """
    decoder: nn.Module
    if name == "multiscale":
        decoder = MultiScale(dim * taps, outputs, patch)
    elif name == "linear":
        decoder = Linear(dim * taps, outputs, patch)
    elif name == "segdino":
        decoder = SegDino(dim, taps, outputs, patch)
    else:
        decoder = Stacked3d(dim, taps, outputs, patch)
    return decoder.apply(_initialise)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of (N, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MultiScale(nn.Module):
    """Side by side, then as often as a patch can be halved: transposed convolution (kernel 2, stride 2) to half the
    channels, LayerNorm, GELU; at last 1 x 1. For 4 x 768 channels: 3072, 1536, 768, 384, 192; 25.1 M parameters.

    Args:
        channels: of all maps together, a multiple of the patch.
    """

    def __init__(self, channels: int, outputs: int, patch: int = 16) -> None:
        super().__init__()
        widths = [channels >> level for level in range(int(math.log2(patch)) + 1)]
        if channels % patch or 1 << (len(widths) - 1) != patch:
            raise ValueError(f"{channels} channels cannot be halved to a patch of {patch} pixels")
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.ConvTranspose2d(wide, narrow, 2, 2), LayerNorm2d(narrow), nn.GELU())
                for wide, narrow in pairwise(widths)
            )
        )
        self.head = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return self.head(self.stages(_beside(maps)))[..., : size[0], : size[1]]


class Linear(nn.Module):
    """BatchNorm, dropout of whole channels, 1 x 1.

    Args:
        channels: of all maps together.
    """

    def __init__(self, channels: int, outputs: int, patch: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.patch = patch
        self.norm, self.dropout = nn.BatchNorm2d(channels), nn.Dropout2d(dropout)
        self.head = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return enlarged(self.coarse(maps), self.patch, size)

    def coarse(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, K, h, w): a logit of each patch."""
        return self.head(self.dropout(self.norm(_beside(maps))))


class SegDino(nn.Module):
    """
    Args:
        dim: channels of each map.
        width: to which each is reduced.
    """

    def __init__(self, dim: int, taps: int, outputs: int, patch: int = 16, width: int = 256) -> None:
        super().__init__()
        self.patch = patch
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, width, 1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU())
            for _ in range(taps)
        )
        self.head = nn.Conv2d(width * taps, outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return enlarged(self.coarse(maps), self.patch, size)

    def coarse(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, K, h, w): a logit of each patch."""
        seen = [branch(each.permute(0, 3, 1, 2)) for branch, each in zip(self.branches, maps, strict=True)]
        return self.head(torch.cat(seen, 1))


class Stacked3d(nn.Module):
    """Maps (N, Z, h, w, D) of Z neighbouring slices to (N, K, Z, H, W). From the last block to the first, each time
    twice as fine within the slice: the map of the block is added, then a 3D convolution over slices.

    Args:
        width: channels, halved with every step down to 16.
    """

    def __init__(self, dim: int, taps: int, outputs: int, patch: int = 16, width: int = 128) -> None:
        super().__init__()
        self.patch = patch
        widths = [max(16, width >> level) for level in range(taps)]
        self.lateral = nn.ModuleList(nn.Linear(dim, each) for each in widths)
        self.carry = nn.ModuleList(nn.Conv3d(before, each, 1) for before, each in pairwise(widths))
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Conv3d(each, each, 3, padding=1), nn.GroupNorm(1, each), nn.GELU()) for each in widths
        )
        self.head = nn.Conv3d(widths[-1], outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        slices, *cells = maps[0].shape[1:4]
        running: Tensor | None = None
        for level, each in enumerate(reversed(maps)):
            grid = [slices, *(cell << level for cell in cells)]
            seen = F.interpolate(self.lateral[level](each).permute(0, 4, 1, 2, 3), grid, mode="trilinear")
            if running is not None:
                seen = seen + self.carry[level - 1](F.interpolate(running, grid, mode="trilinear"))
            running = self.fuse[level](seen)
        whole = [slices, *(cell * self.patch for cell in cells)]
        return F.interpolate(self.head(running), whole, mode="trilinear")[..., : size[0], : size[1]]


def _beside(maps: Sequence[Tensor]) -> Tensor:
    """(N, h, w, D) maps to one (N, all D, h, w)."""
    return torch.cat(list(maps), -1).permute(0, 3, 1, 2)


def enlarged(logits: Tensor, patch: float, size: tuple[int, int]) -> Tensor:
    """(N, K, h, w) to the picture's (N, K, H, W): a cell is a patch, whatever lies beyond the picture is cut.

    Args:
        patch: side of a cell in pixels of the result.
    """
    whole = [round(cells * patch) for cells in logits.shape[-2:]]
    return F.interpolate(logits, whole, mode="bilinear")[..., : size[0], : size[1]]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

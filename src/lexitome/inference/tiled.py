"""A slice, or a stack of them, through a network of any resolution: to its grid, window by window, and back.

Training validates with the same function that answers users. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.normalisation import Normalisation
from lexitome.inference.sliding import predict


@dataclass(frozen=True)
class Windows:
    """
    Args:
        side: of the square window.
        depth: slices of a window; 1 for networks in 2D.
        overlap: of neighbouring windows.
        mirrored: whether the answers about the mirrored picture are averaged in.
        batch: windows that go through the network together.
    """

    side: int
    depth: int = 1
    overlap: float = 0.5
    mirrored: bool = False
    batch: int = 4


@torch.no_grad()
def answered(picture: Tensor, grid: tuple[int, int], windows: Windows, ask: Callable[[Tensor], Tensor]) -> Tensor:
    """
    Args:
        picture: (C, h, w), or (C, Z, h, w) for networks in 3D.
        grid: (H, W) at which the network looks at it; what is smaller than a window is surrounded by its lowest value,
            as in training.
        ask: (B, C, ...) windows to (B, K, ...) probabilities.

    Returns:
        (K, h, w) or (K, Z, h, w) probabilities.
    """
    size = picture.shape[-2:]
    seen = _resized(picture.float(), grid)
    missing = [max(0, windows.side - length) for length in grid]
    before = [lack // 2 for lack in missing]
    if any(missing):
        around = (before[1], missing[1] - before[1], before[0], missing[0] - before[0])
        low = seen.amin((-2, -1), keepdim=True)
        seen = F.pad(seen - low, around) + low
    window = (windows.side, windows.side) if picture.ndim == 3 else (windows.depth, windows.side, windows.side)
    whole = predict(seen, window, windows.overlap, _both(ask) if windows.mirrored else ask, batch=windows.batch)
    inside = whole[..., before[0] : before[0] + grid[0], before[1] : before[1] + grid[1]]
    return _resized(inside, (size[0], size[1]))


def asker(
    net: nn.Module, normalisation: Normalisation, *, exclusive: bool, is_8_bit: bool
) -> Callable[[Tensor], Tensor]:
    """What `answered` asks: windows in the units of a shelf to the probabilities of the network's outputs."""

    def ask(windows: Tensor) -> Tensor:
        logits = net(normalisation.finish(windows, is_8_bit=is_8_bit)).float()
        return logits.softmax(1) if exclusive else logits.sigmoid()

    return ask


def masks_from(likely: Tensor, *, exclusive: bool) -> Tensor:
    """(T, ...) bool of the targets, from probabilities (K, ...): the likeliest class, of which the first is the
    background, or all that are at least 0.5."""
    if not exclusive:
        return likely >= 0.5
    best = likely.argmax(0)
    return torch.stack([best == target for target in range(1, len(likely))])


def _both(ask: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Averaged with what is answered about the mirror image (left and right)."""
    return lambda batch: (ask(batch) + ask(batch.flip(-1)).flip(-1)) / 2


def _resized(planes: Tensor, grid: tuple[int, int]) -> Tensor:
    """(C, [Z,] h, w) to (C, [Z,] H, W), bilinear, smoothed before it gets smaller."""
    if tuple(planes.shape[-2:]) == grid:
        return planes
    flat = planes.reshape(1, -1, *planes.shape[-2:])
    smaller = grid[0] < planes.shape[-2] or grid[1] < planes.shape[-1]
    return F.interpolate(flat, grid, mode="bilinear", antialias=smaller).reshape(*planes.shape[:-2], *grid)

"""Images that are larger than what a network sees: windows that cover them, and their answers made one.

In as many dimensions as the image has (one to three). Windows stand at equal distances, at most a step apart, the last
one at the end; answers are averaged with the weights of a Gaussian, since a network knows least at its borders. So do
nnU-Net and MONAI; theirs cut the Gaussian below a value, here it is as it is, which float32 holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

SIGMA_SCALE = 1 / 8
"""Deviation of the Gaussian in sides of the window, nnU-Net's and MONAI's."""


def positions(size: Sequence[int], window: Sequence[int], overlap: float = 0.5) -> list[tuple[int, ...]]:
    """First corners of the windows, in the order of the array; 0 along an axis on which the window is the longer.

    Args:
        overlap: share of a window, along each axis, that its neighbour sees too, at least; below 1.

    Raises:
        ValueError: a size is not positive, numbers of axes differ, or the overlap is not in [0, 1).
    """
    if len(size) != len(window) or min(*size, *window) < 1 or not 0 <= overlap < 1:
        raise ValueError(f"no windows of {tuple(window)} with overlap {overlap} cover an image of {tuple(size)}")
    starts = []
    for length, side in zip(size, window, strict=True):
        step = max(1, int(side * (1 - overlap)))
        last = max(0, length - side)
        count = math.ceil(last / step)
        starts.append([round(i * last / count) for i in range(count + 1)] if count else [0])
    return list(product(*starts))


def gaussian(window: Sequence[int], sigma_scale: float = SIGMA_SCALE) -> NDArray[np.float32]:
    """Weights of a window's shape, 1 in its middle, positive everywhere."""
    weights = np.ones((), np.float64)
    for side in window:
        distance = (np.arange(side) - (side - 1) / 2) / (side * sigma_scale)
        weights = weights[..., None] * np.exp(-0.5 * distance**2)
    return (weights / weights.max()).astype(np.float32)


def predict(
    image: Tensor, window: Sequence[int], overlap: float, ask: Callable[[Tensor], Tensor], *, batch: int = 4
) -> Tensor:
    """
    Args:
        image: (C, *spatial) float; continued by its edge where it is smaller than the window.
        ask: (B, C, *window) to (B, K, *window); called with at most `batch` windows. What it returns is averaged, so
            probabilities should leave it where probabilities are wanted.

    Returns:
        (K, *spatial) float32, on the device of the image.
    """
    import torch
    from torch.nn import functional as F

    size = image.shape[1:]
    missing = [max(0, side - length) for side, length in zip(window, size, strict=True)]
    if any(missing):
        sides = [amount for lack in reversed(missing) for amount in (0, lack)]
        image = F.pad(image[None], sides, mode="replicate")[0]
    corners = positions(image.shape[1:], window, overlap)
    if len(corners) == 1:  # nothing to average
        total = ask(image[None])[0].float()
    else:
        weight = torch.from_numpy(gaussian(window)).to(image.device)
        boxes = [tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True)) for corner in corners]
        weights = weight.new_zeros(image.shape[1:])
        total = weights[None]
        for first in range(0, len(boxes), batch):
            chosen = boxes[first : first + batch]
            answers = ask(torch.stack([image[(slice(None), *box)] for box in chosen])).float()
            if first == 0:
                total = answers.new_zeros((answers.shape[1], *image.shape[1:]))
            for box, answer in zip(chosen, answers, strict=True):
                total[(slice(None), *box)] += answer * weight
                weights[box] += weight
        total = total / weights
    return total[(slice(None), *(slice(length) for length in size))]

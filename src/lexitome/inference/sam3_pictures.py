"""From a `Volume` to the squares that SAM3 sees (needs torch, not torchvision).

CT is windowed, all else is stretched as for every network here (`data.intensity`); then a plain resize to a square
without keeping the aspect and a mean and deviation of a half, as in the official code and in transformers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.intensity import View, Window, to_pictures, with_neighbours
from lexitome.volume import Volume


def to_input(pictures: NDArray[np.uint8], side: int) -> Tensor:
    """(N, H, W, 3) or (N, H, W, 1) to (N, 3, S, S) float32 in -1..1.

    Bilinear with antialiasing on 8-bit values, as `torchvision.transforms.v2.Resize` does it.
    """
    planes = torch.from_numpy(np.array(pictures.transpose(0, 3, 1, 2), order="C"))
    square = F.interpolate(planes, (side, side), mode="bilinear", antialias=True).float()
    return (square / 127.5 - 1).expand(-1, 3, -1, -1)


class Pictures:
    """The slices of a volume in one view and window, cut when the first of them is asked for.

    Args:
        window: CT window (low, high), None for what is not CT.
        stacked: whether the channels of a grey slice are the slice before it, itself and the one after it.
    """

    def __init__(self, volume: Volume, view: View, window: Window | None, side: int, *, stacked: bool = False) -> None:
        self._volume, self._view, self._window, self._side = volume, view, window, side
        self._grey = volume.array.shape[0] < 3
        self._stacked = stacked and self._grey and not volume.is_2d
        self._cut: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self._volume.grid[self._view.order[0]]

    def __getitem__(self, index: int) -> Tensor:
        """(1, 3, S, S)."""
        if self._cut is None:
            cut = to_pictures(self._volume, self._window, self._view)
            self._cut = cut[..., :1].copy() if self._grey else cut  # three equal channels: one will do
        if self._stacked:
            first = max(index - 1, 0)
            return to_input(with_neighbours(self._cut[first : index + 2])[index - first][None], self._side)
        return to_input(self._cut[index][None], self._side)

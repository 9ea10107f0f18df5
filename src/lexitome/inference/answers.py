"""What the network said about one query, gathered slice by slice and view by view at the network's own resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexitome.data.intensity import View
from lexitome.inference.objects import CentreMaps

SLICE_PRESENCE = 0.2
"""Within a volume that holds the target, a slice shows it from this presence (the volume needs 0.5)."""
CERTAIN = 0.93
"""A mask is very certain if its pixels have this probability on average. Chosen on validation pictures: at 0.93, 0.3 %
more of what is there is found; of what is absent 0.3 % more in pictures of other sets, and 2.4 % more in slices that
lack an organ. Presence is the better judge there, hence only in 2D images."""
CERTAIN_SHARE = 0.0005
"""... and if it takes at least this share of the picture."""

HOPELESS = 0.2
"""Below this presence, the answer about the mirror image would have to be 80 % sure to turn "not found" around.
On validation pictures that spared two looks in three (1,047 of 1,533 questions) and changed no verdict and no Dice."""


class Seen(NamedTuple):
    """Answers to Q queries about one picture of S pixels; presence is 0.5 at the concept's threshold."""

    probability: NDArray[np.float32]  # (Q, S, S)
    presence: NDArray[np.float32]  # (Q,)
    heat: NDArray[np.float32]  # (Q, S/2, S/2)
    offsets: NDArray[np.float32]  # (Q, 2, S/2, S/2)


@dataclass(eq=False)
class SliceAnswer:
    """One query over all slices of the primary view.

    Args:
        view: the primary one, along whose slices all below lies.
        grid: (slices, rows, columns) of `probability`. With one view rows and columns are the network's; with several,
            at most those of the volume, since the views have to meet on one grid.
        shares: how many views are averaged.

    ``probability`` of a volume is float16, since its answers must not fill the memory (of a picture float32, which is
    quicker to write); in a volume a slice that does not show the target counts as 0. ``presence`` (slice,) is 0.5 at
    the threshold that was chosen on validation data, whatever the concept. ``certain`` (slice,) says where the mask
    speaks for itself, see `is_certain`. ``centres`` is kept of 2D images only.
    """

    view: View
    grid: tuple[int, int, int]
    shares: int = 1
    probability: NDArray[np.floating] = field(init=False)
    presence: NDArray[np.float32] = field(init=False)
    certain: NDArray[np.bool_] = field(init=False)
    centres: CentreMaps | None = None

    def __post_init__(self) -> None:
        self.probability = np.zeros(self.grid, np.float32 if self.is_picture else np.float16)
        self.presence = np.zeros(self.grid[0], np.float32)
        self.certain = np.zeros(self.grid[0], np.bool_)

    @property
    def is_picture(self) -> bool:
        return self.grid[0] == 1

    def add(self, view: View, place: tuple[int, int], seen: Seen, row: int, *, certain: bool) -> None:
        """Take in the answer about one slice.

        Args:
            place: its index and the number of slices in this view.
            row: which query of `seen` this is.
            certain: whether the mask may speak for itself, and does.
        """
        index, presence = place[0], float(seen.presence[row])
        if view == self.view:
            self.presence[index], self.certain[index] = presence, certain
            if self.is_picture:
                self.centres = CentreMaps(seen.heat[row], seen.offsets[row])
        if self.is_picture or certain or presence >= SLICE_PRESENCE:
            self._spread(view, place, seen.probability[row])

    def _spread(self, view: View, place: tuple[int, int], plane: NDArray[np.float32]) -> None:
        """Add a slice of any view to the slices of the primary one, each part of it where it belongs.

        Slices lie side by side; where the grid is coarser than they are, each cell takes the share that lies in it.
        """
        cells = view.apply(self.view.undo(self.probability))  # the same memory, seen along this view
        plane = resize(plane, *cells.shape[1:])
        index, slices = place
        first, end = index * len(cells) / slices, (index + 1) * len(cells) / slices
        for cell in range(int(first), min(math.ceil(end), len(cells))):
            overlap = min(end, cell + 1) - max(first, cell)
            cells[cell] += (plane * (overlap / self.shares)).astype(cells.dtype)


def is_certain(probability: NDArray[np.float32]) -> bool:
    """Whether a mask is very certain: large enough, and of a high mean probability.

    The network may be sure of the pixels and yet doubt the presence, on pictures that look unlike those it was trained
    on: presence is learned from what a training set looks like, a mask from what the target looks like.
    """
    inside = probability[probability >= 0.5]
    return bool(inside.size >= CERTAIN_SHARE * probability.size and inside.size > 0 and inside.mean() >= CERTAIN)


def is_hopeless(seen: Seen, row: int) -> bool:
    """Whether a second look at the same picture could hardly find the target: `HOPELESS`, and no certain mask."""
    return bool(seen.presence[row] < HOPELESS) and not is_certain(seen.probability[row])


def overall(presence: NDArray[np.float32]) -> float:
    """Presence in the whole volume from that of its slices: the mean of the twentieth that show the target best."""
    return float(np.sort(presence)[::-1][: 1 + len(presence) // 20].mean())


def resize(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(h, w) to (height, width), bilinear."""
    from PIL import Image

    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))

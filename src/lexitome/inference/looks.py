"""How an image is looked at: every concept has the window, the size and the cutting directions it is found best in.

A `Look` is a value; queries that share one share the encoder's work. `Pictures` cuts the slices of a volume, and
`Memory` keeps features that were computed for a look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lexitome.data.intensity import (
    SOFT_TISSUE,
    View,
    Window,
    is_hounsfield,
    to_pictures,
    views_of,
    with_neighbours,
)
from lexitome.models.catalog import ModelCard, TrainedConcept
from lexitome.volume import Volume

HELD_SLICES = 8
"""Up to this many slices keep their features (6 MB each at 320 pixels) between `encode` and `decode`; longer volumes
are encoded while they are decoded, so that memory does not grow with the number of slices."""
HELD_LOOKS = 6
"""Features of the looks that were asked for last are held; a web session about one image rarely needs more."""


class Features(NamedTuple):
    """What the encoder says of one picture, of S pixels; float32."""

    tokens: NDArray[np.float32]  # (1, D, S/16, S/16)
    skip8: NDArray[np.float32]  # (1, C, S/8, S/8)
    skip4: NDArray[np.float32]
    skip2: NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """Args:
    view: how slices are cut.
    window: CT window (low, high in HU), None for what is not CT.
    side: of the square picture the network sees, in pixels.
    stacked: whether a slice's channels are the slice before it, itself and the slice after it.
    mirrored: whether the picture's left and right are swapped.
    """

    view: View
    window: Window | None
    side: int
    stacked: bool = False
    mirrored: bool = False

    def mirror(self) -> Look:
        return replace(self, mirrored=not self.mirrored)


@dataclass(frozen=True, eq=False)
class Scene:
    """What is known of a volume before any query: looked up once, since `is_hounsfield` sees every voxel."""

    volume: Volume
    views: tuple[View, ...]
    hounsfield: bool

    @staticmethod
    def of(volume: Volume) -> Scene:
        return Scene(volume, tuple(views_of(volume)), is_hounsfield(volume))

    @property
    def modality(self) -> str:
        """As the source says; where it does not (NIfTI), values in Hounsfield units say CT."""
        return self.volume.modality or ("CT" if self.hounsfield else "")

    def slices(self, view: View) -> int:
        return self.volume.grid[view.order[0]]

    def is_short(self, view: View) -> bool:
        """Whether the features of all its slices may be held."""
        return self.slices(view) <= HELD_SLICES

    def looks(self, trained: TrainedConcept | None, card: ModelCard, *, placed: bool) -> tuple[Look, ...]:
        """The looks whose answers are averaged, the one in the primary view first.

        What was not trained, and what has no words, has the default look. A place (``placed``) is drawn in the primary
        view, so only that one is used.
        """
        window = SOFT_TISSUE if self.hounsfield else None
        if trained is None:
            return (Look(self.views[0], window, card.side),)
        window = (trained.window or window) if self.hounsfield else None
        stacked = trained.stacked and not self.volume.is_2d and self.volume.array.shape[0] == 1
        views = self.views if trained.views and not placed else self.views[:1]
        return tuple(Look(view, window, trained.side, stacked) for view in views)


class Pictures:
    """The slices of a volume in one view and window, cut when the first of them is asked for."""

    def __init__(self, volume: Volume, view: View, window: Window | None) -> None:
        self._volume, self._view, self._window = volume, view, window
        self._slices: NDArray[np.uint8] | None = None

    def square(self, index: int, look: Look) -> NDArray[np.float32]:
        """(1, 3, S, S), 0..255: slice `index` as the encoder takes it."""
        from PIL import Image

        if self._slices is None:
            slices = to_pictures(self._volume, self._window, self._view)
            grey = self._volume.array.shape[0] < 3  # three equal channels: one will do
            self._slices = slices[..., :1].copy() if grey else slices
        picture = self._slices[index]
        if look.stacked:
            first = max(index - 1, 0)
            picture = with_neighbours(self._slices[first : index + 2])[index - first]
        picture = picture[..., 0] if picture.shape[-1] == 1 else picture
        small = Image.fromarray(picture).resize((look.side, look.side), Image.Resampling.BILINEAR)
        square = np.asarray(small, np.float32)
        planes = square.transpose(2, 0, 1) if square.ndim == 3 else np.stack([square] * 3)
        return np.ascontiguousarray(planes[..., ::-1] if look.mirrored else planes)[None]


@dataclass(eq=False)
class Memory:
    """Features by look. A cache of pure results: what is in it changes no answer, only the time it takes.

    Any thread may ask; one computes at a time, so nothing is computed twice.
    """

    _held: dict[Look, tuple[Features, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, look: Look, compute: Callable[[], Iterator[Features]]) -> tuple[Features, ...]:
        with self._lock:
            features = self._held.pop(look, None) or tuple(compute())
            self._held[look] = features  # the latest is last
            while len(self._held) > HELD_LOOKS:
                del self._held[next(iter(self._held))]
            return features

    def __contains__(self, look: Look) -> bool:
        return look in self._held

"""What the user asks for. Coordinates are voxel coordinates (x, y, z) of the image as read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Text:
    """A concept in words, as typed."""

    text: str


@dataclass(frozen=True)
class Box:
    """Axis-aligned, first and last corner inclusive; ``z`` bounds are None on a 2D image or for every slice."""

    x0: float
    y0: float
    x1: float
    y1: float
    z0: float | None = None
    z1: float | None = None

    def __post_init__(self) -> None:
        upside_down = self.z0 is not None and self.z1 is not None and self.z1 < self.z0
        if self.x1 < self.x0 or self.y1 < self.y0 or upside_down:
            raise ValueError(f"box corners must be ordered x0 <= x1, y0 <= y1, z0 <= z1: {self}")


@dataclass(frozen=True)
class Point:
    """A click; ``inside`` is False for "not this"."""

    x: float
    y: float
    z: float = 0.0
    inside: bool = True


@dataclass(frozen=True, eq=False)
class MaskPrompt:
    """A rough mask (Z, Y, X) bool on the image's grid, to be refined."""

    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Exemplar:
    """A box around one example; the model is to find all that look alike."""

    box: Box
    positive: bool = True


Spatial = Box | Point | MaskPrompt | Exemplar


@dataclass(frozen=True)
class Query:
    """One thing to find: words, places, or words and places. A segmentation answers each query with one mask.

    ``name`` is what files and tables call it: the text as typed, or "box", "points".
    """

    text: Text | None = None
    spatial: tuple[Spatial, ...] = ()

    def __post_init__(self) -> None:
        if self.text is None and not self.spatial:
            raise ValueError("a query needs text, a box, a point or a mask")

    @property
    def name(self) -> str:
        if self.text is not None:
            return self.text.text
        return "box" if isinstance(self.spatial[0], Box) else "points" if isinstance(self.spatial[0], Point) else "mask"

"""From a user's queries to what the compact network is given: words, and maps in picture coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lexitome.concepts import Concept, Vocabulary, modality_families, parse
from lexitome.data.dataset import UNKNOWN_FAMILY
from lexitome.data.intensity import View
from lexitome.data.prompt_maps import BOX, INSIDE, MASK, OUTSIDE, STRIDE, box_map, no_place, point_map
from lexitome.models.catalog import ModelCard, TrainedConcept
from lexitome.prompts import Box, Exemplar, MaskPrompt, Point, Query
from lexitome.volume import Volume

GUESS = "untrained concept: result is a guess"
BOX_MARGIN = 0.05
"""Of its length, on each side of a box: a hand draws no tighter. Of 0 to 0.25, what served validation boxes best."""

MOST_OF_PICTURE = 0.5
"""Of its area, from which on a box bounds the answer but is not shown to the network: chosen on validation pictures."""


@dataclass(frozen=True)
class Understood:
    """A query made ready.

    Args:
        words: for the network, "" where only a place was given.
        concept: what the words are coded as.
        trained: what they are answered as, None for a guess.
        notes: what the user should know.
        sided: whether the words, or what they mean, name a side of the body: such a picture must not be mirrored.
        at_home: whether the picture is of a kind the concept was trained on, as far as is known.
    """

    query: Query
    words: str
    concept: Concept | None
    trained: TrainedConcept | None
    notes: tuple[str, ...]
    sided: bool = False
    at_home: bool = False

    @property
    def placed(self) -> bool:
        return bool(self.query.spatial)

    @property
    def bounded(self) -> bool:
        """Whether all its places are boxes, at least one."""
        return self.placed and all(isinstance(place, Box) for place in self.query.spatial)

    def is_drawn(self, volume: Volume) -> bool:
        """Whether its places are shown to the network. A box around something known is not in a volume, where the words
        are asked in all directions and the box bounds their answer, nor if it holds most of the picture, where it says
        little and the words alone are answered better: validation pictures and volumes found both."""
        if not self.bounded or self.trained is None or not self.at_home:
            return self.placed
        return volume.is_2d and all(_share(place, volume) < MOST_OF_PICTURE for place in self.query.spatial)


def understand(query: Query, card: ModelCard, modality: str = "") -> Understood:
    """Resolve the words of a query to a concept and to the words the model was trained with."""
    if query.text is None:
        return Understood(query, "", None, None, ())
    typed = query.text.text
    resolution = Vocabulary.load().resolve(typed, modality)
    concept = resolution.concept
    by_name = {t.concept: t for t in card.trained_concepts}
    own = {t.words.casefold(): t for t in card.trained_concepts}  # what a user has taught need not be in the vocabulary
    taught = own.get(" ".join(typed.casefold().split()))
    if taught is not None and resolution.how == "meaning":
        concept = None  # the very words it was taught: nothing to guess
    trained = by_name.get(concept.name) if concept is not None else None
    trained = trained or taught
    notes: list[str] = []
    if trained is None and concept is not None and concept.laterality:
        broader = next((c.name for c in Vocabulary.load().ancestors(concept) if c.name in by_name), None)
        if broader is not None:
            trained = by_name[broader]
            notes.append(f"answered as {broader!r}: the model was not taught its sides")
    if concept is None:
        near = resolution.alternatives[:3] if trained is None else ()
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        notes.append(f"uncoded: no concept of the vocabulary matches{hint}")
    elif resolution.how == "meaning":
        notes.append(f"taken to mean {concept.name!r} (similarity {resolution.similarity:.2f})")
    families = modality_families(modality)
    seen = set(trained.families) if trained is not None else set()
    at_home = trained is not None and (not families or UNKNOWN_FAMILY in seen or bool(families & seen))
    if trained is None:
        notes.append(GUESS)
    elif not at_home:
        notes.append(f"trained on {', '.join(trained.families)} only, this image is {modality}: result is a guess")
    words = trained.words if trained else typed
    named = (typed, words) if concept is None else (typed, words, concept.name)
    sided = bool(concept is not None and concept.laterality) or any(parse(name).side for name in named)
    return Understood(query, words, concept, trained, tuple(notes), sided, at_home)


def to_picture_axes(view: View, volume: Volume, xyz: Sequence[float]) -> tuple[float, float, float]:
    """Voxel coordinates (x, y, z) to (slice, row, column) of the pictures that `view` cuts."""
    zyx = (xyz[2], xyz[1], xyz[0])
    axes = [zyx[axis] for axis in view.order]
    sizes = [volume.grid[axis] for axis in view.order]
    for axis in view.flips:
        axes[axis] = sizes[axis] - 1 - axes[axis]
    return axes[0], axes[1], axes[2]


def spatial_maps(query: Query, view: View, volume: Volume, side: int) -> dict[int, NDArray[np.float32]]:
    """Maps (4, side/4, side/4) of the slices on which the query points at something (`data.prompt_maps`).

    Raises:
        ValueError: a point or box lies outside the image, or a mask is not on its grid.
    """
    depth, height, width = (volume.grid[axis] for axis in view.order)
    shape = (side // STRIDE, side // STRIDE)
    rows, columns = shape[0] / height, shape[1] / width
    maps: dict[int, NDArray[np.float32]] = {}

    def add(index: int, channel: int, drawn: NDArray[np.float32]) -> None:
        plane = maps.setdefault(index, no_place(side))[channel]
        np.maximum(plane, drawn, out=plane)

    for place in query.spatial:
        if isinstance(place, Point):
            check_inside(volume, (place.x, place.y, place.z), place)
            s, r, c = to_picture_axes(view, volume, (place.x, place.y, place.z))
            bump = point_map(shape, [((c + 0.5) * columns - 0.5, (r + 0.5) * rows - 0.5)])
            add(min(max(round(s), 0), depth - 1), INSIDE if place.inside else OUTSIDE, bump)
        elif isinstance(place, MaskPrompt):
            if place.mask.shape != volume.grid:
                raise ValueError(f"a mask of {place.mask.shape} does not lie on the grid of the image, {volume.grid}")
            _add_mask(place, view, side, add)
        else:
            box = place.box if isinstance(place, Exemplar) else place
            first, last = corners(box, view, volume)
            bounds = (first[2] * columns, first[1] * rows, (last[2] + 1) * columns, (last[1] + 1) * rows)
            drawn = box_map(shape, [bounds])
            for index in range(max(0, round(first[0])), min(depth - 1, round(last[0])) + 1):
                add(index, BOX, drawn)
    return maps


def inside_boxes(query: Query, volume: Volume) -> NDArray[np.bool_]:
    """(Z, Y, X): where the boxes of a query and `BOX_MARGIN` around them are.

    Raises:
        ValueError: a box lies outside the image.
    """
    inside = np.zeros(volume.grid, dtype=bool)
    for box in query.spatial:
        if isinstance(box, Box):
            first, last = corners(box, View(), volume)
            cut = []
            for low, high, size in zip(first, last, volume.grid, strict=True):
                margin = BOX_MARGIN * (high - low + 1)
                cut.append(slice(max(0, math.floor(low - margin)), min(size, math.ceil(high + margin) + 1)))
            inside[tuple(cut)] = True
    return inside


def corners(box: Box, view: View, volume: Volume) -> tuple[list[float], list[float]]:
    """First and last corner of a box in (slice, row, column)."""
    z0 = 0.0 if box.z0 is None else box.z0
    z1 = volume.grid[0] - 1.0 if box.z1 is None else box.z1
    for corner in ((box.x0, box.y0, z0), (box.x1, box.y1, z1)):
        check_inside(volume, corner, box)
    one, other = (to_picture_axes(view, volume, c) for c in ((box.x0, box.y0, z0), (box.x1, box.y1, z1)))
    return [min(a, b) for a, b in zip(one, other, strict=True)], [max(a, b) for a, b in zip(one, other, strict=True)]


def _share(box: object, volume: Volume) -> float:
    """Part of the area of a picture that a box holds."""
    assert isinstance(box, Box)
    first, last = corners(box, View(), volume)
    return (last[1] - first[1] + 1) * (last[2] - first[2] + 1) / (volume.grid[1] * volume.grid[2])


def _add_mask(place: MaskPrompt, view: View, side: int, add: Callable[[int, int, NDArray[np.float32]], None]) -> None:
    """A mask so far, resized to the picture; each pixel of the map is the mean of `STRIDE` x `STRIDE` of the picture's,
    as in training."""
    from PIL import Image

    slices = view.apply(place.mask)
    for index in np.flatnonzero(slices.any(axis=(1, 2))):
        plane = Image.fromarray(np.ascontiguousarray(slices[index]).astype(np.float32))
        square = np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR))
        cells = square.reshape(side // STRIDE, STRIDE, side // STRIDE, STRIDE)
        add(int(index), MASK, cells.mean((1, 3), dtype=np.float32))


def check_inside(volume: Volume, xyz: tuple[float, float, float], what: object) -> None:
    depth, height, width = volume.grid
    if not all(-0.5 <= v <= n - 0.5 for v, n in zip(xyz, (width, height, depth), strict=True)):
        raise ValueError(f"{what} lies outside the image of {width} x {height} x {depth} voxels (x, y, z)")

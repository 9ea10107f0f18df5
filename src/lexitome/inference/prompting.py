"""From a user's queries to what the compact network is given: words, windows and maps in picture coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lexitome.concepts import Concept, Vocabulary, modality_families
from lexitome.data.intensity import View
from lexitome.data.prompt_maps import STRIDE, box_map, point_map
from lexitome.models.catalog import ModelCard, TrainedConcept
from lexitome.prompts import Box, Exemplar, MaskPrompt, Point, Query
from lexitome.volume import Volume

GUESS = "untrained concept: result is a guess"


@dataclass(frozen=True)
class Understood:
    """A query made ready: the words for the network, the coded concept, and what the user should know."""

    query: Query
    words: str
    concept: Concept | None
    trained: TrainedConcept | None
    notes: tuple[str, ...]


def understand(query: Query, card: ModelCard, modality: str = "") -> Understood:
    """Resolve the words of a query to a concept and to the words the model was trained with."""
    if query.text is None:
        return Understood(query, "", None, None, ())
    typed = query.text.text
    resolution = Vocabulary.load().resolve(typed, modality)
    concept = resolution.concept
    by_name = {t.concept: t for t in card.trained_concepts}
    trained = by_name.get(concept.name) if concept is not None else None
    notes: list[str] = []
    if trained is None and concept is not None and concept.laterality:
        broader = next((c.name for c in Vocabulary.load().ancestors(concept) if c.name in by_name), None)
        if broader is not None:
            trained = by_name[broader]
            notes.append(f"answered as {broader!r}: the model was not taught its sides")
    if concept is None:
        hint = f"; did you mean {', '.join(resolution.alternatives[:3])}?" if resolution.alternatives else ""
        notes.append(f"uncoded: no concept of the vocabulary matches{hint}")
    elif resolution.how == "meaning":
        notes.append(f"taken to mean {concept.name!r} (similarity {resolution.similarity:.2f})")
    if trained is None:
        notes.append(GUESS)
    else:
        families = modality_families(modality)
        if families and not families & set(trained.families):
            notes.append(f"trained on {', '.join(trained.families)} only, this image is {modality}: result is a guess")
    return Understood(query, trained.words if trained else typed, concept, trained, tuple(notes))


def to_picture_axes(view: View, volume: Volume, xyz: Sequence[float]) -> tuple[float, float, float]:
    """Voxel coordinates (x, y, z) to (slice, row, column) of the pictures that `view` cuts."""
    zyx = (xyz[2], xyz[1], xyz[0])
    axes = [zyx[axis] for axis in view.order]
    sizes = [volume.grid[axis] for axis in view.order]
    for axis in view.flips:
        axes[axis] = sizes[axis] - 1 - axes[axis]
    return axes[0], axes[1], axes[2]


def spatial_maps(query: Query, view: View, volume: Volume, side: int) -> dict[int, NDArray[np.float32]]:
    """Maps (3, side/4, side/4) of the slices on which the query points at something.

    Raises:
        ValueError: a point or box lies outside the image.
    """
    depth, height, width = (volume.grid[axis] for axis in view.order)
    shape = (side // STRIDE, side // STRIDE)
    rows, columns = shape[0] / height, shape[1] / width
    maps: dict[int, NDArray[np.float32]] = {}

    def plane(index: int) -> NDArray[np.float32]:
        return maps.setdefault(index, np.zeros((3, *shape), dtype=np.float32))

    for place in query.spatial:
        if isinstance(place, Point):
            _inside(volume, (place.x, place.y, place.z), place)
            s, r, c = to_picture_axes(view, volume, (place.x, place.y, place.z))
            bump = point_map(shape, [((c + 0.5) * columns - 0.5, (r + 0.5) * rows - 0.5)])
            channel = 1 if place.inside else 2
            plane(round(s))[channel] = np.maximum(plane(round(s))[channel], bump)
        elif isinstance(place, MaskPrompt):
            _add_mask(place, view, shape, plane)
        else:
            box = place.box if isinstance(place, Exemplar) else place
            first, last = _corners(box, view, volume)
            bounds = (first[2] * columns, first[1] * rows, (last[2] + 1) * columns, (last[1] + 1) * rows)
            for index in range(max(0, round(first[0])), min(depth - 1, round(last[0])) + 1):
                plane(index)[0] = np.maximum(plane(index)[0], box_map(shape, [bounds]))
    return maps


def _corners(box: Box, view: View, volume: Volume) -> tuple[list[float], list[float]]:
    """First and last corner of a box in (slice, row, column)."""
    z0 = 0.0 if box.z0 is None else box.z0
    z1 = volume.grid[0] - 1.0 if box.z1 is None else box.z1
    for corner in ((box.x0, box.y0, z0), (box.x1, box.y1, z1)):
        _inside(volume, corner, box)
    one, other = (to_picture_axes(view, volume, c) for c in ((box.x0, box.y0, z0), (box.x1, box.y1, z1)))
    return [min(a, b) for a, b in zip(one, other, strict=True)], [max(a, b) for a, b in zip(one, other, strict=True)]


def _add_mask(place: MaskPrompt, view: View, shape: tuple[int, int], plane: object) -> None:
    """A rough mask is given as its box on each slice and a point at its middle: what the network was trained with."""
    slices = view.apply(place.mask)
    for index in np.flatnonzero(slices.any(axis=(1, 2))):
        r, c = np.nonzero(slices[index])
        rows, columns = shape[0] / slices.shape[1], shape[1] / slices.shape[2]
        bounds = (c.min() * columns, r.min() * rows, (c.max() + 1) * columns, (r.max() + 1) * rows)
        target = plane(int(index))  # type: ignore[operator]
        target[0] = np.maximum(target[0], box_map(shape, [bounds]))
        middle = int(np.argmin((r - r.mean()) ** 2 + (c - c.mean()) ** 2))
        target[1] = np.maximum(target[1], point_map(shape, [(c[middle] * columns, r[middle] * rows)]))


def _inside(volume: Volume, xyz: tuple[float, float, float], what: object) -> None:
    depth, height, width = volume.grid
    if not all(-0.5 <= v <= n - 0.5 for v, n in zip(xyz, (width, height, depth), strict=True)):
        raise ValueError(f"{what} lies outside the image of {width} x {height} x {depth} voxels (x, y, z)")

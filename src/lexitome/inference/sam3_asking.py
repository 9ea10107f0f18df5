"""From a user's query to what SAM3 is asked: words, and places on the slices of a view.

SAM3 knows words and boxes around examples ("find all that look like this"). What else a user can point with becomes
one of these or a choice among the objects that were found:

    exemplar            as it is, positive or negative
    box                 an exemplar, and the answer is what lies inside it (`prompting.inside_boxes`)
    point, with words   of the objects the words find, those under an inside point and under no outside point
    point alone         a small box around it, and of what that finds the objects under the point
    mask                the box around it, alike

With the weights of the tracker, boxes, points and masks without words go to its mask decoder instead, which was trained
for them (`models.sam3.clicks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.concepts import Concept, Vocabulary
from lexitome.data.intensity import View
from lexitome.inference.prompting import GUESS, check_inside, corners, to_picture_axes
from lexitome.models.sam3.settings import Settings
from lexitome.prompts import Box, Exemplar, MaskPrompt, Point, Query
from lexitome.volume import Volume

VISUAL = "visual"
"""What SAM3 is told where there are places and no words, as in its training."""
SEPARATOR = "|"
"""Stands between several wordings of one thing, of which the surest answers."""
POINT_BOX = 1 / 24
"""Side of the small box that a point stands for, in sides of the picture: three of SAM3's 72 cells."""
LOOSE_POINTS = "this model has no weights for points: a small box stands for each, the result is a guess"
LOOSE_MASK = "this model has no weights for masks: the box around it was asked, the result is a guess"


@dataclass(frozen=True, eq=False)
class Places:
    """What a query points at on one slice, in shares of the picture (0 to 1, across and down).

    Args:
        boxes: (B, 4) x0, y0, x1, y1 of examples.
        wanted: (B,) False for "not such as this".
        bounds: (N, 4) x0, y0, x1, y1: an object must have its centre in one of these, if there are any.
        points: (P, 2).
        inside: (P,) False for "not this".
        mask: (H, W) a rough mask of the slice, None for none.
        certain: whether pointing at it says that it is here.
    """

    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    wanted: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    bounds: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    points: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    inside: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    mask: NDArray[np.bool_] | None = None
    certain: bool = True

    @property
    def points_at_it(self) -> bool:
        """Whether the user says that it is here: what is beside it, or unlike it, does not."""
        return self.certain and bool(self.wanted.any() or self.inside.any() or self.mask is not None)


NOWHERE = Places()


@dataclass(frozen=True, eq=False)
class Told:
    """A query made ready, but for its places.

    Args:
        wordings: of the same thing; (`VISUAL`,) for none.
        concept: what the words are coded as.
        taught: whether the model was taught it; None where nobody knows.
        window: CT window it is looked at with.
    """

    query: Query
    wordings: tuple[str, ...]
    concept: Concept | None
    taught: bool | None
    window: tuple[float, float]
    notes: tuple[str, ...]

    @property
    def worded(self) -> bool:
        return self.query.text is not None

    @property
    def clicked(self) -> bool:
        """Whether places alone say which one thing is meant, so that the tracker's mask decoder can answer."""
        return not self.worded and not any(isinstance(place, Exemplar) for place in self.query.spatial)


def understand(query: Query, settings: Settings, modality: str, cut: Callable[[str], str]) -> Told:
    """
    Args:
        cut: `models.sam3.tokens.Tokens.cut`.
    """
    if query.text is None:
        return Told(query, (VISUAL,), None, None, settings.window, ())
    wordings = [part for part in (each.strip() for each in query.text.text.split(SEPARATOR)) if part] or [""]
    resolution = Vocabulary.load().resolve(wordings[0], modality)
    concept = resolution.concept
    notes: list[str] = []
    known = settings.trained.get(concept.name) if concept is not None else None
    if known is None:
        typed = " ".join(wordings[0].casefold().split())
        known = next((words for words in settings.trained.values() if words.casefold() == typed), None)
    if known is not None:
        wordings[0] = known
    elif settings.trained:
        notes.append(GUESS)
    if concept is not None and resolution.how == "meaning":
        if known is None:
            concept = None  # any words may be asked: nothing to guess
        else:
            notes.append(f"taken to mean {concept.name!r} (similarity {resolution.similarity:.2f})")
    if concept is not None and settings.synonyms:
        others = [words for words in (concept.name, *concept.synonyms) if words.isascii()]
        wordings += [words for words in others if words not in wordings][: settings.synonyms]
    for words in wordings:
        lost = cut(words)
        if lost:
            notes.append(f"too long: the model reads 32 tokens, {lost!r} was cut off")
    window = next((settings.windows[w] for w in wordings if w in settings.windows), settings.window)
    taught = known is not None if settings.trained else None
    return Told(query, tuple(wordings), concept, taught, window, tuple(notes))


def places_of(query: Query, view: View, volume: Volume) -> dict[int, Places]:
    """The slices a query points at, and how.

    Raises:
        ValueError: a point or box lies outside the image, or a mask is not on its grid.
    """
    depth, height, width = (volume.grid[axis] for axis in view.order)
    found: dict[int, list[tuple[str, Any]]] = {}
    for place in query.spatial:
        if isinstance(place, Point):
            check_inside(volume, (place.x, place.y, place.z), place)
            s, r, c = to_picture_axes(view, volume, (place.x, place.y, place.z))
            at = ((c + 0.5) / width, (r + 0.5) / height, place.inside)
            found.setdefault(min(max(round(s), 0), depth - 1), []).append(("point", at))
        elif isinstance(place, MaskPrompt):
            if place.mask.shape != volume.grid:
                raise ValueError(f"a mask of {place.mask.shape} does not lie on the grid of the image, {volume.grid}")
            slices = view.apply(place.mask)
            for index in np.flatnonzero(slices.any(axis=(1, 2))).tolist():
                found.setdefault(index, []).append(("mask", slices[index].astype(np.bool_)))
        else:
            box = place.box if isinstance(place, Exemplar) else place
            first, last = corners(box, view, volume)
            edges = (first[2] / width, first[1] / height, (last[2] + 1) / width, (last[1] + 1) / height)
            kind = "bound" if isinstance(place, Box) else "like" if place.positive else "unlike"
            for index in range(max(0, round(first[0])), min(depth - 1, round(last[0])) + 1):
                found.setdefault(index, []).append((kind, edges))
    return {index: _gather(entries) for index, entries in found.items()}


def _gather(entries: list[tuple[str, Any]]) -> Places:
    def rows(kind: str, columns: int) -> NDArray[np.float32]:
        return np.array([entry for each, entry in entries if each == kind], np.float32).reshape(-1, columns)

    bounds, like, unlike, points = rows("bound", 4), rows("like", 4), rows("unlike", 4), rows("point", 3)
    masks = [entry for kind, entry in entries if kind == "mask"]
    mask = np.logical_or.reduce(masks) if masks else None
    boxes = np.concatenate([bounds, like, unlike])
    wanted = np.arange(len(boxes)) < len(bounds) + len(like)
    return Places(boxes, wanted, bounds, points[:, :2], points[:, 2] > 0, mask)


def as_boxes(places: Places, *, worded: bool) -> Places:
    """Points without words, and masks, as boxes: for a model that knows words and boxes only."""
    boxes, wanted, bounds = places.boxes, places.wanted, places.bounds
    if not worded and len(places.points):
        half = np.float32(POINT_BOX / 2)
        around = np.concatenate([places.points - half, places.points + half], axis=1).clip(0, 1)
        boxes, wanted = np.concatenate([boxes, around]), np.concatenate([wanted, places.inside])
    if places.mask is not None:
        rows, columns = (np.flatnonzero(places.mask.any(axis)) for axis in (1, 0))
        height, width = places.mask.shape
        edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
        around = np.array([edges], np.float32)
        boxes, wanted = np.concatenate([boxes, around]), np.concatenate([wanted, [True]])
        bounds = np.concatenate([bounds, around])
    return Places(boxes, wanted, bounds, places.points, places.inside, certain=places.certain)

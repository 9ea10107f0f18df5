"""What needs no network: every number of a model is worth what it adds to these.

empty       finds nothing
full        the whole image; where boxes are given, all of each box
otsu        the side of Otsu's grey level that showed the concept better on training images: brighter or darker, all of
            it or only its largest connected part, whichever of the four has the highest mean Dice there
mean-shape  where at least half of the training images that show the concept have it, each stretched to the image

Otsu and mean shape learn from the training part of the asked set alone; a set without one (an external set) gets
"missing". Grey levels are those a model sees (`intensity.to_pictures`), in volumes one level for all slices; shapes of
volumes are averaged as they are hung (`intensity.choose_view`). An answer to boxes is cut to them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE, Case, Dataset
from lexitome.data.intensity import View, Window, choose_view, to_pictures
from lexitome.data.trained_on import TrainedOn, fingerprints
from lexitome.evaluation.answering import About, Answer, Answerer, Kind
from lexitome.prompts import Box, Query
from lexitome.volume import Volume

Mask = NDArray[np.bool_]
Grid = tuple[int, int, int]
Learned = TypeVar("Learned")
SAMPLE = 60
"""Training images that choose the side of Otsu's level, evenly spread."""
MOST_SHAPES = 500
"""Training images, evenly spread, that are averaged to a shape."""
PLANE, STACK = (1, 256, 256), (64, 128, 128)
"""Grid (slice, row, column) of a mean shape in 2D and 3D."""
ANY = ""
"""Among what Otsu learned: all concepts together, for boxes without words."""


@dataclass(frozen=True, eq=False)
class Known:
    """A `Session` whose answers are ready before the questions; boxes only cut them.

    Args:
        by_name: of the concepts that it knows.
        otherwise: of all others, and of boxes without words.
    """

    grid: Grid
    by_name: Mapping[str, Answer]
    otherwise: Answer

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        return [self._cut(query) for query in queries]

    def _cut(self, query: Query) -> Answer:
        answer = self.by_name.get(query.text.text if query.text else ANY, self.otherwise)
        boxes = [place for place in query.spatial if isinstance(place, Box)]
        if not boxes:
            return answer
        inside = np.zeros(self.grid, dtype=bool)
        for box in boxes:
            inside[voxels_of(box)] = True
        probability = None if answer.probability is None else answer.probability * inside
        return replace(answer, mask=answer.mask & inside, probability=probability)


def voxels_of(box: Box) -> tuple[slice, slice, slice]:
    """(z, y, x) slices from the voxel nearest to the first corner to the one nearest to the last."""

    def span(low: float | None, high: float | None) -> slice:
        return slice(None) if low is None or high is None else slice(int(low + 0.5), int(high + 0.5) + 1)

    return span(box.z0, box.z1), span(box.y0, box.y1), span(box.x0, box.x1)


@dataclass(frozen=True, eq=False)
class Constant:
    """The same for every image, whatever is asked."""

    name: str
    filled: bool
    takes: frozenset[Kind] = frozenset({"text", "label", "box"})

    def provenance(self) -> dict[str, Any]:
        return _provenance(self.name)

    def training(self) -> TrainedOn:
        """Nothing: it has seen no picture."""
        return fingerprints([])

    def begin(self, volume: Volume, about: About, /) -> Known:
        mask = np.full(volume.grid, self.filled)
        return Known(volume.grid, {}, Answer(mask, float(self.filled), mask.astype(np.float32)))


class Lessons(Generic[Learned]):
    """What was learned from each dataset: computed at the first image of it, once, whatever the number of threads."""

    def __init__(self, datasets: Sequence[Dataset], learn: Callable[[Dataset], Learned]) -> None:
        self._datasets = {dataset.name: dataset for dataset in datasets}
        self._locks = {dataset.name: threading.Lock() for dataset in datasets}
        self._learn = learn
        self._learned: dict[str, Learned] = {}

    def of(self, name: str) -> tuple[Dataset, Learned]:
        with self._locks[name]:
            if name not in self._learned:
                self._learned[name] = self._learn(self._datasets[name])
        return self._datasets[name], self._learned[name]

    @property
    def names(self) -> list[str]:
        return sorted(self._datasets)


@dataclass(frozen=True)
class Side:
    """Which side of Otsu's level shows a concept, and its mean Dice on training images."""

    bright: bool
    largest: bool
    dice: float


SIDES = tuple((bright, largest) for bright in (True, False) for largest in (False, True))


@dataclass(frozen=True, eq=False)
class Otsu:
    """See the module docstring. Method: N. Otsu, "A threshold selection method from gray-level histograms", 1979."""

    lessons: Lessons[dict[str, Side]]
    name: str = "otsu"
    takes: frozenset[Kind] = frozenset({"label", "box"})

    def provenance(self) -> dict[str, Any]:
        return _provenance(self.name, self.lessons.names)

    def begin(self, volume: Volume, about: About, /) -> Known:
        dataset, sides = self.lessons.of(about.dataset)
        if ANY not in sides:
            return _unknown(volume, "no training image shows anything of this set")
        grey = grey_levels(volume, dataset.window)
        found = {pair: side_of(grey, *pair) for pair in {(side.bright, side.largest) for side in sides.values()}}
        answers = {
            name: Answer(found[side.bright, side.largest], notes=(_in_words(side),)) for name, side in sides.items()
        }
        return Known(volume.grid, answers, answers[ANY])


def choose_sides(dataset: Dataset) -> dict[str, Side]:
    """Of every concept that the training images show, and of `ANY`; {} if there are none."""
    scores: dict[str, list[list[float]]] = {}
    for case in _spread(dataset, SAMPLE):
        volume, codes = read_case(case)
        judged = codes != UNKNOWN_CODE
        grey = grey_levels(volume, dataset.window)
        masks = [side_of(grey, *pair) & judged for pair in SIDES]
        for name, truth in _shown(dataset, case, codes):
            dice = [2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()) for mask in masks]
            for key in (name, ANY):
                scores.setdefault(key, []).append(dice)
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    return {name: Side(*SIDES[int(mean.argmax())], float(mean.max())) for name, mean in means.items()}


def side_of(grey: NDArray[np.uint8], bright: bool, largest: bool) -> Mask:
    """Pixels above Otsu's level of the whole (Z, Y, X) image, or the others; all, or their largest connected part (6
    neighbours)."""
    above = grey > otsu_level(grey)
    mask = above if bright else ~above
    if largest:
        parts, count = ndimage.label(mask)
        mask = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()) if count else mask
    return np.asarray(mask)


def otsu_level(grey: NDArray[np.uint8]) -> int:
    """The grey level that splits pixels into "up to it" and "above" with the largest variance between the two."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
        between = below * above * gap**2
    return int(np.nan_to_num(between, posinf=0.0).argmax())


def grey_levels(volume: Volume, window: Window | None) -> NDArray[np.uint8]:
    """(Z, Y, X) of a volume, on its own grid; colours by their mean."""
    pictures = to_pictures(volume, window, View())
    if volume.array.shape[0] != 3:
        return np.ascontiguousarray(pictures[..., 0])
    return np.asarray(pictures.mean(axis=-1).round().astype(np.uint8))


@dataclass(frozen=True, eq=False)
class Shape:
    """Mean (slice, row, column) mask of a concept over the training images that show it, and how many of those that
    were looked at do."""

    mean: NDArray[np.float32]
    presence: float


@dataclass(frozen=True, eq=False)
class MeanShape:
    """See the module docstring. Presence is the share of training images that show the concept."""

    lessons: Lessons[dict[str, Shape]]
    name: str = "mean-shape"
    takes: frozenset[Kind] = frozenset({"label"})

    def provenance(self) -> dict[str, Any]:
        return _provenance(self.name, self.lessons.names)

    def begin(self, volume: Volume, about: About, /) -> Known:
        _, shapes = self.lessons.of(about.dataset)
        view = choose_view(volume)
        answers = {}
        for name in about.labels:
            if name in shapes:
                grid = [volume.grid[axis] for axis in view.order]
                likely = np.asarray(view.undo(stretched(shapes[name].mean, grid)), dtype=np.float32)
                answers[name] = Answer(likely >= 0.5, shapes[name].presence, likely)
        return Known(volume.grid, answers, _unknown(volume, "no training image shows it").otherwise)


def mean_shapes(dataset: Dataset) -> dict[str, Shape]:
    """Of every concept that the training images show. Pixels that nobody judged count in neither direction."""
    grid = PLANE if dataset.dims == 2 else STACK
    sums: dict[str, NDArray[np.float32]] = {}
    weights: dict[str, NDArray[np.float32]] = {}
    shown: dict[str, int] = {}
    looked: dict[str, int] = {}
    for case in _spread(dataset, MOST_SHAPES):
        volume, codes = read_case(case)
        view = choose_view(volume)
        judged = stretched(np.asarray(view.apply(codes != UNKNOWN_CODE), np.float32), grid)
        for target in dataset.targets:
            if not set(target.labels) & case.unknown_labels:
                looked[target.name] = looked.get(target.name, 0) + 1
        for name, truth in _shown(dataset, case, codes):
            mask = stretched(np.asarray(view.apply(truth), np.float32), grid)
            sums[name] = sums.get(name, np.float32(0)) + mask
            weights[name] = weights.get(name, np.float32(0)) + judged
            shown[name] = shown.get(name, 0) + 1
    means = {name: sums[name] / np.maximum(weights[name], np.float32(1e-6)) for name in sums}
    return {name: Shape(mean.astype(np.float32), shown[name] / looked[name]) for name, mean in means.items()}


def stretched(array: NDArray[np.float32], grid: Sequence[int]) -> NDArray[np.float32]:
    """An array of three axes on another grid of the same extent, trilinear between voxel centres."""
    if array.shape == tuple(grid):
        return array
    factors = [new / old for new, old in zip(grid, array.shape, strict=True)]
    return np.asarray(ndimage.zoom(array, factors, order=1, mode="nearest", grid_mode=True), dtype=np.float32)


def _spread(dataset: Dataset, count: int) -> list[Case]:
    """Up to `count` training cases, evenly spread."""
    cases = [case for case in dataset.cases if case.split == "train"]
    chosen = np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int)
    return [cases[i] for i in chosen]


def _shown(dataset: Dataset, case: Case, codes: NDArray[np.uint8]) -> Iterator[tuple[str, Mask]]:
    """Concepts that the case was searched for and shows, with their masks."""
    for target in dataset.targets:
        if not set(target.labels) & case.unknown_labels:
            mask = np.isin(codes, target.codes)
            if mask.any():
                yield target.name, mask


def _unknown(volume: Volume, why: str) -> Known:
    return Known(volume.grid, {}, Answer(np.zeros(volume.grid, dtype=bool), notes=(why,), status="missing"))


def _in_words(side: Side) -> str:
    part = "largest part of the " if side.largest else ""
    return f"{part}{'brighter' if side.bright else 'darker'} side, Dice {side.dice:.2f} on training images"


def _provenance(name: str, sets: Sequence[str] = ()) -> dict[str, Any]:
    return {"name": name, "kind": "baseline", "licence": "", "trained_on": list(sets)}


BASELINES: dict[str, Callable[[Sequence[Dataset]], Answerer]] = {
    "empty": lambda datasets: Constant("empty", filled=False),
    "full": lambda datasets: Constant("full", filled=True),
    "otsu": lambda datasets: Otsu(Lessons(datasets, choose_sides)),
    "mean-shape": lambda datasets: MeanShape(Lessons(datasets, mean_shapes)),
}
"""Each is made for the datasets that will be asked, with all their parts: they learn from "train"."""

"""Training batches: pictures, K queries for each, and what the right answers are.

A picture of a run is a pure function of (seed, step, its index in the step): a resumed run, and any number of processes
that share a step, see what one uninterrupted process would have seen. Needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lexitome.data.augment import (
    change_tone,
    change_window,
    draw_warp,
    keep_middle,
    swap_neighbours,
    warp_labels,
    warp_picture,
)
from lexitome.data.cache import CachedDataset, Row
from lexitome.data.dataset import UNKNOWN_CODE, Target
from lexitome.data.negatives import Stranger, foreign, surely_absent
from lexitome.data.prompt_maps import draw_place, no_place
from lexitome.data.traits import SIZES, Size
from lexitome.text import TextEncoder

TEMPLATES = (*("{}",) * 6, "the {}", "segment the {}", "{} in {}")
SMALLEST_TARGET = 4
"""Pixels from which a target counts as shown."""
LONE_SLICE = 0.3
"""Of the slices of volumes, how many are shown without their neighbours, as single exported slices are."""
EMPTY_TURNS = {2: 0.1, 3: 0.5}
"""A picture without any target is drawn this often, relative to the mean of the others, by dimensions of the set: most
slices of a volume show nothing, and where a structure ends has to be learned."""


@dataclass(frozen=True)
class Draw:
    """How the pictures of one step are drawn: all of one size class, S the side and N their number."""

    size: Size
    side: int
    images: int


@dataclass(frozen=True)
class Batch:
    """N pictures with K queries each, Q = N K, S the side."""

    pictures: Tensor  # (N, 3, S, S) float32, 0..255, channels last
    text: Tensor  # (Q, T)
    spatial: Tensor  # (Q, 4, S/4, S/4)
    masks: Tensor  # (Q, S, S) float32 0/1
    present: Tensor  # (Q,) float32 0/1
    instances: Tensor  # (Q, S/2, S/2) int32 ids of the objects in the mask, 0 outside
    countable: Tensor  # (Q,) float32: whether `instances` is known
    unjudged: Tensor  # (N, S, S) bool: pixels that nobody annotated, neither target nor background


@dataclass(frozen=True, eq=False)
class Question:
    """One query about a warped picture: what is given and what is asked for."""

    words: str
    place: NDArray[np.float32]  # (4, S/4, S/4)
    mask: NDArray[np.bool_]  # (S, S)
    positive: bool


@dataclass(frozen=True, eq=False)
class Picture:
    """One augmented picture, its queries, and for each of them the object ids at half resolution (None: not known)."""

    pixels: Tensor  # (3, S, S) float32, 0..255
    unjudged: NDArray[np.bool_]  # (S, S)
    questions: list[Question]
    objects: list[NDArray[np.int32] | None]


class Embedder(Protocol):
    """What turns words into vectors: `text.TextEncoder`, or another way to compare it with."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, T), one row for each text."""


class BatchSource:
    """Draws pictures and queries from the training rows of cached datasets."""

    def __init__(
        self,
        sets: Sequence[CachedDataset],
        *,
        seed: int,
        queries: int = 3,
        negatives: bool = True,
        strangers: Sequence[Stranger] = (),
        text: Embedder | None = None,
        lone_slice: float = LONE_SLICE,
        places: bool = True,
    ) -> None:
        """Args:
        negatives: whether targets that are not in the picture are asked for.
        strangers: things that other modalities show, asked of sets about which nothing is known.
        text: of the words, by default the encoder of the package.
        lone_slice: of the slices of volumes, how many are shown without their neighbours.
        places: whether some queries give a box, points or a mask.
        """
        self.sets = list(sets)
        self.seed, self.queries, self.negatives = seed, queries, negatives
        self.lone_slice, self.places = lone_slice, places
        self.text: Embedder = text or TextEncoder.load()
        self.traits = [s.traits for s in self.sets]
        self.rows = [[i for i, row in enumerate(s.rows) if self._serves(s, row)] for s in self.sets]
        self.set_chance = {size: self._set_chances(size) for size in SIZES}
        datasets = [s.dataset for s in self.sets]
        self.near = [surely_absent(d, datasets, same_family=True) for d in datasets]
        self.far = [surely_absent(d, datasets, same_family=False) or foreign(d, strangers) for d in datasets]
        self.row_chance = [_row_chances(s, r) for s, r in zip(self.sets, self.rows, strict=True)]

    def phrases(self) -> list[str]:
        """Every name and synonym of the sets."""
        return sorted({p for s in self.sets for t in s.dataset.targets for p in (t.name, *t.synonyms)})

    def phrase_vectors(self) -> Tensor:
        """(N, T) vectors of every name and synonym of the sets."""
        return torch.from_numpy(self.text.embed(self.phrases()))

    def size_of(self, step: int, share: Mapping[str, float]) -> Size:
        """The size class of a step, drawn by `share` from those that have sets."""
        chances = np.array([share[size] * (self.set_chance[size].sum() > 0) for size in SIZES])
        if chances.sum() == 0:
            return "medium"
        rng = np.random.default_rng((self.seed, step))
        return SIZES[int(rng.choice(len(SIZES), p=chances / chances.sum()))]

    def pictures(self, step: int, draw: Draw, indices: range) -> list[Picture]:
        """The pictures `indices` (of ``draw.images``) of a step, with the words of their queries."""
        # Not `index`: numpy takes (seed, step, 0) for (seed, step), which has drawn the size class.
        return [self._picture(draw, np.random.default_rng((self.seed, step, index + 1))) for index in indices]

    def batch(self, step: int, draw: Draw, indices: range) -> Batch:
        """`pictures` as the compact model is given them."""
        drawn = self.pictures(step, draw, indices)
        questions = [question for picture in drawn for question in picture.questions]
        objects = [ids for picture in drawn for ids in picture.objects]
        half = draw.side // 2
        known = [ids is not None for ids in objects]
        ids = [np.zeros((half, half), np.int32) if ids is None else ids for ids in objects]
        return Batch(
            torch.stack([picture.pixels for picture in drawn]).contiguous(memory_format=torch.channels_last),
            torch.from_numpy(self.text.embed([q.words for q in questions])),
            torch.from_numpy(np.stack([q.place for q in questions])),
            torch.from_numpy(np.stack([q.mask for q in questions])).float(),
            torch.tensor([q.positive for q in questions], dtype=torch.float32),
            torch.from_numpy(np.stack(ids)),
            torch.tensor(known, dtype=torch.float32),
            torch.from_numpy(np.stack([picture.unjudged for picture in drawn])),
        )

    def _serves(self, cached: CachedDataset, row: Row) -> bool:
        """Whether a picture is there to learn from: something was looked for, and found if that is to be asked."""
        targets = _annotated(cached, row)
        found = any(set(target.codes) & set(row.present) for target in targets)
        return row.split == "train" and bool(targets) and (found or self.negatives)

    def _set_chances(self, size: Size) -> NDArray[np.float64]:
        """Chance of each set in a step of a size class; sets that want to be seen large are seen at both sizes."""
        weights = np.array(
            [
                math.sqrt(len(rows)) * traits.turns * (traits.size == size or (size, traits.size) == ("medium", "fine"))
                for traits, rows in zip(self.traits, self.rows, strict=True)
            ]
        )
        return weights / max(weights.sum(), 1e-12)

    def _picture(self, draw: Draw, rng: np.random.Generator) -> Picture:
        which = int(rng.choice(len(self.sets), p=self.set_chance[draw.size]))
        cached, traits = self.sets[which], self.traits[which]
        index = int(rng.choice(self.rows[which], p=self.row_chance[which]))
        row, warp = cached.rows[index], draw_warp(traits, rng)
        codes = warp_labels(cached.codes[index], warp, draw.side)
        area = _areas(_annotated(cached, row), codes)
        if not self.negatives and not any(area.values()):
            return self._picture(draw, rng)  # what it shows was moved out of sight
        picture = warp_picture(cached.images[index], warp, draw.side)
        if row.stacked:
            picture = keep_middle(picture) if rng.random() < self.lone_slice else picture
            picture = swap_neighbours(picture) if rng.random() < 0.5 else picture
        picture = change_window(picture, rng) if cached.dataset.family == "ct" else picture
        is_colour = not row.stacked and bool((picture[0] != picture[1]).any())
        picture = change_tone(picture, rng, colour=is_colour)
        ids = None if cached.instances is None else warp_labels(cached.instances[index], warp, draw.side)
        questions = [self._question(which, codes, area, slot, rng) for slot in range(self.queries)]
        objects = [_objects(question, ids, traits.countable) for question in questions]
        return Picture(picture, codes == UNKNOWN_CODE, questions, objects)

    def _question(
        self,
        which: int,
        codes: NDArray[np.int32],
        area: Mapping[Target, int],
        slot: int,
        rng: np.random.Generator,
    ) -> Question:
        """One query. `area`: of the targets that were looked for in this case, in pixels; others are never asked."""
        present = [t for t in area if area[t] >= SMALLEST_TARGET]
        kind = _kind_of_query(slot, len(present), rng.random())
        kind = "text" if kind == "place" and not self.places else kind
        pool = self._absent_pool(which, [t for t in area if area[t] == 0], rng)
        if not present and not (pool and self.negatives):
            present = [t for t in area if area[t] > 0]
        if not present or (kind == "absent" and pool and self.negatives):
            words = self._words(pool[int(rng.integers(len(pool)))], which, rng)
            return Question(words, no_place(len(codes)), np.zeros(codes.shape, dtype=bool), False)
        target = _pick_present(present, area, rng)
        mask = np.isin(codes, target.codes)
        if kind != "place":
            return Question(self._words(target, which, rng), no_place(len(codes)), mask, True)
        place = draw_place(mask, rng)
        words = self._words(target, which, rng) if rng.random() < 0.65 else ""
        return Question(words, place.maps, place.mask, True)

    def _absent_pool(self, which: int, absent: list[Target], rng: np.random.Generator) -> list[Target]:
        """Targets of its own set that this picture lacks, else of the same modality, else of another one."""
        draw, near, far = rng.random(), self.near[which], self.far[which]
        pools = (absent, near, far) if draw < 0.65 else (near, far, absent) if draw < 0.9 else (far, near, absent)
        return next((pool for pool in pools if pool), [])

    def _words(self, target: Target, which: int, rng: np.random.Generator) -> str:
        names = (target.name, target.name, *target.synonyms)
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        return template.format(names[int(rng.integers(len(names)))], self.sets[which].dataset.modality)


def _annotated(cached: CachedDataset, row: Row) -> list[Target]:
    """The targets that were looked for in the case of a row."""
    return [target for target in cached.dataset.targets if not set(target.labels) & set(row.unknown)]


def _areas(targets: Sequence[Target], codes: NDArray[np.int32]) -> dict[Target, int]:
    """Pixels of each target."""
    areas = np.bincount(codes.ravel(), minlength=UNKNOWN_CODE + 1)
    return {target: int(areas[list(target.codes)].sum()) for target in targets}


def _row_chances(cached: CachedDataset, rows: list[int]) -> NDArray[np.float64]:
    """Pictures that show a rare target come more often; empty ones by `EMPTY_TURNS`."""
    counts: dict[str, int] = {}
    shown = [[t.name for t in cached.dataset.targets if set(t.codes) & set(cached.rows[i].present)] for i in rows]
    for names in shown:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    weights = np.array([max((1 / math.sqrt(counts[n]) for n in names), default=0.0) for names in shown])
    if not weights.any():
        return np.full(len(rows), 1 / max(len(rows), 1))
    weights = np.where(weights > 0, weights, EMPTY_TURNS[cached.dataset.dims] * weights[weights > 0].mean())
    return weights / weights.sum()


def _kind_of_query(slot: int, present: int, draw: float) -> str:
    """ "text", "place" (a box, points or a mask, with or without words) or "absent", given how many targets are
    present. The first query asks for something that is there; the others ask as often for what is not."""
    if present == 0:
        return "absent"
    if slot == 0:
        return "place" if draw < 0.2 else "text"
    if slot == 1:
        return "text" if present > 1 and draw < 0.7 else "absent"
    if draw < 0.35:
        return "place"
    return "text" if present > 1 and draw < 0.65 else "absent"


def _pick_present(present: list[Target], area: Mapping[Target, int], rng: np.random.Generator) -> Target:
    """Small structures first: they are the hard ones and are seen least."""
    weights = np.array([area[t] ** -0.25 * (0.5 if t.derived else 1.0) for t in present])
    return present[int(rng.choice(len(present), p=weights / weights.sum()))]


def _objects(question: Question, ids: NDArray[np.int32] | None, countable: bool) -> NDArray[np.int32] | None:
    """(S/2, S/2) ids of the objects in a query's mask: the annotated ones, else the connected parts of what is
    countable, else None."""
    if ids is None and not countable:
        return None
    mask = question.mask[::2, ::2]
    if ids is not None:
        return np.where(mask, ids[::2, ::2], 0).astype(np.int32)
    return np.asarray(ndimage.label(mask)[0], dtype=np.int32)

"""What a short run of the compact model is judged by: it is asked about validation pictures in several ways.

Every row of the table is asked the same: by the names it was trained with, by words it never met, with a box besides,
about slices with and without their neighbours, about what is not there, and for single objects.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lexitome.data.batches import BatchSource
from lexitome.data.cache import CachedDataset
from lexitome.data.dataset import UNKNOWN_CODE, Target
from lexitome.data.prompt_maps import BOX, STRIDE, box_map, no_place
from lexitome.data.traits import Size
from lexitome.evaluation.metrics.instances import match
from lexitome.evaluation.metrics.overlap import count, dice
from lexitome.evaluation.protocols import jittered_box, seeded
from lexitome.inference.objects import CentreMaps, connected, separate
from lexitome.models.compact import CompactNet, Objects
from lexitome.text import split_words
from lexitome.training.answers import annotated, validation_rows
from lexitome.training.validation import spread

Reading = Literal["parts", "centres", "queries"]
"""How single objects are read off: connected parts of the mask, the centre head, or the object queries."""
SCORES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Thresholds tried for object queries, whose scores stay low in a short run. The best one counts: in their favour."""
ABSENT_OF_OTHER_SETS = 3
CONCEPT, SLICE_CONCEPT, ALONE = "dice_2d", "dice_slices", "dice_slices_alone"
NEW, BY_NAME = "dice_new_words", "dice_same_by_name"
BOXED, UNBOXED = "dice_box", "dice_same_by_text"


@dataclass(frozen=True, eq=False)
class Probe:
    """How a model is asked.

    Args:
        sides: at which side pictures of each size class are shown.
        pictures: of the validation part of each set.
        stacked: whether slices are shown with their neighbours where that is the main measure.
        reading: how the objects of `f1` are found; `f1_parts` is measured for every model.
        new_words: (set, target) to words that training never used.
    """

    sides: dict[Size, int]
    pictures: int
    stacked: bool
    reading: Reading
    new_words: dict[tuple[str, str], str]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Said:
    """Answers at the resolution of the cached picture: masks (Q, H, W), presence (Q,) probabilities, and of each query
    the centre maps and the objects."""

    masks: NDArray[np.bool_]
    presence: NDArray[np.float32]
    centres: list[CentreMaps]
    objects: Objects | None


@dataclass(eq=False)
class Scores:
    """Dice by measure and concept, presence of pairs, counted objects by the way they were found."""

    dice: dict[str, dict[tuple[str, str], list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    present: list[float] = field(default_factory=list)
    absent: list[float] = field(default_factory=list)
    objects: dict[str, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))

    def summary(self, reading: Reading) -> dict[str, float]:
        """Percent. What no picture could tell is left out."""
        means = {name: _mean_of_means(concepts) for name, concepts in self.dice.items()}
        whole = {key: value for name in (CONCEPT, SLICE_CONCEPT) for key, value in self.dice[name].items()}
        found = {"dice": _mean_of_means(whole) if whole else 0.0, **means}
        if BOXED in means:
            found["box_gain"] = means[BOXED] - means[UNBOXED]
        if self.present and self.absent:
            present, absent = np.array(self.present), np.array(self.absent)
            found["presence"] = 50 * float((present > 0.5).mean() + (absent <= 0.5).mean())
            wins = (present[:, None] > absent).mean() + 0.5 * (present[:, None] == absent).mean()
            found["presence_auc"] = 100 * float(wins)
        f1 = {way: _f1(triples) for way, triples in self.objects.items()}
        if f1:
            found["f1_parts"] = f1["parts"]
            found["f1"] = max(value for way, value in f1.items() if way.startswith(reading))
            if queries := [value for way, value in f1.items() if way.startswith("queries")]:
                found["f1_queries"] = max(queries)
        return {name: float(value) for name, value in found.items()}


def measure(model: CompactNet, source: BatchSource, probe: Probe) -> dict[str, float]:
    """Means over concepts (set and target), see `Scores.summary`."""
    return scored(model, source, probe).summary(probe.reading)


def scored(model: CompactNet, source: BatchSource, probe: Probe) -> Scores:
    """`source` gives the words their vectors. Values of a concept are in the order of its pictures, for every model."""
    scores = Scores()
    for which, cached in enumerate(source.sets):
        for index in spread(validation_rows(cached), probe.pictures):
            _look(model, source, which, index, probe, scores)
    return scores


def _look(
    model: CompactNet, source: BatchSource, which: int, index: int, probe: Probe, scores: Scores
) -> None:  # fmt: skip
    """One picture in all ways."""
    cached = source.sets[which]
    codes, row, name = cached.codes[index], cached.rows[index], cached.dataset.name
    rng = seeded(probe.seed, name, row.stem, str(row.slice), str(row.axis))
    targets = [target for target in annotated(cached, index) if not target.derived]
    near = source.near[which]
    strange = [near[int(i)] for i in rng.permutation(len(near))[:ABSENT_OF_OTHER_SETS]]
    truths = [np.isin(codes, target.codes) for target in targets]
    picture = _alone(cached.images[index]) if row.stacked and not probe.stacked else cached.images[index]
    words = [target.name for target in (*targets, *strange)]
    if not words:
        return
    side = probe.sides[cached.traits.size]
    said = ask(model, picture, source.text.embed(words), side)
    _score_presence(said, truths, scores)
    main = SLICE_CONCEPT if cached.dataset.dims == 3 else CONCEPT
    shown = [i for i, truth in enumerate(truths) if truth.any()]
    by_name = {i: overlap(said.masks[i] & (codes != UNKNOWN_CODE), truths[i]) for i in shown}
    for i in shown:
        scores.dice[main][name, targets[i].name].append(by_name[i])
    if cached.instances is not None:
        for i in shown:
            _score_objects(said, i, np.where(truths[i], cached.instances[index], 0), scores)
    other = _other_ways(model, source, cached, index, [(targets[i], truths[i]) for i in shown], probe)
    for measured, target, value in other:
        i = next(i for i in shown if targets[i] is target)
        scores.dice[measured][name, target.name].append(value)
        if reference := {NEW: BY_NAME, BOXED: UNBOXED}.get(measured):
            scores.dice[reference][name, target.name].append(by_name[i])


def _other_ways(
    model: CompactNet, source: BatchSource, cached: CachedDataset, index: int,
    shown: Sequence[tuple[Target, NDArray[np.bool_]]], probe: Probe,
) -> list[tuple[str, Target, float]]:  # fmt: skip
    """(measure, target, Dice) of targets that the picture shows, asked by new words, with a box, without neighbours."""
    if not shown:
        return []
    row, side, name = cached.rows[index], probe.sides[cached.traits.size], cached.dataset.name
    judged, found = cached.codes[index] != UNKNOWN_CODE, []
    ways = [(NEW, t, m, probe.new_words[name, t.name], no_place(side)) for t, m in shown if (name, t.name) in
            probe.new_words]  # fmt: skip
    if cached.dataset.dims == 2:
        rng = seeded(probe.seed, "box", name, row.stem)
        ways += [(BOXED, t, m, t.name, boxed(m, side, rng)) for t, m in shown]
    if ways:
        maps = np.stack([place for *_, place in ways])
        picture = _alone(cached.images[index]) if row.stacked and not probe.stacked else cached.images[index]
        said = ask(model, picture, source.text.embed([words for _, _, _, words, _ in ways]), side, maps)
        found += [(way, t, overlap(said.masks[q] & judged, m)) for q, (way, t, m, _, _) in enumerate(ways)]
    if row.stacked:
        said = ask(model, _alone(cached.images[index]), source.text.embed([t.name for t, _ in shown]), side)
        found += [(ALONE, t, overlap(said.masks[q] & judged, m)) for q, (t, m) in enumerate(shown)]
    return found


@torch.no_grad()
def ask(
    model: CompactNet, picture: NDArray[np.uint8], vectors: NDArray[np.float32], side: int,
    places: NDArray[np.float32] | None = None,
) -> Said:  # fmt: skip
    """Q queries about a cached picture (H, W, 3): text `vectors` (Q, T), `places` (Q, 4, side/4, side/4) or none."""
    shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    shown = F.interpolate(shown, (side, side), mode="bilinear", antialias=True)
    nowhere = np.repeat(no_place(side)[None], len(vectors), axis=0)
    spatial = torch.from_numpy(nowhere if places is None else places)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = model(shown, torch.from_numpy(vectors), spatial)
    masks = F.interpolate(decoded.logits.float()[:, None], picture.shape[:2], mode="bilinear")[:, 0] > 0
    heat, offsets = decoded.centres.float().sigmoid().numpy(), decoded.offsets.float().numpy()
    centres = [CentreMaps(h, o) for h, o in zip(heat, offsets, strict=True)]
    return Said(masks.numpy(), decoded.presence.float().sigmoid().numpy(), centres, decoded.objects)


def boxed(mask: NDArray[np.bool_], side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The map of a box drawn around all of a mask (H, W)."""
    box, maps = jittered_box(mask[None], rng), no_place(side)
    y, x = (side / STRIDE / n for n in mask.shape)
    maps[BOX] = box_map(maps.shape[1:], [(box.x0 * x, box.y0 * y, (box.x1 + 1) * x, (box.y1 + 1) * y)])
    return maps


def from_queries(objects: Objects, query: int, shape: tuple[int, ...], score: float) -> NDArray[np.int32]:
    """(H, W) ids: each pixel goes to the object query of at least this score that claims it most."""
    scores = objects.logits[-1, query].float().sigmoid()
    kept = scores >= score
    if not kept.any():
        return np.zeros(shape, np.int32)
    masks = objects.masks[query, kept].float()[None]
    claims = F.interpolate(masks, tuple(shape), mode="bilinear")[0].sigmoid()
    best = (claims * scores[kept, None, None]).argmax(0)
    inside = claims.gather(0, best[None])[0] >= 0.5
    return np.asarray(torch.where(inside, best + 1, 0).numpy(), dtype=np.int32)


def hold_out_words(sets: Sequence[CachedDataset]) -> tuple[list[CachedDataset], dict[tuple[str, str], str]]:
    """The sets without one synonym of each target that has several, and these: the one that shares the fewest words
    with what is kept, and means nothing else anywhere."""
    uses: dict[str, set[str]] = defaultdict(set)
    for cached in sets:
        for target in cached.dataset.targets:
            for phrase in (target.name, *target.synonyms):
                uses[phrase.casefold()].add(target.name)
    kept_sets, held = [], {}
    for cached in sets:
        targets = []
        for target in cached.dataset.targets:
            free = [
                s for s in target.synonyms if len(uses[s.casefold()]) == 1 and s.casefold() != target.name.casefold()
            ]
            if len(target.synonyms) > 1 and free and not target.derived:
                chosen = min(free, key=lambda s: _shared_words(s, target))
                held[cached.dataset.name, target.name] = chosen
                target = replace(target, synonyms=tuple(s for s in target.synonyms if s != chosen))
            targets.append(target)
        kept_sets.append(replace(cached, dataset=replace(cached.dataset, targets=tuple(targets))))
    spoken = {p.casefold() for c in kept_sets for t in c.dataset.targets for p in (t.name, *t.synonyms)}
    return kept_sets, {key: words for key, words in held.items() if words.casefold() not in spoken}


def _shared_words(phrase: str, target: Target) -> float:
    words = set(split_words(phrase))
    others = {w for other in (target.name, *target.synonyms) if other != phrase for w in split_words(other)}
    return len(words & others) / len(words)


@dataclass(frozen=True, eq=False)
class OneHot:
    """A number for each concept, found by the longest known phrase in what is said; words it does not know are no
    words at all."""

    rows: dict[str, int]
    dim: int

    @staticmethod
    def of(sets: Sequence[CachedDataset], dim: int) -> OneHot:
        """`dim`: at least; more if there are more concepts."""
        targets = [target for cached in sets for target in cached.dataset.targets]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(target.name for target in targets))}
        rows = {" ".join(split_words(s)): numbers[t.name] for t in targets for s in t.synonyms}
        rows |= {" ".join(split_words(name)): number for name, number in numbers.items()}
        return OneHot(rows, max(dim, len(numbers)))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            said = f" {' '.join(split_words(text))} "
            known = [phrase for phrase in self.rows if f" {phrase} " in said]
            if known:
                vector[self.rows[max(known, key=len)]] = 1.0
        return vectors


@dataclass(frozen=True)
class HashedLetters:
    """Signed hashing of the letter groups (3 to 5) of each word (Bojanowski et al. 2017, fastText, without learned
    vectors)."""

    dim: int

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in (f"<{word}>" for word in split_words(text)):
                for group in (word[i : i + n] for n in (3, 4, 5) for i in range(len(word) - n + 1)):
                    value = zlib.crc32(group.encode())
                    vector[(value >> 1) % self.dim] += 1.0 if value & 1 else -1.0
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-8), np.float32)


def _score_presence(said: Said, truths: Sequence[NDArray[np.bool_]], scores: Scores) -> None:
    """Queries beyond the truths ask for what is surely absent."""
    for i, probability in enumerate(said.presence):
        kind = scores.present if i < len(truths) and truths[i].any() else scores.absent
        kind.append(float(probability))


def _score_objects(said: Said, query: int, reference: NDArray[np.integer], scores: Scores) -> None:
    mask = said.masks[query]
    found: dict[str, NDArray[np.integer]] = {
        "parts": connected(mask[None])[0], "centres": separate(mask, said.centres[query]),
    }  # fmt: skip
    if said.objects is not None:
        found |= {f"queries {score}": from_queries(said.objects, query, mask.shape, score) for score in SCORES}
    for way, ids in found.items():
        matches = match(ids, reference)
        scores.objects[way].append((matches.found, matches.wanted, matches.above()))


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice with a truth that is not empty."""
    return dice(count(mask, truth)) or 0.0


def _alone(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A slice without its neighbours."""
    return np.repeat(picture[..., 1:2], 3, axis=2)


def _mean_of_means(concepts: dict[tuple[str, str], list[float]]) -> float:
    return 100 * float(np.mean([np.mean(values) for values in concepts.values()]))


def _f1(triples: Sequence[tuple[int, int, int]]) -> float:
    found, wanted, matched = np.array(triples, dtype=np.float64).sum(0)
    return 200 * matched / max(found + wanted, 1.0)

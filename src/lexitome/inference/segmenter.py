"""Volume and queries to `Segmentation`, in two pure steps: `encode` once for an image, `decode` for its queries.

The compact model sees square pictures, one for each slice, each query in its own `Look`. Nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome.data.intensity import View, Window
from lexitome.data.prompt_maps import BOX, INSIDE, MASK, no_place
from lexitome.inference.answers import Seen, SliceAnswer, is_certain, is_hopeless, overall, resize
from lexitome.inference.consistency import drop_specks, smooth_slice
from lexitome.inference.looks import Features, Look, Memory, Pictures, Scene
from lexitome.inference.network import Network, sigmoid
from lexitome.inference.objects import connected, separate
from lexitome.inference.prompting import Understood, inside_boxes, spatial_maps, understand
from lexitome.models.catalog import ModelCard, find_model
from lexitome.prompts import Query
from lexitome.segmentation import Finding, Segmentation
from lexitome.text import TextEncoder
from lexitome.volume import Volume

FAINT = "faint presence, certain mask: check it"
UNMIRRORED = "not averaged with the mirrored picture: it names a side"

Progress = Callable[[int, int], None]
"""Told (slices done, slices in all) while a volume is decoded."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image made ready for any number of queries; a value, safe to cache and share.

    ``memory`` holds the features of the looks that were asked for so far (short volumes only). It is filled under a
    lock with pure functions of volume and look, so that threads may share it and no answer depends on what is in it.
    """

    volume: Volume
    scene: Scene
    memory: Memory
    seconds: float


@dataclass(frozen=True, eq=False)
class Question:
    """A query made ready for the decoder. ``maps`` are of the slices it points at, ``even`` is the logit of presence
    that means "as likely as not", ``mirror`` says whether the mirrored picture is asked, too, ``within`` where the
    answer may be (Z, Y, X), None for anywhere."""

    understood: Understood
    looks: tuple[Look, ...]
    vector: NDArray[np.float32]
    maps: dict[int, NDArray[np.float32]]
    even: float
    mirror: bool
    within: NDArray[np.bool_] | None = None

    def is_about(self, index: int) -> bool:
        return bool(self.understood.words) or index in self.maps

    @cached_property
    def pointed(self) -> frozenset[int]:
        """The slices on which a place says that it is here; a point beside it does not say so."""
        return frozenset(index for index, drawn in self.maps.items() if drawn[[BOX, INSIDE, MASK]].any())


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A loaded model. Holds no image; threads may share it."""

    card: ModelCard
    network: Network
    text: TextEncoder
    load_seconds: float = field(default=0.0)

    @staticmethod
    def load(model: str | Path = "compact", *, threads: int | None = None) -> Segmenter:
        """Load a model of the catalog, or from a folder that holds one.

        Args:
            threads: of ONNX Runtime; by default every core.
        Raises:
            InputError: no such model; the message lists the names.
            ValueError: the weights on disk are not the ones the card describes.
        """
        began = time.perf_counter()
        card = find_model(model)
        network = Network.load(card, threads)
        return Segmenter(card, network, TextEncoder.load(), time.perf_counter() - began)

    @property
    def weights(self) -> str:
        """SHA-256 of the weights, as read."""
        return self.network.weights

    def encode(self, volume: Volume, queries: Sequence[Query] = ()) -> Encoded:
        """Features of a volume.

        Args:
            queries: if they are known already, the picture is seen as they need it; `decode` sees to all others.
        """
        began = time.perf_counter()
        scene, memory = Scene.of(volume), Memory()
        asked = [understand(query, self.card, scene.modality) for query in queries]
        wanted = {look for u in asked for look in scene.looks(u.trained, self.card, placed=u.is_drawn(volume))}
        for look in wanted or scene.looks(None, self.card, placed=False):
            self._hold(scene, memory, look, Pictures(volume, look.view, look.window))
        return Encoded(volume, scene, memory, time.perf_counter() - began)

    def decode(
        self,
        encoded: Encoded,
        queries: Sequence[Query],
        *,
        flips: bool | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Answer each query with a mask on the grid of the volume.

        Args:
            flips: average with the answers about the mirrored pictures, except where the query names a side (True),
                never (False), or for pictures of concepts that validation found better so (None); each such query takes
                twice as long.
            probabilities: fill `Finding.probability`.

        Raises:
            ValueError: a box or point lies outside the image, or a mask is not on its grid.
        """
        began = time.perf_counter()
        questions = self._questions(encoded, queries, flips)
        answers = self._answers(encoded, questions, progress)
        findings = [self._finding(encoded, q, a, flips) for q, a in zip(questions, answers, strict=True)]
        for i, question in enumerate(questions):
            if question.understood.placed and not findings[i].found and not question.maps:  # words found nothing there
                (questions[i],) = self._questions(encoded, [queries[i]], flips, drawn=True)
                (answers[i],) = self._answers(encoded, [questions[i]])
                findings[i] = self._finding(encoded, questions[i], answers[i], flips)
        if probabilities:
            findings = [
                replace(f, probability=_on_grid(encoded.volume, a, q))
                for f, q, a in zip(findings, questions, answers, strict=True)
            ]
        provenance = self._provenance(encoded, time.perf_counter() - began) | {
            "flips": any(question.mirror for question in questions)
        }
        return Segmentation(encoded.volume, tuple(findings), provenance)

    def probabilities(
        self, encoded: Encoded, queries: Sequence[Query], *, flips: bool | None = None
    ) -> list[SliceAnswer]:
        """The network's answers before thresholds, slice by slice in the view's orientation; for evaluation."""
        return self._answers(encoded, self._questions(encoded, queries, flips))

    def _questions(
        self, encoded: Encoded, queries: Sequence[Query], flips: bool | None, *, drawn: bool = False
    ) -> list[Question]:
        """``drawn``: places are shown to the network whatever they are."""
        asked = [understand(query, self.card, encoded.scene.modality) for query in queries]
        vectors = self.text.embed([u.words for u in asked])
        questions = []
        for u, vector in zip(asked, vectors, strict=True):
            shown = u.placed and (drawn or u.is_drawn(encoded.volume))
            looks = encoded.scene.looks(u.trained, self.card, placed=shown)
            maps = spatial_maps(u.query, looks[0].view, encoded.volume, looks[0].side) if shown else {}
            within = inside_boxes(u.query, encoded.volume) if u.bounded else None
            threshold = u.trained.threshold if u.trained else self.card.default_threshold
            even = float(np.log(threshold) - np.log1p(-threshold))
            wanted = encoded.volume.is_2d and u.trained is not None and u.trained.mirrored if flips is None else flips
            questions.append(Question(u, looks, vector, maps, even, wanted and not u.sided, within))
        return questions

    def _answers(
        self, encoded: Encoded, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[SliceAnswer]:
        """Look by look, so that a slice is encoded once for all queries that share a look."""
        scene = encoded.scene
        answers = [_blank(scene, question.looks) for question in questions]
        turns: dict[tuple[View, Window | None], dict[Look, list[int]]] = {}
        for i, question in enumerate(questions):
            for look in question.looks:
                turns.setdefault((look.view, look.window), {}).setdefault(look, []).append(i)
        total = sum(scene.slices(view) * len(of_cut) for (view, _), of_cut in turns.items())
        done = 0
        for (view, window), of_cut in turns.items():
            pictures = Pictures(encoded.volume, view, window)  # looks that differ in size only share the cut slices
            slices = scene.slices(view)
            for look, members in of_cut.items():
                for index in range(slices):
                    here = [i for i in members if questions[i].is_about(index)]
                    if here:
                        seen = self._ask(encoded, look, pictures, index, [questions[i] for i in here])
                    for row, i in enumerate(here):
                        alone = answers[i].is_picture and questions[i].understood.at_home
                        certain = alone and is_certain(seen.probability[row])
                        answers[i].add(view, (index, slices), seen, row, certain=certain)
                    done += 1
                    if progress is not None:
                        progress(done, total)
        return answers

    def _ask(self, encoded: Encoded, look: Look, pictures: Pictures, index: int, questions: Sequence[Question]) -> Seen:
        """Questions about one slice; those that may be mirrored about its mirror image too, unless nothing is there."""
        seen = self._ask_once(encoded, look, pictures, index, questions)
        rows = [row for row, question in enumerate(questions) if question.mirror and not is_hopeless(seen, row)]
        if rows:
            other = self._ask_once(encoded, look.mirror(), pictures, index, [questions[row] for row in rows])
            for one, two in zip(seen, other, strict=True):
                one[rows] = (one[rows] + two) / 2
        return seen

    def _ask_once(
        self, encoded: Encoded, look: Look, pictures: Pictures, index: int, questions: Sequence[Question]
    ) -> Seen:
        held = self._hold(encoded.scene, encoded.memory, look, pictures)
        features = held[index] if held else self.network.encode(pictures.square(index, look))
        nowhere = no_place(look.side)
        spatial = np.stack([question.maps.get(index, nowhere) for question in questions])
        spatial = np.ascontiguousarray(spatial[..., ::-1]) if look.mirrored else spatial
        raw = self.network.decode(features, np.stack([question.vector for question in questions]), spatial)
        raw = raw.mirror() if look.mirrored else raw
        even = np.array([question.even for question in questions], np.float32)
        pointed = np.array([index in question.pointed for question in questions])
        presence = np.where(pointed, np.float32(1), sigmoid(raw.presence - even))
        return Seen(sigmoid(raw.logits), presence, sigmoid(raw.centres), raw.offsets.copy())

    def _hold(self, scene: Scene, memory: Memory, look: Look, pictures: Pictures) -> tuple[Features, ...]:
        """Features of all slices in a look, where there are few enough to be held; else nothing."""
        if not scene.is_short(look.view):
            return ()

        def compute() -> Iterator[Features]:
            squares = (pictures.square(index, look) for index in range(scene.slices(look.view)))
            return map(self.network.encode, squares)

        return memory.get(look, compute)

    def _finding(self, encoded: Encoded, question: Question, answer: SliceAnswer, flips: bool | None) -> Finding:
        """Threshold, make slices consistent, tell objects apart, and turn back to the grid of the volume."""
        understood, view, pointed = question.understood, answer.view, question.pointed
        # A click on one of a hundred slices is as sure a sign as one on a picture.
        plain = 1.0 if pointed else overall(answer.presence)
        presence = max(plain, overall(np.where(answer.certain, np.maximum(answer.presence, 0.5), answer.presence)))
        notes = [*understood.notes]
        if plain < 0.5 <= presence:
            notes.append(FAINT)
        if flips and not question.mirror:
            notes.append(UNMIRRORED)
        order = view.order
        mask = np.zeros([encoded.volume.grid[axis] for axis in order], dtype=bool)
        score = 0.0
        if presence >= 0.5:
            for index in range(len(mask)):
                mask[index] = resize(smooth_slice(answer.probability, index, pointed), *mask.shape[1:]) >= 0.5
            mask = mask if answer.is_picture else drop_specks(mask)
            if question.within is not None:
                mask &= np.asarray(view.apply(question.within), dtype=bool)
            score = _mean_inside(answer.probability, mask, pointed)
        instances = None
        if understood.trained is not None and understood.trained.countable:
            centres = answer.centres
            parts = connected(mask) if centres is None else separate(mask[0], centres)[None]
            instances = np.ascontiguousarray(view.undo(parts))
        back = np.ascontiguousarray(view.undo(mask))
        name, concept = understood.query.name, understood.concept
        return Finding(name, back, presence, score, concept, tuple(notes), instances)

    def _provenance(self, encoded: Encoded, decode_seconds: float) -> dict[str, object]:
        import onnxruntime

        return {
            "model": self.card.name,
            "folder": self.card.folder,
            "weights_sha256": self.weights,
            "weights_licence": self.card.weights_licence,
            "weights_duties": self.card.weights_duties,
            "research_only": self.card.research_only,
            "device": "cpu",
            "onnxruntime": onnxruntime.__version__,
            "seconds": {"load": self.load_seconds, "encode": encoded.seconds, "decode": decode_seconds},
        }


def _blank(scene: Scene, looks: Sequence[Look]) -> SliceAnswer:
    view, side = looks[0].view, looks[0].side
    slices, height, width = (scene.volume.grid[axis] for axis in view.order)
    grid = (slices, side, side) if len(looks) == 1 else (slices, min(height, side), min(width, side))
    return SliceAnswer(view, grid, len(looks))


def _on_grid(volume: Volume, answer: SliceAnswer, question: Question) -> NDArray[np.float16]:
    """(Z, Y, X) probabilities, smoothed over slices, as the mask is cut from them."""
    sizes = [volume.grid[axis] for axis in answer.view.order]
    planes = np.empty(sizes, np.float16)
    for index in range(sizes[0]):
        planes[index] = resize(smooth_slice(answer.probability, index, question.pointed), *sizes[1:])
    back = np.ascontiguousarray(answer.view.undo(planes))
    return back if question.within is None else np.where(question.within, back, np.float16(0))


def _mean_inside(probability: NDArray[np.floating], mask: NDArray[np.bool_], pointed: Collection[int]) -> float:
    """Mean of (slice, h, w) probabilities, smoothed, inside a (slice, H, W) mask; 0 where that is empty."""
    total = 0.0
    for index in range(len(mask)):
        if mask[index].any():
            plane = resize(smooth_slice(probability, index, pointed), *mask.shape[1:])
            total += float(plane[mask[index]].sum(dtype=np.float64))
    return total / max(int(mask.sum()), 1)

"""Volume and queries to `Segmentation` with SAM3 (needs torch and transformers), in the two steps of
`inference.segmenter`: `encode` an image, `decode` its queries. An image, or a slice of one, is encoded once for all
that is asked about it.

2D images are answered by the detector, or by the tracker's mask decoder where places alone are given
(`inference.sam3_asking`); volumes by `inference.sam3_volume`, for which this asks about single slices.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lexitome.data.intensity import View, Window, choose_view, is_hounsfield
from lexitome.inference.objects import connected
from lexitome.inference.prompting import inside_boxes
from lexitome.inference.sam3_asking import (
    LOOSE_MASK,
    LOOSE_POINTS,
    NOWHERE,
    Places,
    Told,
    as_boxes,
    places_of,
    understand,
)
from lexitome.inference.sam3_follow import Detection, Plan
from lexitome.inference.sam3_pictures import Pictures
from lexitome.inference.sam3_policies import Plane, Said, enlarge, settle
from lexitome.inference.sam3_volume import objects_of, on_grid, propagate, stride
from lexitome.inference.sam3_words import Words
from lexitome.models.sam3.clicks import Clicks, click
from lexitome.models.sam3.network import PADDING, Features, Prompts, Sam3Net
from lexitome.models.sam3.settings import Policy, Settings
from lexitome.models.sam3.tracker import Sam3Tracker, Sight
from lexitome.prompts import Box, MaskPrompt, Point, Query
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import Volume

AT_ONCE = 4
"""Queries decoded together: each takes 0.5 GB at full size in float32."""
HELD_BYTES = 512 << 20
"""Of features that are kept of a picture in several windows: 3 at full size in float32."""
UNMIRRORED = "not averaged with the mirrored picture: SAM3 is asked once"

Precision = Literal["auto", "float32", "bfloat16", "int8"]
"""Of weights and computation; "auto" is bfloat16 where the processor has instructions for it, else float32. "int8" is
"auto" with 8-bit products in the image trunk (`models.sam3.eight`)."""
Progress = Callable[[int, int], None]
"""Told (slices done, slices in all) while a volume is decoded."""


@dataclass(eq=False)
class Held:
    """Features of a picture by its window, those asked for last; pure results, safe to share between threads."""

    _features: OrderedDict[Window | None, Features] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, window: Window | None, compute: Callable[[], Features]) -> Features:
        with self._lock:
            features = self._features.pop(window, None) or compute()
            self._features[window] = features
            size = sum(level.nbytes for level in (*features.fpn, features.trunk))
            while len(self._features) > max(HELD_BYTES // size, 1):
                self._features.popitem(last=False)
            return features


@dataclass(frozen=True, eq=False)
class Sam3Encoded:
    """An image made ready for any number of queries; a value, safe to cache and share."""

    volume: Volume
    view: View
    hounsfield: bool
    held: Held
    seconds: float

    @property
    def modality(self) -> str:
        return self.volume.modality or ("CT" if self.hounsfield else "")


@dataclass(frozen=True, eq=False)
class Question:
    """A query made ready. ``within`` is where the answer may be (Z, Y, X), None for anywhere; ``window`` for CT."""

    told: Told
    places: dict[int, Places]
    within: NDArray[np.bool_] | None
    window: Window | None

    def is_asked(self, index: int) -> bool:
        """Whether its words are asked about a slice of a volume."""
        return self.told.worded and (self.within is None or index in self.places)

    def in_slice(self, index: int) -> Places:
        """Beside words a box says that it is somewhere in the box, not that each slice shows it."""
        places = self.places.get(index, NOWHERE)
        return places if self.within is None else replace(places, certain=not self.told.worded)


@dataclass(frozen=True, eq=False)
class Sam3Segmenter:
    """A loaded model. Holds no image; threads may share it.

    Args:
        name: what reports call it; ``source`` is where its weights came from.
        hashed: SHA-256 of the weights; takes seconds when first asked for.
        duties: what the licence asks of whoever uses the weights.
    """

    net: Sam3Net
    words: Words
    settings: Settings
    name: str
    source: str
    hashed: Callable[[], str]
    licence: str
    tracker: Sam3Tracker | None = None
    duties: str = ""
    load_seconds: float = 0.0

    @property
    def weights(self) -> str:
        """SHA-256 of the weights, as read."""
        return self.hashed()

    def encode(self, volume: Volume, queries: Sequence[Query] = ()) -> Sam3Encoded:
        """Features of a picture; those of a volume are computed slice by slice while it is decoded."""
        began = time.perf_counter()
        encoded = Sam3Encoded(volume, choose_view(volume), is_hounsfield(volume), Held(), 0.0)
        if volume.is_2d:
            usual = self.settings.window if encoded.hounsfield else None
            for window in dict.fromkeys(self._question(encoded, query).window for query in queries) or (usual,):
                self._features(encoded, window)
        return replace(encoded, seconds=time.perf_counter() - began)

    def decode(
        self,
        encoded: Sam3Encoded,
        queries: Sequence[Query],
        *,
        flips: bool | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Answer each query with a mask on the grid of the volume.

        Args:
            flips: True is noted and not followed.
            probabilities: fill `Finding.probability`.

        Raises:
            ValueError: a box or point lies outside the image, or a mask is not on its grid.
        """
        began = time.perf_counter()
        questions = [self._question(encoded, query, flips=flips is True) for query in queries]
        groups: dict[Window | None, list[int]] = {}
        for i, question in enumerate(questions):
            groups.setdefault(question.window, []).append(i)
        findings: dict[int, Finding] = {}
        for turn, (window, members) in enumerate(groups.items()):
            asked = [questions[i] for i in members]
            if encoded.volume.is_2d:
                answers = self._in_picture(encoded, window, asked, probabilities)
            else:
                shown = None if progress is None else _part(progress, turn, len(groups))
                answers = self._in_volume(encoded, window, asked, probabilities, shown)
            findings |= dict(zip(members, answers, strict=True))
        ordered = tuple(findings[i] for i in range(len(queries)))
        return Segmentation(encoded.volume, ordered, self._provenance(encoded, time.perf_counter() - began))

    def _question(self, encoded: Sam3Encoded, query: Query, *, flips: bool = False) -> Question:
        told = understand(query, self.settings, encoded.modality, self.words.cut)
        notes = list(told.notes)
        clicked = self.tracker is not None and told.clicked
        if not clicked and not told.worded and any(isinstance(place, Point) for place in query.spatial):
            notes.append(LOOSE_POINTS)
        if not clicked and any(isinstance(place, MaskPrompt) for place in query.spatial):
            notes.append(LOOSE_MASK)
        if flips:
            notes.append(UNMIRRORED)
        bounded = bool(query.spatial) and all(isinstance(place, Box) for place in query.spatial)
        within = inside_boxes(query, encoded.volume) if bounded else None
        places = places_of(query, encoded.view, encoded.volume)
        window = told.window if encoded.hounsfield else None
        return Question(replace(told, notes=tuple(notes)), places, within, window)

    def _pictures(self, encoded: Sam3Encoded, window: Window | None) -> Pictures:
        return Pictures(encoded.volume, encoded.view, window, self.net.side, stacked=self.settings.stacked)

    # --- one picture -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _features(self, encoded: Sam3Encoded, window: Window | None) -> Features:
        return encoded.held.get(window, lambda: self.net.encode(self._pictures(encoded, window)[0]))

    def _planes(self, features: Features, asked: Sequence[tuple[Told, Places]]) -> list[Plane]:
        """Answers about one encoded picture: of clicks by the tracker's decoder, all else by the detector."""
        answers: dict[int, Plane] = {}
        rows: list[tuple[int, str, Places]] = []
        sight = None
        for i, (told, places) in enumerate(asked):
            if self.tracker is not None and told.clicked:
                sight = self.tracker.look(features.trunk) if sight is None else sight
                answers[i] = _click(self.tracker, sight, places)
            else:
                boxed = as_boxes(places, worded=told.worded)
                rows += [(i, words, boxed) for words in told.wordings]
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            for (i, _, _), plane in zip(part, self._detect(features, part), strict=True):
                if i not in answers or plane.sure > answers[i].sure:  # the surest wording answers
                    answers[i] = plane
        return [answers[i] for i in range(len(asked))]

    @torch.inference_mode()
    def _detect(self, features: Features, rows: Sequence[tuple[int, str, Places]]) -> list[Plane]:
        text, mask = self.words.features([words for _, words, _ in rows])
        most = max(len(places.boxes) for _, _, places in rows)
        boxes, labels = torch.zeros(len(rows), most, 4), torch.full((len(rows), most), PADDING)
        for row, (_, _, places) in enumerate(rows):
            corners = torch.from_numpy(places.boxes)
            count = len(corners)
            centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
            boxes[row, :count] = torch.cat([centres, sizes], 1)
            labels[row, :count] = torch.from_numpy(places.wanted).long()
        prompts = Prompts(mask.long(), mask, torch.zeros(len(rows), dtype=torch.long), boxes, labels)
        outputs = self.net.decode(features, prompts, text)
        return [settle(Said.of(outputs, row), self.settings, rows[row][2]) for row in range(len(rows))]

    def _in_picture(
        self, encoded: Sam3Encoded, window: Window | None, questions: Sequence[Question], probabilities: bool
    ) -> list[Finding]:
        features = self._features(encoded, window)
        planes = self._planes(features, [(each.told, each.places.get(0, NOWHERE)) for each in questions])
        findings = []
        for question, plane in zip(questions, planes, strict=True):
            sizes = encoded.volume.grid[1:]
            likely = enlarge(plane.logits, *sizes).cpu().numpy()[None]
            mask = likely >= 0.5 if plane.found else np.zeros(likely.shape, np.bool_)
            if question.within is not None:
                mask &= question.within
            if plane.owners is None:
                ids = connected(mask)
            else:
                cells = [np.arange(n) * m // n for n, m in zip(sizes, plane.owners.shape, strict=True)]
                ids = _numbered(np.where(mask, plane.owners[np.ix_(*cells)], np.uint16(0)))
            sure = plane.presence, _mean_inside(likely, mask)
            findings.append(_finding(question, mask, ids, sure, likely.astype(np.float16) if probabilities else None))
        return findings

    # --- volumes ---------------------------------------------------------------------------------------------------

    def _in_volume(
        self, encoded: Sam3Encoded, window: Window | None, questions: Sequence[Question], probabilities: bool,
        progress: Progress | None,
    ) -> list[Finding]:  # fmt: skip
        pictures = self._pictures(encoded, window)
        given = [self._marked(pictures, question) for question in questions]
        marked = [{detection.index for detection in each} for each in given]

        def ask(features: Features, index: int) -> list[Plane | None]:
            here = [i for i, each in enumerate(questions) if each.is_asked(index) and index not in marked[i]]
            planes = self._planes(features, [(questions[i].told, questions[i].in_slice(index)) for i in here])
            said = dict(zip(here, planes, strict=True))
            return [said.get(i) for i in range(len(questions))]

        along = 2 - encoded.view.order[0]
        plan = Plan(every=stride(encoded.volume.spacing[along] if encoded.volume.spacing_known else None))
        worded = any(question.told.worded for question in questions)
        results = propagate(self.net, self.tracker, pictures, ask if worded else None, given, plan, progress)
        findings = []
        for question, result in zip(questions, results, strict=True):
            bounded = question.within is not None
            found = on_grid(encoded.view, encoded.volume.grid, result, probability=probabilities or bounded)
            mask, ids, score, likely = found
            if question.within is not None and likely is not None:
                mask &= question.within
                ids = _numbered(np.where(mask, ids, np.uint16(0)))
                score = _mean_inside(likely, mask)
            findings.append(_finding(question, mask, ids, (result.presence, score), likely if probabilities else None))
        return findings

    @torch.inference_mode()
    def _marked(self, pictures: Pictures, question: Question) -> tuple[Detection, ...]:
        """Objects on the slices that a user points at. A tracker follows from there, so of a box through many slices
        the middle one will do; boxes beside words only help them, see `Question.in_slice`."""
        slices = sorted(question.places)
        if question.within is not None:
            middle = slices[len(slices) // 2 : len(slices) // 2 + 1]
            slices = [] if question.told.worded else slices if self.tracker is None else middle
        found: list[Detection] = []
        for index in slices:
            places = question.places[index]
            if places.points_at_it:
                plane = self._planes(self.net.encode(pictures[index]), [(question.told, places)])[0]
                found += [replace(each, score=1.0) for each in objects_of(plane, index, 0.5)]
        return tuple(found)

    def _provenance(self, encoded: Sam3Encoded, decode_seconds: float) -> dict[str, Any]:
        import transformers

        return {
            "model": self.name,
            "folder": self.source,
            "weights_sha256": self.weights,
            "weights_licence": self.licence,
            "weights_duties": self.duties,
            "research_only": False,
            "device": "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": self.net.precision,
            "side": self.net.side,
            "settings": self.settings.to_json(),
            "tracker": self.tracker is not None,
            "flips": False,
            "seconds": {"load": self.load_seconds, "encode": encoded.seconds, "decode": decode_seconds},
        }

    @staticmethod
    def load(
        model: str | Path, *, threads: int | None = None, policy: Policy | None = None, precision: Precision = "auto",
        side: int | None = None, cache: Path | None = None,
    ) -> Sam3Segmenter:  # fmt: skip
        """As `inference.sam3_loading.load_sam3_segmenter`."""
        from lexitome.inference.sam3_loading import load_sam3_segmenter

        return load_sam3_segmenter(model, threads=threads, policy=policy, precision=precision, side=side, cache=cache)


def _click(tracker: Sam3Tracker, sight: Sight, places: Places) -> Plane:
    """One object for each box, or one for all points and the mask."""
    points, inside = torch.from_numpy(places.points), torch.from_numpy(places.inside)
    mask = None if places.mask is None else torch.from_numpy(np.ascontiguousarray(places.mask))
    each = [] if len(places.bounds) else [Clicks(points, inside, None, mask)]
    for box in torch.from_numpy(places.bounds):
        here = ((points >= box[:2]) & (points <= box[2:])).all(1)
        each.append(Clicks(points[here], inside[here], box))
    found = [click(tracker, sight, clicks) for clicks in each]
    logits = torch.stack([logits for logits, _ in found])
    owners = (logits.argmax(0) + 1).cpu().numpy().astype(np.uint16)
    return Plane(logits.amax(0), 1.0, owners, max(iou for _, iou in found))


def _finding(
    question: Question, mask: NDArray[np.bool_], ids: NDArray[np.uint16], sure: tuple[float, float],
    likely: NDArray[np.float16] | None,
) -> Finding:  # fmt: skip
    """All arrays (Z, Y, X); `sure`: presence and score."""
    told = question.told
    if likely is not None and question.within is not None:
        likely = np.where(question.within, likely, np.float16(0))
    return Finding(told.query.name, mask, *sure, told.concept, told.notes, ids, likely)


def _mean_inside(likely: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    return float(likely.mean(where=mask, dtype=np.float64)) if mask.any() else 0.0


def _numbered(ids: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The same objects with ids from 1 without gaps, in place; 0 stays. Row by row: indices take 8 bytes a voxel."""
    rows = ids.reshape(-1, ids.shape[-1])
    there = np.zeros(int(ids.max(initial=0)) + 1, np.bool_)
    for row in rows:
        there[row] = True
    there[0] = True
    names = (np.cumsum(there) - 1).astype(np.uint16)
    if not there.all():
        for row in rows:
            row[:] = names[row]
    return ids


def _part(progress: Progress, turn: int, turns: int) -> Progress:
    return lambda done, total: progress(turn * total + done, turns * total)

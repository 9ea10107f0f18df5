"""A trained DINOv3 segmenter as an `evaluation.answering.Answerer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lexitome.data.dataset import Target
from lexitome.data.trained_on import TrainedOn
from lexitome.evaluation.answering import About, Answer, Kind
from lexitome.inference.dinov3_segmenter import DinoEncoded, DinoVolumeSegmenter
from lexitome.prompts import Query
from lexitome.volume import Volume


@dataclass(frozen=True, eq=False)
class MedDinov3Answerer:
    """It is told the names of targets and does not say whether they are there at all. Of what it was not taught, the
    answer is missing."""

    segmenter: DinoVolumeSegmenter
    name: str
    takes: frozenset[Kind] = frozenset({"label"})

    def provenance(self) -> dict[str, Any]:
        card = self.segmenter.card
        return {
            "name": self.name, "kind": "meddinov3", "weights_sha256": card.sha256,
            "licence": card.about.get("licence", ""), "duties": card.about.get("duties", ""),
            "trained_on": list(card.about.get("datasets", ())), "side": card.side, "spacing": card.spacing,
            "decoder": card.decoder, "taps": list(card.taps),
        }  # fmt: skip

    def training(self) -> TrainedOn | None:
        return TrainedOn.of_model(self.segmenter.folder)

    def begin(self, volume: Volume, about: About, /) -> MedDinov3Session:
        return MedDinov3Session(self.segmenter, about, self.segmenter.encode(volume))


@dataclass(frozen=True, eq=False)
class MedDinov3Session:
    segmenter: DinoVolumeSegmenter
    about: About
    encoded: DinoEncoded

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        told = [_target(self.segmenter, query.name, self.about) for query in queries]
        known = [target for target in told if target is not None]
        card, volume, view = self.segmenter.card, self.encoded.volume, self.encoded.view
        mirrored = card.mirrored and volume.is_2d
        maps = self.segmenter.ask(self.encoded, known, mirrored, probabilities=True) if known else None
        answers, row = [], 0
        for query, target in zip(queries, told, strict=True):
            if target is None:
                note = f"{card.name} was not taught {query.name!r}"
                answers.append(Answer(np.zeros(volume.grid, bool), notes=(note,), taught=False, status="missing"))
                continue
            assert maps is not None and maps.likely is not None
            mask, likely = (np.ascontiguousarray(view.undo(part[row])) for part in (maps.masks, maps.likely))
            answers.append(Answer(mask, probability=likely, taught=True))
            row += 1
        return answers


def _target(segmenter: DinoVolumeSegmenter, name: str, about: About) -> Target | None:
    """By its name; or in its own set, where a benchmark calls it otherwise, by the labels that it is made of; or in
    other sets by what the words mean."""
    card = segmenter.card
    own = next((target for target in card.answered if target.name == name), None)
    if own is None and about.dataset in card.about.get("datasets", ()):
        return card.by_labels(name, about.labels)
    if own is None:
        found = card.find(name)
        own = None if found is None else found[0]
    return own


def meddinov3_answerer(model: str | Path, name: str = "") -> MedDinov3Answerer:
    """
    Args:
        model: a folder with `segmenter.json`.

    Raises:
        InputError: it is no such folder, or damaged.
    """
    segmenter = DinoVolumeSegmenter.load(model)
    return MedDinov3Answerer(segmenter, name or segmenter.card.name)

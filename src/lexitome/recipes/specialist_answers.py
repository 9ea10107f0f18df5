"""Specialists as an `evaluation.answering.Answerer`: each is asked about the images of its own dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lexitome.data.intensity import View, choose_view, to_pictures, with_neighbours
from lexitome.data.targets import made_of
from lexitome.data.trained_on import TrainedOn
from lexitome.errors import InputError
from lexitome.evaluation.answering import About, Answer, Kind
from lexitome.prompts import Query
from lexitome.recipes.specialist import WEIGHTS, Card, is_specialist, load_specialist, probabilities, resized
from lexitome.volume import Volume

AT_ONCE = 8
"""Slices that go through the network together."""


@dataclass(frozen=True, eq=False)
class SpecialistAnswerer:
    """One network for each dataset; threads may share them. They do not say whether a target is there at all."""

    networks: Mapping[str, tuple[Card, nn.Module]]
    sha256: str
    taught: TrainedOn | None
    name: str = "specialist"
    takes: frozenset[Kind] = frozenset({"label"})

    def provenance(self) -> dict[str, Any]:
        cards = [card for card, _ in self.networks.values()]
        return {
            "name": self.name, "kind": "specialist", "weights_sha256": self.sha256,
            "licence": "; ".join(sorted({card.licence for card in cards})),
            "trained_on": sorted(self.networks), "seconds": {card.dataset: card.seconds for card in cards},
            "networks": {card.dataset: card.recipe.network for card in cards},
        }  # fmt: skip

    def training(self) -> TrainedOn | None:
        return self.taught

    def begin(self, volume: Volume, about: About, /) -> SpecialistSession:
        """
        Raises:
            InputError: there is no specialist for the dataset.
        """
        if about.dataset not in self.networks:
            cause = f"there is no specialist for {about.dataset}"
            raise InputError(self.name, cause, f"Train one: lexitome train unet --data {about.dataset}.")
        card, network = self.networks[about.dataset]
        view = choose_view(volume)
        pictures = to_pictures(volume, card.window, view)
        if card.neighbours and not volume.is_2d and volume.array.shape[0] == 1:
            pictures = with_neighbours(pictures)
        parts = [probabilities(network, pictures[i : i + AT_ONCE], card.side) for i in range(0, len(pictures), AT_ONCE)]
        return SpecialistSession(card, about, volume, view, np.concatenate(parts).astype(np.float16))


@dataclass(frozen=True, eq=False)
class SpecialistSession:
    """Args:
    likely: (slice, target, side, side) probabilities along the view.
    """

    card: Card
    about: About
    volume: Volume
    view: View
    likely: NDArray[np.float16]

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        return [self._one(query.name) for query in queries]

    def _one(self, name: str) -> Answer:
        targets = self.card.targets
        named = [i for i, target in enumerate(targets) if target.name == name]
        channel = named[:1] or made_of(targets, self.about.labels.get(name, ()))  # a benchmark may call it otherwise
        if not channel:
            note = f"the specialist was not taught {name!r}"
            return Answer(np.zeros(self.volume.grid, dtype=bool), notes=(note,), taught=False, status="missing")
        height, width = (self.volume.grid[axis] for axis in self.view.order[1:])
        planes = [resized(plane.max(axis=0), height, width) for plane in self.likely[:, channel].astype(np.float32)]
        likely = np.ascontiguousarray(self.view.undo(np.stack(planes)))
        return Answer(likely >= 0.5, probability=likely, taught=True)


def specialist_answerer(folder: str | Path, name: str = "specialist") -> SpecialistAnswerer:
    """
    Args:
        folder: of one specialist, or what `lexitome train unet -o RUN` wrote: a folder of them.

    Raises:
        InputError: it holds none, or a damaged one.
    """
    root = Path(folder)
    places = [root] if is_specialist(root) else sorted(p.parent for p in root.glob("*/specialist.json"))
    if not places:
        raise InputError(root, "holds no specialist", "Train one: lexitome train unet --data DIR -o RUN.")
    loaded = [load_specialist(place) for place in places]
    digest = hashlib.sha256()
    for place in places:
        digest.update((place / WEIGHTS).read_bytes())
    told = [TrainedOn.of_model(place) for place in places]
    known = [entry for entry in told if entry is not None]
    taught = reduce(TrainedOn.merged, known) if len(known) == len(told) else None
    networks = {card.dataset: (card, network) for card, network in loaded}
    return SpecialistAnswerer(networks, digest.hexdigest(), taught, name)

"""Whoever can be asked about an image - a model, a baseline, a folder of another tool's masks - looks like this.

An `Answerer` holds no image. `begin` makes one image ready, its `Session` answers any number of queries about it; both
may be called by several threads at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lexitome.data.trained_on import TrainedOn
from lexitome.evaluation.rows import Status
from lexitome.inference.prompting import GUESS
from lexitome.inference.segmenter import Encoded, Segmenter
from lexitome.prompts import Query, Text
from lexitome.segmentation import Finding
from lexitome.volume import Volume

Kind = Literal["text", "label", "box", "point", "exemplar"]
"""What a query may hold. "text" is any words; "label" only names of the dataset's own targets, which is all that a
network for fixed classes and a folder of masks can be asked. Who takes "label" but not "text" is always told the name,
whatever the protocol."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Args:
    mask: (Z, Y, X) bool on the volume's grid.
    presence: probability that the target is there at all, None where the answerer does not say.
    probability: (Z, Y, X) of the mask, before any threshold; None where the answerer does not say.
    instances: (Z, Y, X) ids of objects, 0 for none; None where they are not told apart.
    notes: what should be known about the answer; of one that is not "ok", why.
    taught: whether it was taught the concept under any name; None where nobody knows.
    status: "missing" and "failed" answers score as an empty mask, whatever `mask` holds.
    """

    mask: NDArray[np.bool_]
    presence: float | None = None
    probability: NDArray[np.floating] | None = None
    instances: NDArray[np.integer] | None = None
    notes: tuple[str, ...] = ()
    taught: bool | None = None
    status: Status = "ok"


@dataclass(frozen=True)
class About:
    """Which image is asked about; nothing of its reference.

    Args:
        family: modality family of the dataset, see `data.dataset.family_of`.
        concepts: what will be asked.
        labels: each target of the dataset, and the ids of the dataset's own labels that it is made of. A concept that
            is not among them belongs to another dataset: this image surely lacks it.
    """

    dataset: str
    case: str
    family: str = ""
    concepts: tuple[str, ...] = ()
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Session(Protocol):
    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        """One answer for each query. What it raises is noted in the row, which then scores as an empty mask."""
        ...


class Answerer(Protocol):
    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def takes(self) -> frozenset[Kind]:
        """What its queries may hold."""
        ...

    def provenance(self) -> dict[str, Any]:
        """JSON-able: what decides the answers (hash of the weights, settings), "licence", and "trained_on" (names of
        datasets) where that is known. Two answerers with equal provenance answer alike."""
        ...

    def begin(self, volume: Volume, about: About, /) -> Session: ...


@runtime_checkable
class Remembers(Protocol):
    """An answerer that carries hashes of the pictures it was taught, for `evaluation.leakage`."""

    def training(self) -> TrainedOn | None:
        """None where this very model carries none."""
        ...


def is_told_names(answerer: Answerer) -> bool:
    """Whether it is told the name of the concept under every protocol, see `Kind`."""
    return "label" in answerer.takes and "text" not in answerer.takes


@dataclass(frozen=True, eq=False)
class CompactAnswerer:
    """A compact model, asked as `lexitome segment` asks it."""

    segmenter: Segmenter
    takes: frozenset[Kind] = frozenset({"text", "label", "box", "point"})

    @property
    def name(self) -> str:
        return self.segmenter.card.name

    def provenance(self) -> dict[str, Any]:
        card = self.segmenter.card
        return {
            "name": card.name, "kind": "compact", "weights_sha256": self.segmenter.weights,
            "card_sha256": card.measure_card(), "licence": card.weights_licence, "duties": card.weights_duties,
            "research_only": card.research_only, "trained_on": [trained.name for trained in card.sets],
        }  # fmt: skip

    def training(self) -> TrainedOn | None:
        return TrainedOn.of_model(self.segmenter.card.files)

    def begin(self, volume: Volume, about: About, /) -> CompactSession:
        words = [Query(Text(name)) for name in about.concepts]
        return CompactSession(self.segmenter, self.segmenter.encode(volume, words))


@dataclass(frozen=True, eq=False)
class CompactSession:
    segmenter: Segmenter
    encoded: Encoded

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        findings = self.segmenter.decode(self.encoded, queries, probabilities=True).findings
        return [_to_answer(query, finding) for query, finding in zip(queries, findings, strict=True)]


def _to_answer(query: Query, finding: Finding) -> Answer:
    taught = None if query.text is None else GUESS not in finding.notes
    return Answer(
        finding.mask, float(finding.presence), finding.probability, finding.instances, finding.notes, taught
    )  # fmt: skip


def compact_answerer(model: str | Path = "compact", threads: int | None = 1) -> CompactAnswerer:
    """
    Args:
        model: a name of the catalog, or the folder of a model.
        threads: of ONNX Runtime for one image; one, since the runner works on several images at a time.

    Raises:
        InputError: no such model.
    """
    return CompactAnswerer(Segmenter.load(model, threads=threads))

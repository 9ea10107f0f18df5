"""Every model by name: what it is, what it was trained on, what its weights may be used for. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable


@dataclass(frozen=True)
class TrainingSet:
    name: str
    title: str
    modality: str
    licence: str
    source: str


@dataclass(frozen=True)
class TrainedConcept:
    """A concept the model saw annotated.

    Args:
        concept: its name in the vocabulary.
        words: the words it was trained under, to be given to the model.
        families: modality families of the sets it was drawn in.
        window: the CT window (low, high in HU) of those sets, None elsewhere.
        threshold: raw presence probability from which the model says "found", chosen on validation data; the presence
            that users see is shifted so that this is 0.5.
    """

    concept: str
    words: str
    families: tuple[str, ...]
    window: tuple[float, float] | None
    threshold: float


@dataclass(frozen=True)
class ModelCard:
    """A model of the catalog. `folder` is relative to the package's assets; the rest is read from its `card.json`."""

    name: str
    tier: str
    summary: str
    licence: str
    folder: str

    @property
    def files(self) -> Traversable:
        return files("lexitome").joinpath("assets", self.folder)

    @cached_property
    def _stored(self) -> Mapping[str, object]:
        stored: Mapping[str, object] = json.loads(self.files.joinpath("card.json").read_text())
        return stored

    @property
    def side(self) -> int:
        """Side of the square picture the network sees."""
        return int(str(self._stored["side"]))

    @property
    def weights_licence(self) -> str:
        return str(self._stored["weights_licence"])

    @property
    def research_only(self) -> bool:
        return bool(self._stored["research_only"])

    @property
    def sha256(self) -> str:
        """Of encoder.onnx followed by decoder.onnx, as recorded when they were exported."""
        return str(self._stored["sha256"])

    @property
    def size_mb(self) -> float:
        return float(str(self._stored["size_mb"]))

    @property
    def default_threshold(self) -> float:
        """Presence threshold for concepts without their own."""
        return float(str(self._stored["default_threshold"]))

    @cached_property
    def trained_concepts(self) -> tuple[TrainedConcept, ...]:
        return tuple(
            TrainedConcept(**{**entry, "families": tuple(entry["families"]), "window": _pair(entry["window"])})
            for entry in self._stored["trained_concepts"]  # type: ignore[attr-defined]
        )

    @cached_property
    def sets(self) -> tuple[TrainingSet, ...]:
        return tuple(TrainingSet(**entry) for entry in self._stored["sets"])  # type: ignore[attr-defined]

    def measure_sha256(self) -> str:
        """The hash of the weights as they lie on disk now."""
        return weights_hash(*(self.files.joinpath(f).read_bytes() for f in ("encoder.onnx", "decoder.onnx")))


def weights_hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


CATALOG: dict[str, ModelCard] = {
    "compact": ModelCard(
        name="compact",
        tier="compact",
        summary="Text-, box- and point-prompted 2D network, slice by slice in 3D; inside the package, runs on CPU.",
        licence="Apache-2.0",
        folder="compact",
    ),
}

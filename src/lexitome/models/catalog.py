"""Every model by name or folder: what it is, what it was trained on, what its weights may be used for. No torch here.

A model is a folder of three files, `FILES`: the two graphs, and the card that says how they are to be used. The folders
of the built-in models are part of the package; `lexitome train` writes others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from lexitome.errors import InputError

FILES = ("encoder.onnx", "decoder.onnx", "card.json")
SIDE_STEP = 32
"""The graphs take square pictures of any side that is a multiple of this."""


@dataclass(frozen=True)
class TrainingSet:
    name: str
    title: str
    modality: str
    licence: str
    source: str


@dataclass(frozen=True)
class TrainedConcept:
    """A concept the model saw annotated, and how a picture must be shown for it to be found best.

    Args:
        concept: its name in the vocabulary.
        words: the words it was trained under, to be given to the model.
        families: modality families of the sets it was drawn in.
        window: the CT window (low, high in HU) of those sets, None elsewhere.
        threshold: raw presence probability from which the model says "found", chosen on validation data; the presence
            that users see is shifted so that this is 0.5.
        side: side of the square picture, in pixels, at which it was found best on validation data.
        stacked: whether the slices of a volume are shown with their neighbours as channels.
        views: whether the answers of all three cutting directions are averaged where voxels are nearly cubic.
        countable: whether its objects can be told apart by their centres.
        mirrored: whether a picture (not a volume) is asked about mirrored, too: validation found the average better.
    """

    concept: str
    words: str
    families: tuple[str, ...]
    window: tuple[float, float] | None
    threshold: float
    side: int
    stacked: bool
    views: bool
    countable: bool
    mirrored: bool


@dataclass(frozen=True)
class ModelCard:
    """A model: the folder of its `FILES`, and what its `card.json` says."""

    name: str
    tier: str
    summary: str
    licence: str
    files: Traversable

    @cached_property
    def _stored(self) -> Mapping[str, Any]:
        return read_card(self.files)

    @property
    def side(self) -> int:
        """Side of the square picture for whatever has no side of its own."""
        return int(self._stored["side"])

    @property
    def weights_licence(self) -> str:
        return str(self._stored["weights_licence"])

    @property
    def weights_duties(self) -> str:
        """What the licences of the training sets ask of whoever uses the weights, "" for nothing."""
        return str(self._stored.get("weights_duties", ""))

    @property
    def folder(self) -> str | None:
        """Where it was found, None for a model that is part of the package."""
        return None if CATALOG.get(self.name) is self else str(self.files)

    @property
    def research_only(self) -> bool:
        return bool(self._stored["research_only"])

    @property
    def sha256(self) -> str:
        """Of encoder.onnx followed by decoder.onnx, as recorded when they were exported."""
        return str(self._stored["sha256"])

    @property
    def size_mb(self) -> float:
        return float(self._stored["size_mb"])

    @property
    def default_threshold(self) -> float:
        """Presence threshold for concepts without their own."""
        return float(self._stored["default_threshold"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What validation measured when the model was exported."""
        return dict(self._stored["metrics"])

    @cached_property
    def trained_concepts(self) -> tuple[TrainedConcept, ...]:
        return tuple(
            TrainedConcept(
                **_known(TrainedConcept, entry)
                | {"families": tuple(entry["families"]), "window": _pair(entry["window"])}
            )
            for entry in self._stored["trained_concepts"]
        )

    @cached_property
    def sets(self) -> tuple[TrainingSet, ...]:
        return tuple(TrainingSet(**_known(TrainingSet, entry)) for entry in self._stored["sets"])

    def measure_card(self) -> str:
        """The hash of `card.json` as it lies on disk now: it names the weights and says how they are asked."""
        return weights_hash(self.files.joinpath("card.json").read_bytes())

    def measure_sha256(self) -> str:
        """The hash of the weights as they lie on disk now."""
        return weights_hash(*(self.files.joinpath(f).read_bytes() for f in ("encoder.onnx", "decoder.onnx")))


def weights_hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _known(kind: type, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a card's entry that `kind` has a field for; cards may hold more for their readers."""
    return {field.name: entry[field.name] for field in fields(kind)}


def _pair(values: list[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


CARD_KEYS = frozenset({"name", "side", "sha256", "size_mb", "weights_licence", "research_only", "default_threshold",
                       "trained_concepts", "sets", "metrics"})  # fmt: skip
"""What inference and reports need of a card; training writes more."""


def read_card(folder: Traversable) -> Mapping[str, Any]:
    """The `card.json` of a model's folder, complete.

    Raises:
        InputError: it cannot be read, or lacks what this version needs.
    """
    place, path = folder.joinpath("card.json"), f"{folder}/card.json"
    try:
        stored = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else f"is not JSON ({error})"
        raise InputError(path, cause or "cannot be read", "Export the model again.") from error
    _check(path, stored, CARD_KEYS, "the card")
    for entry in stored["trained_concepts"]:
        _check(path, entry, {field.name for field in fields(TrainedConcept)}, "a trained concept")
    for entry in stored["sets"]:
        _check(path, entry, {field.name for field in fields(TrainingSet)}, "a training set")
    for side in (stored["side"], *(entry["side"] for entry in stored["trained_concepts"])):
        if not isinstance(side, int) or side < SIDE_STEP or side % SIDE_STEP:
            raise InputError(path, f"has a side of {side!r}", f"A side is a multiple of {SIDE_STEP} pixels.")
    return dict(stored)


def _check(path: str, entry: object, keys: set[str] | frozenset[str], what: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(path, f"{what} is not a JSON object", "Export the model again.")
    missing = sorted(keys - entry.keys())
    if missing:
        remedy = "It was written by another version of lexitome: export the model again, with this version."
        raise InputError(path, f"{what} lacks {', '.join(missing)}", remedy)


def _built_in() -> dict[str, ModelCard]:
    assets = files("lexitome").joinpath("assets")
    cards = (
        ModelCard(
            name="compact",
            tier="compact",
            summary="Text-, box- and point-prompted 2D network, in 3D slice by slice with neighbours; runs on CPU.",
            licence="Apache-2.0",
            files=assets.joinpath("compact"),
        ),
        ModelCard(
            name="compact-open",
            tier="compact",
            summary="The same network, trained only on sets whose licences permit commercial use.",
            licence="Apache-2.0",
            files=assets.joinpath("compact-open"),
        ),
    )
    return {card.name: card for card in cards if card.files.is_dir()}


CATALOG: dict[str, ModelCard] = _built_in()
"""The models that this installation brings along."""


def find_model(name_or_path: str | Path) -> ModelCard:
    """A model of the catalog by its name, or any other by its folder; where both fit, the name counts.

    Raises:
        InputError: neither; the message says which names there are and what a folder must hold. Or the folder holds
            files of another kind.
    """
    typed = str(name_or_path)
    if typed in CATALOG:
        return CATALOG[typed]
    folder = Path(name_or_path)
    choices = f"Choose from {', '.join(CATALOG)}, or name a folder that holds {', '.join(FILES)}."
    if not folder.is_dir():
        raise InputError(f"model {typed!r}", "there is no such model", choices)
    missing = [file for file in FILES if not folder.joinpath(file).is_file()]
    if missing:
        inside = folder / "model"
        better = f"Did you mean {inside}?" if inside.joinpath("card.json").is_file() else choices
        raise InputError(folder, f"holds no model: {', '.join(missing)} not there", better)
    stored = read_card(folder)
    return ModelCard(str(stored["name"]), "compact", f"Compact network in {folder}.", "Apache-2.0", folder)

"""What a folder with a trained DINOv3 segmenter says about itself: `segmenter.json`, beside `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lexitome.concepts import Concept, Vocabulary
from lexitome.data.dataset import Target
from lexitome.data.normalisation import Normalisation
from lexitome.data.targets import lateral_unions, made_of
from lexitome.errors import InputError
from lexitome.models.foundation import SEGMENTER

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Card:
    """
    Args:
        name: what tables call it.
        trunk: configuration of the transformer (`DINOv3ViTConfig`).
        decoder, taps: see `models.dinov3.segmentation`.
        targets: what the network's outputs mean, after the background where `exclusive`.
        side, spacing, depth: see `data.patches.Layout`.
        mirrored: whether it was trained on mirrored pictures.
        modality: of what it was taught.
        sha256: of the weights.
        about: licence, duties, datasets, recipe, metrics.
    """

    name: str
    trunk: dict[str, Any]
    decoder: str
    taps: tuple[int, ...]
    targets: tuple[Target, ...]
    exclusive: bool
    normalisation: Normalisation
    side: int
    spacing: tuple[float, float] | None
    depth: int = 1
    mirrored: bool = False
    modality: str = ""
    sha256: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def answered(self) -> tuple[Target, ...]:
        """All that can be asked: the targets, and unions that follow from their names ("kidney")."""
        return (*self.targets, *lateral_unions(self.targets))

    def find(self, words: str, modality: str = "") -> tuple[Target, Concept | None] | None:
        """What the words mean: a target by its name, a synonym, or the concept of the vocabulary that is theirs."""
        typed = " ".join(words.casefold().split())
        concept = Vocabulary.load().resolve(words, modality).concept
        for target in self.answered:
            if typed in {name.casefold() for name in (target.name, *target.synonyms)}:
                return target, concept
        for target in self.answered:
            if concept is not None and concept == Vocabulary.load().resolve(target.name, self.modality).concept:
                return target, concept
        return None

    def channels(self, target: Target) -> list[int]:
        """Indices in `targets` of what a target is made of."""
        return [i for i, own in enumerate(self.targets) if set(own.codes) <= set(target.codes)]

    def by_labels(self, name: str, labels: Mapping[str, Sequence[int]]) -> Target | None:
        """What the targets of a dataset call `name`, by the labels that they are made of (`evaluation.About`)."""
        parts = [self.targets[i] for i in made_of(self.targets, labels.get(name, ()))]
        codes = tuple(dict.fromkeys(code for own in parts for code in own.codes))
        return Target(name, (), codes, tuple(labels[name])) if parts else None

    def save(self, folder: Path) -> None:
        folder.joinpath(SEGMENTER).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Card:
        """
        Raises:
            InputError: there is none, or it was written by another version.
        """
        from pydantic import TypeAdapter, ValidationError  # here, so that `lexitome segment` does not wait for it

        path = folder / SEGMENTER
        try:
            return TypeAdapter(Card).validate_python(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            remedy = "Name the folder of a model: RUN/model of lexitome train meddinov3."
            raise InputError(path, f"cannot be read ({error.strerror})", remedy) from error
        except (ValueError, ValidationError) as error:
            cause = f"is not of this version ({str(error).splitlines()[0]})"
            raise InputError(path, cause, "Train it again.") from error

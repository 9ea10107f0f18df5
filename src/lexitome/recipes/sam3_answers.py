"""SAM3 and what was made of it as an `evaluation.answering.Answerer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexitome.data.trained_on import TrainedOn
from lexitome.evaluation.answering import About, Answer, Kind
from lexitome.inference.sam3_asking import understand
from lexitome.inference.sam3_segmenter import Precision, Sam3Encoded, Sam3Segmenter
from lexitome.models.sam3.settings import Policy
from lexitome.prompts import Query, Text
from lexitome.volume import Volume


@dataclass(frozen=True, eq=False)
class Sam3Answerer:
    """Asked as `lexitome segment` asks it."""

    segmenter: Sam3Segmenter
    chosen: str = ""
    """Options that the user chose; the name ends in them."""
    takes: frozenset[Kind] = frozenset({"text", "label", "box", "point", "exemplar"})

    @property
    def name(self) -> str:
        name = Path(self.segmenter.name).name
        return f"{name} {self.chosen}" if self.chosen else name

    def provenance(self) -> dict[str, Any]:
        segmenter = self.segmenter
        return {
            "name": self.name, "kind": "sam3", "weights_sha256": segmenter.weights,
            "settings": segmenter.settings.to_json(), "side": segmenter.net.side,
            "dtype": segmenter.net.precision,
            "tracker": segmenter.tracker is not None, "licence": segmenter.licence, "duties": segmenter.duties,
            "trained_on": list(segmenter.settings.trained_on),
        }  # fmt: skip

    def training(self) -> TrainedOn | None:
        folder = Path(self.segmenter.source)
        return TrainedOn.of_model(folder) if folder.is_dir() else None

    def begin(self, volume: Volume, about: About, /) -> Sam3Session:
        words = [Query(Text(name)) for name in about.concepts]
        return Sam3Session(self.segmenter, self.segmenter.encode(volume, words))


@dataclass(frozen=True, eq=False)
class Sam3Session:
    segmenter: Sam3Segmenter
    encoded: Sam3Encoded

    def answer(self, queries: Sequence[Query], /) -> list[Answer]:
        found = self.segmenter.decode(self.encoded, queries, probabilities=True).findings
        settings, cut = self.segmenter.settings, self.segmenter.words.cut
        told = [understand(query, settings, self.encoded.modality, cut) for query in queries]
        return [
            Answer(f.mask, f.presence, f.probability, f.instances, f.notes, t.taught)
            for f, t in zip(found, told, strict=True)
        ]


def sam3_answerer(
    model: str | Path, *, threads: int | None = None, policy: Policy | None = None, side: int | None = None,
    precision: Precision | None = None,
) -> Sam3Answerer:  # fmt: skip
    """
    Args:
        model: as `inference.sam3_loading.load_sam3_segmenter` takes it.
        policy, side: by default as stored with the weights; a chosen policy is part of the name.
        precision: "float32" by default, so that numbers do not depend on the machine; a chosen one is part of the name.

    Raises:
        InputError: there are no such weights.
    """
    segmenter = Sam3Segmenter.load(model, threads=threads, policy=policy, side=side, precision=precision or "float32")
    return Sam3Answerer(segmenter, " ".join(each for each in (policy, precision) if each))

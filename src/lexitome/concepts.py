"""Concepts: what words mean. Placeholder contract, completed by the vocabulary work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A coded term, e.g. ("10200004", "SCT", "Liver")."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Concept:
    """One thing that can be asked for.

    Args:
        name: canonical English name, lower case, unique in the vocabulary.
        synonyms: other words for it, any language; the name itself need not be among them.
        modalities: where it is seen, as modality families ("ct", "mr", "ultrasound", "fundus", ...).
        anatomy: region or organ system.
        code: SNOMED CT code where known.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    anatomy: str = ""
    code: Code | None = None

"""From label names to targets: tidy words, synonyms of the vocabulary, unions that nobody wrote down."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lexitome.concepts import Vocabulary
from lexitome.data.dataset import Target

BACKGROUND = frozenset({"background", "bg", "_background_", "none", "unlabeled", "unlabelled"})
_NOT_PAIRED = {"ventricle cavity"}
"""The two ventricles of the heart are not one organ on two sides; nobody asks for both by this name."""


def named_targets(
    names: Mapping[int, str], codes: Mapping[int, tuple[int, ...]], labels: Mapping[int, tuple[int, ...]]
) -> tuple[Target, ...]:
    """Targets of a form that gives nothing but names.

    Args:
        names: key of the label to its name, e.g. "left_kidney".
        codes: key to the codes of the reference that it is made of.
        labels: key to the ids that `Case.unknown_labels` uses.
    """
    tidy = {key: " ".join(name.replace("_", " ").split()) for key, name in names.items()}
    taken = {name.casefold() for name in tidy.values()}
    targets = []
    for key, name in tidy.items():
        words = tuple(word for word in _synonyms(name) if word.casefold() not in taken)
        targets.append(Target(name, words, codes[key], labels[key]))
    return (*targets, *lateral_unions(targets))


def _synonyms(name: str) -> tuple[str, ...]:
    """Other English words for a name that the vocabulary is sure of."""
    found = Vocabulary.load().resolve(name)
    if found.concept is None or found.how == "meaning":
        return ()
    words = (found.concept.name, *found.concept.synonyms)
    return tuple(word for word in dict.fromkeys(words) if word.isascii() and word.casefold() != name.casefold())


def lateral_unions(targets: Sequence[Target]) -> list[Target]:
    """For "left X" and "right X" without a group of their own: the target "X"."""
    by_name = {t.name: t for t in targets}
    unions = []
    for name, target in by_name.items():
        part = name.removeprefix("right ")
        partner = by_name.get(f"left {part}")
        words = {part, f"{part}s", f"both {part}s"}
        named = any(words & {t.name, *t.synonyms} for t in targets)
        if part == name or partner is None or named or part in _NOT_PAIRED:
            continue
        codes = tuple(dict.fromkeys(target.codes + partner.codes))
        unions.append(Target(part, tuple(sorted(words)), codes, target.labels + partner.labels, derived=True))
    return unions


def made_of(targets: Sequence[Target], labels: Collection[int]) -> list[int]:
    """Indices of the targets whose union is made of exactly these labels, whatever it is called: one, or several where
    none is ("kidneys"); nothing if there are no such."""
    wanted = set(labels)
    same = [i for i, target in enumerate(targets) if target.labels and set(target.labels) == wanted]
    parts = same[:1] or [i for i, target in enumerate(targets) if target.labels and set(target.labels) <= wanted]
    return parts if {label for i in parts for label in targets[i].labels} == wanted else []

"""From features of images with classes to results: k-NN, linear layers, attention over slices. Needs torch.

The parts are those of `data.splits`: what has to be chosen is chosen on the validation part by a probe of the training
part; then both together answer for the test part, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lexitome.data.features import Features
from lexitome.data.sources.classes import ClassifiedSet
from lexitome.errors import InputError
from lexitome.evaluation.probing.linear import Fitted, Part, logistic, sgd
from lexitome.evaluation.probing.neighbours import knn
from lexitome.evaluation.probing.scores import class_scores, point_score, shares_right
from lexitome.evaluation.probing.volumes import Bags, attention, pooled
from lexitome.evaluation.runner import progress

if TYPE_CHECKING:
    from lexitome.recipes.probe import ProbeRecipe

Entry = dict[str, Any]
_PARTS = ("train", "val", "test")


def classify(found: Features, data: ClassifiedSet, task: str, recipe: ProbeRecipe) -> list[Entry]:
    """One entry for each kind of feature and each pooling.

    Raises:
        InputError: a part is empty, or scikit-learn is missing.
    """
    stems = {part: [case.stem for case in data.dataset.cases if case.split == part] for part in _PARTS}
    if empty := next((part for part in _PARTS if not stems[part]), None):
        remedy = "Add subjects, or say with --unit-pattern who they are."
        raise InputError(data.dataset.root, f"has no {empty} part: there are too few subjects", remedy)
    truth = {part: data.truth(stems[part]) for part in _PARTS}
    unit_of = {case.stem: case.unit for case in data.dataset.cases}
    units = [unit_of[stem] for stem in stems["test"]]
    entries = []
    for kind, pooling, parts in _variants(found, stems, task, recipe):
        fitted, more = _fitted(parts, truth, task, data.exclusive, recipe)
        scores = class_scores(
            truth["test"], fitted.probability, units, exclusive=data.exclusive, seed=recipe.seed, draws=recipe.draws
        )
        entries.append({
            "features": kind, "pooling": pooling, "chosen": fitted.chosen, "validation": fitted.validation,
            "scores": scores, "cases": len(units), "classes": list(data.classes),
            "right": _right(truth["test"], fitted.probability, units, data.exclusive), **more,
        })  # fmt: skip
    return entries


def _right(
    truth: NDArray[np.bool_], probability: NDArray[np.floating], units: list[str], exclusive: bool
) -> dict[str, list[float]]:
    """Subject to the accuracy of each of its images, so that runs can be compared image by image."""
    found: dict[str, list[float]] = {}
    for unit, share in zip(units, shares_right(truth, probability, exclusive=exclusive), strict=True):
        found.setdefault(unit, []).append(round(float(share), 4))
    return found


Parts = dict[str, Any]
"""Part to (cases, D) vectors, or for attention to a list of (slices, D)."""


def _variants(
    found: Features, stems: dict[str, list[str]], task: str, recipe: ProbeRecipe
) -> Iterator[tuple[str, str, Parts]]:
    """(kind of feature, pooling or "", features of the parts)."""
    rows = found.rows_of()
    volumes = len(rows) < len(found.stems)
    for kind in found.key.kinds:
        vectors = found.vector(kind)
        if task == "abmil":
            yield kind, "attention", {part: [vectors[rows[stem]] for stem in stems[part]] for part in _PARTS}
            continue
        for how in recipe.pooling if volumes else ("mean",):  # of one picture the mean is itself
            yield kind, how if volumes else "", {part: pooled(vectors, rows, stems[part], how) for part in _PARTS}


def _fitted(
    parts: Parts, truth: dict[str, NDArray[np.bool_]], task: str, exclusive: bool, recipe: ProbeRecipe
) -> tuple[Fitted, Entry]:
    if task == "abmil":
        bags = [Bags(parts[part], truth[part]) for part in _PARTS]
        return attention(*bags, exclusive=exclusive, config=recipe.attention, seed=recipe.seed), {}
    if task == "knn":
        return _neighbours(parts, truth, exclusive, recipe)
    train, val, test = (Part(parts[part], truth[part]) for part in _PARTS)
    if task == "sgd":
        return sgd(train, val, test, exclusive=exclusive, seed=recipe.seed), {}
    with progress("linear", len(recipe.cs), 0, shown=True) as advance:
        return logistic(train, val, test, exclusive=exclusive, cs=recipe.cs, advance=lambda: advance("C")), {}


def _neighbours(
    parts: Parts, truth: dict[str, NDArray[np.bool_]], exclusive: bool, recipe: ProbeRecipe
) -> tuple[Fitted, Entry]:
    """The k of the best validation score, and test scores of all of them."""
    tried = knn(parts["train"], truth["train"], parts["val"], ks=recipe.ks, temperature=recipe.temperature)
    validation = {k: point_score(truth["val"], found, exclusive=exclusive) for k, found in tried.items()}
    best = max(validation, key=lambda k: (validation[k], -k))
    bank = np.concatenate([parts["train"], parts["val"]])
    labels = np.concatenate([truth["train"], truth["val"]])
    answers = knn(bank, labels, parts["test"], ks=tuple(validation), temperature=recipe.temperature)
    by_k = {str(k): point_score(truth["test"], found, exclusive=exclusive) for k, found in answers.items()}
    return Fitted(answers[best], float(best), validation[best]), {"by_k": by_k}

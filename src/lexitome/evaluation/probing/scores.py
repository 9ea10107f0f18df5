"""How good class probabilities are: means with intervals whose units are subjects (`evaluation.statistics`).

auc                macro: mean over classes of the area under the ROC curve of this class against the rest, ties half
accuracy           share of images with the right class; of several labels, mean over labels at a threshold of 0.5
balanced_accuracy  mean recall of the classes; of several labels, mean of (sensitivity + specificity) / 2
f1                 macro: mean over classes of 2 TP / (2 TP + FP + FN)

Classes that have no value (no image of that class, or nothing else) are left out of a mean, also within each draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexitome.evaluation.presence import weighted_auc
from lexitome.evaluation.statistics import DRAWS, LEVEL, Floats, Interval, percentiles, ratio, resampled

METRICS = ("auc", "accuracy", "balanced_accuracy", "f1")
THRESHOLD = 0.5

Bools = NDArray[np.bool_]
Entry = dict[str, Any]


def class_scores(
    truth: Bools, probability: NDArray[np.floating], units: Sequence[str], *, exclusive: bool, seed: int = 0,
    draws: int = DRAWS, level: float = LEVEL,
) -> dict[str, Entry | None]:  # fmt: skip
    """Each of `METRICS` as the entries of an `Interval`, None where it has no value; units are drawn with replacement.

    Args:
        truth: (N, C) which classes each image has.
        probability: (N, C).
        units: (N,) the subject of each image.
        exclusive: every image has one class, and the most probable one is predicted.

    Raises:
        ValueError: there is no image, or a probability that is not finite.
    """
    if not len(truth) or not np.isfinite(probability).all():
        raise ValueError("scores need images, and finite probabilities")
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    table = _table(truth, _predicted(probability, exclusive=exclusive), unit)
    order = np.argsort(probability, axis=0, kind="stable")
    means = _metrics(np.ones((1, len(names))), table, (truth, probability, order, unit), exclusive)[0]
    parts = resampled(len(names), draws, (seed,), width=3 * len(truth))
    drawn = np.concatenate([_metrics(w, table, (truth, probability, order, unit), exclusive) for _, w in parts])
    found: dict[str, Entry | None] = {}
    for column, name in enumerate(METRICS):
        if not np.isfinite(means[column]):
            found[name] = None
            continue
        low, high = percentiles(drawn[None, :, column], np.array([len(names)]), level)
        found[name] = asdict(Interval(float(means[column]), low, high, len(names), len(truth)))
    return found


def point_score(truth: Bools, probability: NDArray[np.floating], *, exclusive: bool) -> float:
    """The number by which validation chooses: balanced accuracy of classes, AUC of labels; -inf without a value.

    Probabilities that choose alike are told apart by their log loss, which can change it by a thousandth at most.
    """
    if not np.isfinite(probability).all():  # of a layer that diverged
        return -np.inf
    unit = np.zeros(len(truth), np.int64)
    table = _table(truth, _predicted(probability, exclusive=exclusive), unit)
    order = np.argsort(probability, axis=0, kind="stable")
    values = _metrics(np.ones((1, 1)), table, (truth, probability, order, unit), exclusive)[0]
    value = values[METRICS.index("balanced_accuracy" if exclusive else "auc")]
    if not np.isfinite(value):
        return -np.inf
    right = np.where(truth, probability, 1 - probability) if not exclusive else probability[truth]
    loss = float(-np.log(np.clip(right, 1e-12, 1)).mean())
    return float(value) - 1e-3 * loss / (1 + loss)


def shares_right(truth: Bools, probability: NDArray[np.floating], *, exclusive: bool) -> Floats:
    """(N,) 1 where the class of an image is right, else 0; of several labels the share that is right. Their mean is
    `accuracy`."""
    right = _predicted(probability, exclusive=exclusive) == truth
    return np.asarray(right.all(axis=1) if exclusive else right.mean(axis=1), np.float64)


def _predicted(probability: NDArray[np.floating], *, exclusive: bool) -> Bools:
    if not exclusive:
        return probability >= THRESHOLD
    chosen = np.zeros(probability.shape, bool)
    chosen[np.arange(len(probability)), probability.argmax(axis=1)] = True
    return chosen


def _table(truth: Bools, predicted: Bools, unit: NDArray[np.integer]) -> Floats:
    """(units, 4 C): true and false positives, false and true negatives of every class."""
    kinds = (truth & predicted, ~truth & predicted, truth & ~predicted, ~truth & ~predicted)
    table = np.zeros((int(unit.max()) + 1, 4 * truth.shape[1]))
    np.add.at(table, unit, np.concatenate(kinds, axis=1).astype(np.float64))
    return table


Sorted = tuple[Bools, NDArray[np.floating], NDArray[np.intp], NDArray[np.integer]]


def _metrics(weights: Floats, table: Floats, answers: Sorted, exclusive: bool) -> Floats:
    """(draws, metrics) for (draws, units) weights."""
    hit, false, missed, right = np.split(weights @ table, 4, axis=1)
    sensitivity, specificity = ratio(hit, hit + missed), ratio(right, right + false)
    balanced = sensitivity if exclusive else (sensitivity + specificity) / 2
    f1 = ratio(2 * hit, 2 * hit + false + missed)
    whole = hit + false + missed + right
    each = ratio(hit, whole).sum(axis=1) if exclusive else ratio(hit + right, whole).mean(axis=1)
    truth, probability, order, unit = answers
    areas = []
    for column in range(truth.shape[1]):
        rows = order[:, column]
        areas.append(weighted_auc(
            probability[rows, column].astype(np.float64), truth[rows, column], weights[:, unit[rows]]
        ))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw in which no class has a value
        columns = [np.nanmean(np.stack(areas, 1), 1), each, np.nanmean(balanced, 1), np.nanmean(f1, 1)]
    return np.stack(columns, axis=1)

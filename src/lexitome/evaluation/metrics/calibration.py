"""Whether a probability of 0.8 is right in 8 voxels of 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lexitome.evaluation.metrics.overlap import Mask

MARGIN = 5
"""Voxels around the object that are asked too, on each axis with more than one voxel: where it is uncertain."""
SURE = 0.5

Bins = dict[str, list[float]]


def calibration_region(
    probability: NDArray[np.floating], reference: Mask, judged: Mask | None = None
) -> tuple[NDArray[np.float64], Mask]:
    """(n,) probabilities and truths of the voxels that are asked: those judged in the bounding box, `MARGIN` voxels
    wider, of what is annotated or has a probability of at least `SURE`. None at all where there is no such voxel.

    In the whole image, the background that nobody would mistake makes every model look calibrated.

    Raises:
        ValueError: other shapes, or something that is no probability.
    """
    if probability.shape != reference.shape:
        raise ValueError(f"probabilities have shape {probability.shape}, the reference {reference.shape}")
    where = reference | (probability >= SURE)
    box = []
    for axis in range(where.ndim):
        others = tuple(other for other in range(where.ndim) if other != axis)
        hit = np.flatnonzero(where.any(axis=others))
        box.append(slice(max(int(hit[0]) - MARGIN, 0), int(hit[-1]) + MARGIN + 1) if len(hit) else slice(0))
    asked = np.ones(reference[tuple(box)].shape, bool) if judged is None else judged[tuple(box)]
    values = probability[tuple(box)][asked].astype(np.float64)
    if len(values) and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("probabilities must lie between 0 and 1")
    return values, reference[tuple(box)][asked]


def calibration_bins(
    probability: NDArray[np.floating], reference: Mask, bins: int = 15, judged: Mask | None = None
) -> Bins:
    """Counts of a reliability diagram in `bins` equal steps of probability; add those of cases up with `pooled`.

    Args:
        probability: (Z, Y, X) or (Y, X), of the target, 0 to 1.
        judged: voxels that somebody looked at; None for all.

    Returns:
        lists of length `bins`: `count` of voxels, `probability` and `positive`, the sums of their probabilities and
        truths. One of exactly 1 falls into the last bin.

    Raises:
        ValueError: see `calibration_region`.
    """
    return binned(*calibration_region(probability, reference, judged), bins)


def binned(values: NDArray[np.float64], truth: Mask, bins: int = 15) -> Bins:
    """(n,) probabilities and truths into bins."""
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    return {
        "count": np.bincount(place, minlength=bins).astype(float).tolist(),
        "probability": np.bincount(place, values, bins).tolist(),
        "positive": np.bincount(place, truth.astype(float), bins).tolist(),
    }


def pooled(several: Sequence[Mapping[str, Sequence[float]]]) -> Bins:
    """Bins of all cases together; at least one, all with as many bins."""
    return {name: np.sum([bins[name] for bins in several], axis=0).tolist() for name in several[0]}


def to_text(bins: Mapping[str, Sequence[float]]) -> str:
    """Bins in one cell of a table: "count:probability:positive" of each, "0" where there is none."""
    parts = zip(bins["count"], bins["probability"], bins["positive"], strict=True)
    return " ".join(f"{count:.0f}:{sure:.9g}:{positive:.0f}" if count else "0" for count, sure, positive in parts)


def from_text(text: str) -> Bins:
    """
    Raises:
        ValueError: not as `to_text` writes them.
    """
    triples = [[float(number) for number in word.split(":")] if word != "0" else [0.0] * 3 for word in text.split(" ")]
    for triple in triples:
        if len(triple) != 3 or not all(0 <= number <= 1.0001 * triple[0] for number in triple):
            raise ValueError(f"bins {text!r}")
    return {name: [triple[i] for triple in triples] for i, name in enumerate(("count", "probability", "positive"))}


def ece_of(bins: Mapping[str, Sequence[float]]) -> float | None:
    """Expected calibration error (Guo et al., ICML 2017): mean over voxels of |mean probability - share of positives|
    in their bin; None without a voxel."""
    count = float(np.sum(bins["count"]))
    gaps = np.abs(np.subtract(bins["probability"], bins["positive"]))
    return float(gaps.sum() / count) if count else None


def brier(values: NDArray[np.float64], truth: Mask) -> float | None:
    """Mean of (probability - truth)^2 (Brier 1950); None without a voxel."""
    return float(np.square(values - truth).mean()) if len(values) else None

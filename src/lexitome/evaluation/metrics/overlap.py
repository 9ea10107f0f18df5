"""Overlap of two masks, counted in voxels. Definitions and what empty masks score: docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Counts:
    """Voxels of a prediction, of a reference, and of both at once; may be added up over cases."""

    predicted: int
    wanted: int
    shared: int


def count(prediction: Mask, reference: Mask) -> Counts:
    """Of two masks of one shape, any dimensions."""
    shared = np.count_nonzero(prediction & reference)
    return Counts(int(np.count_nonzero(prediction)), int(np.count_nonzero(reference)), int(shared))


def dice(counts: Counts) -> float | None:
    """2 |P and R| / (|P| + |R|); None without a reference."""
    return 2 * counts.shared / (counts.predicted + counts.wanted) if counts.wanted else None


def iou(counts: Counts) -> float | None:
    """|P and R| / |P or R|, the Jaccard index; None without a reference."""
    return counts.shared / (counts.predicted + counts.wanted - counts.shared) if counts.wanted else None


def precision(counts: Counts) -> float | None:
    """|P and R| / |P|; 0 where nothing was predicted, None without a reference."""
    return counts.shared / max(counts.predicted, 1) if counts.wanted else None


def recall(counts: Counts) -> float | None:
    """|P and R| / |R|, the sensitivity; None without a reference."""
    return counts.shared / counts.wanted if counts.wanted else None


def volume_error(counts: Counts) -> float | None:
    """(|P| - |R|) / |R|: -1 where nothing was predicted, no upper bound; None without a reference."""
    return (counts.predicted - counts.wanted) / counts.wanted if counts.wanted else None

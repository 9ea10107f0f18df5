"""Objects found and missed, from two maps of ids. Objects of one map do not overlap."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

SAME_OBJECT = 0.5
"""Two objects match if their IoU is above this: then each has at most one partner."""
STEPS = tuple(step / 100 for step in range(50, 100, 5))
"""IoU above which objects match in `ap`: 0.50, 0.55, ..., 0.95."""

Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Matches:
    """How many objects there are, and the IoU of every pair of them that could match."""

    found: int
    wanted: int
    ious: NDArray[np.float64]

    def above(self, threshold: float = SAME_OBJECT) -> int:
        """Pairs of objects with a larger IoU, `threshold` >= 0.5."""
        return int((self.ious > threshold).sum())


def match(prediction: Ids, reference: Ids) -> Matches:
    """
    Args:
        prediction, reference: ids of objects, of one shape, 0 for none.

    Raises:
        ValueError: other shapes, or ids below 0.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"the maps of ids have shapes {prediction.shape} and {reference.shape}")
    ours, our_sizes = _renumbered(prediction)
    theirs, their_sizes = _renumbered(reference)
    both = (ours > 0) & (theirs > 0)
    columns = len(their_sizes) + 1
    pairs, shared = np.unique(ours[both] * columns + theirs[both], return_counts=True)
    union = our_sizes[pairs // columns - 1] + their_sizes[pairs % columns - 1] - shared
    ious = shared / union
    return Matches(len(our_sizes), len(their_sizes), ious[ious > SAME_OBJECT])


def _renumbered(ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the same map with ids 1 to n, sizes of the n objects)."""
    if ids.size and int(ids.min()) < 0:
        raise ValueError("ids of objects must not be negative")
    here = ids > 0
    _, order, sizes = np.unique(ids[here], return_inverse=True, return_counts=True)
    numbered = np.zeros(ids.shape, dtype=np.int64)
    numbered[here] = order.reshape(-1) + 1
    return numbered, sizes


def measure_objects(prediction_ids: Ids, reference_ids: Ids) -> dict[str, float | None]:
    """Panoptic quality, average precision, F1 and count, see docs/metrics.md. Without an object in the reference all
    but the counts are None.

    Besides the metrics: `objects_found`, `objects_wanted` and `objects_matched`, which add up over cases.

    Args:
        prediction_ids, reference_ids: of one shape, 0 for none; values need not be consecutive.

    Raises:
        ValueError: other shapes, or ids below 0.
    """
    matches = match(prediction_ids, reference_ids)
    matched = matches.above()
    result: dict[str, float | None] = {
        "count_error": float(abs(matches.found - matches.wanted)),
        "objects_found": float(matches.found),
        "objects_wanted": float(matches.wanted),
        "objects_matched": float(matched),
    }
    if not matches.wanted:
        return dict.fromkeys(("pq", "sq", "rq", "ap50", "ap", "f1_50")) | result
    recognised = 2 * matched / (matches.found + matches.wanted)
    quality = float(matches.ious.sum()) / matched if matched else None
    precisions = [average_precision(matches, step) for step in STEPS]
    return {
        "pq": recognised * (quality or 0.0),
        "sq": quality,
        "rq": recognised,
        "ap50": precisions[0],
        "ap": fmean(precisions),
        "f1_50": recognised,
        **result,
    }


def average_precision(matches: Matches, threshold: float) -> float:
    """TP / (TP + FP + FN), as for nuclei in the Data Science Bowl 2018; objects need no confidence, unlike in COCO."""
    matched = matches.above(threshold)
    return matched / max(matches.found + matches.wanted - matched, 1)

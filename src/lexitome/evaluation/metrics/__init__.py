"""Every number that is told of a mask: what it means, what empty masks score, and what computes them.

Definitions at length, and where other tools differ: docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lexitome.evaluation.metrics import calibration, overlap, surface
from lexitome.evaluation.metrics.calibration import Bins, calibration_bins, ece_of
from lexitome.evaluation.metrics.geometry import metric_matrix, voxel_size
from lexitome.evaluation.metrics.instances import measure_objects
from lexitome.evaluation.metrics.skeleton import centreline_dice

__all__ = [
    "METRICS", "Bins", "MetricInfo", "calibration_bins", "ece_of", "measure_calibration", "measure_mask",
    "measure_objects",
]  # fmt: skip

HD_SHARE = 0.95
Values = dict[str, float | None]


@dataclass(frozen=True)
class MetricInfo:
    """
    Args:
        unit: "length" is mm, or px without spacing; "volume" is mm3 or voxels, in a single slice mm2 or px.
        better: which way; of a "signed share" it is the absolute value that should be low.
        empty_prediction: value where the reference shows something and nothing was predicted; None for no value.
        empty_reference: value where something was predicted and the reference is empty.
    """

    name: str
    unit: Literal["share", "signed share", "length", "volume", "count", "flag"]
    better: Literal["high", "low"]
    definition: str
    empty_prediction: float | None = 0.0
    empty_reference: float | None = None
    both_empty: float | None = None


METRICS: dict[str, MetricInfo] = {
    "dice": MetricInfo("Dice", "share", "high", "2 |P and R| / (|P| + |R|), in voxels."),
    "iou": MetricInfo("IoU", "share", "high", "|P and R| / |P or R|, in voxels."),
    "precision": MetricInfo("Precision", "share", "high", "Share of the predicted voxels that are in the reference."),
    "recall": MetricInfo("Recall", "share", "high", "Share of the reference's voxels that were predicted."),
    "volume_error": MetricInfo("Volume error", "signed share", "low", "(|P| - |R|) / |R|; best at 0.", -1.0),
    "nsd": MetricInfo(
        "NSD", "share", "high", "Share of both surfaces, by area, that lies within the tolerance of the other."
    ),
    "hd95": MetricInfo(
        "HD95", "length", "low", "Distance within which 95 % of each surface, by area, has the other one.", None
    ),
    "hd": MetricInfo("HD", "length", "low", "Largest distance from a point of one surface to the other one.", None),
    "assd": MetricInfo("ASSD", "length", "low", "Mean distance to the other surface over both, by area.", None),
    "boundary_iou": MetricInfo(
        "Boundary IoU", "share", "high", "IoU of the parts of both masks within the tolerance of their own surface."
    ),
    "cldice": MetricInfo(
        "clDice", "share", "high", "Harmonic mean of the shares of each centre line that lie in the other mask."
    ),
    "ece": MetricInfo(
        "ECE", "share", "low",
        "Mean gap between probability and share of positives, 15 bins, in the box of the object and 5 voxels around.",
        None,
    ),
    "brier": MetricInfo("Brier", "share", "low", "Mean squared error of the probability, where ECE is measured.", None),
    "unbounded": MetricInfo(
        "Unbounded", "flag", "low", "1 where nothing was predicted, so that distances have no value.", 1.0
    ),
    "false_volume": MetricInfo(
        "False volume", "volume", "low", "What was predicted although the reference is empty.", None, None, 0.0
    ),
    "pq": MetricInfo("PQ", "share", "high", "Panoptic quality, SQ x RQ."),
    "sq": MetricInfo("SQ", "share", "high", "Mean IoU of the matched objects; none where none match.", None),
    "rq": MetricInfo("RQ", "share", "high", "2 TP / (found + wanted) objects, matched at an IoU above 0.5."),
    "ap50": MetricInfo("AP50", "share", "high", "TP / (TP + FP + FN) objects, matched at an IoU above 0.5."),
    "ap": MetricInfo("AP", "share", "high", "Mean of TP / (TP + FP + FN) over IoU above 0.50, 0.55, ... 0.95."),
    "f1_50": MetricInfo("F1 at 0.5", "share", "high", "F1 of objects at an IoU above 0.5; the same number as RQ."),
    "count_error": MetricInfo("Count error", "count", "low", "|objects found - objects wanted|.", None, None, 0.0),
}  # fmt: skip
"""By the name that it has in results. `empty_reference` of `false_volume` is the predicted volume, and the two empty
values of `count_error` are the number of objects in the other map: no constants, so None here."""

OVERLAPS = {
    "dice": overlap.dice, "iou": overlap.iou, "precision": overlap.precision, "recall": overlap.recall,
    "volume_error": overlap.volume_error,
}  # fmt: skip
SURFACES = ("nsd", "hd95", "hd", "assd", "boundary_iou")


def measure_mask(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], affine: NDArray[np.floating] | None,
    judged: NDArray[np.bool_] | None = None, *, tolerance: float, tubular: bool = False,
) -> Values:  # fmt: skip
    """All metrics of one mask but calibration; None where one has no value, never a value made up.

    Args:
        prediction, reference: (Z, Y, X) bool. With Z = 1 surfaces are outlines in the plane: a slice has no top.
        affine: (4, 4), voxel (x, y, z) to world in mm, of any obliqueness or shear; None where the image has no
            spacing, lengths are then in pixels.
        judged: (Z, Y, X) voxels that somebody looked at, None for all; others count as empty in both masks.
        tolerance: of NSD and boundary IoU, in the unit of lengths.
        tubular: add `cldice`.

    Raises:
        ValueError: shapes differ, are not 3D, or the affine has no inverse.
        InputError: `tubular` without scikit-image.
    """
    prediction, reference = np.asarray(prediction, dtype=bool), np.asarray(reference, dtype=bool)
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise ValueError(f"masks must be (Z, Y, X) of one shape, got {prediction.shape} and {reference.shape}")
    if not tolerance >= 0:
        raise ValueError(f"the tolerance must not be negative, got {tolerance}")
    if judged is not None:
        prediction, reference = prediction & judged, reference & judged
    flat = prediction.shape[0] == 1
    matrix = metric_matrix(affine, 2 if flat else 3)
    counts = overlap.count(prediction, reference)
    names = [*OVERLAPS, *SURFACES, *(["cldice"] if tubular else [])]
    result: Values = dict.fromkeys([*names, "unbounded", "false_volume"])
    if not counts.wanted:
        return result | {"false_volume": counts.predicted * voxel_size(matrix)}
    result |= {name: of(counts) for name, of in OVERLAPS.items()}
    if not counts.predicted:
        shares = [name for name in names if name in ("nsd", "boundary_iou", "cldice")]
        return result | dict.fromkeys(shares, 0.0) | {"unbounded": 1.0}
    crop = bounding_box(prediction | reference)
    ours, theirs = ((mask[crop][0] if flat else mask[crop]) for mask in (prediction, reference))
    result |= measure_surfaces(ours, theirs, matrix, tolerance) | {"unbounded": 0.0}
    if tubular:
        result["cldice"] = centreline_dice(ours, theirs)
    return result


def measure_calibration(
    probability: NDArray[np.floating], reference: NDArray[np.bool_], judged: NDArray[np.bool_] | None = None
) -> tuple[Values, Bins | None]:
    """`ece` and `brier` of the probability of a mask, and the bins of its reliability diagram, which add up over cases
    (`calibration.pooled`); None of all where the reference is empty.

    Args:
        probability, reference, judged: (Z, Y, X), as for `measure_mask`.

    Raises:
        ValueError: shapes differ, or probabilities are none.
    """
    wanted = np.asarray(reference, dtype=bool) if judged is None else reference & judged
    if not wanted.any():
        return {"ece": None, "brier": None}, None
    values, truth = calibration.calibration_region(probability, wanted, judged)
    bins = calibration.binned(values, truth)
    return {"ece": ece_of(bins), "brier": calibration.brier(values, truth)}, bins


def measure_surfaces(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], matrix: NDArray[np.float64], tolerance: float
) -> Values:
    """The metrics of `SURFACES` for two masks, (Z, Y, X) or (Y, X), neither empty.

    Args:
        matrix: see `geometry.metric_matrix`.
    """
    distances = surface.distances_between(prediction, reference, matrix)
    return {
        "nsd": surface.surface_dice(distances, tolerance),
        "hd95": surface.hausdorff(distances, HD_SHARE),
        "hd": surface.hausdorff(distances),
        "assd": surface.average_distance(distances),
        "boundary_iou": surface.boundary_iou(prediction, reference, matrix, tolerance),
    }


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Of a mask of any dimensions that is not empty."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)

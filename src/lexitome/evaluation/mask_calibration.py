"""Is a voxel with a mask probability of 0.8 inside in 8 cases of 10? Counted over the voxels of all cases."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lexitome.evaluation.metrics.calibration import ece_of, from_text, pooled
from lexitome.evaluation.rows import ResultRow

Entry = dict[str, Any]


def mask_calibration(rows: Iterable[ResultRow]) -> list[Entry]:
    """One entry for each (model, protocol, dataset), and one with "dataset" None for all of them together: "cases" (a
    case is one concept asked in one image), "voxels", "ece", and "bins" as `metrics.calibration_bins` has them.

    Rows without bins (an absent concept, no answer, a model without probabilities, a run of an earlier version) and
    those of derived concepts, whose voxels would count twice, are left out.
    """
    found: dict[tuple[str, str, str | None], list[str]] = {}
    for row in rows:
        if row.bins and not row.derived:
            for dataset in (row.dataset, None):
                found.setdefault((row.model, row.protocol, dataset), []).append(row.bins)
    entries = []
    for (model, protocol, dataset), texts in found.items():
        bins = pooled([from_text(text) for text in texts])
        error = ece_of(bins)
        if error is not None:
            entries.append({
                "model": model, "protocol": protocol, "dataset": dataset, "oracle": "oracle" in protocol,
                "cases": len(texts), "voxels": int(sum(bins["count"])), "ece": error, "bins": bins,
            })  # fmt: skip
    return entries

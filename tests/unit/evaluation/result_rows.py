"""Rows of an evaluation, made by hand."""

from __future__ import annotations

from typing import Any

from lexitome.evaluation.rows import ResultRow


def row(dice: float | None = None, /, **fields: Any) -> ResultRow:
    """A present concept with this Dice, or an absent one; `fields` replaces anything."""
    given: dict[str, Any] = {
        "dataset": "set", "split": "test", "case": "c1", "unit": "u1", "modality": "ct", "dims": 2, "concept": "liver",
        "derived": False, "model": "m", "protocol": "text", "present": dice is not None, "found": bool(dice),
        "metrics": {} if dice is None else {"dice": dice},
    }  # fmt: skip
    return ResultRow(**given | fields)

"""The benchmark of a full fine-tuning step: it runs, its parts take time, and steps change the loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

sam3_step = pytest.importorskip("sam3_step")


def test_steps_are_taken_and_timed(annotated: Path, tmp_path: Path) -> None:
    options = sam3_step.Options(annotated, tmp_path, "tiny", 2, 2, 1, "dsb2018_fluorescence_nuclei")
    result = sam3_step.measure(options)
    assert result["preset"] == "tiny" and result["parameters"] > 0 and len(result["steps"]) == 2
    for step in result["steps"]:
        assert all(step[part] > 0 for part in ("forward", "objective", "backward", "update", "peak_gb"))
        assert math.isfinite(step["loss"])

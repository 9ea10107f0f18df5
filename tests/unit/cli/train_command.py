"""`lexitome train RECIPE` of a tiny network, for tests: as it is typed, stopped after its first step, and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lexitome.training import engine


def tiny(recipe: str, data: Path, out: Path, settings: Sequence[str]) -> list[str]:
    """The words of a command that begins with random weights."""
    chosen = [word for setting in settings for word in ("--set", setting)]
    return ["train", recipe, "--data", str(data), "-o", str(out), "--start", "random:tiny", *chosen]


def steps_of(out: Path) -> list[int]:
    """That the log of a run has."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


def asked_at_once(request: engine.StopRequest) -> engine.StopRequest:
    """In place of `StopRequest.__enter__`: as if the user had stopped the run at once."""
    request.asked = True
    return request

"""`lexitome segment` as tests type it, and what it reports."""

from __future__ import annotations

import json
from pathlib import Path

from lexitome.cli import main


def segment(*arguments: str | Path) -> int:
    return main(["segment", *map(str, arguments)])


def report_of(folder: Path) -> dict[str, object]:
    report: dict[str, object] = json.loads((folder / "report.json").read_text())
    return report

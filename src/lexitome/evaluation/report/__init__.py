"""A run as something to read: one self-contained HTML page, the same in Markdown, and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_report(run_folders: Sequence[Path], out: Path, *, images: bool = True) -> None:
    """See `report.write.write_report`; imported late, since runners need `report.overlays` alone."""
    from lexitome.evaluation.report.write import write_report as write

    write(run_folders, out, images=images)

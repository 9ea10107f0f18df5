"""`report`: a page about finished evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lexitome.cli.console import OK, Console
from lexitome.cli.options import Debug
from lexitome.errors import InputError

app = typer.Typer()


@app.command("report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of lexitome evaluate; several are compared.")
    ],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where to; by default into the only RUN.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave the example images out, e.g. to publish the report.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Describe finished evaluations: tables with intervals, figures, examples, problems, definitions.

    Writes report.html, which is complete and needs no internet, and the same as report.md with pictures beside it.
    Figures need the extra lexitome[eval].
    """
    from lexitome.evaluation.report import write_report
    from lexitome.evaluation.report.figures import available
    from lexitome.evaluation.report.write import HTML, MARKDOWN

    if out is None and len(runs) > 1:
        raise InputError("lexitome report", "several runs have no common folder", "Say where to write: -o DIR.")
    place = out or runs[0]
    write_report(runs, place, images=not no_images)
    console = Console()
    if not available():
        console.note("without figures, which need matplotlib: pip install 'lexitome[eval]'")
    console.say(f"report: {place / HTML}")
    console.say(f"also: {place / MARKDOWN}")
    raise typer.Exit(OK)

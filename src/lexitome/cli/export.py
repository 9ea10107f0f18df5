"""`export`: the model folder of a training run, written again or stored otherwise."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lexitome.cli.console import OK
from lexitome.cli.options import Debug
from lexitome.cli.training_extra import CACHE, need_packages

app = typer.Typer()


class Stored(StrEnum):
    """How weights are stored (`models.compact_weights.Storage`); all compute in float32."""

    fp16 = "fp16"
    fp32 = "fp32"
    int8 = "int8"


@app.command("export")
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of lexitome train.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the model to write.")],
    stored: Annotated[
        Stored, typer.Option("--format", help="fp16: half the size; int8: a quarter, and less exact.")
    ] = Stored.fp16,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Decoded pictures; by default RUN/decoded.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the model of a training run: two ONNX graphs and a card.

    How each concept is asked is chosen on the validation part of the run's data, which has to be where it was. The
    result is used with `lexitome segment -i IMAGE -o OUT --model DIR -t WORDS`. Needs the extra lexitome[train].
    """
    need_packages("export")
    _export(run, out, stored, cache or run / CACHE)
    raise typer.Exit(OK)


def _export(run: Path, out: Path, stored: Stored, cache: Path) -> None:
    from lexitome.recipes import run as runs

    job = runs.Job.load(run)
    datasets = runs.prepare_splits(runs.find_datasets(job), run, resume=True)
    source = runs.open_source(job, datasets, cache, print)
    runs.export(job, source, run, out, stored.value)

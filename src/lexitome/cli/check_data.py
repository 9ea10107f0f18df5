"""`check-data`: is an annotated dataset fit to train on, and if not, what to fix."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lexitome.cli.console import BAD_INPUT, OK, UNEXPECTED
from lexitome.cli.describe import align
from lexitome.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from lexitome.data.check import Report
    from lexitome.data.dataset import Dataset, Finding

app = typer.Typer()
_SHOWN = 3


@app.command("check-data")
def check_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Images with annotation: see docs for the forms.")],
    concept: Annotated[
        str, typer.Option("--concept", metavar="NAME", help="What the masks show, where the data do not say it.")
    ] = "",
    unit_pattern: Annotated[
        str | None, typer.Option("--unit-pattern", metavar="REGEX", help="The subject within the name of an image.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the split into train, val and test.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 if there are warnings.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check annotated data before training.

    Pairs, geometry, labels, empty masks, duplicates and leaks between the parts; says what to fix. Exit code 2 if
    there are errors.
    """
    from lexitome.data.sources import load_any

    # Resolved as in training: who is in which part depends on the name of the folder, which "." does not tell.
    dataset = load_any(folder.resolve(), seed=seed, concept=concept, unit_pattern=unit_pattern)
    report = _run(dataset)
    if as_json:
        print(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        given = [shlex.quote(str(folder)), *(["--concept", shlex.quote(concept)] if concept else [])]
        given += ["--unit-pattern", shlex.quote(unit_pattern)] if unit_pattern else []
        print("\n".join(lines_of(report, " ".join(given))))
    failed = report.count("error") > 0
    doubtful = strict and report.count("warning") > 0
    raise typer.Exit(BAD_INPUT if failed else UNEXPECTED if doubtful else OK)


def _run(dataset: Dataset) -> Report:
    """The check behind a progress bar on standard error, which vanishes when done."""
    from rich.console import Console
    from rich.progress import Progress

    from lexitome.data.check import check_dataset

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("Reading", total=len(dataset.cases))
        return check_dataset(dataset, lambda done: bar.update(task, completed=done))


def lines_of(report: Report, given: str) -> list[str]:
    """What the user reads; `given` are the arguments to type again."""
    parts = ", ".join(f"{split} {count}" for split, count in report.splits.items())
    described = f"{report.dims}D{f', {report.modality}' if report.modality else ''}"
    lines = [
        f"{report.dataset} ({report.form}; {described})",
        f"{report.cases} images of {report.units} subjects: {parts}",
        "",
    ]
    head = ("TARGET", "LABELS", "IMAGES", "MEAN SHARE")
    rows = [(t.name, " ".join(map(str, t.labels)), str(t.cases), f"{t.share:.2%}") for t in report.targets]
    lines += [*align((head, *rows)), ""]
    for finding in report.findings:
        lines += _finding_lines(finding)
    errors, warnings = report.count("error"), report.count("warning")
    lines += ["", f"{errors} errors, {warnings} warnings"]
    if errors:
        return [*lines, f"next: fix the errors, then lexitome check-data {given}"]
    return [*lines, f"next: lexitome train --data {given}"]


def _finding_lines(finding: Finding) -> list[str]:
    lines = [f"{finding.level:<8} {finding.topic}: {finding.cause}"]
    if finding.where:
        more = f" and {len(finding.where) - _SHOWN} more" if len(finding.where) > _SHOWN else ""
        lines.append(f"         in {', '.join(finding.where[:_SHOWN])}{more}")
    return [*lines, f"         -> {finding.remedy}"]

"""`benchmark`: a published experiment, repeated on whichever of its datasets lie here."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lexitome.cli.answerers import model_answerer, taken
from lexitome.cli.console import OK
from lexitome.cli.evaluate import NoLeakageCheck
from lexitome.cli.options import AsJson, Debug
from lexitome.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lexitome.data.dataset import Dataset
    from lexitome.evaluation.answering import Answerer
    from lexitome.evaluation.beside import Block, Comparison, Heading
    from lexitome.evaluation.found_sets import FoundSet, TaskData
    from lexitome.evaluation.presets import Preset
    from lexitome.evaluation.protocols import ProtocolSpec

app = typer.Typer()
WIDE = 200
"""Columns of a table that nobody looks at in a terminal, so that nothing is cut."""


@app.command("benchmark")
def benchmark(  # noqa: PLR0913 - the signature is the command line
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="medical-sam3, meddinov3 or sam-zero-shot.", show_default=False)
    ],
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", metavar="DIR", help="Folder below which the datasets lie, in any order."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="A name or a folder, as for lexitome evaluate.")
    ] = "compact",
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="DIR", help="Masks of another tool, below a folder for each dataset."),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompts", metavar="P[,P2]", help="Prompt protocols; by default the experiment's own."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="At most so many images of each dataset.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, metavar="N", help="Images worked on at a time.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of splits and draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="Folder of the results; by default runs/NAME."),
    ] = None,
    no_leakage_check: NoLeakageCheck = False,
    only_list: Annotated[
        bool,
        typer.Option("--list", help="Show tasks, prompts, published numbers and where the data come from, and stop."),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Repeat a published experiment, your numbers beside the published ones.

    Finds which of its datasets lie below --data-root, asks the model as the paper asked, and says of the other datasets
    where they come from. Stopped half-way, the same command continues. Writes RUN/benchmark.md and .json beside what
    lexitome evaluate writes.
    """
    from lexitome.evaluation.presets import load_preset

    preset = load_preset(name)
    asked = _Asked(
        model, predictions, tuple(prompts or ()), limit, jobs, seed, out or Path("runs") / name, not no_leakage_check
    )
    comparison = _compare(preset, data_root, asked, only_list=only_list)
    if as_json:
        _print_json(comparison)
    else:
        _show(comparison, asked.specs(preset), listing=only_list)
        if not only_list:
            print(f"written: {asked.out / 'benchmark.md'}, benchmark.json, rows.csv")
            print(f"next: lexitome report {shlex.quote(str(asked.out))} -o REPORT")
    raise typer.Exit(OK)


@dataclass(frozen=True)
class _Asked:
    """What was typed that decides the run. Without `prompts` the experiment's own protocols are asked."""

    model: str
    predictions: Path | None
    prompts: tuple[str, ...]
    limit: int | None
    jobs: int | None
    seed: int
    out: Path
    leakage: bool

    def specs(self, preset: Preset) -> tuple[ProtocolSpec, ...]:
        from lexitome.evaluation.protocols import parse_all

        return parse_all(self.prompts or preset.protocols)

    def specs_for(self, answerer: Answerer, preset: Preset) -> Sequence[ProtocolSpec]:
        """What was typed, which the runner checks, or those of the experiment's that `answerer` takes."""
        specs = self.specs(preset)
        return specs if self.prompts else taken(specs, answerer, lambda line: print(line, file=sys.stderr))


def _compare(preset: Preset, data_root: Path | None, asked: _Asked, *, only_list: bool) -> Comparison:
    from lexitome.evaluation.beside import compare_with_published
    from lexitome.evaluation.found_sets import Selection, find_sets, prepare

    if data_root is None and not only_list:
        remedy = f"Add --data-root DIR, or see what is needed with lexitome benchmark {preset.name} --list."
        raise InputError(f"lexitome benchmark {preset.name}", "--data-root is missing", remedy)
    found = find_sets(data_root, preset, seed=asked.seed) if data_root is not None else {}
    if only_list:
        return compare_with_published(preset, found, prepare(preset, found, Selection()), [])
    return _run(preset, found, asked)


def _print_json(comparison: Comparison) -> None:
    from lexitome.evaluation.beside import as_json
    from lexitome.evaluation.run_folder import plain

    print(json.dumps(plain(as_json(comparison)), indent=2, ensure_ascii=False))


def _run(preset: Preset, found: dict[str, FoundSet], asked: _Asked) -> Comparison:
    from lexitome.evaluation.beside import as_json, compare_with_published
    from lexitome.evaluation.beside_text import as_markdown
    from lexitome.evaluation.found_sets import Selection, prepare
    from lexitome.evaluation.predictions import folder_answerer
    from lexitome.evaluation.run_folder import write_json
    from lexitome.evaluation.runner import Settings, evaluate
    from lexitome.io.atomic import replacing

    asked.specs(preset)  # a typing error shows before weights are read
    answerer: Answerer
    if asked.predictions is None:
        answerer = model_answerer(asked.model, "benchmark")
        taught = frozenset(answerer.provenance().get("trained_on") or ())
        data = prepare(preset, found, Selection(taught, asked.limit))
    else:
        data = prepare(preset, found, Selection(limit=asked.limit, own_words=True))
        answerer = folder_answerer(asked.predictions, _datasets(data))
    if not data:
        raise _nothing_found(preset, found)
    specs = asked.specs_for(answerer, preset)
    settings = Settings(limit=asked.limit, leakage=asked.leakage, command=f"lexitome benchmark {preset.name}")
    if preset.tolerance_mm is not None:
        settings = replace(settings, tolerance_mm=preset.tolerance_mm)
    rows = evaluate(
        answerer, _datasets(data), specs, asked.out, split="test", seed=asked.seed, jobs=asked.jobs, settings=settings
    )
    comparison = compare_with_published(preset, found, data, rows, asked.seed)
    if asked.leakage:
        comparison = replace(comparison, notes=(*comparison.notes, _leakage(asked.out)))
    write_json(asked.out / "benchmark.json", as_json(comparison))
    with replacing(asked.out / "benchmark.md") as temporary:
        temporary.write_text(as_markdown(comparison), encoding="utf-8")
    return comparison


def _leakage(out: Path) -> str:
    """What the run found, in a sentence; where it did find something, also where the names are."""
    from lexitome.evaluation.run_folder import LEAKAGE, read_object

    found = read_object(out / LEAKAGE)
    return f"Training pictures in the test sets? {found['summary']}" + (f" See {LEAKAGE}." if found["affected"] else "")


def _datasets(data: Sequence[TaskData]) -> list[Dataset]:
    """Each once: tasks of one set share it."""
    return list({entry.dataset.name: entry.dataset for entry in data}.values())


def _nothing_found(preset: Preset, found: dict[str, FoundSet]) -> InputError:
    unreadable = next((entry for entry in found.values() if entry.dataset is None), None)
    if unreadable is not None:
        remedy = "Bring it into a form that lexitome check-data reads, e.g. images/ and masks/ with dataset.json."
        return InputError(unreadable.path, f"looks like {unreadable.source.title}, but {unreadable.problem}", remedy)
    remedy = f"See their names and where they come from with lexitome benchmark {preset.name} --list."
    return InputError("--data-root", f"none of the {len(preset.sources)} datasets lies below it", remedy)


def _show(comparison: Comparison, specs: Sequence[ProtocolSpec], *, listing: bool) -> None:
    from rich.console import Console

    from lexitome.evaluation.beside_text import (
        describe,
        filled,
        headings_of,
        metrics_of,
        packed,
        remarks_of,
        where_from,
    )

    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    preset = comparison.preset
    console.print(f"[bold]{preset.title}[/bold]\n{preset.paper}\n{preset.url}\n", soft_wrap=True)
    measured = [heading.asked for heading in comparison.headings if not heading.published]
    headings = headings_of(comparison, measured or [spec.name for spec in specs])
    for block in comparison.blocks:
        if not listing and not any(line.state == "measured" for line in block.lines):
            continue
        for metric in metrics_of(block, headings)[: None if listing else 1]:
            for part in packed(filled(block, metric, headings), _columns(console.width)):
                console.print(_table(comparison, block, metric, part, listing=listing))
        _bullets(console, remarks_of(block, measured_only=not listing))
    hidden = len(comparison.headings) - len(headings)
    if hidden:
        more = "--json" if listing else "benchmark.md"
        console.print(f"{hidden} published columns with other prompts are in {more}\n", style="dim")
    console.print("[bold]Before you compare[/bold]")
    _bullets(console, [*preset.caveats, *comparison.notes])
    if listing:
        console.print("[bold]Where the data come from[/bold]")
        problems = {entry.source.key: where_from(entry) for entry in comparison.absent if entry.problem}
        _bullets(console, [problems.get(s.key, f"{s.title}: {describe(s)}") for s in preset.sources])
    elif comparison.absent:
        console.print(f"[bold]Not here: {len(comparison.absent)} of {len(preset.sources)} datasets[/bold]")
        _bullets(console, [where_from(entry) for entry in comparison.absent])


def _columns(width: int) -> int:
    """How many numbers with intervals fit into a line beside the task."""
    return max(2, (width - 52) // 18)


def _table(comparison: Comparison, block: Block, metric: str, headings: Sequence[Heading], *, listing: bool) -> Table:
    """Ours in bold, what is published beside it; after a run only the tasks that were measured."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from lexitome.evaluation.beside_text import MARK, rows_of
    from lexitome.evaluation.metrics import METRICS

    title = f"{block.group.title}: {METRICS[metric].name} in percent"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("asked for", overflow="fold", max_width=32)
    table.add_column("data")
    for heading in headings:
        text = f"{heading.model}\n{heading.setting}" + (f"\n{MARK}" if heading.published else "\nmeasured")
        table.add_column(Text(text), justify="right", style="" if heading.published else "bold")
    asked = {line.task.name: line.task.prompt for line in block.lines}
    sizes = {line.task.name: line.task.source.images for line in block.lines if line.state == "missing"}
    rows = rows_of(block, metric, headings, comparison.preset.decimals, measured_only=not listing)
    for i, row in enumerate(rows):
        if row.mean and not rows[i - 1].mean:
            table.add_section()
        state = f"{sizes.get(row.label) or '?'} images" if listing and row.label in sizes else row.state
        table.add_row(Text(row.label), Text(asked.get(row.label, "")), state, *map(Text, row.cells))
    return table


def _bullets(console: Console, lines: Sequence[str]) -> None:
    """A blank line after them, if there are any."""
    for line in lines:
        console.print(f"- {line}", markup=False, soft_wrap=True)
    if lines:
        console.print()

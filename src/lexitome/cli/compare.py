"""`compare`: whether one evaluated model is better than another, dataset by dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lexitome.cli.console import OK, Console
from lexitome.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from rich.console import Console as Screen

app = typer.Typer()

FULL_WIDTH = 130
"""Narrower terminals get fewer columns; the files have all."""


@app.command("compare")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of lexitome evaluate; the first is compared with.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="dice by default; nsd, hd95, ...; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write compare.json, .md and .csv there.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of resampling and sign flips.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare evaluated runs on the questions that they share.

    Prints means with intervals, the difference to the first run, a paired permutation test and on how many datasets
    each run wins, ties and loses. Evaluate the same data and prompts with `lexitome evaluate -o RUN` for each model.
    """
    results = _results(runs, metric or ["dice"], seed)
    if out:
        _write(results, out)
    console = Console(as_json=as_json)
    if as_json:
        from lexitome.evaluation.run_folder import plain

        console.say(json.dumps(plain({"results": results}), indent=1, ensure_ascii=False))
    else:
        _print(results)
        if out:
            console.say(f"wrote {out / 'compare.md'}, compare.csv and compare.json")
    raise typer.Exit(OK)


def _results(folders: list[Path], metrics: list[str], seed: int) -> list[dict[str, Any]]:
    from lexitome.evaluation import comparison

    runs = comparison.load_runs(folders)
    return [comparison.compare(runs, metric=name.lower(), seed=seed) for name in dict.fromkeys(metrics)]


def _write(results: list[dict[str, Any]], out: Path) -> None:
    from lexitome.evaluation import comparison_text
    from lexitome.evaluation.run_folder import write_json
    from lexitome.io.atomic import replacing

    write_json(out / "compare.json", {"results": results})
    for name, text in (
        ("compare.md", comparison_text.to_markdown(results)),
        ("compare.csv", comparison_text.to_csv(results)),
    ):
        with replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console as Screen

    from lexitome.evaluation.comparison_text import NOTES, left_out_lines

    screen = Screen(highlight=False)
    if not screen.is_terminal:
        screen = Screen(highlight=False, width=200)  # a file or a pipe has no width that lines would have to fit
    for result in results:
        for comparison in result["comparisons"]:
            for part in comparison["protocols"]:
                _print_table(screen, result["metric"], comparison, part)
            for line in left_out_lines(comparison):
                screen.print(f"note: {line}", markup=False)
            screen.print()
    screen.print(NOTES, markup=False, style="dim")


def _print_table(screen: Screen, metric: str, comparison: dict[str, Any], part: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lexitome.evaluation import comparison_text as text

    brief = screen.width < FULL_WIDTH
    header, cells = (text.BRIEF_HEADER, text.brief_cells) if brief else (text.HEADER, text.cells)
    heading = Text(text.title(comparison, part, metric))
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in (0, len(header) - 1) else "right", no_wrap=i > 0, overflow="fold")
    styles = {"win": "green", "loss": "red"}
    for i, entry in enumerate((*part["datasets"], *part["overall"])):
        texts = [Text(cell) for cell in cells(entry, metric)]
        texts[-1].stylize(styles.get(entry["verdict"], ""))
        table.add_row(
            *texts, style="bold" if "dataset" not in entry else "", end_section=i == len(part["datasets"]) - 1
        )
    screen.print(table)
    for line in text.score_line(part):
        screen.print(f"{line}.", markup=False, style="bold")

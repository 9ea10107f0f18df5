"""The sections of a report, in the order in which a reader asks: how good, where, on what, how sure, can I trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lexitome.evaluation.report import result_tables as tables
from lexitome.evaluation.report.blocks import (
    Block,
    Document,
    Gallery,
    Legend,
    Notice,
    Prose,
    Section,
    Shot,
    Table,
    compact,
)
from lexitome.evaluation.report.figures import available
from lexitome.evaluation.report.overlays import PREDICTION, RANKS, REFERENCE, Example, load_examples
from lexitome.evaluation.report.plots import (
    concept_pictures,
    dataset_pictures,
    mask_calibration_pictures,
    presence_calibration_pictures,
)
from lexitome.evaluation.report.published import comparable, published_blocks
from lexitome.evaluation.report.records import definition_blocks, leakage_blocks, problem_blocks, run_blocks
from lexitome.evaluation.report.versus import comparison_blocks
from lexitome.evaluation.rows import ResultRow, protocols_of
from lexitome.evaluation.run_folder import BASELINE_RUNS, INFO, Run, read_object
from lexitome.evaluation.tables import summarise

BENCHMARK = "benchmark.json"
Entry = Mapping[str, Any]
Labelled = Sequence[tuple[str, Run]]

_NO_PLOTS = "No figures: matplotlib is not installed: `pip install lexitome[eval]`, then make the report again."
_EXAMPLES = (
    "Of every dataset and protocol the worst, the median and the best answer by Dice, chosen by rank, not by hand. "
    "Of volumes one slice is shown: the one where both masks together are largest."
)


def load_labelled(folders: Sequence[Path]) -> list[tuple[str, Run]]:
    """Every run and its baselines, each under a name of its own: the model's, with the folder's where two are alike.

    Raises:
        InputError: a folder is no finished run.
    """
    runs = []
    for folder in folders:
        runs.append(Run.load(folder))
        below = sorted(folder.glob(f"{BASELINE_RUNS}/*/{INFO}"))
        runs += [Run.load(path.parent) for path in below]
    names = [run.name for run in runs]
    labels = [n if names.count(n) == 1 else f"{n} ({run.path.name})" for n, run in zip(names, runs, strict=True)]
    return [
        (label if labels.count(label) == 1 else f"{label} #{number}", run)
        for number, (label, run) in enumerate(zip(labels, runs, strict=True), start=1)
    ]


Named = Sequence[tuple[str, Sequence[ResultRow]]]


def rename(labelled: Labelled) -> Named:
    """The rows of every run under its label."""
    return [(label, [replace(row, model=label) for row in run.rows]) for label, run in labelled]


def make_document(labelled: Labelled, named: Named, summary: Entry, *, images: bool = True) -> Document:
    """
    Args:
        named, summary: from `rename` and `summarised`.
        images: show examples, that is, pictures of the data.
    """
    rows = [row for _, some in named for row in some]
    external = frozenset(
        name for _, run in labelled for name, entry in run.info.get("data", {}).items()
        if isinstance(entry, Mapping) and entry.get("external")
    )  # fmt: skip
    plots = available()
    shown = sorted({tables.base_of(name) for entry in summary["by_dataset"] for name in entry["metrics"]})
    benchmarks = [read_object(run.path / BENCHMARK) for _, run in labelled if (run.path / BENCHMARK).is_file()]
    published = comparable({row.dataset for row in rows})
    sections = (
        Section("summary", "Summary", _summary(summary, plots=plots)),
        Section("datasets", "Results by dataset", _blocks(
            tables.dataset_table(summary, external, published), *(dataset_pictures(summary, rows) if plots else ()))),
        Section("comparison", "Runs compared", comparison_blocks(named) if len(named) > 1 else ()),
        Section("concepts", "Results by concept", _blocks(
            tables.concept_table(summary), *(concept_pictures(summary, rows) if plots else ()))),
        Section("examples", "Examples", _examples(labelled) if images else ()),
        Section("presence", "Is it there? Presence", _blocks(tables.presence_table(summary))),
        Section("calibration", "Calibration", (
            *_blocks(tables.calibration_table(summary), *(presence_calibration_pictures(summary) if plots else ())),
            *_blocks(tables.mask_calibration_table(summary), *(mask_calibration_pictures(summary) if plots else ())))),
        Section("objects", "Objects told apart", _blocks(tables.objects_table(summary))),
        Section("metrics", "All other metrics", _blocks(tables.metrics_table(summary))),
        Section("published", "Published numbers", published_blocks(summary, benchmarks)),
        Section("time", "Time and memory", _time(summary, labelled)),
        Section("problems", "What could not be scored", problem_blocks(labelled, rows)),
        Section("leakage", "Training data in the test set", leakage_blocks(labelled)),
        Section("runs", "Runs and data", run_blocks(labelled)),
        Section("definitions", "Definitions", definition_blocks(summary, shown)),
    )  # fmt: skip
    told = tuple(_without_model(section) for section in compact(sections)) if len(labelled) == 1 else compact(sections)
    return Document(*_heading(labelled, rows), told)


def _without_model(section: Section) -> Section:
    """Where there is one model only, a column with its name says nothing."""
    return replace(section, blocks=tuple(_narrowed(b) if isinstance(b, Table) else b for b in section.blocks))


def _narrowed(table: Table) -> Table:
    kept = [i for i, column in enumerate(table.columns) if i == 0 or column.title != "model"]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows)


def summarised(named: Named) -> Entry:
    """`tables.summarise`, each table in order: datasets by name, what users can ask before what is an oracle, models as
    they were named."""
    labels = [label for label, _ in named]

    def place(entry: Entry) -> tuple:
        name = entry.get("dataset", "")
        # The mean over datasets, which has none, comes last.
        return (name is None, name or "", entry.get("concept", ""), entry["oracle"], entry["protocol"],
                labels.index(entry["model"]))  # fmt: skip

    found = summarise(row for _, some in named for row in some)
    return {key: sorted(value, key=place) if isinstance(value, list) else value for key, value in found.items()}


def _blocks(*blocks: Block | None) -> tuple[Block, ...]:
    """None if there is no table."""
    return tuple(block for block in blocks if block is not None) if blocks[0] is not None else ()


def _heading(labelled: Labelled, rows: Sequence[ResultRow]) -> tuple[str, str, tuple[str, ...]]:
    models = [label for label, _ in labelled]
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    cases, units = {(r.dataset, r.case) for r in rows}, {(r.dataset, r.unit) for r in rows}
    protocols = protocols_of(rows)
    splits = sorted({row.split for row in rows})
    named = models[0] if len(models) == 1 else f"{', '.join(models[:-1])} and {models[-1]}"
    title = f"{named} on {datasets[0] if len(datasets) == 1 else f'{len(datasets)} datasets'}"
    oracles = sum("oracle" in protocol for protocol in protocols)
    note = f", {oracles} of them with ORACLE prompts" if oracles else ""
    finished = max((str(run.info.get("finished", ""))[:10] for _, run in labelled), default="")
    subtitle = f"Scored on the {'/'.join(splits) or 'test'} part by {len(protocols)} protocols{note}."
    facts = (_many(len(datasets), "dataset"), _many(len(cases), "case"), _many(len(units), "subject"),
             _many(len(rows), "question"), finished)  # fmt: skip
    return title, subtitle if len(protocols) != 1 else subtitle.replace("protocols", "protocol"), facts


def _many(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _summary(summary: Entry, *, plots: bool) -> tuple[Block, ...]:
    tiles, table = tables.tiles(summary), tables.overall_table(summary)
    blocks: list[Block] = [tiles] if tiles.tiles else [Prose("No concept that was asked about is in the reference.")]
    if any(entry["oracle"] for entry in summary["overall"]):
        blocks.append(Notice("Rows marked ORACLE were given a prompt made from the reference, which no user has."))
    if not plots:
        blocks.append(Notice(_NO_PLOTS))
    return (*blocks, table) if table else tuple(blocks)


def _time(summary: Entry, labelled: Labelled) -> tuple[Block, ...]:
    table = tables.time_table(summary)
    said = [
        f"{label}: at most {run.info['peak_memory_mb']:,.0f} MB of memory, {_many(run.info.get('jobs', 1), 'case')} "
        "at a time."
        for label, run in labelled
        if isinstance(run.info.get("peak_memory_mb"), int | float)
    ]
    return tuple(block for block in (*(Prose(words) for words in said), table) if block is not None)


def _examples(labelled: Labelled) -> tuple[Block, ...]:
    groups: dict[tuple[str, str, str], list[tuple[Run, Example]]] = {}
    for label, run in labelled:
        for example in load_examples(run.path):
            groups.setdefault((example.dataset, label, example.protocol), []).append((run, example))
    galleries = [_gallery(key, some, number) for number, (key, some) in enumerate(sorted(groups.items(), key=str))]
    legend = Legend((("reference", REFERENCE), ("prediction", PREDICTION)))
    return (Prose(_EXAMPLES), legend, *galleries) if galleries else ()


def _gallery(about: tuple[str, str, str], found: Sequence[tuple[Run, Example]], number: int) -> Gallery:
    dataset, label, protocol = about
    shots = []
    for run, example in sorted(found, key=lambda pair: RANKS.index(pair[1].rank)):
        words = ", ".join(word for word in (example.concept, f"case {example.case}", example.place) if word)
        name = f"example-{number:03d}-{example.rank}"
        png = (run.path / example.file).read_bytes()
        title = f"{example.rank}: Dice {100 * example.score:.1f}"
        shots.append(Shot(png, name, title, words, ("oracle",) if "oracle" in protocol else ()))
    return Gallery(f"{dataset}: {label}, {protocol}", tuple(shots))

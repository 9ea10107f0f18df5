"""Our numbers beside published ones: scores of the tasks that could be run, and means of both over the same tasks.

A score is the mean over cases for each concept, then over the concepts of the task; published tables of one concept a
task mean the same. Ours carry an interval, bootstrapped over units with all their cases and concepts. Published
numbers carry none and are only ever quoted.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lexitome.evaluation.found_sets import FoundSet, TaskData
from lexitome.evaluation.presets import Group, Preset, Source, Task
from lexitome.evaluation.protocols import parse
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.statistics import DRAWS, LEVEL, Floats, Stratum, percentiles, ratio, resampled


@dataclass(frozen=True)
class Cell:
    """A score, as a share of 1.

    Args:
        low, high: of its 95 % interval; None for published scores, and where a single unit leaves nothing to resample.
        cases: how many answers it is the mean of, 0 for published scores.
        failed: how many of them were missing or unusable and count as empty masks.
        tasks: for means over tasks, how many.
    """

    value: float
    low: float | None = None
    high: float | None = None
    cases: int = 0
    failed: int = 0
    tasks: int = 0


@dataclass(frozen=True)
class Heading:
    """A column of a table: ours are measured, all others are published.

    Args:
        asked: how it was asked, a protocol as in `ResultRow.protocol`; "" for what none of ours is like.
        setting: the same in words for people; of published ones, in the paper's.
    """

    key: str
    model: str
    asked: str
    setting: str
    published: bool
    source: str = ""


@dataclass(frozen=True)
class Line:
    """A task in the tables.

    Args:
        state: "measured", "found" (but nothing was run), "no label", "unreadable" or "missing".
        cells: metric to key of the column to score.
    """

    task: Task
    state: str
    images: int
    differs: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]


@dataclass(frozen=True)
class Block:
    """The tasks of a group and means over them, by metric and column.

    Args:
        means: over the measured tasks; of a published column, over those of them for which it has a number.
        common: over the measured tasks for which every column that was asked alike has a number, so that the columns
            can be compared.
    """

    group: Group
    lines: tuple[Line, ...]
    means: Mapping[str, Mapping[str, Cell]]
    common: Mapping[str, Mapping[str, Cell]]


@dataclass(frozen=True)
class Absent:
    """A dataset that was not found or could not be read, and where it comes from."""

    source: Source
    problem: str
    path: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    preset: Preset
    model: str
    headings: tuple[Heading, ...]
    blocks: tuple[Block, ...]
    absent: tuple[Absent, ...]
    notes: tuple[str, ...] = field(default=())


def compare_with_published(
    preset: Preset, found: Mapping[str, FoundSet], data: Sequence[TaskData], rows: Sequence[ResultRow], seed: int = 0
) -> Comparison:
    """
    Args:
        data: the tasks that were run, from `found_sets.prepare`.
        rows: their results; several protocols make several columns, none leaves only what is published.
    """
    model = rows[0].model if rows else ""
    headings = tuple(_headings(preset, model, list(dict.fromkeys(row.protocol for row in rows))))
    at_hand = {entry.task.name: entry for entry in data}
    blocks = []
    for group in preset.groups:
        lines: list[Line] = []
        drawn: dict[str, Samples] = {}
        for task in (task for task in preset.tasks if task.group == group.key):
            line, drawn[task.name] = _line(preset, task, at_hand.get(task.name), found.get(task.source.key), rows, seed)
            lines.append(line)
        blocks.append(_block(preset, group, lines, drawn, headings))
    return Comparison(
        preset, model, headings, tuple(blocks), tuple(_absent(preset, found, at_hand)), tuple(_notes(found, rows))
    )


def _headings(preset: Preset, model: str, protocols: Sequence[str]) -> Iterator[Heading]:
    """By protocol: ours, then those published that were asked alike; last what was asked in ways that ours was not."""
    theirs = [
        Heading(c.key, c.model, parse(c.protocol).name if c.protocol else "", c.setting, True, c.source)
        for c in preset.columns
    ]
    for protocol in protocols:
        yield Heading(f"ours:{protocol}", model, protocol, protocol, published=False)
        yield from (heading for heading in theirs if heading.asked == protocol)
    yield from (heading for heading in theirs if heading.asked not in protocols)


Samples = dict[tuple[str, str], tuple[Floats, int]]
"""(metric, column) to the (draws,) resampled means of a task and the number of units."""


def _line(
    preset: Preset, task: Task, data: TaskData | None, found: FoundSet | None, rows: Sequence[ResultRow], seed: int
) -> tuple[Line, Samples]:
    cells: dict[str, dict[str, Cell]] = {metric: {} for metric in preset.metrics}
    for key, values in task.published.items():
        for metric, value in values.items():
            cells[metric][key] = Cell(value)
    samples: Samples = {}
    own = [] if data is None else [r for r in rows if r.dataset == data.dataset.name and r.concept in data.concepts]
    for protocol in dict.fromkeys(row.protocol for row in own):
        asked = [row for row in own if row.protocol == protocol]
        for metric in preset.metrics:
            scored = score(asked, metric, seed)
            if scored is not None:
                cells[metric][f"ours:{protocol}"] = scored[0]
                samples[metric, f"ours:{protocol}"] = scored[1:]
    state = "measured" if samples else "found" if data else "missing"
    if data is None and found is not None:
        state = "unreadable" if found.dataset is None else "no label"
    differs = data.differs if data else ()
    if any(row.length == "px" for row in own) and "nsd" in preset.metrics:
        differs = (*differs, "no spacing: the tolerance of NSD is in pixels")
    return Line(task, state, len(data.dataset.cases) if data else 0, differs, cells), samples


def score(rows: Sequence[ResultRow], metric: str, seed: int) -> tuple[Cell, Floats, int] | None:
    """The mean over cases for each concept, then over concepts; with (draws,) resampled means and the number of units.

    Only of what is present in the reference. The draws depend on the seed and the dataset, so that two tasks of one set
    are resampled together; a draw without any case of a rare concept leaves it out. None where no row has the metric.
    """
    kept = [row for row in rows if row.present and row.metrics.get(metric) is not None]
    if not kept:
        return None
    concepts, units = sorted({row.concept for row in kept}), sorted({row.unit for row in kept})
    values = np.full((len(kept), len(concepts)), np.nan)
    for i, row in enumerate(kept):
        values[i, concepts.index(row.concept)] = row.metrics[metric]
    stratum = Stratum.of(values, np.array([units.index(row.unit) for row in kept]))
    drawn = np.empty(DRAWS)
    for part, weights in resampled(len(units), DRAWS, (seed, zlib.crc32(kept[0].dataset.encode()))):
        drawn[part] = np.nanmean(ratio(weights @ stratum.sums, weights @ stratum.counts), axis=1)
    low, high = percentiles(drawn[None], np.array([len(units)]), LEVEL)
    failed = sum(row.status != "ok" for row in kept)
    return Cell(float(stratum.means.mean()), low, high, len(kept), failed), drawn, len(units)


def _block(
    preset: Preset, group: Group, lines: Sequence[Line], drawn: Mapping[str, Samples], headings: Sequence[Heading]
) -> Block:
    measured = [line for line in lines if line.state == "measured"]
    means: dict[str, dict[str, Cell]] = {metric: {} for metric in preset.metrics}
    common: dict[str, dict[str, Cell]] = {metric: {} for metric in preset.metrics}
    for metric in preset.metrics:
        for heading in headings:
            alike = [h.key for h in headings if h.asked == heading.asked] if heading.asked else [heading.key]
            shown = [key for key in alike if any(key in line.cells[metric] for line in measured)]
            own = [line for line in measured if heading.key in line.cells[metric]]
            shared = [line for line in own if set(shown) <= set(line.cells[metric])]
            for kept, result in ((own, means), (shared, common)):
                if kept:
                    result[metric][heading.key] = _mean(kept, drawn, metric, heading.key)
    return Block(group, tuple(lines), means, common)


def _mean(lines: Sequence[Line], drawn: Mapping[str, Samples], metric: str, key: str) -> Cell:
    """Over tasks, each of which counts the same; with an interval where all of them were measured."""
    value = float(np.mean([line.cells[metric][key].value for line in lines]))
    samples = [found for line in lines if (found := drawn[line.task.name].get((metric, key))) is not None]
    if len(samples) < len(lines):
        return Cell(value, tasks=len(lines))
    low, high = percentiles(np.stack([s for s, _ in samples]), np.array([units for _, units in samples]), LEVEL)
    return Cell(value, low, high, tasks=len(lines))


def _absent(preset: Preset, found: Mapping[str, FoundSet], at_hand: Collection[str]) -> Iterator[Absent]:
    for source in preset.sources:
        place = found.get(source.key)
        tasks = tuple(task.name for task in preset.tasks_of(source))
        if place is None:
            yield Absent(source, "", "", tasks)
        elif place.dataset is None:
            yield Absent(source, place.problem, place.path.name, tasks)
        elif not set(tasks) & set(at_hand):
            labels = ", ".join(target.name for target in place.dataset.targets)
            yield Absent(source, f"none of its labels ({labels}) is asked for", place.path.name, tasks)


def _notes(found: Mapping[str, FoundSet], rows: Sequence[ResultRow]) -> Iterator[str]:
    failed = [row for row in rows if row.status != "ok" and row.present]
    if failed:
        yield f"Missing or unusable answers: {len(failed)}. They count as empty masks; rows.csv says why."
    for place in found.values():
        if place.others:
            others = ", ".join(path.name for path in place.others)
            yield f"{place.source.title} is taken from {place.path.name}; not used: {others}."


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What RUN/benchmark.json holds: `headings` name the columns, `published` among them are quoted, not measured."""
    return {
        "benchmark": comparison.preset.name, "title": comparison.preset.title, "paper": comparison.preset.paper,
        "url": comparison.preset.url, "model": comparison.model, "caveats": comparison.preset.caveats,
        "notes": comparison.notes, "columns": comparison.headings,
        "groups": [_group_json(block) for block in comparison.blocks],
        "absent": [
            {"dataset": entry.source.title, "tasks": entry.tasks, "problem": entry.problem or "not found",
             "home": entry.source.home, "get": entry.source.get, "licence": entry.source.licence,
             "licence_from": entry.source.licence_from, "size": entry.source.size}
            for entry in comparison.absent
        ],
    }  # fmt: skip


def _group_json(block: Block) -> dict[str, Any]:
    return {
        "group": block.group.title, "published_means_over_all_tasks": block.group.means,
        "means_over_measured_tasks": block.means, "means_where_all_have_a_number": block.common,
        "tasks": [
            {"task": line.task.name, "dataset": line.task.source.title, "state": line.state, "images": line.images,
             "prompts": [concept.prompt for concept in line.task.concepts], "differs": line.differs,
             "note": line.task.note, "scores": line.cells}
            for line in block.lines
        ],
    }  # fmt: skip

"""A comparison with published numbers as text: cells for any table, and the whole as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lexitome.evaluation.beside import Absent, Block, Cell, Comparison, Heading
from lexitome.evaluation.metrics import METRICS
from lexitome.evaluation.presets import NOT_CHECKED, Source

MARK = "published"
STATES = {"found": "found", "no label": "no such label", "unreadable": "cannot be read", "missing": "not here"}


@dataclass(frozen=True)
class Row:
    """A line of a table; `mean` for those over tasks."""

    label: str
    state: str
    cells: tuple[str, ...]
    mean: bool = False


def headings_of(comparison: Comparison, protocols: Sequence[str]) -> list[Heading]:
    """The columns, but of the published ones only those that were asked in one of the ways of `protocols` (all of them,
    if that leaves none)."""
    kept = [heading for heading in comparison.headings if not heading.published or heading.asked in protocols]
    return kept if any(heading.published for heading in kept) else list(comparison.headings)


def packed(headings: Sequence[Heading], most: int) -> list[list[Heading]]:
    """For several narrow tables instead of one that is too wide: up to `most` columns in each, those that were asked
    alike together as far as that goes."""
    tables: list[list[Heading]] = []
    for _, group in groupby(headings, key=lambda heading: heading.asked):
        for part in batched(list(group), most):
            if tables and len(tables[-1]) + len(part) <= most:
                tables[-1] += part
            else:
                tables.append(list(part))
    return tables


def batched(headings: Sequence[Heading], most: int) -> Iterator[Sequence[Heading]]:
    for start in range(0, len(headings), most):
        yield headings[start : start + most]


def filled(block: Block, metric: str, headings: Sequence[Heading]) -> list[Heading]:
    """The columns that have a number in this table."""
    return [heading for heading in headings if any(heading.key in line.cells[metric] for line in block.lines)]


def metrics_of(block: Block, headings: Sequence[Heading]) -> list[str]:
    """Those for which there is anything to show."""
    keys = {heading.key for heading in headings}
    return [m for m in block.lines[0].cells if any(keys & set(line.cells[m]) for line in block.lines)]


def rows_of(
    block: Block, metric: str, headings: Sequence[Heading], decimals: int, *, measured_only: bool = False
) -> list[Row]:
    """The tasks, means over the measured ones, and the printed means over all."""
    rows = []
    for line in block.lines:
        if measured_only and line.state != "measured":
            continue
        cells = tuple(cell_text(line.cells[metric].get(h.key), decimals) for h in headings)
        state = f"{line.images} images" if line.state == "measured" else STATES[line.state]
        rows.append(Row(line.task.name, state, cells))
    measured = sum(line.state == "measured" for line in block.lines)
    for label, means in ((f"mean of the {measured} measured", block.means), ("mean where all have it", block.common)):
        cells = tuple(cell_text(means[metric].get(h.key), decimals, of=measured) for h in headings)
        if measured and cells != (rows[-1].cells if rows else ()):
            rows.append(Row(label, "", cells, mean=True))
    printed = block.group.means
    if any(metric in values for values in printed.values()):
        stated = [printed.get(h.key, {}).get(metric) for h in headings]
        cells = tuple(cell_text(None if value is None else Cell(value), decimals) for value in stated)
        rows.append(Row(f"mean of all {len(block.lines)} as published", "", cells, mean=True))
    return rows


def cell_text(cell: Cell | None, decimals: int, of: int = 0) -> str:
    """ "91.6", "83.1 [80.2, 85.9]", or "-"; in percent. A mean over fewer than `of` tasks says over how many."""
    if cell is None:
        return "-"
    text = f"{100 * cell.value:.{decimals}f}"
    if cell.low is not None and cell.high is not None:
        text += f" [{100 * cell.low:.{decimals}f}, {100 * cell.high:.{decimals}f}]"
    return text + (f" ({cell.tasks} of {of})" if cell.tasks and cell.tasks < of else "")


def heading_text(heading: Heading) -> str:
    return f"{heading.model}, {heading.setting}{f' ({MARK})' if heading.published else ''}"


def remarks_of(block: Block, *, measured_only: bool = False) -> list[str]:
    """What must be known beside single numbers: how the data differ, and what is odd about the published task."""
    remarks = []
    for line in block.lines:
        if measured_only and line.state != "measured":
            continue
        parts = [*line.differs, *([line.task.note] if line.task.note else [])]
        if parts:
            remarks.append(f"{line.task.name}: {'; '.join(parts)}.")
    return remarks


def where_from(entry: Absent) -> str:
    """One line on a dataset that is not here."""
    source = entry.source
    problem = f" (in {entry.path}, but {entry.problem})" if entry.problem else ""
    return f"{source.title}{problem}: {describe(source)}"


def describe(source: Source) -> str:
    """Size, licence, home page and the way to get it."""
    licence = source.licence
    if licence != NOT_CHECKED:
        licence = f"{licence} ({source.licence_from})"
    get = "" if source.get in (NOT_CHECKED, "the same page") else f"; get it: {source.get}"
    note = f"; {source.note}" if source.note else ""
    return f"{source.size}; licence: {licence}; home: {source.home}{get}{note}"


def as_markdown(comparison: Comparison) -> str:
    """What RUN/benchmark.md holds."""
    return "\n".join(_markdown(comparison)) + "\n"


def _markdown(comparison: Comparison) -> Iterator[str]:
    preset = comparison.preset
    yield from (f"# {preset.title}", "", f"{preset.paper}. {preset.url}", "")
    yield f"Columns marked *{MARK}* are quoted from the sources named below, not measured here. Values in percent; ours"
    yield "with the 95 % interval, units (patients, videos) resampled. Where it says *oracle*, prompts came from the"
    yield "reference."
    yield ""
    yield from (f"- {caveat}" for caveat in (*preset.caveats, *comparison.notes))
    for block in comparison.blocks:
        yield from ("", f"## {block.group.title}")
        for metric in metrics_of(block, comparison.headings):
            yield from ("", f"### {METRICS[metric].name}", "")
            yield from _table(block, metric, filled(block, metric, comparison.headings), preset.decimals)
        remarks = remarks_of(block)
        if remarks:
            yield from (
                "",
                "What differs, and what is odd:",
                "",
                *(f"- {remark}" for remark in remarks),
            )
    yield from ("", "## Sources of the published numbers", "")
    yield from (f"- {heading_text(h)}: {h.source}." for h in comparison.headings if h.published)
    yield from (f"- means, {b.group.title}: {b.group.source}." for b in comparison.blocks if b.group.means)
    if comparison.absent:
        yield from ("", "## Datasets that are not here", "")
        yield from (f"- {where_from(entry)}." for entry in comparison.absent)


def _table(block: Block, metric: str, headings: Sequence[Heading], decimals: int) -> Iterator[str]:
    yield f"| task | data | {' | '.join(heading_text(h) for h in headings)} |"
    yield f"|---|---|{'---:|' * len(headings)}"
    for row in rows_of(block, metric, headings, decimals):
        label = f"**{row.label}**" if row.mean else row.label
        yield f"| {label} | {row.state} | {' | '.join(row.cells)} |"

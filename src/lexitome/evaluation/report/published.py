"""What others published, beside what was measured here: quoted numbers are marked as such wherever they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lexitome.evaluation.presets import PublishedScore, published_for
from lexitome.evaluation.protocols import parse
from lexitome.evaluation.report.blocks import Block, Cell, Column, Kind, Notice, Prose, Table
from lexitome.evaluation.report.result_tables import Published, interval_cell, metric_column

Entry = Mapping[str, Any]


def comparable(datasets: Iterable[str]) -> Published:
    """Published numbers by dataset and by the protocol that asks in the same way, as rows name it."""
    found: dict[tuple[str, str], list[PublishedScore]] = {}
    for dataset in datasets:
        for score in published_for(dataset):
            if score.protocol:
                found.setdefault((dataset, parse(score.protocol).name), []).append(score)
    return found


def published_blocks(summary: Entry, benchmarks: Sequence[Entry]) -> tuple[Block, ...]:
    """Benchmarks that were run as such; without any, what was published about the datasets at hand."""
    if benchmarks:
        return tuple(block for benchmark in benchmarks for block in _benchmark(benchmark))
    table = _by_dataset(summary)
    warning = (
        "Quoted from papers, never measured here: other splits, other copies of the images and other evaluators may "
        "explain a difference. Only a benchmark (`lexitome benchmark`) asks the same questions."
    )
    return (Notice(warning), table) if table else ()


def _by_dataset(summary: Entry) -> Table | None:
    rows = []
    for dataset in sorted({entry["dataset"] for entry in summary["by_dataset"]}):
        for score in published_for(dataset):
            same = parse(score.protocol).name if score.protocol else None
            oracle = "oracle" in score.setting.lower() or "oracle" in (same or "")
            ours = [e for e in summary["by_dataset"] if e["dataset"] == dataset and e["protocol"] == same]
            for entry in ours or [None]:
                rows.append(_score_row(score, entry, oracle=oracle))
    columns = (
        Column("dataset", "words"), Column("metric", "words"), Column("published model", "words"),
        Column("its protocol", "words"), Column("score, %", "published"), Column("our model", "words"),
        Column("our protocol", "words"), Column("ours, %", "interval"), Column("source", "words"),
        Column("differs", "words"),
    )  # fmt: skip
    return Table(columns, tuple(rows)) if rows else None


def _score_row(score: PublishedScore, entry: Entry | None, *, oracle: bool) -> tuple[Cell, ...]:
    ours = entry["metrics"].get(score.metric) if entry else None
    return (
        Cell(score.task, score.task), Cell(metric_column(score.metric).title.partition(",")[0]), Cell(score.model),
        Cell(score.setting, marks=("oracle",) if oracle else ()), Cell(f"{100 * score.value:.1f}", 100 * score.value),
        Cell(entry["model"] if entry else ""), Cell(entry["protocol"] if entry else "not asked here"),
        interval_cell(ours, score.metric), Cell(score.source), Cell(score.differs),
    )  # fmt: skip


def _benchmark(benchmark: Entry) -> list[Block]:
    """RUN/benchmark.json, see `evaluation.beside.as_json`."""
    blocks: list[Block] = [Prose(f"{benchmark['title']}: {benchmark['paper']} {benchmark['url']}")]
    blocks += [Notice(str(caveat)) for caveat in benchmark["caveats"]]
    blocks += [Notice(str(note), "warning") for note in benchmark["notes"]]
    metrics = list(dict.fromkeys(m for g in benchmark["groups"] for task in g["tasks"] for m in task["scores"]))
    tables = (_group(benchmark, group, metric) for metric in metrics for group in benchmark["groups"])
    blocks += [table for table in tables if table is not None]
    if benchmark["absent"]:
        blocks.append(_absent(benchmark["absent"]))
    return blocks


def _group(benchmark: Entry, group: Entry, metric: str) -> Table | None:
    """Tasks, then three kinds of means: of what was measured here, of the tasks that every column of one kind of prompt
    has, and as printed over all tasks."""
    headings = [h for h in benchmark["columns"] if any(h["key"] in t["scores"].get(metric, {}) for t in group["tasks"])]
    columns = (Column("task", "words"), *(_heading(h) for h in headings), Column("prompts", "words"),
               Column("state", "words"), Column("differs", "words"))  # fmt: skip
    rows = [
        (Cell(task["task"], task["task"]), *(_score(task["scores"].get(metric, {}).get(h["key"]), h) for h in headings),
         Cell(", ".join(task["prompts"])), Cell(task["state"]),
         Cell("; ".join((*task["differs"], *([task["note"]] if task["note"] else [])))))
        for task in group["tasks"]
    ]  # fmt: skip
    printed = {key: {"value": e[metric]} for key, e in group["published_means_over_all_tasks"].items() if metric in e}
    means = {
        "mean of the measured tasks": group["means_over_measured_tasks"].get(metric),
        "mean where all have a number": group["means_where_all_have_a_number"].get(metric),
        "mean of all tasks, as published": printed,
    }
    for words, scores in means.items():
        if scores:
            cells = [_score(scores.get(h["key"]), h) for h in headings]
            rows.append((Cell(words, f"~{words}"), *cells, Cell(""), Cell(""), Cell("")))
    return Table(columns, tuple(rows), f"{group['group']}: {metric_column(metric).title}") if headings else None


def _heading(heading: Entry) -> Column:
    oracle = "oracle" in f"{heading['asked']} {heading['setting']}".lower()
    kind: Kind = "published" if heading["published"] else "interval"
    return Column(f"{heading['model']}, {heading['setting']}", kind, heading["source"], oracle=oracle)


def _score(score: Entry | None, heading: Entry) -> Cell:
    if score is None:
        return Cell("")
    if heading["published"]:
        return Cell(f"{100 * score['value']:.1f}", 100 * score["value"], hint=heading["source"])
    cell = interval_cell({"mean": score["value"], **score, "units": 0}, "dice")
    return Cell(cell.text, cell.value, cell.bounds, hint=f"{score['cases']} answers, {score['failed']} of them failed")


def _absent(entries: Sequence[Entry]) -> Table:
    names = ("missing dataset", "why", "where it comes from", "licence", "size")
    columns = tuple(Column(name, "words") for name in names)
    rows = tuple(
        (Cell(e["dataset"], e["dataset"]), Cell(e["problem"]), Cell(f"{e['home']} {e['get']}"), Cell(e["licence"]),
         Cell(e["size"]))
        for e in entries
    )  # fmt: skip
    return Table(columns, rows, "Datasets of the benchmark that could not be measured.")

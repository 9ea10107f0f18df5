"""What a reader checks before believing a table: what was not answered, what the model had seen, what was run, and what
every metric means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lexitome.evaluation.metrics import METRICS
from lexitome.evaluation.report.blocks import Block, Cell, Column, Facts, Notice, Prose, Table
from lexitome.evaluation.report.result_tables import count
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import Run

Entry = Mapping[str, Any]
MOST_PROBLEMS = 200
"""Lines of the table of problems; what is beyond is counted, and stands in rows.csv."""


def problem_blocks(labelled: Sequence[tuple[str, Run]], rows: Sequence[ResultRow]) -> tuple[Block, ...]:
    """Every question without a usable answer and every case that could not be read, by name."""
    bad = [row for row in rows if row.status != "ok"]
    unreadable = [(label, entry) for label, run in labelled for entry in _problems(run).get("unreadable", ())]
    extra = [(label, name) for label, run in labelled for name in _extra(run)]
    unbounded = sum(row.metrics.get("unbounded") == 1.0 for row in rows if row.status == "ok")
    blocks: list[Block] = []
    if bad or unreadable:
        counts = Counter(row.status for row in bad)
        words = f"{counts['missing']} answers are missing, {counts['failed']} cannot be used: all score as empty masks."
        more = f" {len(unreadable)} cases could not be read and are in no mean." if unreadable else ""
        blocks.append(Notice(words + more, "warning"))
    else:
        blocks.append(Prose("Every question was answered, and every case could be read."))
    if unbounded:
        blocks.append(Prose(
            f"{unbounded} answers are empty although the reference is not: their overlaps are 0, they have no surface "
            "distance, and so the means of HD95, HD and ASSD leave them out."
        ))  # fmt: skip
    if extra:
        several = len(labelled) > 1
        named = ", ".join(f"`{name}`{f' ({label})' if several else ''}" for label, name in extra[:MOST_PROBLEMS])
        beyond = f" and {len(extra) - MOST_PROBLEMS} more, see run.json" if len(extra) > MOST_PROBLEMS else ""
        blocks.append(Notice(f"{len(extra)} files belong to no question and are not scored: {named}{beyond}."))
    lines: list[tuple[str, ...]] = [
        (row.model, row.dataset, row.case, row.concept, row.protocol, row.status, row.note) for row in bad
    ]
    lines += [(label, e["dataset"], e["case"], "", "", "unreadable", e["cause"]) for label, e in unreadable]
    if lines:
        columns = tuple(Column(name, "words") for name in
                        ("dataset", "model", "case", "concept", "protocol", "state", "reason"))  # fmt: skip
        table = tuple(
            tuple(Cell(str(word), str(word)) for word in (dataset, model, *rest))
            for model, dataset, *rest in lines[:MOST_PROBLEMS]
        )
        beyond = f" The first {MOST_PROBLEMS} of {len(lines)}." if len(lines) > MOST_PROBLEMS else ""
        blocks.append(Table(columns, table, f"What could not be scored, and why.{beyond}"))
    return tuple(blocks)


def _problems(run: Run) -> Entry:
    found = run.info.get("problems")
    return found if isinstance(found, Mapping) else {}


def _extra(run: Run) -> list[str]:
    """Names of predictions that answer nothing, as the folder answerer lists them."""
    found = _problems(run).get("extra") or run.info.get("extra_files") or ()
    return [str(name) for name in found]


def leakage_blocks(labelled: Sequence[tuple[str, Run]]) -> tuple[Block, ...]:
    """What the search for training pictures in the test sets found; said, too, where nobody searched."""
    blocks: list[Block] = []
    for label, run in labelled:
        seen = [name for name, entry in _data(run).items() if entry.get("in_training")]
        if seen:
            blocks.append(Prose(f"{label} was trained on other parts of: {', '.join(seen)}."))
        found = run.leakage
        if found is None:
            blocks.append(Notice(f"{label}: nobody looked whether test images were in its training data."))
            continue
        blocks.append(Notice(f"{label}: {found['summary']}", "warning" if found["affected"] else "note"))
        blocks += _near_pictures(label, found)
    return tuple(blocks)


def _near_pictures(label: str, found: Entry) -> list[Block]:
    """`leakage.LeakageReport`: by set, then every pair of a test case and a set that holds a picture like it."""
    sets = tuple(
        (Cell(e["dataset"], e["dataset"]), count(e["cases"]), count(e["affected"]), Cell(_said(e["taught"])),
         Cell(", ".join(e["unreadable"])))
        for e in found["sets"]
    )  # fmt: skip
    columns = (Column("dataset", "words"), Column("cases"), Column("like a training picture"),
               Column("model was taught the set", "words"), Column("unreadable", "words"))  # fmt: skip
    blocks: list[Block] = (
        [Table(columns, sets, f"{label}: test cases that look like a training picture.")] if sets else []
    )
    pairs = tuple(
        (Cell(e["case"], e["case"]), Cell(e["dataset"]), Cell(e["trained_on"]), count(e["bits"]), count(e["slices"]))
        for e in found["pairs"][:MOST_PROBLEMS]
    )  # fmt: skip
    if pairs:
        columns = (Column("case", "words"), Column("dataset", "words"), Column("training set", "words"),
                   Column("bits apart", hint="0 is the same at a glance"), Column("slices"))  # fmt: skip
        beyond = f" The first {MOST_PROBLEMS} of {len(found['pairs'])}." if len(found["pairs"]) > len(pairs) else ""
        blocks.append(Table(columns, pairs, f"{label}: pairs of pictures.{beyond}"))
    return blocks


def run_blocks(labelled: Sequence[tuple[str, Run]]) -> tuple[Block, ...]:
    """What decides the numbers, so that somebody else can get them again."""
    blocks: list[Block] = []
    for label, run in labelled:
        info = run.info
        model = {key: value for key, value in _part(info, "model").items() if key not in ("name", "duties")}
        pairs = {
            "command": f"`{info['command']}`" if info.get("command") else "", "protocols": info.get("protocols"),
            "split": info.get("split"), "seed": info.get("seed"), **model, **_part(info, "settings"),
            **_part(info, "machine"), "jobs": info.get("jobs"), "peak memory, MB": info.get("peak_memory_mb"),
            "started": info.get("started"), "finished": info.get("finished"), "program": info.get("program"),
            "versions": ", ".join(f"{name} {number}" for name, number in _part(info, "versions").items()),
        }  # fmt: skip
        given = tuple((_words(key), _said(value)) for key, value in pairs.items() if value not in (None, "", [], {}))
        blocks.append(Facts(given, label))
    return (*blocks, *_data_tables(labelled))


def _data_tables(labelled: Sequence[tuple[str, Run]]) -> list[Table]:
    datasets = {(name, str(entry.get("hash"))): entry for _, run in labelled for name, entry in _data(run).items()}
    if not datasets:
        return []
    columns = (
        Column("dataset", "words"), Column("title", "words"), Column("split", "words"), Column("cases"),
        Column("subjects"), Column("modality", "words"), Column("licence", "words"), Column("source", "words"),
        Column("hash", "words", "Of the names and contents of images and masks"),
    )  # fmt: skip
    rows = tuple(
        (Cell(name, name, marks=("external",) if e.get("external") else ()), Cell(_said(e.get("title"))),
         Cell(_said(e.get("split"))), _count(e.get("cases")), _count(e.get("units")), Cell(_said(e.get("modality"))),
         Cell(_said(e.get("licence"))), Cell(_said(e.get("source"))), Cell(f"`{digest}`"))
        for (name, digest), e in sorted(datasets.items())
    )  # fmt: skip
    return [Table(columns, rows, "The data, as they were when they were asked about.")]


def _count(number: Any) -> Cell:
    return count(number) if isinstance(number, int) else Cell("")


def definition_blocks(summary: Entry, names: Sequence[str]) -> tuple[Block, ...]:
    """How the numbers are made; only of metrics that the report shows."""
    settings = summary["settings"]
    level = f"{100 * settings['level']:.0f} %"
    about = (
        f"Intervals hold {level}: {settings['draws']} bootstrap draws of {settings['resampled']}, seed "
        f"{settings['seed']}. A subject is drawn with all its cases. Means are over cases, then over datasets, each of "
        "which counts the same. Unions that the files do not name are left out of all means. A concept that is absent "
        "from the reference has no overlap: it counts for presence alone. `oracle` in a protocol means that the prompt "
        "was made from the reference."
    )
    values = {None: "no value", 0.0: "0", 1.0: "1", -1.0: "-1"}
    rows = tuple(
        (Cell(METRICS[name].name), Cell(METRICS[name].definition), Cell(METRICS[name].better),
         Cell(values.get(METRICS[name].empty_prediction, str(METRICS[name].empty_prediction))))
        for name in METRICS if name in names
    )  # fmt: skip
    columns = (Column("metric", "words"), Column("definition", "words"), Column("better", "words"),
               Column("of an empty prediction", "words"))  # fmt: skip
    return (Prose(about), Table(columns, rows)) if rows else (Prose(about),)


def _data(run: Run) -> Mapping[str, Entry]:
    return {name: entry for name, entry in _part(run.info, "data").items() if isinstance(entry, Mapping)}


def _part(info: Entry, key: str) -> Entry:
    found = info.get(key)
    return found if isinstance(found, Mapping) else {}


def _words(key: str) -> str:
    return key.replace("_", " ")


def _said(value: Any) -> str:
    """A value of run.json as a person would say it."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_said(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_said(entry) for entry in value)
    return str(value)

"""Two or more runs in one report: on which datasets one beats the other (see `evaluation.comparison`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lexitome.errors import InputError
from lexitome.evaluation.comparison import compare_rows
from lexitome.evaluation.comparison_text import LEFT_OUT
from lexitome.evaluation.report.blocks import Block, Cell, Column, Notice, Prose, Table
from lexitome.evaluation.report.result_tables import count, interval_cell, protocol_cell
from lexitome.evaluation.rows import ResultRow

Entry = Mapping[str, Any]
_SCALE = (-50.0, 50.0)


def comparison_blocks(named: Sequence[tuple[str, Sequence[ResultRow]]]) -> tuple[Block, ...]:
    """Each later run against the first, by Dice of the same questions."""
    blocks: list[Block] = []
    for label, rows in named[1:]:
        try:
            found = compare_rows([named[0], (label, rows)])["comparisons"][0]
        except InputError as error:
            blocks.append(Notice(f"{label} and {named[0][0]}: {error.cause}."))
            continue
        blocks += [_table(named[0][0], label, protocol) for protocol in found["protocols"]]
        left = {LEFT_OUT[reason]: number for reason, number in found["left_out"].items() if number}
        said = ", ".join(f"{number} {reason}".format(a=named[0][0], b=label) for reason, number in left.items())
        blocks.append(Prose(f"{found['pairs']} questions were compared{f'; left out: {said}' if said else ''}."))
    return tuple(blocks)


def _table(first: str, label: str, protocol: Entry) -> Table:
    columns = (
        Column("dataset", "words"), Column("protocol", "words"), Column("pairs"),
        Column(f"{first}, Dice %", "interval"), Column(f"{label}, Dice %", "interval"),
        Column("difference", "interval", f"{label} minus {first}", _SCALE),
        Column("p", hint="Two-sided sign-flip test over subjects, Holm-adjusted over the datasets"),
        Column("effect size", hint="Cohen's dz over subjects"), Column("verdict", "words"),
    )  # fmt: skip
    rows = [_row(entry, entry["dataset"], entry["p_holm"], protocol) for entry in protocol["datasets"]]
    for entry in protocol["overall"]:
        words = f"mean of {entry['datasets']}"
        rows.append(_row(entry, words, entry["p"], protocol))
    scores = "; ".join(f"{e['wins']} wins, {e['ties']} ties, {e['losses']} losses" for e in protocol["overall"])
    caption = f"{label} against {first}, {protocol['protocol']}: {scores}. A tie is an interval that includes 0."
    return Table(columns, tuple(rows), caption)


def _row(entry: Entry, dataset: str, p: float, protocol: Entry) -> tuple[Cell, ...]:
    difference = {"mean": entry["difference"], **{key: entry[key] for key in ("low", "high", "units", "cases")}}
    effect = entry["effect_size"]
    return (
        Cell(dataset, dataset), protocol_cell(protocol), count(entry["cases"]), interval_cell(entry["a"], "dice"),
        interval_cell(entry["b"], "dice"), interval_cell(difference, "dice", signed=True), Cell(f"{p:.3g}", p),
        Cell("", None) if effect is None else Cell(f"{effect:+.2f}", effect), Cell(entry["verdict"]),
    )  # fmt: skip

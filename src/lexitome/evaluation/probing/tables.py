"""The results of a probe as tables (`probe.md`, `probe.csv`) and as plots of score over size."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lexitome.evaluation.probing.published import published_lines
from lexitome.evaluation.probing.scores import METRICS
from lexitome.evaluation.probing.sweep import Point, sweep_plot
from lexitome.evaluation.report.figures import available
from lexitome.io.atomic import replacing

TABLE, SHEET, EXPLORED = "probe.md", "probe.csv", "explore"
PLOTTED = "auc"
"""Of classes; of outlines it is Dice."""
OUTLINES = ("segment", "register")
"""Tasks whose score is Dice."""

Entry = dict[str, Any]


def write_report(entries: Sequence[Entry], out: Path) -> None:
    """`probe.md`, `probe.csv`, and `sweep-*.svg` and `.png` where several sizes or encoders were compared."""
    lines = _lines(entries, _plots(entries, out), explored=(out / EXPLORED).is_dir())
    with replacing(out / TABLE) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    with replacing(out / SHEET) as temporary:
        temporary.write_text(_sheet(entries), encoding="utf-8")


def chosen(entries: Sequence[Entry], task: str, dataset: str) -> list[Entry]:
    """Of each encoder and side the features and pooling that were best on validation images; of outlines all."""
    mine = [entry for entry in entries if (entry["task"], entry["dataset"]) == (task, dataset)]
    best: dict[tuple[str, int], Entry] = {}
    for entry in mine:
        key = (entry["encoder"], entry["side"])
        if key not in best or entry.get("validation", 0) > best[key].get("validation", 0):
            best[key] = entry
    return list(best.values())


def _lines(entries: Sequence[Entry], plots: Sequence[str], *, explored: bool) -> list[str]:
    lines = [
        "# Probes of frozen features", "",
        "Percent, with 95 % intervals whose units are subjects. What had to be chosen (k, C, epoch) was chosen on "
        "validation images; in bold the features and pooling that were best there.",
    ]  # fmt: skip
    for dataset in dict.fromkeys(entry["dataset"] for entry in entries):
        mine = [entry for entry in entries if entry["dataset"] == dataset]
        classes = [entry for entry in mine if entry["task"] not in OUTLINES]
        outlines = [entry for entry in mine if entry["task"] == "segment"]
        carried = [entry for entry in mine if entry["task"] == "register"]
        lines += ["", f"## {dataset}", ""]
        if classes:
            lines += [f"{classes[0]['cases']} test images; classes: {', '.join(classes[0]['classes'])}.", "",
                      "| task | encoder | side | features | chosen | AUC | accuracy | balanced accuracy | F1 |",
                      "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
            lines += [_class_line(entry, chosen(entries, entry["task"], dataset)) for entry in classes]
        if outlines:
            lines += [f"{outlines[0]['cases']} test cases, head: {outlines[0]['decoder']}.", "",
                      "| encoder | side | Dice, mean over targets | by target |", "|---|---|---|---|"]  # fmt: skip
            lines += [_outline_line(entry) for entry in outlines]
        if carried:
            lines += [""] if outlines else []
            lines += [f"{carried[0]['cases']} test cases in {carried[0]['pairs']} pairs with training pictures. "
                      f"Dice of outlines as they lie: {percent(carried[0]['before'])}.", "",
                      "| encoder | side | pairs that matched | Dice, mean over targets | by target |",
                      "|---|---|---|---|---|"]  # fmt: skip
            lines += [_carried_line(entry) for entry in carried]
    lines += ["", *(f"![{plot}]({plot})" for plot in plots), ""]
    if explored:
        seen = "Patches in colours, nearest neighbours, all test images in a plane"
        lines += [f"{seen}: [{EXPLORED}/]({EXPLORED}/).", ""]
    return lines + published_lines(list(dict.fromkeys(entry["dataset"] for entry in entries)))


def _class_line(entry: Entry, best: Sequence[Entry]) -> str:
    features = entry["features"] + (f", slices: {entry['pooling']}" if entry["pooling"] else "")
    shown = f"**{features}**" if any(entry is each for each in best) else features
    name = {"knn": "k", "linear": "C", "sgd": "rate", "abmil": "epoch"}[entry["task"]]
    cells = [entry["task"], entry["encoder"], str(entry["side"]), shown, f"{name} = {entry['chosen']:.3g}"]
    return f"| {' | '.join([*cells, *(percent(entry['scores'][metric]) for metric in METRICS)])} |"


def _outline_line(entry: Entry) -> str:
    return f"| {entry['encoder']} | {entry['side']} | {percent(entry['dice'])} | {_by_target(entry)} |"


def _carried_line(entry: Entry) -> str:
    matched = f"{100 * entry['matched']:.0f} %"
    return f"| {entry['encoder']} | {entry['side']} | {matched} | {percent(entry['dice'])} | {_by_target(entry)} |"


def _by_target(entry: Entry) -> str:
    return "; ".join(f"{name} {100 * found['mean']:.1f}" for name, found in entry["targets"].items())


def percent(interval: Entry | None) -> str:
    """ "81.2 [77.0, 85.1]"."""
    if interval is None:
        return "unknown"
    bounds = "" if interval["low"] is None else f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    return f"{100 * interval['mean']:.1f}{bounds}"


def _sheet(entries: Sequence[Entry]) -> str:
    """One line for each score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    about = ("dataset", "task", "encoder", "side", "intensity", "features", "pooling", "chosen")
    writer.writerow([*about, "score", "mean", "low", "high", "units", "cases"])
    for entry in entries:
        scores = entry.get("scores") or {"dice": entry["dice"], **{f"dice of {n}": v for n, v in
                                                                   entry["targets"].items()}}  # fmt: skip
        for name, found in scores.items():
            if found is not None:
                values = [found[part] for part in ("mean", "low", "high", "units", "cases")]
                writer.writerow([*(entry.get(key, "") for key in about), name, *values])
    return text.getvalue()


def _plots(entries: Sequence[Entry], out: Path) -> list[str]:
    """Names of the plots that were drawn; none without matplotlib."""
    drawn: list[str] = []
    for task, dataset in dict.fromkeys((entry["task"], entry["dataset"]) for entry in entries):
        some = chosen(entries, task, dataset)
        points = [_point(entry) for entry in some]
        known = [point for point in points if point is not None]
        if len(known) < 2 or not available():
            continue
        score = "Dice, mean over targets, %" if task in OUTLINES else "AUC, %"
        figure = sweep_plot(known, f"{dataset}: {task} on frozen features", score)
        name = f"sweep-{task}-{dataset}"
        with replacing(out / f"{name}.svg") as temporary:
            temporary.write_text(figure.svg, encoding="utf-8")
        with replacing(out / f"{name}.png") as temporary:
            temporary.write_bytes(figure.png)
        drawn.append(f"{name}.png")
    return drawn


def _point(entry: Entry) -> Point | None:
    found = entry["dice"] if entry["task"] in OUTLINES else entry["scores"][PLOTTED]
    if found is None:
        return None
    low, high = (None if found[end] is None else 100 * found[end] for end in ("low", "high"))
    return Point(entry["encoder"], entry["side"], 100 * found["mean"], low, high)

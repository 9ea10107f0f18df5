"""Which figures a report has: the cases behind the tables as boxes and strips, and the reliability of presence and of
masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lexitome.evaluation.report.blocks import Picture
from lexitome.evaluation.report.figures import Curve, Drawn, Spread, box_plots, reliability_diagram, strip_plots
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.tables import scores_of

Entry = Mapping[str, Any]
_DICE = "Dice, %"
_KINDS = ((False, "no oracle", "plain"), (True, "ORACLE prompts", "oracle"))


def dataset_pictures(summary: Entry, rows: Sequence[ResultRow]) -> list[Picture]:
    """Box plots by dataset, those of oracle prompts apart from the others."""
    caption = (
        "Boxes: quartiles and median over cases; whiskers reach the last case within 1.5 interquartile ranges, dots "
        "lie beyond; the diamond is the mean."
    )
    values = _values(row for row in rows if not row.derived)
    return _both_kinds(summary["by_dataset"], values, ("dataset",), ("boxes", "Dice by dataset", caption), box_plots)


def concept_pictures(summary: Entry, rows: Sequence[ResultRow]) -> list[Picture]:
    """Strips by concept, every case a dot."""
    caption = "Every dot is a case that shows the concept; the mark is the mean with its 95 % interval."
    words = ("strips", "Dice by concept", caption)
    return _both_kinds(summary["by_concept"], _values(rows), ("concept", "dataset"), words, strip_plots)


Values = dict[tuple[str, ...], list[float]]


def _values(rows: Any) -> Values:
    """Dice in percent of the cases that show the target, by (model, protocol, dataset) and also by concept."""
    found: Values = {}
    for row in rows:
        score = scores_of(row).get("dice") if row.present else None
        if score is not None:
            about = (row.model, row.protocol, row.dataset)
            found.setdefault(about, []).append(100 * score)
            found.setdefault((*about, row.concept), []).append(100 * score)
    return found


def _both_kinds(
    entries: Sequence[Entry], values: Values, names: tuple[str, ...], words: tuple[str, str, str],
    draw: Callable[..., list[Drawn]],
) -> list[Picture]:  # fmt: skip
    kind, title, caption = words
    pictures = []
    for oracle, said, short in _KINDS:
        some = [entry for entry in entries if entry["oracle"] is oracle and "dice" in entry["metrics"]]
        one_model = len({entry["model"] for entry in some}) == 1
        spreads = [_spread(entry, values, names, one_model=one_model) for entry in some]
        spreads.sort(key=lambda spread: spread.row.lower())
        drawn = draw(spreads, _DICE, oracle=oracle) if spreads else []
        for number, figure in enumerate(drawn, start=1):
            part = f", part {number} of {len(drawn)}" if len(drawn) > 1 else ""
            name = f"{kind}-{short}-{number}"
            pictures.append(Picture(name, f"{title}, {said}{part}", caption, figure.svg, figure.png))
    return pictures


def _spread(entry: Entry, values: Values, names: tuple[str, ...], *, one_model: bool) -> Spread:
    dice = entry["metrics"]["dice"]
    key = (entry["model"], entry["protocol"], entry["dataset"], *([entry["concept"]] if "concept" in names else []))
    bounds = None if dice["low"] is None else (100 * dice["low"], 100 * dice["high"])
    series = entry["protocol"] if one_model else f"{entry['model']}, {entry['protocol']}"
    row = " · ".join(str(entry[name]) for name in names)
    return Spread(row, series, np.array(values[key]), 100 * dice["mean"], bounds)


def presence_calibration_pictures(summary: Entry) -> list[Picture]:
    """One diagram for all models and protocols that give a presence probability."""
    curves = []
    for entry in summary["calibration"]:
        bins = entry["bins"]
        curves.append(Curve(
            _with_error(entry), np.array([b["confidence"] for b in bins]),
            np.array([b["observed"]["mean"] for b in bins]), np.array([b["count"] for b in bins], dtype=np.float64),
        ))  # fmt: skip
    if not curves:
        return []
    figure = reliability_diagram(curves, ("predicted probability that the concept is there", "share that was there"))
    caption = (
        "On the diagonal a probability means what it says; below it the model is too sure. The lower part shows how "
        "the questions spread over the bins."
    )
    return [Picture("reliability", "Reliability of presence", caption, figure.svg, figure.png)]


def mask_calibration_pictures(summary: Entry) -> list[Picture]:
    """One diagram of the voxels of all datasets, those of oracle prompts apart from the others."""
    caption = (
        "Voxels of all cases counted together, so that large objects weigh more; asked is the box around each object "
        "and 5 voxels more. On the diagonal a probability means what it says. The lower part shows how the voxels "
        "spread over the bins."
    )
    pictures = []
    for oracle, said, short in _KINDS:
        curves = [
            _voxel_curve(entry)
            for entry in summary["mask_calibration"]
            if entry["dataset"] is None and entry["oracle"] is oracle
        ]
        if curves:
            figure = reliability_diagram(curves, ("predicted probability of the mask", "share inside the reference"))
            title = f"Reliability of masks, {said}"
            pictures.append(Picture(f"mask-reliability-{short}", title, caption, figure.svg, figure.png))
    return pictures


def _voxel_curve(entry: Entry) -> Curve:
    count, sure, positive = (np.array(entry["bins"][name]) for name in ("count", "probability", "positive"))
    some = np.where(count > 0, count, np.nan)
    return Curve(_with_error(entry), sure / some, positive / some, count)


def _with_error(entry: Entry) -> str:
    return f"{entry['model']}, {entry['protocol']}: ECE {100 * entry['ece']:.1f} %"

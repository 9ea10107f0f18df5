"""The tables of results: what `tables.summarise` found, in the words and units of a reader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lexitome.evaluation.metrics import METRICS
from lexitome.evaluation.presets import PublishedScore
from lexitome.evaluation.report.blocks import Cell, Column, Mark, Table, Tile, Tiles

Entry = Mapping[str, Any]
Published = Mapping[tuple[str, str], Sequence[PublishedScore]]
"""(dataset, protocol as in rows) to the published numbers that were got in the same way."""

MAIN = ("dice", "nsd")
OBJECTS = ("pq", "sq", "rq", "ap50", "ap", "count_error")
_SIGNED = "signed share"


def tiles(summary: Entry) -> Tiles:
    """One tile for each model and protocol: the mean Dice over datasets."""
    found = []
    for entry in summary["overall"]:
        dice = entry["metrics"].get("dice")
        if entry["subset"] != "all" or dice is None:
            continue
        counts = entry["counts"]
        taught = next((e for e in summary["overall"] if _same(e, entry) and e["subset"] == "taught"), None)
        own = taught["metrics"].get("dice") if taught else None
        extra = f"; of taught concepts {_percent(own['mean'])}" if own else ""
        many = len(entry["datasets"])
        where = f"mean of {many} datasets' means" if many > 1 else entry["datasets"][0]
        detail = f"{where}; {dice['cases']} answers, {counts['units']} subjects{extra}"
        number = interval_cell(dice, "dice", marks=_oracle(entry))
        found.append(Tile(f"Dice in %, {entry['model']}, {entry['protocol']}", number, detail))
    return Tiles(tuple(found))


def overall_table(summary: Entry) -> Table | None:
    """Means over datasets of the main metrics and of presence, by subset of concepts."""
    presence = {(e["model"], e["protocol"]): e for e in summary["presence"] if e["dataset"] is None}
    entries = [entry for entry in summary["overall"] if entry["metrics"]]
    names = [name for name in ("dice", "nsd", "iou", "boundary_iou", "cldice") if any(_has(e, name) for e in entries)]
    subsets = {"all": "all", "taught": "taught", "untaught": "not taught"}
    columns = (
        Column("model", "words"), Column("protocol", "words"), Column("concepts", "words"), Column("datasets"),
        Column("answers"), *(metric_column(name) for name in names),
        Column("presence, balanced accuracy, %", "interval", "Mean of recall and specificity of presence"),
    )  # fmt: skip
    rows = []
    for entry in entries:
        own = presence.get((entry["model"], entry["protocol"])) if entry["subset"] == "all" else None
        balanced = own and own["balanced_accuracy"]
        rows.append((
            Cell(entry["model"]), protocol_cell(entry), Cell(subsets[entry["subset"]]), count(len(entry["datasets"])),
            count(entry["counts"]["present"]), *(interval_cell(entry["metrics"].get(name), name) for name in names),
            interval_cell(balanced, "dice") if balanced else Cell(""),
        ))  # fmt: skip
    caption = "Means over datasets, each of which counts the same; in brackets the 95 % interval."
    return _table(columns, rows, caption)


def dataset_table(summary: Entry, external: frozenset[str], published: Published) -> Table | None:
    """Dataset x model x protocol."""
    entries = [entry for entry in summary["by_dataset"] if entry["counts"]["present"]]
    lengths = [name for name in ("hd95_mm", "hd95_px") if any(_has(e, name) for e in entries)]
    quoted = any((entry["dataset"], entry["protocol"]) in published for entry in entries)
    columns = (
        Column("dataset", "words"), Column("model", "words"), Column("protocol", "words"), metric_column("dice"),
        *([Column("best, %", "published", "Dice, quoted, for the same kind of prompt; all are in Published numbers")]
          if quoted else []),
        metric_column("nsd"),
        Column("Dice over concepts, %", hint="Each concept counts the same, however many cases show it"),
        *(metric_column(name, "number") for name in lengths),
        Column("answers", hint="Questions about concepts that the reference shows"), Column("subjects"),
        Column("no answer", hint="Missing or failed; scored as empty masks"), Column("modality", "words"),
    )  # fmt: skip
    rows = []
    for entry in entries:
        counts, metrics = entry["counts"], entry["metrics"]
        scores = [s for s in published.get((entry["dataset"], entry["protocol"]), ()) if s.metric == "dice"]
        rows.append((
            dataset_cell(entry, external), Cell(entry["model"]), protocol_cell(entry),
            interval_cell(metrics.get("dice"), "dice"), *([_quoted(scores)] if quoted else []),
            interval_cell(metrics.get("nsd"), "nsd"), number_cell(entry["over_concepts"].get("dice"), "dice"),
            *(number_cell(metrics.get(name), name) for name in lengths),
            count(counts["present"]), count(counts["units"]), count(counts["missing"] + counts["failed"]),
            Cell(", ".join(entry["modality"])),
        ))  # fmt: skip
    return _table(columns, rows, "Means over cases (a case is one concept asked in one image), with 95 % intervals.")


def _quoted(scores: Sequence[PublishedScore]) -> Cell:
    """The highest: whoever picks another one to compare with should have to say why."""
    if not scores:
        return Cell("")
    best = max(scores, key=lambda score: score.value)
    hint = "; ".join(f"{_percent(score.value)} {score.model}, {score.source}" for score in scores)
    return Cell(f"{_percent(best.value)} {best.model}", 100 * best.value, hint=hint)


def metrics_table(summary: Entry) -> Table | None:
    """Every other metric that some dataset has, without intervals: those are in summary.json."""
    left_out = {*MAIN, *OBJECTS, "f1_50", "hd95_mm", "hd95_px"}
    return _plain_table(summary, lambda name: name not in left_out, "Means over cases.")


def objects_table(summary: Entry) -> Table | None:
    """How well objects are told apart, where reference and model do."""
    caption = "Means over images of concepts whose objects reference and model tell apart."
    return _plain_table(summary, lambda name: name in OBJECTS, caption)


def _plain_table(summary: Entry, wanted: Any, caption: str) -> Table | None:
    entries = [e for e in summary["by_dataset"] if any(wanted(name) for name in e["metrics"])]
    known = dict.fromkeys(name for entry in entries for name in entry["metrics"] if wanted(name))
    order = list(METRICS)
    names = sorted(known, key=lambda name: (order.index(base_of(name)) if base_of(name) in order else 99, name))
    columns = (Column("dataset", "words"), Column("model", "words"), Column("protocol", "words"),
               *(metric_column(name, "number") for name in names))  # fmt: skip
    rows = [
        (dataset_cell(entry), Cell(entry["model"]), protocol_cell(entry),
         *(number_cell(entry["metrics"].get(name), name) for name in names))
        for entry in entries
    ]  # fmt: skip
    return _table(columns, rows, caption) if names else None


def concept_table(summary: Entry) -> Table | None:
    columns = (
        Column("concept", "words"), Column("dataset", "words"), Column("model", "words"), Column("protocol", "words"),
        *(metric_column(name) for name in MAIN), Column("median Dice, %"),
        Column("found, %", hint="Cases in which the mask holds anything"), Column("cases"), Column("subjects"),
    )  # fmt: skip
    rows = []
    for entry in summary["by_concept"]:
        marks: tuple[Mark, ...] = ("union",) if entry["derived"] else ()
        marks += ("untaught",) if entry["taught"] is False else ()
        dice, cases = entry["metrics"].get("dice"), entry["counts"]["present"]
        rows.append((
            Cell(entry["concept"], entry["concept"], marks=marks), Cell(entry["dataset"]), Cell(entry["model"]),
            protocol_cell(entry), *(interval_cell(entry["metrics"].get(name), name) for name in MAIN),
            number_cell(dice and {"mean": dice["median"]}, "dice"),
            number_cell({"mean": entry["found"] / cases}, "dice"), count(cases), count(entry["counts"]["units"]),
        ))  # fmt: skip
    return _table(columns, rows, "Over the cases that show the concept.")


def presence_table(summary: Entry) -> Table | None:
    columns = (
        Column("dataset", "words"), Column("model", "words"), Column("protocol", "words"), Column("present"),
        Column("absent"), Column("recall, %", "interval", "Of concepts that are there, the share found"),
        Column("specificity, %", "interval", "Of concepts that are not there, the share not found"),
        Column("precision, %", "interval"), Column("balanced accuracy, %", "interval"),
        Column("AUC, %", "interval", "Of the presence probability; 50 is chance"),
    )  # fmt: skip
    rates = ("recall", "specificity", "precision", "balanced_accuracy", "auc")
    asked = [entry for entry in summary["presence"] if entry["absent"]]
    rows = [
        (Cell(entry["dataset"] or f"all {len(entry['datasets'])}", entry["dataset"] or ""), Cell(entry["model"]),
         protocol_cell(entry), count(entry["present"]), count(entry["absent"]),
         *(interval_cell(entry[rate], "dice") for rate in rates))
        for entry in asked
    ]  # fmt: skip
    caption = "A concept counts as found if the mask holds anything. Absent ones are of the same modality."
    return _table(columns, rows, caption)


def calibration_table(summary: Entry) -> Table | None:
    columns = (Column("model", "words"), Column("protocol", "words"), Column("questions"),
               Column("ECE, %", hint="Mean gap between probability and share, over questions"),
               Column("Brier, %", "interval", "Mean squared error of the presence probability"))  # fmt: skip
    rows = [
        (Cell(entry["model"]), protocol_cell(entry), count(entry["questions"]),
         number_cell({"mean": entry["ece"]}, "ece"), interval_cell(entry["brier"], "brier"))
        for entry in summary["calibration"]
    ]  # fmt: skip
    return _table(columns, rows, "Of the probability that a concept is there.")


def mask_calibration_table(summary: Entry) -> Table | None:
    columns = (Column("dataset", "words"), Column("model", "words"), Column("protocol", "words"), Column("cases"),
               Column("voxels"),
               Column("ECE, %", hint="Mean gap between probability and share, over voxels"))  # fmt: skip
    rows = [
        (Cell("all together") if entry["dataset"] is None else dataset_cell(entry), Cell(entry["model"]),
         protocol_cell(entry), count(entry["cases"]), count(entry["voxels"]),
         number_cell({"mean": entry["ece"]}, "ece"))
        for entry in summary["mask_calibration"]
    ]  # fmt: skip
    caption = "Of the probability that a voxel is inside, voxels of all cases counted together."
    return _table(columns, rows, caption)


def time_table(summary: Entry) -> Table | None:
    columns = (Column("dataset", "words"), Column("dimensions"), Column("model", "words"), Column("protocol", "words"),
               Column("questions"), Column("mean, s"), Column("95 % interval, s", "words"),
               Column("median, s"))  # fmt: skip
    rows = []
    for entry in (e for e in summary["by_dataset"] if e["seconds"] is not None):
        seconds = entry["seconds"]
        bounds = "" if seconds["low"] is None else f"{_short(seconds['low'])}–{_short(seconds['high'])}"
        rows.append((
            dataset_cell(entry), Cell("/".join(f"{d}D" for d in entry["dims"]), float(entry["dims"][0])),
            Cell(entry["model"]), protocol_cell(entry), count(seconds["cases"]),
            Cell(_short(seconds["mean"]), seconds["mean"]), Cell(bounds, seconds["low"]),
            Cell(_short(seconds["median"]), seconds["median"]) if "median" in seconds else Cell(""),
        ))  # fmt: skip
    caption = "Of one question, in seconds of wall time; the image's encoding is shared among its questions."
    return _table(columns, rows, caption)


def _table(columns: Sequence[Column], rows: Sequence[tuple[Cell, ...]], caption: str) -> Table | None:
    return Table(tuple(columns), tuple(rows), caption) if rows else None


def base_of(name: str) -> str:
    """The metric without the unit that `tables.column_of` gave it: "hd95_mm" -> "hd95"."""
    head = name.rpartition("_")[0]
    return head if name not in METRICS and head in METRICS else name


def metric_column(name: str, kind: Any = "interval") -> Column:
    """Title with unit; the definition shows on hovering."""
    info = METRICS.get(base_of(name))
    if info is None:
        return Column(name, kind)
    unit = _unit(name)
    return Column(f"{info.name}, {unit}" if unit else info.name, kind, info.definition)


def _unit(name: str) -> str:
    info = METRICS[base_of(name)]
    if info.unit in ("share", _SIGNED):
        return "%"
    return name.rpartition("_")[2].replace("mm2", "mm²").replace("mm3", "mm³") if base_of(name) != name else ""


def interval_cell(interval: Entry | None, name: str, marks: tuple[Mark, ...] = (), *, signed: bool = False) -> Cell:
    """ "71.2 (69.8–72.5)" of a share; the hint says how many cases and subjects."""
    if interval is None:
        return Cell("")
    mean, low, high = (None if interval[k] is None else 100 * interval[k] for k in ("mean", "low", "high"))
    assert mean is not None
    hint, sign = f"{interval['cases']} cases of {interval['units']} subjects", "+" if signed else ""
    if low is None or high is None:
        return Cell(f"{mean:{sign}.1f}", mean, marks=marks, hint=f"{hint}: too few for an interval")
    to = " to " if signed else "–"
    words = f"{mean:{sign}.1f} ({low:{sign}.1f}{to}{high:{sign}.1f})"
    return Cell(words, mean, (low, high), marks, hint)


def number_cell(interval: Entry | None, name: str) -> Cell:
    """A mean in the unit of its column; the interval, where there is one, on hovering."""
    if interval is None:
        return Cell("")
    info = METRICS.get(base_of(name))
    share = info is not None and info.unit in ("share", _SIGNED)
    factor = 100.0 if share else 1.0
    values = [None if interval.get(key) is None else factor * interval[key] for key in ("mean", "low", "high")]
    sign = "+" if info is not None and info.unit == _SIGNED else ""
    words = [None if v is None else f"{v:{sign}.1f}" if share else _short(v) for v in values]
    hint = "" if words[1] is None else f"95 % interval {words[1]} to {words[2]}; {interval['cases']} cases"
    return Cell(words[0] or "", values[0], hint=hint)


def dataset_cell(entry: Entry, external: Iterable[str] = ()) -> Cell:
    name = entry["dataset"]
    return Cell(name, name, marks=("external",) if name in external else ())


def protocol_cell(entry: Entry) -> Cell:
    return Cell(entry["protocol"], entry["protocol"], marks=_oracle(entry))


def count(number: int) -> Cell:
    return Cell(str(number), float(number))


def _oracle(entry: Entry) -> tuple[Mark, ...]:
    return ("oracle",) if entry["oracle"] else ()


def _same(one: Entry, other: Entry) -> bool:
    return (one["model"], one["protocol"]) == (other["model"], other["protocol"])


def _has(entry: Entry, name: str) -> bool:
    return name in entry["metrics"]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _short(value: float) -> str:
    """Three digits, whatever the size."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"

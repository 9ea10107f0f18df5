"""A comparison of runs for people: the cells of its tables, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from lexitome.evaluation.comparison import PRESENCE, SECONDS
from lexitome.evaluation.metrics import METRICS

Entry = Mapping[str, Any]
HEADER = ("dataset", "cases", "units", "A", "B", "B - A", "p", "p (Holm)", "dz", "verdict")
BRIEF_HEADER = ("dataset", "units", "A", "B", "B - A", "p (Holm)", "verdict")
VERDICTS = {"win": "B wins", "loss": "B loses"}
FEW = 5
"""Names shown of what had no partner; all are in the JSON."""
LEFT_OUT = {
    "only_in_a": "only in {a}", "only_in_b": "only in {b}", "differ": "with another reference in {b}",
    "derived": "of unions that the files do not name",
    "absent": "about absent concepts, where there is nothing to score",
    "no_value_in_a": "without a value in {a} (of a distance: nothing was predicted)",
    "no_value_in_b": "without a value in {b} (of a distance: nothing was predicted)",
    "no_value_in_both": "without a value in both",
}  # fmt: skip
"""Why questions are in no comparison of runs a and b."""
NOTES = (
    "Intervals (95 %) by resampling units, p by flipping signs of units, Holm over the datasets of a protocol, dz = "
    "mean / standard deviation of the units' differences. A tie is a difference whose interval includes 0."
)


def in_percent(metric: str) -> bool:
    return metric == PRESENCE or (metric in METRICS and "share" in METRICS[metric].unit)


def number(value: float | None, metric: str, *, signed: bool = False) -> str:
    """A value of the metric; shares in percent with one decimal."""
    if value is None:
        return "-"
    shown, digits = (100 * value, 1) if in_percent(metric) else (value, 3 if metric == SECONDS else 2)
    text = f"{shown:+.{digits}f}" if signed else f"{shown:.{digits}f}"
    return text if float(text) else text.lstrip("+-")


def with_interval(mean: float, low: float | None, high: float | None, metric: str, *, signed: bool = False) -> str:
    shown = number(mean, metric, signed=signed)
    if low is None:
        return shown
    return f"{shown} [{number(low, metric, signed=signed)}, {number(high, metric, signed=signed)}]"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cells(entry: Entry, metric: str) -> tuple[str, ...]:
    """Of one dataset, or of the mean over datasets; under `HEADER`."""
    sides = (with_interval(entry[side]["mean"], entry[side]["low"], entry[side]["high"], metric) for side in "ab")
    change = with_interval(entry["difference"], entry["low"], entry["high"], metric, signed=True)
    holm = p_value(entry["p_holm"]) if "p_holm" in entry else ""
    effect = "" if entry["effect_size"] is None else f"{entry['effect_size']:+.2f}"
    return (
        _name(entry), str(entry["cases"]), str(entry["units"]), *sides, change, p_value(entry["p"]), holm, effect,
        _verdict(entry["verdict"]),
    )  # fmt: skip


def brief_cells(entry: Entry, metric: str) -> tuple[str, ...]:
    """As many as fit into 80 columns; under `BRIEF_HEADER`."""
    name, _, units, _, _, change, _, corrected, _, verdict = cells(entry, metric)
    return name, units, *(number(entry[side]["mean"], metric) for side in "ab"), change, corrected, verdict


def _verdict(word: str) -> str:
    return VERDICTS.get(word, word)


def _name(entry: Entry) -> str:
    """Where one metric has several units, each has lines of its own."""
    name = entry["dataset"] if "dataset" in entry else f"mean over {entry['datasets']} datasets"
    length = next((unit for unit in ("mm3", "mm2", "mm", "voxels", "px") if entry["measure"].endswith(f"_{unit}")), "")
    return f"{name} ({length})" if length else name


def title(comparison: Entry, part: Entry, metric: str) -> str:
    """ "Dice, text: B = new against A = old, in percent"."""
    name = METRICS[metric].name if metric in METRICS else metric
    unit = ", in percent" if in_percent(metric) else ", in seconds" if metric == SECONDS else ""
    return f"{name}, {part['protocol']}: B = {comparison['run']} against A = {comparison['against']}{unit}"


def score_line(part: Entry) -> list[str]:
    """Of each measure: on how many datasets B wins, ties and loses."""
    lines = []
    for overall in part["overall"]:
        text = f"B wins on {overall['wins']}, ties on {overall['ties']}, loses on {overall['losses']}"
        lone = f", {overall['undecided']} of a single unit" if overall["undecided"] else ""
        lines.append(f"{text} of {overall['datasets']} datasets{lone}")
    return lines


def left_out_lines(comparison: Entry) -> list[str]:
    """What was not compared and why, with a few names."""
    lines = []
    for reason, count in comparison["left_out"].items():
        if count:
            names = comparison["unmatched"].get(reason, [])
            more = f": {'; '.join(names[:FEW])}{'; ...' if count > FEW else ''}" if names else ""
            why = LEFT_OUT[reason].format(a="A", b="B")
            lines.append(f"{count} questions {why}{more}")
    for side in "ab":
        for state, count in comparison["unanswered"][side].items():
            if count:
                lines.append(f"{count} questions {state} in {side.upper()}: scored as empty masks")
    return lines


def to_markdown(results: Sequence[Entry]) -> str:
    """One section for each metric, later run and protocol."""
    lines = ["# Comparison", "", NOTES, ""]
    for result in results:
        for comparison in result["comparisons"]:
            for part in comparison["protocols"]:
                lines += [f"## {title(comparison, part, result['metric'])}", ""]
                if part["oracle"]:
                    lines += ["**Oracle**: the prompts were taken from the reference.", ""]
                lines += [f"| {' | '.join(HEADER)} |", "|---|" + "---:|" * (len(HEADER) - 2) + "---|"]
                entries = [*part["datasets"], *part["overall"]]
                lines += [f"| {' | '.join(_escaped(cells(entry, result['metric'])))} |" for entry in entries]
                lines += ["", *(f"{line}." for line in score_line(part)), ""]
            lines += [f"- {line}" for line in left_out_lines(comparison)] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _escaped(texts: Sequence[str]) -> list[str]:
    return [text.replace("|", "\\|") for text in texts]


COLUMNS = (
    "metric", "better", "protocol", "oracle", "run_a", "run_b", "dataset", "measure", "cases", "units", "mean_a",
    "low_a", "high_a", "mean_b", "low_b", "high_b", "difference", "low", "high", "p", "p_holm", "effect_size",
    "verdict",
)  # fmt: skip


def to_csv(results: Sequence[Entry]) -> str:
    """One line for each dataset, with "dataset" empty for the mean over datasets; shares between 0 and 1."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for result in results:
        for comparison in result["comparisons"]:
            about = {"metric": result["metric"], "better": result["better"], "run_a": comparison["against"],
                     "run_b": comparison["run"]}  # fmt: skip
            for part in comparison["protocols"]:
                for entry in (*part["datasets"], *({**entry, "dataset": ""} for entry in part["overall"])):
                    sides = {f"{key}_{side}": entry[side][key] for side in "ab" for key in ("mean", "low", "high")}
                    kind = {"protocol": part["protocol"], "oracle": part["oracle"]}
                    table.writerow({**about, **kind, **entry, **sides})
    return text.getvalue()

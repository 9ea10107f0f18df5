"""What `btcv` found, for people."""

from __future__ import annotations

from collections.abc import Iterable

from provenance import Entry
from specialists_text import leaks_line

from lexitome.evaluation.comparison_text import number, p_value, with_interval

METRIC = "dice"
OFF = 0.2
"""Of the minutes: who is farther from them is named."""
ABLATION = (
    ("random weights, last block, 640 pixels", 78.39, "random-last-{low}"),
    ("DINOv3's weights", 81.35, "pretrained-last-{low}"),
    ("and several blocks", 83.45, "pretrained-multi-{low}"),
    ("and 896 pixels", 85.51, "pretrained-multi-{high}"),
    ("stage 1 of its own pretraining", 86.58, "stage1-multi-{high}"),
    ("and stage 2", 86.54, "stage2-multi-{high}"),
    ("and stage 3", 87.38, "stage3-multi-{high}"),
)
"""MedDINOv3 (2509.02379), its ablation on AMOS22: what was changed, Dice in percent, and who is like it here."""
HEADS = (
    "contestant", "side", "steps x pictures", "minutes", "validation", "Dice", "over organs", "difference", "p (Holm)",
)  # fmt: skip
STEP_HEADS = ("from", "to", "difference", "p")
UNITS = "Intervals (95 %) by resampling patients, p by flipping signs of patients. Dice in percent."


def line(result: Entry, name: str) -> str:
    """One contestant, when it is finished."""
    entry = result["contestants"][name]
    return f"{name}: {scored(entry)} in {entry['minutes']:.1f} minutes"


def scored(entry: Entry) -> str:
    found = entry[METRIC]
    return with_interval(found["mean"], found["low"], found["high"], METRIC)


def as_markdown(result: Entry) -> str:
    settings, done = result["settings"], result["contestants"]
    patients, slices = settings["patients"], settings["slices"]
    parts = [
        "# MedDINOv3 in small, MONAI's U-Net and nnU-Net 2D for equal time", "",
        f"Written by `{result['command']}`; do not edit.", "",
        f"Abdominal CT (`{settings['set']}`), slices of {patients['train']} patients to learn from "
        f"({slices['train']} slices), {patients['val']} to choose by ({slices['val']}), {patients['test']} to test on "
        f"({slices['test']}). U-Nets and those at {settings['high']} pixels had {settings['minutes']:g} minutes of "
        f"training steps on {result['machine']['threads']} cores ({result['machine']['processor']}); those at "
        f"{settings['low']} as many steps as these, in less time. The checkpoint was chosen by "
        "validation Dice, but for nnU-Net, which keeps its last one. What is not found scores 0.", "",
        "Beside the numbers: the time of pretraining is not in the minutes; nnU-Net validates in its epochs and got as "
        "much more time; one seed.", "",
    ]  # fmt: skip
    parts += [f"**{text}**\n" for text in warnings(result)]
    parts += ["## Contestants", "", *table(HEADS, rows(result)), "", differences_note(settings["reference"]), ""]
    if result["steps"]:
        parts += ["## One thing at a time", "", *table(STEP_HEADS, steps(result)), "", UNITS, ""]
    parts += ["## The paper's ablation", "", *ablation(result), "", "## Organs", "", *organs(done), ""]
    parts += ["## Published", "", *published(result), "", "## Near training pictures", ""]
    parts += [leaks_line(name, entry["near"]) for name, entry in done.items()]
    return "\n".join(parts) + "\n"


def table(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> list[str]:
    heads = list(heads)
    drawn = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    return drawn + [f"| {' | '.join(cells)} |" for cells in lines]


def warnings(result: Entry) -> list[str]:
    """What makes it less than a result."""
    settings, done = result["settings"], result["contestants"]
    minutes, found = settings["minutes"], []
    missing = [name for name in settings["contestants"] if name not in done]
    timed = {name: entry["minutes"] for name, entry in done.items() if not name.endswith(f"-{settings['low']}")}
    off = [f"{name} ({spent:.1f})" for name, spent in timed.items() if abs(spent - minutes) > OFF * minutes]
    if missing:
        found.append(f"Not yet: {', '.join(missing)}.")
    if settings["limit"]:
        found.append(f"At most {settings['limit']} test slices: a first look, not a result.")
    if off:
        found.append(f"Not for equal time, more than {OFF:.0%} off: {', '.join(off)}.")
    return found


def rows(result: Entry) -> list[list[str]]:
    """The contestants, best first."""
    done, apart = result["contestants"], result["differences"]
    found = []
    for name, entry in sorted(done.items(), key=lambda item: -item[1][METRIC]["mean"]):
        change = apart.get(name)
        chosen_by = number(entry["validation_dice"], METRIC)
        found.append([
            name, str(entry["side"]), f"{entry['steps']} x {entry['pictures']}", f"{entry['minutes']:.1f}", chosen_by,
            scored(entry), number(entry["over_organs"], METRIC), *(difference(change) if change else ("", "")),
        ])  # fmt: skip
    return found


def difference(entry: Entry) -> tuple[str, str]:
    p = entry["p_holm"]
    return with_interval(entry["difference"], entry["low"], entry["high"], METRIC, signed=True), p_value(p)


def differences_note(reference: str) -> str:
    return (
        "Dice is the mean over questions (an organ that a slice shows), then the mean over organs. Differences are "
        f"from `{reference}`, over the same questions; Holm over contestants. {UNITS}"
    )


def steps(result: Entry) -> list[list[str]]:
    return [[step["from"], step["to"], *difference(step)] for step in result["steps"]]


def ablation(result: Entry) -> list[str]:
    """As published on AMOS22, and the like of it here, as far as it was run."""
    settings, done = result["settings"], result["contestants"]
    lines = []
    for words, value, pattern in ABLATION:
        name = pattern.format(**{side: settings[side] for side in ("low", "high")})
        lines.append([words, f"{value:.2f}", name, scored(done[name]) if name in done else "not run"])
    heads = ("MedDINOv3 on AMOS22 (published)", "Dice", "here", "Dice")
    note = (
        "Published ones were trained to their end; here as there, each for as many steps as the others, so that a "
        "larger side takes more time. Its second line has DINOv3's weights, learned from photographs; here "
        "it has those of our own pretraining, and lines of stages show each stage of that."
    )
    return [*table(heads, lines), "", note]


def organs(done: Entry) -> list[str]:
    names = list(dict.fromkeys(organ for entry in done.values() for organ in entry["organs"]))
    lines = [[organ, *(number(entry["organs"].get(organ), METRIC) for entry in done.values())] for organ in names]
    return table(("organ", *done), lines)


def published(result: Entry) -> list[str]:
    found = result["published"]
    values = ", ".join(f"{model} {number(value, METRIC)}" for model, value in found["models"].items())
    differs = f" Here: {found['differs']}." if found["differs"] else ""
    return [f"On BTCV (volumes, other splits, trained to the end; {found['source']}): {values}.{differs}"]

"""What `backbone` found, for people."""

from __future__ import annotations

import ablations
from provenance import Entry

ROWS = ("imagenet", "pretrained", "random")
MAIN = ("pretrained", "imagenet")
"""The comparison that decides."""
SHOWN = {
    "imagenet": "EfficientNet-Lite0, ImageNet",
    "pretrained": "vision transformer, pretrained here",
    "random": "the same transformer, random weights",
}
COLUMNS = [
    column for column in ablations.COLUMNS if column[0] in ("dice_2d", "dice_slices", "presence", "dice_box", "f1")
]
"""Measure, its heading, and what it says."""
DECISION = {
    True: "The transformer pretrained here is the better encoder for equal time.",
    False: "The transformer pretrained here does not beat ImageNet's convolutional encoder for equal time: compact "
    "keeps EfficientNet-Lite0.",
}


def line(row: Entry) -> str:
    """One row, when it is finished."""
    scores = ", ".join(f"{name} {row['metrics'][key]:.1f}" for key, name, _ in COLUMNS if key in row["metrics"])
    return f"{row['name']}: {row['steps']} steps in {row['minutes']:.1f} minutes, {scores}"


def verdict(difference: Entry) -> str:
    """In words, from the interval."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "a tie"


def as_markdown(result: Entry) -> str:
    settings, rows = result["settings"], [result["rows"][name] for name in ROWS if name in result["rows"]]
    parts = [
        "# Which encoder the compact model looks through", "",
        f"Written by `{result['command']}`; do not edit. Each row was trained for {settings['minutes']:g} minutes of "
        f"training steps on {len(settings['sets'])} sets, and differs in the encoder only. All were asked about the "
        f"same validation pictures, up to {settings['pictures']} of each set: no test picture was looked at. The time "
        "of pretraining is not in the minutes.", "",
        *(f"- **{name}**: {says}" for _, name, says in COLUMNS), "",
        "| encoder | M, of it encoder | steps | minutes | " + " | ".join(name for _, name, _ in COLUMNS) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(COLUMNS),
        *map(_row, rows), "",
    ]  # fmt: skip
    for each in result["differences"]:
        parts.append(
            f"- {SHOWN[each['later']]}, against {SHOWN[each['earlier']]}: {each['mean']:+.1f} points of Dice "
            f"[{each['low']:.1f}, {each['high']:.1f}], **{verdict(each)}**; ahead in {each['better']} of "
            f"{each['concepts']} concepts."
        )
    if result["differences"]:
        parts += ["", "Differences are paired by picture, means over concepts; 95 % intervals resample pictures within "
                  "a concept. They do not say what another seed of training would change (`docs/ablations.md` has "
                  "that: some 3 points of Dice in runs as short as these).", ""]  # fmt: skip
    for each in result["differences"]:
        if (each["later"], each["earlier"]) == MAIN:
            parts += [DECISION[verdict(each) == "better"], ""]
    return "\n".join(parts)


def _row(row: Entry) -> str:
    values = (f"{row['metrics'][key]:.1f}" if key in row["metrics"] else "-" for key, _, _ in COLUMNS)
    parameters = row["parameters"]
    millions = f"{parameters['all'] / 1e6:.1f}, {parameters['encoder'] / 1e6:.1f}"
    return f"| {SHOWN[row['name']]} | {millions} | {row['steps']} | {row['minutes']:.1f} | {' | '.join(values)} |"

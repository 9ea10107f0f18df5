"""What `pretraining` found, for people."""

from __future__ import annotations

from typing import NamedTuple

from provenance import Entry

RANDOM = "random weights"
STAGES = ("stage1", "stage2", "stage3")
DENSE = "segment"
NO_GRAM, LOW = "no-gram", "low-resolution"
"""What stage 2 and stage 3 are compared with, see `pretraining_controls`."""
PAIRS = (("stage3", RANDOM), ("stage1", RANDOM), ("stage2", "stage1"), ("stage3", "stage2"))
"""(later, earlier) of each comparison."""
CONTROLLED = (("stage2", NO_GRAM), ("stage3", LOW))
"""Of outlines only."""
MARGIN = 1.0
"""Points that a mean may fall for features to count as kept, if the interval does not lie below 0."""
SHOWN = {
    RANDOM: RANDOM, "stage1": "stage 1", NO_GRAM: "stage 2 without Gram", "stage2": "stage 2, Gram",
    LOW: "stage 3, low resolution", "stage3": "stage 3, high resolution",
}  # fmt: skip
TASKS = {"knn": "k-NN, accuracy", "linear": "linear probe, accuracy", DENSE: "linear segmentation, Dice"}


class Claim(NamedTuple):
    """A sentence, and whether it holds."""

    text: str
    verdict: str


def claims(result: Entry) -> list[Claim]:
    """(a) to (c) of what pretraining is to show, from the means over sets."""
    sides = result["settings"]["sides"]
    classes = [(task, result["settings"]["class_side"]) for task in ("knn", "linear")]
    outlines = [(DENSE, side) for side in sides]
    last = [_mean(result, "stage3", RANDOM, *each) for each in (*classes, *outlines)]
    found = [Claim("(a) Pretraining beats random weights", _in_words(_better(last), last))]
    for earlier, against in ((NO_GRAM, "as many steps without it"), ("stage1", "stage 1")):
        gram = [_mean(result, "stage2", earlier, *each) for each in outlines]
        said = f"(b) Gram anchoring keeps or improves dense features, against {against}"
        found.append(Claim(said, _in_words(_kept(gram), gram)))
    for earlier, against in ((LOW, "as many steps at low resolution"), ("stage2", "stage 2")):
        high = [_mean(result, "stage3", earlier, *each) for each in outlines]
        said = f"(c) High-resolution adaptation helps at {sides[-1]} pixels, against {against}"
        found.append(Claim(said, _in_words(_better(high[-1:]), high)))
    return found


def _mean(result: Entry, later: str, earlier: str, task: str, side: int) -> Entry:
    found: Entry = next(
        each for each in result["differences"]
        if (each["later"], each["earlier"], each["task"], each["side"], each["dataset"])
        == (later, earlier, task, side, None)
    )  # fmt: skip
    return found


def _better(parts: list[Entry]) -> str:
    """Above 0 beyond the interval in all of them, some, or none."""
    above = sum(part["low"] is not None and part["low"] > 0 for part in parts)
    if above == len(parts):
        return "holds"
    return f"holds in {above} of {len(parts)} measures" if above else "is not shown"


def _kept(parts: list[Entry]) -> str:
    if any(part["high"] is not None and part["high"] < 0 for part in parts):
        return "does not hold"
    if all(part["low"] is not None and part["low"] > 0 for part in parts):
        return "holds: they improve"
    return "holds: they are kept" if all(part["mean"] > -MARGIN for part in parts) else "is not shown"


def _in_words(verdict: str, parts: list[Entry]) -> str:
    told = "; ".join(f"{TASKS[part['task']]} at {part['side']}: {change(part)}" for part in parts)
    return f"**{verdict}** ({told})"


def change(entry: Entry) -> str:
    """ "+3.1 [+1.0, +5.2]"."""
    if entry["low"] is None:
        return f"{entry['mean']:+.1f}"
    return f"{entry['mean']:+.1f} [{entry['low']:+.1f}, {entry['high']:+.1f}]"


def as_markdown(result: Entry) -> str:
    minutes = sum(stage["minutes"] for stage in result["pretrained"] if stage["stage"] in STAGES)
    millions = result["pretrained"][0]["parameters"] / 1e6
    lines = [
        "# What each stage of pretraining is worth", "", f"Written by `{result['command']}`; do not edit.", "",
        f"Recipe `{result['recipe']}`: {millions:.1f} million weights, {minutes:.0f} minutes of training on "
        f"{result['machine']['cores']} cores ({result['machine']['processor']}), no labels. All encoders are frozen; "
        "percent and points, differences paired, 95 % intervals over subjects.", "",
        *(f"- {claim.text}: {claim.verdict}." for claim in claims(result)), "",
        "A stage also trains on. What Gram anchoring and high resolution do is told by the comparison with as many "
        "steps from the same start without them; the one with the stage before tells what the stage does in all.", "",
        *_stages(result), *_seen(result), *_classes(result), *_outlines(result), *_differences(result),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _stages(result: Entry) -> list[str]:
    head = ("stage", "steps", "pictures a step", "crops", "Gram", "minutes", "rank", "patch rank", "alike")
    lines = ["## Stages", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for stage in result["pretrained"]:
        told, sides = stage["validation"], "/".join(map(str, dict.fromkeys(stage["sides"])))
        ranks = [f"{told[key]:.2f}" for key in ("rank", "patch_rank", "alike")]
        cells = [SHOWN[stage["stage"]], stage["steps"], stage["images"], sides, "yes" if stage["gram"] else "no"]
        cells += [f"{stage['minutes']:.0f}", *ranks]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", "Rank, patch rank and alike are of held-out pictures, see docs/pretraining.md.", ""]


def _seen(result: Entry) -> list[str]:
    told = ", ".join(f"{part['dataset']} {part['alike']} of {part['images']}" for part in result["seen"])
    return [
        "The test parts of the sets with outlines were not seen in pretraining. Test images with classes that look "
        f"like a picture of pretraining, which saw no label of it: {told}.", "",
    ]  # fmt: skip


def _classes(result: Entry) -> list[str]:
    lines = ["## Classes", "", f"Pictures of {result['settings']['class_side']} pixels. k and C were chosen on "
             "validation images, the features (class token or mean of patches) too.", ""]  # fmt: skip
    lines += [
        "| set | probe | encoder | features | accuracy | balanced accuracy | AUC |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [row for row in result["rows"] if row["task"] != DENSE]
    for row in _best(rows):
        features = row["features"] + (f", {row['pooling']} over slices" if row["pooling"] else "")
        scores = [_interval(row["scores"][name]) for name in ("accuracy", "balanced_accuracy", "auc")]
        cells = [row["dataset"], row["task"], SHOWN[row["encoder"]], features, *scores]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _best(rows: list[Entry]) -> list[Entry]:
    best: dict[tuple[str, str, str], Entry] = {}
    for row in rows:
        key = (row["dataset"], row["task"], row["encoder"])
        if key not in best or row["validation"] > best[key]["validation"]:
            best[key] = row
    return [best[key] for key in sorted(best, key=lambda key: (key[0], key[1], list(SHOWN).index(key[2])))]


def _outlines(result: Entry) -> list[str]:
    sides = result["settings"]["sides"]
    head = result["settings"]["dense"]
    lines = ["## Outlines", "", f"A linear head, {head['steps']} steps of {head['batch']} pictures at a rate of "
             f"{head['rate']:g}; Dice, mean over targets.", "",
             f"| set | encoder | {' | '.join(f'{side} pixels' for side in sides)} |",
             f"|---|---|{'---|' * len(sides)}"]  # fmt: skip
    rows = {(row["dataset"], row["encoder"], row["side"]): row for row in result["rows"] if row["task"] == DENSE}
    for name in dict.fromkeys(key[0] for key in rows):
        for who in SHOWN:
            cells = [_interval(rows[name, who, side]["dice"]) for side in sides]
            lines.append(f"| {' | '.join([name, SHOWN[who], *cells])} |")
    return [*lines, ""]


def _differences(result: Entry) -> list[str]:
    lines = ["## Differences", "", "| | against | measure | pixels | set | points |", "|---|---|---|---|---|---|"]
    for each in result["differences"]:
        name = "**mean over sets**" if each["dataset"] is None else each["dataset"]
        cells = [SHOWN[each["later"]], SHOWN[each["earlier"]], TASKS[each["task"]], str(each["side"]), name]
        lines.append(f"| {' | '.join([*cells, change(each)])} |")
    return lines


def _interval(found: Entry | None) -> str:
    """ "81.2 [77.0, 85.1]"."""
    if found is None:
        return "unknown"
    bounds = "" if found["low"] is None else f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"{100 * found['mean']:.1f}{bounds}"

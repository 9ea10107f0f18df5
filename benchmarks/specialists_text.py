"""What `specialists` found, for people."""

from __future__ import annotations

from provenance import Entry

from lexitome.evaluation.comparison_text import cells, left_out_lines
from lexitome.recipes.compact import IMAGENET

SPECIALIST = "specialist"
METRIC = "dice"
OFF = 0.2
"""Of its share of the time: who is farther from it is named."""
NOTES = (
    "Intervals (95 %) by resampling subjects, p by flipping signs of subjects, Holm over the sets. A tie is a "
    "difference whose interval includes 0."
)


def line(result: Entry, name: str) -> str:
    """One set, when it is finished."""
    parts = []
    for comparison in result["comparisons"]:
        (entry,) = (e for e in comparison["sets"] if e["dataset"] == name)
        _, _, _, one, other, change, *_ = cells(entry, METRIC)
        parts.append(f"specialist {one}, {comparison['run']} {other}, difference {change}: {entry['verdict']}")
    return f"{name}: {'; '.join(parts)}"


def as_markdown(result: Entry) -> str:
    settings, first = result["settings"], result["comparisons"][0]
    done, all_sets = len(result["specialists"]), len(settings["sets"])
    spent = sum(entry["minutes"] for entry in result["specialists"].values())
    share = settings["minutes"] / all_sets
    parts = [
        "# One model against a specialist for each dataset", "",
        f"Written by `{result['command']}`; do not edit.", "",
        f"`{first['run']}` was trained on {all_sets} sets{budget_text(settings)}. The time was shared out equally "
        f"among specialists: a U-Net for each set, from scratch, {share:.1f} minutes each, on the same "
        "training parts, its checkpoint chosen on the validation part. Both are asked about the test part by words (a "
        "specialist by the names of its own targets) and scored by the same code; what is not found scores 0. "
        "Validation, and timing a step beforehand, are extra on both sides. "
        f"Specialists here: {done}; their training steps took {spent:.1f} minutes, {spent / done:.1f} each.", "",
        "Beside the numbers: the universal model's backbone begins with ImageNet weights, the specialists with none; "
        "a specialist answers about its own set only and knows no other words.", "",
    ]  # fmt: skip
    if done < all_sets:
        parts += [f"**{done} of {all_sets} sets so far.**", ""]
    if settings["limit"]:
        parts += [f"**At most {settings['limit']} test cases of each set: a first look, not a result.**", ""]
    off = off_share(result["specialists"], share)
    if off:
        parts += [f"**Not for equal time, more than {OFF:.0%} off their share: {', '.join(off)}.**", ""]
    for i, comparison in enumerate(result["comparisons"]):
        parts += section(comparison, result, equal_time=i == 0)
    return "\n".join([*parts, *how_trained(result["specialists"])]) + "\n"


def budget_text(settings: Entry) -> str:
    """How many minutes there were, and whose."""
    minutes, own = settings["minutes"], settings["minutes_logged"]
    if own is not None and abs(minutes - own) < 0.01 * own:
        return f", in one run whose training steps took {minutes:.1f} minutes"
    took = "it is not known how long that took" if own is None else f"which took {own:.1f} minutes"
    return f" ({took}; specialists were given {minutes:.1f}, as typed)"


def off_share(specialists: Entry, share: float) -> list[str]:
    """Sets whose specialist took much more or less than its share, since the machine was busy or steps are few."""
    return [
        f"{name} ({entry['minutes']:.1f} minutes)"
        for name, entry in specialists.items()
        if abs(entry["minutes"] - share) > OFF * share
    ]


def section(comparison: Entry, result: Entry, *, equal_time: bool) -> list[str]:
    """The table of a universal model. Differences and verdicts are its own: a win is a win over the specialist."""
    name, overall = comparison["run"], comparison["overall"]
    score = f"wins on {overall['wins']} sets, ties on {overall['ties']}, loses on {overall['losses']}"
    lone = f", {overall['undecided']} of a single subject" if overall["undecided"] else ""
    parts = [f"## {name}", "", f"**{name} {score}{lone}.** Dice in percent.", ""]
    if not equal_time:
        parts += [not_equal(name, result["models"][name]), ""]
    heads = ("set", "questions", "subjects", "specialist", name, "difference", "p", "p (Holm)", "verdict")
    parts += [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 2) + "---|"]
    for entry in (*comparison["sets"], overall):
        verdict = entry["verdict"] if "dataset" in entry else ""
        parts.append(f"| {' | '.join((*cells(entry, METRIC)[:8], verdict))} |")
    parts += ["", NOTES, ""]
    left_out = left_out_lines(comparison | {"unmatched": {}})
    if left_out:
        why = "a specialist is never asked for what other sets show"
        parts += [f"Not in the table (A: specialist, B: {name}; {why}):", "", *(f"- {text}" for text in left_out), ""]
    parts += [leaks_line(model, result["near_training_pictures"][model]) for model in (SPECIALIST, name)]
    return [*parts, ""]


def not_equal(name: str, about: Entry) -> str:
    several = about["start"] not in (IMAGENET, None)
    runs = f", in several runs, the last of which began with weights of `{about['start']}`" if several else ""
    return (
        f"Not for equal time: {name} was trained on {len(about['sets'])} sets{runs}. The table says what more data and "
        "more time are worth."
    )


def leaks_line(model: str, found: Entry) -> str:
    if not found["checked"]:
        return f"- {model}: carries no hashes of its training pictures, overlap with the test parts cannot be told"
    near = "".join(f", {name} {count}" for name, count in found["near"].items())
    count = sum(found["near"].values())
    return f"- {model}: {count} of {found['cases']} test cases look like one of its training pictures{near}"


def how_trained(specialists: Entry) -> list[str]:
    heads = ("set", "modality", "training cases", "network", "side", "steps", "minutes", "validation Dice")
    lines = ["## How the specialists were trained", "", f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * 6]
    for name, entry in specialists.items():
        dice = "-" if entry["validation_dice"] is None else f"{100 * entry['validation_dice']:.1f}"
        row = (name, entry["modality"], entry["cases"], entry["network"], entry["side"], entry["steps"],
               f"{entry['minutes']:.1f}", dice)  # fmt: skip
        lines.append(f"| {' | '.join(map(str, row))} |")
    return lines

"""What `small_sam3` found, for people."""

from __future__ import annotations

from provenance import Entry
from specialists_text import leaks_line

METRIC = "dice"
BEFORE, AFTER = "before", "after"
OWN, VOLUMES, EXTERNAL = "own", "volumes", "external"
SUBSETS = ((OWN, "all"), (EXTERNAL, "all"), (EXTERNAL, "taught"), (EXTERNAL, "untaught"), (VOLUMES, "all"))
"""Of which a mean is shown: kind of sets, and which of their concepts."""
MEANS = dict(zip(SUBSETS, ("in-domain 2D sets", "external sets", "external sets, concepts that were taught",
                           "external sets, concepts that were not", "in-domain volumes"), strict=True))  # fmt: skip
GOAL = 40
"""Points by which words alone are to gain on the mean of the in-domain 2D sets."""
TEXT, BOX, BOTH = "text", "oracle-box", "text+oracle-box"
SHOWN = {TEXT: "words", BOX: "box, ORACLE", BOTH: "words and box, ORACLE"}
SAM3, ADAPTED = "SAM3", "Medical SAM3"


def line(result: Entry, name: str) -> str:
    """One set, when it is answered."""
    (row,) = (row for row in result["rows"] if row["name"] == name)
    parts = [f"{title} {way(row, key)} ({change(row, key)})" for key, title in SHOWN.items() if key in row["protocols"]]
    return f"{name}: {'; '.join(parts) or 'shows nothing that could be scored'}"


def as_markdown(result: Entry) -> str:
    about, settings, done = result["trained"], result["settings"], [row for row in result["rows"] if row["name"]]
    parts = [
        "# SAM3 before and after adaptation, in small", "",
        f"Written by `{result['command']}`; do not edit.", "",
        "**\"Before\" is a network with random weights**, not SAM 3 as released, whose weights are not used here. It "
        f"has the architecture of SAM 3 with {about['parameters'] / 1e6:.1f} million parameters and sees pictures of "
        f"{about['side']} x {about['side']} pixels, which is small. That a network learns from nothing what words mean "
        "is another thing than adapting one that knows ordinary pictures: nothing here says what the full-size models "
        "do, before or after. Published numbers stand beside ours for orientation only; they are of another model "
        "size, other weights, and mostly other images.", "",
    ]  # fmt: skip
    if len(done) < len(settings["sets"]):
        parts += [f"**{len(done)} of {len(settings['sets'])} sets so far.**", ""]
    if settings["limit"]:
        parts += [f"**At most {settings['limit']} test pictures of each set: a first look, not a result.**", ""]
    parts += [*(f"- {text}" for text in findings(result)), ""]
    parts += [*how_trained(about, settings), *how_read(result["policies"], settings), *table(result)]
    return "\n".join(parts) + "\n"


def findings(result: Entry) -> list[str]:
    """The goal, and what the box did."""
    own = mean_row(result, (OWN, "all"))
    if own is None or TEXT not in own["protocols"]:
        return ["No 2D set of the training data was asked."]
    gain = own["protocols"][TEXT]["difference"]
    verdict = "reached" if gain >= GOAL else f"missed by {GOAL - gain:.1f}"
    found = [
        f"Words alone, mean of {own['sets']} in-domain 2D sets: Dice {way(own, TEXT)}, {change(own, TEXT)}. **The goal "
        f"of +{GOAL} points is {verdict}.**"
    ]
    for key in ((EXTERNAL, "taught"), (EXTERNAL, "untaught")):
        row = mean_row(result, key)
        if row is not None and TEXT in row["protocols"]:
            found.append(f"Words alone, {MEANS[key]} ({row['sets']} sets): {way(row, TEXT)}, {change(row, TEXT)}.")
    for key in SUBSETS[:2]:
        row = mean_row(result, key)
        if row is not None and BOX in row["protocols"]:
            found.append(what_the_box_did(MEANS[key], row))
    asked = "by words only" if result["trained"]["prompts"] == TEXT else "by words and by boxes"
    found.append(
        f"The network was trained {asked}. An answer to a box is cut off 5 % around the box, so even random weights "
        "score with one: what they score there is owed to the cut, not to anything they know. The paper's point, that "
        "boxes hide how little words give, is about a network that had learned to follow boxes."
    )
    return found


def what_the_box_did(title: str, row: Entry) -> str:
    """Of an oracle box, before and after, and against words."""
    words, box = row["protocols"][TEXT], row["protocols"][BOX]
    beside = ", ".join(f"{who} {box[who] - words[who]:+.1f}" for who in (BEFORE, AFTER))
    both = f" With words and the box: {way(row, BOTH)}." if BOTH in row["protocols"] else ""
    return f"An oracle box alone, {title}: {way(row, BOX)}, {change(row, BOX)}; against words: {beside}.{both}"


def mean_row(result: Entry, key: tuple[str, str]) -> Entry | None:
    return next((r for r in result["rows"] if r["name"] is None and (r["kind"], r["subset"]) == key), None)


def how_trained(about: Entry, settings: Entry) -> list[str]:
    sets = about["sets"]
    listed = ", ".join(f"{name} {count}" for name, count in sets.items())
    left = settings["volumes_not_asked"]
    return [
        "## What was trained", "",
        f"- `{about['name']}` from `{about['start']}`: {about['parameters']:,} parameters, "
        f"{about['megabytes']:.1f} MB, pictures of {about['side']} x {about['side']} pixels",
        f"- {about['steps']:,} steps in {about['precision']}, {about['pictures']:,} pictures shown; its training steps "
        f"took {about['minutes']:.1f} minutes. The best checkpoint on validation pictures is of step "
        f"{about['best_step']:,}",
        *(f"- After {step:,} steps, as many as it was to last, the run was made longer: its rate rose again there"
          for step in about["made_longer_after"]),
        f"- {len(sets)} sets, {sum(sets.values()):,} training cases: {listed}",
        *([f"- Sets of volumes among these: {left}, not asked here"] if left else []),
        f"- Weights: {about['licence']}", "",
    ]  # fmt: skip


def how_read(policies: Entry, settings: Entry) -> list[str]:
    """The table of decoding policies."""
    lines = [
        "## How answers are read", "",
        f"The trained network by words alone on validation pictures, at most {settings['validation_pictures']} of each "
        f"of {policies['sets']} 2D sets ({policies['cases']} in all). Test parts took no part in the choice.", "",
        "| policy | Dice | presence, balanced accuracy | |", "|---|---:|---:|---|",
    ]  # fmt: skip
    for entry in policies["tried"]:
        told = {"taken for all below": policies["chosen"], "stored with the model": policies["stored"]}
        remarks = ", ".join(text for text, policy in told.items() if policy == entry["policy"])
        dice = interval(entry["mean"], entry["low"], entry["high"], "")
        lines.append(f"| `{entry['policy']}` | {dice} | {number(entry['presence'])} | {remarks} |")
    if policies["chosen"] != policies["stored"]:
        lines += ["", f"The stored default `{policies['stored']}` is not the best one; it was left as it is."]
    return [*lines, ""]


def table(result: Entry) -> list[str]:
    published = result["published"]
    heads = ["", "taught", "subjects"]
    for title in SHOWN.values():
        heads += [title, "difference"]
    heads += ["presence", "published, full size"]
    lines = [
        "## Before and after", "",
        "Dice in percent, before → after; each set counts the same in a mean. Intervals (95 %) of differences by "
        "resampling subjects within each set. *taught*: how many of the concepts asked were in the training data, by "
        "name or synonym. *presence*: balanced accuracy of finding something where it is and nothing where it is not, "
        "by words. **ORACLE: the box is the tight one around the reference, which no user has.** *published*: "
        f"{SAM3} → {ADAPTED}, of another model size, from [{published['paper']}]({published['url']}); its sets are "
        "divided otherwise than ours, so that one external there may be in-domain here.", "",
        f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1),
    ]  # fmt: skip
    for row in result["rows"]:
        beside = published["sets"].get(row["name"])
        if row["name"] is None and row["subset"] == "all":
            beside = published["groups"].get(row["kind"])
        lines.append(f"| {' | '.join(cells(row, beside))} |")
    differing = {name: entry["differs"] for name, entry in published["sets"].items() if entry["differs"]}
    lines += ["", *(f"- * {name}, in our copy: {text}" for name, text in differing.items())]
    if result["unanswered"]:
        lines.append(f"- {result['unanswered']} questions failed and score as an empty mask")
    return [*lines, leaks_line(AFTER, result["near_training_pictures"])]


def cells(row: Entry, beside: Entry | None) -> list[str]:
    name = row["name"] or f"**mean of {row['sets']} {MEANS[row['kind'], row['subset']]}**"
    subjects = next((str(entry["subjects"]) for entry in row["protocols"].values()), "-")
    found = [name, f"{row['taught']} of {row['concepts']}", subjects]
    for key in SHOWN:
        found += [way(row, key), change(row, key)] if key in row["protocols"] else ["-", "-"]
    known = row["presence"]
    seen = "-" if None in known.values() else arrow(known[BEFORE], known[AFTER])
    return [*found, seen, published_cell(beside)]


def published_cell(beside: Entry | None) -> str:
    if beside is None:
        return ""
    parts = [f"{key.replace(TEXT, 'words')} {arrow(beside[key][SAM3], beside[key][ADAPTED])}" for key in (TEXT, "box")
             if key in beside]  # fmt: skip
    return ", ".join(parts) + ("\\*" if beside.get("differs") else "")


def way(row: Entry, protocol: str) -> str:
    entry = row["protocols"][protocol]
    return arrow(entry[BEFORE], entry[AFTER])


def change(row: Entry, protocol: str) -> str:
    entry = row["protocols"][protocol]
    return interval(entry["difference"], entry["low"], entry["high"], "+")


def arrow(one: float, other: float) -> str:
    return f"{one:.1f} → {other:.1f}"


def interval(mean: float, low: float | None, high: float | None, sign: str) -> str:
    """One subject alone has none."""
    return f"{mean:{sign}.1f}" + ("" if low is None else f" [{low:{sign}.1f}, {high:{sign}.1f}]")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

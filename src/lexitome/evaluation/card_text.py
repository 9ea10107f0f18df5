"""A model card in Markdown, from what was measured and what the model's folder says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lexitome.models.catalog import CATALOG, ModelCard, read_card

SPLIT_RULE = (
    "Split rule: subjects (patient, video, recording, section; each image where the source gives none) are ordered by "
    "SHA-256 of `seed:dataset:subject` (seed 0); the first 20 % are test, the next 10 % validation, the rest training. "
    "`fuseg_foot_ulcer` keeps its published `valid_` part as test. External sets were never used to choose anything."
)
INTENDED_USE = """\
Research and annotation help: a first mask from words, boxes or points, to be checked by a person. **Not a medical
device**, not for diagnosis or treatment. {licence} The code is Apache-2.0.

Known limits: a 2D network that sees a picture at {sides} pixels and volumes slice by slice; thin and very small targets
(capillaries, nerves, adrenal glands, synapses) are weak; concepts outside the table are answered as a guess and said to
be one; pathology the training sets do not draw is not found; children, implants and rare acquisitions are not
covered."""
ABOUT_DICE = """\
Dice in percent, over cases that hold the target; the prompt is the name in the table and nothing else. A target that is
not found scores 0. Volumes are scored in 3D. A concept is a target of a set; in the means each counts the same.

In brackets: 95 % intervals by the bootstrap over subjects, drawn within each set with all their cases (definitions:
docs/statistics.md). They say how far a number would move with other subjects of the same sources, and nothing about
other sources. One subject has none."""
ABOUT_BOX = """\
An oracle: the box is the bounding box of the reference (in volumes a 3D one), each side moved by N(0, 5 %) of its
length (15 % at most, seeded), and given with the words. It says what a careful box is worth, not what words alone do.
Mean over the targets of a set, the same cases for both."""
ABOUT_OBJECTS = """\
By words, where the reference tells objects apart; where the model does not, connected parts count. Objects match if
their IoU is above 0.5. F1 is the mean over cases, count error the mean absolute difference of the number of objects."""
UNION = "Union: a union of two labels that the files do not name; left out of the means.\n"
MEANS = {
    "mean_in_domain_2d": "in-domain 2D concepts",
    "mean_in_domain_3d": "in-domain 3D concepts",
    "mean_not_trained_on": "concepts of test splits of sets that it was not trained on",
    "mean_external": "external concepts (some of them untrained)",
    "mean_external_trained_concepts": "external concepts that it was taught on other sets",
    "mean_in_domain_2d_oracle_box": "in-domain 2D concepts with an ORACLE box",
    "mean_in_domain_3d_oracle_box": "in-domain 3D concepts with an ORACLE box",
    "mean_external_oracle_box": "external concepts with an ORACLE box",
}
Measured = Mapping[str, Any]


def render(measured: Measured, card: ModelCard) -> str:
    """The card in Markdown."""
    stored = read_card(card.files)
    means = "".join(
        f"- mean over {_mean(measured[key], words)}\n" for key, words in MEANS.items() if measured[key]["concepts"]
    )
    parts = [
        f"# Model card: {card.name}\n\n{CATALOG.get(card.name, CATALOG[card.tier]).summary}\n",
        _about_weights(card, stored),
        "## Intended use and limits\n\n" + INTENDED_USE.format(licence=_use(card), sides=_sides(card)) + "\n",
        f"## Accuracy by words alone\n\n{SPLIT_RULE}\n\n{ABOUT_DICE}\n\n{_warnings(measured)}{means}"
        + _presence(measured["presence"]),
        _section("### In-domain test splits", _targets(measured["in_domain"])),
        _section("### Not trained on: test splits of sets whose licence keeps them out",
                 _targets(measured["not_trained_on"], trained=True)),
        _section("### External sets (other hospitals, scanners, observers)",
                 _targets(measured["external"], trained=True)),
        UNION,
        _section("## Words and one box (ORACLE)", _all_boxes(measured["oracle_box"]), ABOUT_BOX),
        _section("## Objects told apart", _all_objects(measured["objects"]), ABOUT_OBJECTS),
        _section("## Training data and licences", _licences(card, stored), _duties(card)),
        "Backbone: EfficientNet-Lite0, ImageNet weights (Apache-2.0). Text vectors: distilled from all-MiniLM-L6-v2 "
        "(Apache-2.0).\n",
        "## How concepts are asked\n\nChosen on validation data, except `views`.\n\n" + _choices(card),
        _recipe(stored),
        f"## How to reproduce\n\nTraining and export: `docs/training.md`. Card: `{measured['command']}`.\n",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _about_weights(card: ModelCard, stored: Measured) -> str:
    form = {"fp16": "float16", "fp32": "float32", "int8": "8 bit"}.get(stored.get("format", ""), "")
    lines = [f"Weights: {card.size_mb} MB{f' as {form}' if form else ''}, SHA-256 `{card.sha256[:16]}`; "
             f"{card.weights_licence}."]  # fmt: skip
    if "onnx_difference" in stored and "stored_difference" in stored:
        lines.append(
            f"Largest difference in any probability between ONNX Runtime and torch at 160, 320 and 512 pixels: "
            f"{stored['onnx_difference']:.0e}, with the weights as they are stored {stored['stored_difference']:.0e}."
        )
    if "rounding" in stored["metrics"]:
        before, after = (stored["metrics"]["rounding"][key] for key in ("trained", "stored"))
        lines.append(f"Rounding changed validation Dice from {before['dice']:.3f} to {after['dice']:.3f}.")
    return "\n".join(lines) + "\n"


def _use(card: ModelCard) -> str:
    if card.research_only:
        return "Several training sets do not permit commercial use (table below), so the weights are for research only."
    return "Every training set permits commercial use, as far as its licence text says (table below)."


def _sides(card: ModelCard) -> str:
    sides = {card.side, *(trained.side for trained in card.trained_concepts)}
    return f"{min(sides)} to {max(sides)}" if len(sides) > 1 else str(card.side)


def _warnings(measured: Measured) -> str:
    """What spoils the numbers, if anything does, and whether training pictures were found among the test images."""
    bad, limit = measured["problems"], measured["limit"]
    lines = [f"**A first look only: at most {limit} images of each set.**"] if limit is not None else []
    if bad["missing"] or bad["failed"]:
        lines.append(f"{bad['missing'] + bad['failed']} questions were not answered and score 0.")
    if bad["unreadable"]:
        lines.append(f"{bad['unreadable']} cases could not be read and are in no mean.")
    if measured["leakage"]:
        lines.append(f"Training pictures among the test images: {measured['leakage']}")
    return "".join(f"{line}\n\n" for line in lines)


def _mean(entry: Measured, words: str) -> str:
    return f"{entry['concepts']} {words}: {_interval(entry, 'dice', bold=True)}"


def _interval(entry: Measured, name: str, *, sign: str = "", bold: bool = False) -> str:
    """ "71.2 (69.8–72.5)", and "+1.0 (-0.5 to +2.5)" with a sign."""
    mean = f"**{entry[name]:{sign}.1f}**" if bold else f"{entry[name]:{sign}.1f}"
    if entry["low"] is None:
        return mean
    return f"{mean} ({entry['low']:{sign}.1f}{' to ' if sign else '–'}{entry['high']:{sign}.1f})"


def _presence(entry: Measured | None) -> str:
    if entry is None:
        return ""
    rates = {"balanced_accuracy": "balanced accuracy", "recall": "sensitivity", "specificity": "specificity",
             "auc": "AUC"}  # fmt: skip
    said = [
        f"{words} {_interval(entry[key], 'mean', bold=key == 'balanced_accuracy')}"
        for key, words in rates.items()
        if entry[key] is not None
    ]
    return (
        f"- presence in 2D, {entry['present']} questions for present and {entry['absent']} for surely absent concepts "
        f"of the same modality, mean over {entry['datasets']} set{'s' * (entry['datasets'] != 1)}: {', '.join(said)}\n"
    )


def _section(title: str, table: str, about: str = "") -> str:
    """Nothing without a table."""
    return "\n\n".join(part for part in (title, about, table) if part) if table else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 2) -> str:
    """Markdown; the first `left` columns hold words. "" without rows."""
    if not rows:
        return ""
    rules = ["---" if i < left else "--:" for i in range(len(head))]
    return "".join(f"| {' | '.join(_cell(str(value)) for value in row)} |\n" for row in (head, rules, *rows))


def _targets(entries: Sequence[Measured], *, trained: bool = False) -> str:
    head = ["set", "target", "cases", "subjects", "Dice (95 %)", "median", "found", *(["taught"] if trained else [])]
    rows = [
        [e["dataset"], f"{e['target']} (union)" if e["derived"] else e["target"],
         e["cases"], e["subjects"], _interval(e, "dice"), e["median"], e["found"],
         *([{True: "yes", False: "no"}.get(e["trained"], "?")] if trained else [])]
        for e in entries
    ]  # fmt: skip
    return _table(head, rows)


def _all_boxes(found: Mapping[str, Sequence[Measured]]) -> str:
    rows = [
        [e["dataset"], key.replace("_", " "), e["targets"], e["text"], e["oracle_box"], _interval(e, "gain", sign="+")]
        for key, entries in found.items()
        for e in entries
    ]
    return _table(["set", "part", "targets", "words", "words + ORACLE box", "gain (95 %)"], rows)


def _all_objects(found: Mapping[str, Sequence[Measured]]) -> str:
    rows = [
        [
            e["dataset"],
            e["target"],
            key.replace("_", " "),
            e["cases"],
            e["objects"],
            _interval(e, "f1"),
            e["count_error"],
        ]
        for key, entries in found.items()
        for e in entries
    ]
    return _table(
        ["set", "target", "part", "cases", "objects in a case", "F1 at IoU 0.5 (95 %)", "count error"], rows, left=3
    )


def _licences(card: ModelCard, stored: Measured) -> str:
    judged = stored.get("licences", {})
    rows = [
        [s.name, s.modality, s.licence, judged.get(s.name, {}).get("verdict", "not judged"), s.source]
        for s in card.sets
    ]
    return _table(["set", "modality", "licence", "commercial use", "source"], rows, left=5)


def _duties(card: ModelCard) -> str:
    return f"Duties of whoever uses the weights: {card.weights_duties}." if card.weights_duties else ""


def _choices(card: ModelCard) -> str:
    yes = {True: "yes", False: "no"}
    rows = [
        [t.concept, t.side, f"{t.threshold:.3f}", *(yes[v] for v in (t.stacked, t.views, t.mirrored, t.countable))]
        for t in card.trained_concepts
    ]
    head = ["concept", "side", "presence threshold", "neighbouring slices", "three views", "mirrored", "objects"]
    return _table(head, rows, 1)


def _recipe(stored: Measured) -> str:
    said = _without_folders({"provenance": stored.get("provenance", {}), "metrics": stored["metrics"]})
    return f"## Recipe and log summary\n\n```json\n{json.dumps(said, indent=1, ensure_ascii=False)}\n```\n"


def _without_folders(value: Any) -> Any:
    """Of absolute paths, such as that of the model from which training began, the name remains."""
    if isinstance(value, Mapping):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")

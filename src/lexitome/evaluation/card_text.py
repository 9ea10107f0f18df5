"""A model card in Markdown, from what was measured and what the model's folder says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lexitome.models.catalog import ModelCard, read_card

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
not found scores 0. Volumes are scored in 3D."""
ABOUT_BOX = """\
An oracle: the box is the bounding box of the reference, each side moved by N(0, 5 %) of its length (15 % at most,
seeded), and given with the words. It says what a careful box is worth, not what words alone do. 2D images and slices
only; on volumes it was not measured. Mean over the targets of a set, the same cases for both."""
ABOUT_OBJECTS = """\
By words. Objects match if their IoU is above 0.5; F1 is over all cases of the set together. Count error: mean absolute
difference of the number of objects in a case. Only where the reference and the model tell objects apart."""
UNION = "Union: a union of two labels that the files do not name; left out of the means.\n"
MEANS = {
    "mean_in_domain_2d": "in-domain 2D concepts",
    "mean_in_domain_3d": "in-domain 3D concepts",
    "mean_not_trained_on": "concepts of test splits of sets that it was not trained on",
    "mean_external": "external concepts (some of them untrained)",
    "mean_external_trained_concepts": "external concepts that it was taught on other sets",
    "mean_in_domain_2d_oracle_box": "in-domain 2D concepts with an ORACLE box",
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
        f"# Model card: {card.name}\n\n{card.summary}\n",
        _about_weights(card, stored),
        "## Intended use and limits\n\n" + INTENDED_USE.format(licence=_use(card), sides=_sides(card)) + "\n",
        f"## Accuracy by words alone\n\n{SPLIT_RULE}\n\n{ABOUT_DICE}\n\n{means}{_presence(measured['presence'])}",
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


def _mean(entry: Measured, words: str) -> str:
    return f"{entry['concepts']} {words}: **{entry['dice']}**"


def _presence(entry: Measured | None) -> str:
    if entry is None:
        return ""
    return (
        f"- presence, {entry['pairs']} balanced pairs (a present concept, an absent one of the same modality): "
        f"balanced accuracy **{entry['balanced_accuracy']}**, sensitivity {entry['sensitivity']}, "
        f"specificity {entry['specificity']}, AUC {entry['auc']}\n"
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
    head = ["set", "target", "cases", "subjects", "Dice", "median", "found", *(["taught"] if trained else [])]
    rows = [
        [e["dataset"], f"{e['target']} (union)" if e["derived"] else e["target"],
         *(e[key] for key in ("cases", "subjects", "dice", "median", "found")),
         *([("yes" if e["trained"] else "no")] if trained else [])]
        for e in entries
    ]  # fmt: skip
    return _table(head, rows)


def _all_boxes(found: Mapping[str, Sequence[Measured]]) -> str:
    rows = [
        [e["dataset"], key.replace("_", " "), e["targets"], e["text"], e["oracle_box"], f"{e['gain']:+.1f}"]
        for key, entries in found.items()
        for e in entries
    ]
    return _table(["set", "part", "targets", "words", "words + ORACLE box", "gain"], rows)


def _all_objects(found: Mapping[str, Sequence[Measured]]) -> str:
    rows = [
        [e["dataset"], e["target"], key.replace("_", " "), e["cases"], e["objects"], e["f1"], e["count_error"]]
        for key, entries in found.items()
        for e in entries
    ]
    return _table(["set", "target", "part", "cases", "objects in a case", "F1 at IoU 0.5", "count error"], rows, left=3)


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
        [t.concept, t.side, f"{t.threshold:.3f}", yes[t.stacked], yes[t.views], yes[t.countable]]
        for t in card.trained_concepts
    ]
    return _table(["concept", "side", "presence threshold", "neighbouring slices", "three views", "objects"], rows, 1)


def _recipe(stored: Measured) -> str:
    said = {"provenance": stored.get("provenance", {}), "metrics": stored["metrics"]}
    return f"## Recipe and log summary\n\n```json\n{json.dumps(said, indent=1, ensure_ascii=False)}\n```\n"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")

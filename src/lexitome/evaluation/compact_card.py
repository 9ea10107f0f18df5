"""Measure the compact model and write its model card.

    python -m lexitome.evaluation.compact_card --data DIR --out docs/model-cards

DIR holds `train/` and `external/`. Writes `compact.md` for people and `compact.json` with every mean, the command, the
seed, the hash of the weights and of the data. Nothing is chosen here: thresholds come with the weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from lexitome.data.folder import Dataset, load_dataset
from lexitome.evaluation.text_only import PresenceResult, Row, data_hash, evaluate_dataset, presence_result
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import ModelCard

COMMAND = "python -m lexitome.evaluation.compact_card --data DATA --out docs/model-cards"
SPLIT_RULE = (
    "Split rule: subjects (patient, video, recording, section; each image where the source gives none) are ordered by "
    "SHA-256 of `seed:dataset:subject` (seed 0); the first 20 % are test, the next 10 % validation, the rest training. "
    "`fuseg_foot_ulcer` keeps its published `valid_` part as test. External sets were never used to choose anything."
)
INTENDED_USE = """\
Research and annotation help: a first mask from words, boxes or points, to be checked by a person. **Not a medical
device**, not for diagnosis or treatment. Several training sets forbid commercial use (table below), so the weights are
for research only; the code is Apache-2.0.

Known limits: 2D network at {side} x {side} pixels, volumes are segmented slice by slice; thin and very small targets
(capillaries, nerves, adrenal glands, synapses) are weak; concepts outside the table are answered as a guess and said to
be one; pathology the training sets do not draw is not found; children, implants and rare acquisitions are not
covered."""
ABOUT_DICE = """\
Dice in percent, over cases that hold the target; the prompt is the name in the table and nothing else. A target that is
not found scores 0. Volumes are scored in 3D."""
TABLE_HEAD = "| set | target | cases | subjects | Dice | median | found |\n|---|---|--:|--:|--:|--:|--:|\n"


def summarise(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One entry for each (dataset, target): cases with the target, mean and median Dice, share found."""
    entries: list[dict[str, object]] = []
    for name, target in dict.fromkeys((r.dataset, r.target) for r in rows if r.present):
        some = [r for r in rows if (r.dataset, r.target) == (name, target) and r.present]
        values = np.array([r.dice for r in some])
        entries.append({
            "dataset": name, "target": target, "derived": some[0].derived, "cases": len(some),
            "subjects": len({r.unit for r in some}), "dice": round(100 * float(values.mean()), 1),
            "median": round(100 * float(np.median(values)), 1),
            "found": round(100 * float(np.mean([r.found for r in some])), 1),
        })  # fmt: skip
    return entries


def mean_dice(entries: Sequence[dict[str, object]], names: set[str]) -> dict[str, object]:
    """Mean over concepts (dataset, target) of the named sets, unions that the files do not name left out."""
    values = [float(str(e["dice"])) for e in entries if e["dataset"] in names and not e["derived"]]
    return {"concepts": len(values), "dice": round(float(np.mean(values)), 1) if values else None}


def measure(segmenter: Segmenter, data: Path) -> dict[str, object]:
    """Everything the card says, as JSON-able values."""
    trains, externals = (_load(data / part, part == "external") for part in ("train", "external"))
    in_domain = [row for d in track(trains, "in-domain") for row in evaluate_dataset(segmenter, d, trains)]
    outside = [row for d in track(externals, "external") for row in evaluate_dataset(segmenter, d, trains)]
    inner, outer = summarise(in_domain), summarise(outside)
    flat = {d.name for d in trains if d.dims == 2}
    presence = presence_result([r for r in in_domain if r.dataset in flat])
    return {
        "command": COMMAND, "seed": 0, "weights_sha256": segmenter.weights,
        "data_sha256": {d.name: data_hash(d) for d in [*trains, *externals]},
        "mean_in_domain_2d": mean_dice(inner, flat),
        "mean_in_domain_3d": mean_dice(inner, {d.name for d in trains} - flat),
        "mean_external": mean_dice(outer, {d.name for d in externals}),
        "presence": _presence_entry(presence), "in_domain": inner, "external": outer,
        "seconds_per_query": round(float(np.median([r.seconds for r in in_domain if r.dataset in flat])), 3),
    }  # fmt: skip


def _load(folder: Path, external: bool) -> list[Dataset]:
    return [load_dataset(d, external=external) for d in sorted(folder.iterdir()) if (d / "dataset.json").exists()]


def _presence_entry(result: PresenceResult) -> dict[str, object]:
    return {
        "pairs": result.pairs, "balanced_accuracy": round(100 * result.balanced_accuracy, 1),
        "sensitivity": round(100 * result.sensitivity, 1), "specificity": round(100 * result.specificity, 1),
        "auc": round(100 * result.auc, 1),
    }  # fmt: skip


def render(measured: dict[str, object], card: ModelCard) -> str:
    """The card in Markdown."""
    presence = measured["presence"]
    assert isinstance(presence, dict)
    means = "".join(f"- mean over {_mean(measured, key)}\n" for key in ("in_domain_2d", "in_domain_3d", "external"))
    found = (
        f"- presence, {presence['pairs']} balanced pairs (a present concept, an absent one of the same modality): "
        f"balanced accuracy **{presence['balanced_accuracy']}**, sensitivity {presence['sensitivity']}, "
        f"specificity {presence['specificity']}, AUC {presence['auc']}\n"
    )
    licences = "".join(f"| {s.name} | {s.modality} | {_cell(s.licence)} | {_cell(s.source)} |\n" for s in card.sets)
    parts = [
        f"# Model card: {card.name}\n\n{card.summary}\n",
        f"Weights: {card.size_mb} MB, SHA-256 `{card.sha256[:16]}`, {card.weights_licence}.\n",
        "## Intended use and limits\n\n" + INTENDED_USE.format(side=card.side) + "\n",
        f"## Text-only accuracy\n\n{SPLIT_RULE}\n\n{ABOUT_DICE}\n\n{means}{found}",
        "### In-domain test splits\n\n" + _table(measured["in_domain"]),
        "### External sets (other hospitals, scanners, observers)\n\n" + _table(measured["external"]),
        "Union: a union of two labels that the files do not name; left out of the means.\n",
        f"## Training data and licences\n\n| set | modality | licence | source |\n|---|---|---|---|\n{licences}",
        "Backbone: EfficientNet-Lite0, ImageNet weights (Apache-2.0). Text vectors: distilled from all-MiniLM-L6-v2 "
        "(Apache-2.0).\n",
        f"## How to reproduce\n\nTraining and export: `docs/training-compact.md`. Card: `{measured['command']}`.\n",
    ]
    return "\n".join(parts)


def _mean(measured: dict[str, object], key: str) -> str:
    entry = measured[f"mean_{key}"]
    assert isinstance(entry, dict)
    names = {"in_domain_2d": "in-domain 2D concepts", "in_domain_3d": "in-domain 3D concepts",
             "external": "external concepts (some of them untrained)"}  # fmt: skip
    return f"{entry['concepts']} {names[key]}: **{entry['dice']}**"


def _table(entries: object) -> str:
    assert isinstance(entries, list)
    lines = []
    for e in entries:
        target = f"{e['target']} (union)" if e["derived"] else e["target"]
        numbers = " | ".join(str(e[key]) for key in ("cases", "subjects", "dice", "median", "found"))
        lines.append(f"| {e['dataset']} | {target} | {numbers} |\n")
    return TABLE_HEAD + "".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/model-cards"))
    args = parser.parse_args()
    segmenter = Segmenter.load("compact")
    measured = measure(segmenter, args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compact.json").write_text(json.dumps(measured, indent=1) + "\n")
    (args.out / "compact.md").write_text(render(measured, segmenter.card))
    print(f"in-domain 2D {measured['mean_in_domain_2d']}, presence {measured['presence']}", file=sys.stderr)


if __name__ == "__main__":
    main()

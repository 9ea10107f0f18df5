"""Measure a compact model and write its model card.

    python -m lexitome.evaluation.compact_card --data DATA --model compact --out docs/model-cards

DATA holds `train/` and `external/`. Writes `NAME.md` for people and `NAME.json` with every mean, the command, the seed,
the hash of the weights and of the data. Nothing is chosen here: thresholds come with the model. An interrupted
evaluation continues when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.evaluation.card_text import render
from lexitome.evaluation.cases import TEXT_AND_BOX, Row
from lexitome.evaluation.ledger import Ledger, fill, identity_of
from lexitome.evaluation.summaries import by_target, counted_objects, gain_of_box, mean_dice, presence_result
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import CATALOG

COMMAND = "python -m lexitome.evaluation.compact_card --data DATA --model {model} --out docs/model-cards"


def measure(segmenter: Segmenter, data: Path, cache: Path, *, threads: int | None = None) -> dict[str, Any]:
    """Everything the card says of accuracy, as JSON-able values.

    Args:
        segmenter: with one thread, since `threads` cases are evaluated at a time.
        cache: where rows are kept until an evaluation is complete, and after it.
    """
    own = {trained.name for trained in segmenter.card.sets}
    trains = load_sets(data / "train", external=False)
    known, strange = [d for d in trains if d.name in own], [d for d in trains if d.name not in own]
    externals = load_sets(data / "external", external=True)
    identity = identity_of(segmenter)
    ledgers = {
        key: [Ledger(cache, identity, d) for d in sets]
        for key, sets in (("in_domain", known), ("not_trained_on", strange), ("external", externals))
    }
    fill(segmenter, [ledger for some in ledgers.values() for ledger in some], known, threads=threads)
    model = segmenter.card.name if segmenter.card.name in CATALOG else "FOLDER"
    parts = {key: [row for ledger in some for row in ledger.rows] for key, some in ledgers.items()}
    return {
        "command": COMMAND.format(model=model), "seed": 0, "weights_sha256": segmenter.weights,
        "data_sha256": {x.dataset.name: x.data_sha256 for some in ledgers.values() for x in some},
        **_means(parts, known), **{key: by_target(rows) for key, rows in parts.items()},
        "oracle_box": {key: gain_of_box(rows) for key, rows in parts.items()},
        "objects": {key: counted_objects(rows) for key, rows in parts.items()},
    }  # fmt: skip


def _means(parts: dict[str, list[Row]], known: Sequence[Dataset]) -> dict[str, Any]:
    flat, deep = ({d.name for d in known if d.dims == dims} for dims in (2, 3))
    inner, strange, outer = (by_target(parts[key]) for key in ("in_domain", "not_trained_on", "external"))
    every = {row.dataset for rows in parts.values() for row in rows}
    presence = presence_result([row for row in parts["in_domain"] if row.dataset in flat])
    seconds = [row.seconds for row in parts["in_domain"] if row.dataset in flat]
    return {
        "mean_in_domain_2d": mean_dice(inner, flat), "mean_in_domain_3d": mean_dice(inner, deep),
        "mean_not_trained_on": mean_dice(strange, every), "mean_external": mean_dice(outer, every),
        "mean_external_trained_concepts": mean_dice(outer, every, only_trained=True),
        "mean_in_domain_2d_oracle_box": mean_dice(by_target(parts["in_domain"], TEXT_AND_BOX), flat),
        "mean_external_oracle_box": mean_dice(by_target(parts["external"], TEXT_AND_BOX), every),
        "presence": None if presence is None else presence.entry,
        "seconds_per_query": round(float(np.median(seconds)), 3) if seconds else None,
    }  # fmt: skip


def load_sets(folder: Path, *, external: bool) -> list[Dataset]:
    """Every annotated folder below `folder`, by name."""
    return [load_dataset(d, external=external) for d in sorted(folder.iterdir()) if (d / "dataset.json").exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="compact", help="a model of the catalog, or the folder of one")
    parser.add_argument("--out", type=Path, default=Path("docs/model-cards"))
    parser.add_argument("--cache", type=Path, default=Path("runs/evaluation"), help="rows measured so far")
    parser.add_argument("--threads", type=int, help="cases at a time; by default one for each core")
    args = parser.parse_args()
    segmenter = Segmenter.load(args.model, threads=1)
    measured = measure(segmenter, args.data, args.cache, threads=args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    name = segmenter.card.name
    (args.out / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    (args.out / f"{name}.md").write_text(render(measured, segmenter.card), encoding="utf-8")
    print(f"in-domain 2D {measured['mean_in_domain_2d']}, presence {measured['presence']}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Measure a compact model and write its model card.

    python -m lexitome.evaluation.compact_card --data DATA --model compact --out docs/model-cards
    python -m lexitome.evaluation.compact_card --run RUN --model compact --out docs/model-cards

DATA holds `train/`, whose test splits are asked, and `external/`; RUN is the folder of a finished `lexitome evaluate`
with text among its protocols. Writes `NAME.md` for people and `NAME.json` with every mean, its 95 % interval by
subject, the command, the seed, the hash of the weights and of the data. Nothing is chosen here: thresholds come with
the model. An interrupted evaluation continues when it is started again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lexitome.errors import InputError
from lexitome.evaluation.answering import CompactAnswerer
from lexitome.evaluation.card_text import render
from lexitome.evaluation.presence import RATES, presence_table
from lexitome.evaluation.protocols import TEXT, parse, parse_all
from lexitome.evaluation.reference import test_sets
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import SUMMARY, Run, read_object, write_json
from lexitome.evaluation.runner import Settings, evaluate
from lexitome.evaluation.tables import mean_over_concepts, scores_of
from lexitome.inference.segmenter import Segmenter
from lexitome.io.atomic import replacing
from lexitome.models.catalog import CATALOG

COMMAND = "python -m lexitome.evaluation.compact_card --data DATA --model {model} --out docs/model-cards"
PROTOCOLS = parse_all(["text", "text+box"])
WORDS, BOX = TEXT.name, parse("text+box").name
SEED = 0
"""Of the test splits, of the boxes and of the intervals."""
IN_DOMAIN, STRANGE, EXTERNAL = "in_domain", "not_trained_on", "external"

Entry = dict[str, Any]


def run_folder(segmenter: Segmenter, cache: Path, limit: int | None = None) -> Path:
    """Where the rows of these weights are kept, until an evaluation is complete and after it."""
    return cache / f"{segmenter.card.name}-{segmenter.weights[:8]}{'' if limit is None else f'-limit{limit}'}"


def ask(
    segmenter: Segmenter, data: Path, out: Path, *, limit: int | None = None, jobs: int | None = None
) -> Run:  # fmt: skip
    """By words, then by words and one box, all sets of `data`.

    Args:
        segmenter: with one thread, since `jobs` cases are evaluated at a time.
        out: the run folder; what it holds of the same evaluation is not asked again.

    Raises:
        InputError: there are no such sets, or `out` holds another run.
    """
    datasets = test_sets([data / "train", data / "external"], seed=SEED)
    settings = Settings(limit=limit, overlays=False, command=_command(segmenter))
    evaluate(CompactAnswerer(segmenter), datasets, PROTOCOLS, out, seed=SEED, jobs=jobs, settings=settings)
    return Run.load(out)


def check(run: Run, segmenter: Segmenter) -> None:
    """
    Raises:
        InputError: a card cannot be made of this run: of another model, of other cases, or not asked by words.
    """
    info, card = run.info, segmenter.card
    own = {"weights_sha256": segmenter.weights, "card_sha256": card.measure_card()}
    if {key: info["model"].get(key) for key in own} != own:
        cause = f"was not made with the model {card.name!r} as it is now"
        raise InputError(run.path, cause, "Name the model that was asked with --model, or ask again with --data.")
    if WORDS not in info["protocols"] or info["split"] != "test" or info["seed"] != SEED:
        cause = f"is not of the test split, with seed {SEED} and {WORDS} among its protocols"
        remedy = f"Ask with lexitome evaluate --prompts {WORDS},text+box, or with --data."
        raise InputError(run.path, cause, remedy)


def _command(segmenter: Segmenter) -> str:
    return COMMAND.format(model=segmenter.card.name if segmenter.card.name in CATALOG else "FOLDER")


def summary_of(run: Run, command: str = "") -> Entry:
    """Everything the card says of accuracy, as JSON-able values: shares in percent, ends of intervals as "low" and
    "high", None where there is none.

    Args:
        command: what makes it again.
    """
    data = run.info["data"]
    parts = {name: _part(about) for name, about in data.items()}
    rows = {part: [r for r in run.rows if parts[r.dataset] == part] for part in (IN_DOMAIN, STRANGE, EXTERNAL)}
    concepts = [e for e in read_object(run.path / SUMMARY)["by_concept"] if e["protocol"] == WORDS]
    tables = {part: [e for e in concepts if parts[e["dataset"]] == part] for part in rows}
    flat, _ = _by_dims(rows[IN_DOMAIN])
    seconds = [row.seconds for row in flat if row.protocol == WORDS and row.seconds is not None]
    return {
        "command": command, "seed": run.info["seed"], "limit": run.info["settings"]["limit"],
        "weights_sha256": run.info["model"]["weights_sha256"],
        "data_sha256": {name: about["hash"] for name, about in data.items()},
        "problems": _problems(run), "leakage": None if run.leakage is None else run.leakage["summary"],
        **_means(rows), "presence": _presence(flat),
        "seconds_per_query": round(float(np.median(seconds)), 3) if seconds else None,
        **{part: [_target(entry) for entry in entries] for part, entries in tables.items()},
        "oracle_box": {part: gain_of_box(some) for part, some in rows.items()},
        "objects": {part: [_objects(e) for e in some if "f1_50" in e["metrics"]] for part, some in tables.items()},
    }  # fmt: skip


def _part(about: Mapping[str, Any]) -> str:
    if about["external"]:
        return EXTERNAL
    return IN_DOMAIN if about["in_training"] else STRANGE


def _by_dims(rows: Sequence[ResultRow]) -> tuple[list[ResultRow], list[ResultRow]]:
    """Of images and of volumes."""
    return [row for row in rows if row.dims == 2], [row for row in rows if row.dims == 3]


def _problems(run: Run) -> Entry:
    found = run.info["problems"]
    return {key: found[key] for key in ("missing", "failed")} | {"unreadable": len(found["unreadable"])}


def _means(rows: Mapping[str, Sequence[ResultRow]]) -> Entry:
    flat, deep = _by_dims(rows[IN_DOMAIN])
    return {
        "mean_in_domain_2d": mean_dice(flat), "mean_in_domain_3d": mean_dice(deep),
        "mean_not_trained_on": mean_dice(rows[STRANGE]), "mean_external": mean_dice(rows[EXTERNAL]),
        "mean_external_trained_concepts": mean_dice([row for row in rows[EXTERNAL] if row.taught]),
        "mean_in_domain_2d_oracle_box": mean_dice(flat, BOX), "mean_in_domain_3d_oracle_box": mean_dice(deep, BOX),
        "mean_external_oracle_box": mean_dice(rows[EXTERNAL], BOX),
    }  # fmt: skip


def mean_dice(rows: Sequence[ResultRow], protocol: str = WORDS) -> Entry:
    """Over concepts (dataset, target) of their means over cases; unions that the files do not name are left out."""
    found = mean_over_concepts([row for row in rows if row.protocol == protocol], seed=SEED)
    if found is None:
        return {"concepts": 0, "dice": None}
    return {"concepts": found["concepts"], "subjects": found["units"], **_percents(found, "dice")}


def gain_of_box(rows: Sequence[ResultRow]) -> list[Entry]:
    """For each set the mean Dice over its targets by words, with an oracle box, and the difference, of the same
    cases."""
    words = {(row.dataset, row.case, row.concept): row for row in rows if row.protocol == WORDS}
    entries = []
    for name in dict.fromkeys(row.dataset for row in rows):
        boxed = [row for row in rows if row.dataset == name and row.protocol == BOX]
        pairs = [(words[row.dataset, row.case, row.concept], row) for row in boxed]
        gained = [
            replace(row, metrics={"dice": scores_of(row)["dice"] - scores_of(word)["dice"]}) for word, row in pairs
        ]  # rows of differences, of which the mean and its interval are the same as of Dice
        gain = mean_over_concepts(gained, seed=SEED)
        if gain is not None:
            text, box = mean_dice([word for word, _ in pairs])["dice"], mean_dice(boxed, BOX)["dice"]
            about = {"dataset": name, "targets": gain["concepts"], "text": text, "oracle_box": box}
            entries.append(about | _percents(gain, "gain"))
    return entries


def _presence(rows: Sequence[ResultRow]) -> Entry | None:
    """Means over the sets that were asked for what is there and for what is not."""
    table = presence_table([row for row in rows if row.protocol == WORDS], seed=SEED)
    overall = next((entry for entry in table if entry["dataset"] is None), None)
    if overall is None:
        return None
    counts = {"datasets": len(overall["datasets"]), **{key: overall[key] for key in ("present", "absent")}}
    return counts | {name: overall[name] and _percents(overall[name], "mean") for name in RATES}


def _target(entry: Mapping[str, Any]) -> Entry:
    """Of an entry of `tables.summarise`'s "by_concept"."""
    dice, counts = entry["metrics"]["dice"], entry["counts"]
    return {
        "dataset": entry["dataset"], "target": entry["concept"], "derived": entry["derived"],
        "trained": entry["taught"], "cases": counts["present"], "subjects": counts["units"],
        **_percents(dice, "dice"), "median": _percent(dice["median"]),
        "found": _percent(entry["found"] / counts["present"]),
    }  # fmt: skip


def _objects(entry: Mapping[str, Any]) -> Entry:
    metrics = entry["metrics"]
    return {
        "dataset": entry["dataset"], "target": entry["concept"], "cases": metrics["f1_50"]["cases"],
        "objects": round(metrics["objects_wanted"]["mean"], 1), **_percents(metrics["f1_50"], "f1"),
        "count_error": round(metrics["count_error"]["mean"], 2),
    }  # fmt: skip


def _percents(interval: Mapping[str, Any], name: str) -> Entry:
    return {key: _percent(interval[k]) for key, k in ((name, "mean"), ("low", "low"), ("high", "high"))}


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def write_card(run: Run, segmenter: Segmenter, out: Path) -> Entry:
    """OUT/NAME.json and OUT/NAME.md; the former is returned.

    Raises:
        InputError: see `check`.
    """
    check(run, segmenter)
    card = segmenter.card
    summary = summary_of(run, _command(segmenter))
    write_json(out / f"{card.name}.json", summary)
    with replacing(out / f"{card.name}.md") as temporary:
        temporary.write_text(render(summary, card), encoding="utf-8")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder with train/ and external/")
    source.add_argument("--run", type=Path, help="folder of a finished lexitome evaluate, instead of asking again")
    parser.add_argument("--model", default="compact", help="a model of the catalog, or the folder of one")
    parser.add_argument("--out", type=Path, default=Path("docs/model-cards"))
    parser.add_argument("--cache", type=Path, default=Path("runs/evaluation"), help="run folders are made below it")
    parser.add_argument("--threads", type=int, help="cases at a time; by default one for each core")
    parser.add_argument("--limit", type=int, help="at most so many images of each set, for a first look")
    args = parser.parse_args()
    try:
        segmenter = Segmenter.load(args.model, threads=1)
        place = args.run or run_folder(segmenter, args.cache, args.limit)
        run = Run.load(place) if args.run else ask(segmenter, args.data, place, limit=args.limit, jobs=args.threads)
        summary = write_card(run, segmenter, args.out)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"in-domain 2D Dice {summary['mean_in_domain_2d']['dice']}, external {summary['mean_external']['dice']}")
    print(f"card: {args.out / segmenter.card.name}.md, .json; rows: {place}")


if __name__ == "__main__":
    main()

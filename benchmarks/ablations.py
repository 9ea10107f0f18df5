"""What each part of the compact model earns: short runs that are equal in all but one thing.

    python benchmarks/ablations.py [--list] [--only NAME ...] [--steps 600]

Rows are kept in benchmarks/results/ablations.json as they are finished, runs in runs/ablations: a second start goes on
where the first one stopped, within a row too. docs/ablations.md is written from the results. Everything is chosen and
measured on validation parts (`ablation_measures`). One synonym of each target is held back from training, to be asked
for afterwards. Needs lexitome[train], for the larger backbones lexitome[dev].
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from ablation_measures import HashedLetters, OneHot, Probe, Reading, hold_out_words, measure
from provenance import DATA, RESULTS, ROOT, Entry, origin, read_json, rounded, write_json
from torch import nn

from lexitome.data.batches import LONE_SLICE, BatchSource, Embedder
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import SIZES
from lexitome.io.atomic import replacing
from lexitome.losses.set_prediction import SAM3, Masks, SetPredictionConfig
from lexitome.models.compact import CompactNet
from lexitome.recipes.compact import CompactRecipe
from lexitome.recipes.finetune import with_steps
from lexitome.training import checkpoint
from lexitome.training.compact import CompactTask, Resolution, Sampling, build_compact
from lexitome.training.engine import RunConfig, fit
from lexitome.training.progress import LOG, read_log

PACKAGES = ("torch", "numpy", "scipy", "accelerate")
DOCUMENT = ROOT / "docs" / "ablations.md"
OBJECT_QUERIES = 24
Words = Literal["distilled", "one-hot", "letters"]

MEANING: dict[str, str] = {
    "base-again": "3.1 points of Dice and 6 of presence by chance alone: what differs by less says nothing here.",
    "lite2": "within chance after so few steps; 1.2 times the parameters.",
    "one-hot": "as good or better by the names it knows, and 10 points worse by a word it was not taught, where the "
    "distilled vectors lose 1 to 3. Words it does not know at all it cannot ask for: it is no text prompt.",
    "set-prediction": "24 object queries found not one object at an IoU of 0.5 in so few steps (centres found some, "
    "connected parts more), and a box helped half as much. It trains slowly, as DETR does.",
    "no-negatives": "presence is lost altogether: everything asked for is said to be there. The masks are none the "
    "worse for it, nor the better.",
    "side-192": "0.7 times the time; what it costs in Dice is within chance. With trained weights vessels "
    "lose 8 points from 448 to 256 pixels (resolution.json).",
}
"""Row name to a sentence on what its numbers mean; written by people, shown in the document."""


BASE = "base"
SAME = ("settings", "seed", "data")
"""What the rows of one file share."""
COLUMNS = (
    ("dice_2d", "2D", "Dice of text prompts, mean over the concepts of sets of images"),
    ("dice_slices", "slices", "the same of volumes, slice by slice"),
    ("dice_slices_alone", "alone", "of slices shown without their neighbours"),
    ("presence", "presence", "balanced accuracy at one half, asked as well for what other sets of the modality show"),
    ("presence_auc", "AUC", "of presence, whatever the threshold"),
    ("dice_box", "text + box", "Dice with a box drawn by an unsteady hand (an oracle)"),
    ("box_gain", "gain", "what the box adds to text alone, of the same pictures"),
    ("f1", "F1", "of single objects at an IoU of 0.5, read off as the row was trained"),
    ("f1_queries", "F1 queries", "the same, read off the object queries at the best of a few thresholds"),
    ("f1_parts", "F1 parts", "the same, objects taken as connected parts of the mask"),
    ("dice_new_words", "new words", "Dice when asked by a synonym that training never used"),
    ("dice_same_by_name", "by name", "of the same pictures when asked by the name"),
    ("millions", "M", "millions of parameters"),
    ("seconds_a_step", "s/step", "seconds of a training step, the median"),
)
"""Measure, its heading, and what it says."""


@dataclass(frozen=True)
class Variant:
    """One row: the base but for one thing, which `change` says in words."""

    name: str
    group: str
    change: str
    recipe: CompactRecipe
    words: Words = "distilled"
    whiten: bool = True
    lone_slice: float = LONE_SLICE
    places: bool = True
    reading: Reading = "centres"


@dataclass(frozen=True)
class Options:
    runs: Path
    out: Path
    pictures: int
    threads: int


def base_recipe(steps: int, seed: int) -> CompactRecipe:
    """Compact from ImageNet weights, validated at the end only."""
    recipe = with_steps(CompactRecipe("ablation", run=RunConfig(steps, seed=seed), seed=seed), steps)
    return replace(recipe, run=replace(recipe.run, validate_every=0))


def variants(recipe: CompactRecipe) -> list[Variant]:
    """All rows; the first one is the base of the others."""
    base = Variant("base", BASE, "as it ships, from ImageNet weights", recipe)
    other = replace(recipe, seed=recipe.seed + 1, run=replace(recipe.run, seed=recipe.seed + 1))
    again = replace(base, name="base-again", change="another seed: what chance is worth", recipe=other)
    backbones = [
        replace(base, name=f"lite{number}", group="backbone", change=f"EfficientNet-Lite{number}",
                recipe=_with(recipe, backbone=number))
        for number in (1, 2)
    ]  # fmt: skip
    sides = [
        replace(base, name=f"side-{side}", group="resolution", change=f"most sets at {side} pixels throughout",
                recipe=replace(recipe, sampling=at_side(recipe.sampling, side)))
        for side in (192, 256, 320)
    ]  # fmt: skip
    return [base, again, *backbones, *_texts(base), *_objectives(base), *_queries(base), *sides, *_volumes(base)]


def _texts(base: Variant) -> list[Variant]:
    known = (
        "a number for each concept: nothing for words it never met, no place for new concepts, no nearness of meaning"
    )
    base = replace(base, group="text")
    return [
        replace(base, name="unwhitened", change="distilled vectors as they are, not whitened", whiten=False),
        replace(base, name="one-hot", change=known, words="one-hot", whiten=False),
        replace(base, name="letters", change="hashed letter groups: spelling without meaning", words="letters"),
    ]


def _objectives(base: Variant) -> list[Variant]:
    recipe, base = base.recipe, replace(base, group="objective")
    plain = replace(recipe.objective, centres=0.0, offsets=0.0)
    queried, objects = _with(recipe, object_queries=OBJECT_QUERIES), set_prediction(OBJECT_QUERIES)
    return [
        replace(base, name="mask-only", change="no centre head; objects are connected parts", reading="parts",
                recipe=replace(recipe, objective=plain)),
        replace(base, name="set-prediction", change=f"{OBJECT_QUERIES} object queries instead of centres",
                reading="queries", recipe=replace(queried, objective=replace(plain, objects=objects))),
        replace(base, name="both", change=f"centres, and {OBJECT_QUERIES} object queries besides",
                recipe=replace(queried, objective=replace(recipe.objective, objects=objects))),
    ]  # fmt: skip


def _queries(base: Variant) -> list[Variant]:
    base = replace(base, group="queries")
    return [
        replace(base, name="no-negatives", change="never asks for what is absent, but in empty pictures",
                recipe=replace(base.recipe, negatives=False)),
        replace(base, name="no-places", change="no boxes, points or masks in training", places=False),
    ]  # fmt: skip


def _volumes(base: Variant) -> list[Variant]:
    base = replace(base, group="volumes")
    return [
        replace(base, name="slices-alone", change="slices never with their neighbours", lone_slice=1.0),
        replace(base, name="slices-stacked", change="slices always with their neighbours", lone_slice=0.0),
    ]


def set_prediction(queries: int) -> SetPredictionConfig:
    """SAM3's weights with instance masks; its average over queries is taken over as many as there are."""
    return replace(SAM3, masks=Masks(), classification=replace(SAM3.classification, least_queries=queries))


def at_side(sampling: Sampling, side: int) -> Sampling:
    """The medium size class at one side from the first step to the last; as many pictures a step as before."""
    low, high = (replace(s, medium=Resolution(side, s.medium.images)) for s in (sampling.low, sampling.high))
    return replace(sampling, low=low, high=high)


def _with(recipe: CompactRecipe, *, backbone: int = 0, object_queries: int = 0) -> CompactRecipe:
    return replace(recipe, model=replace(recipe.model, backbone=backbone, object_queries=object_queries))


@dataclass(frozen=True, eq=False)
class Measured(CompactTask):
    """A run that is judged by `ablation_measures`."""

    probe: Probe

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, CompactNet)
        return measure(model, self.source, self.probe)


def run(variant: Variant, sets: Sequence[CachedDataset], options: Options) -> Entry:
    """Train (or go on) and measure; the row of the table."""
    recipe, place = variant.recipe, options.runs / variant.name
    kept, new_words = hold_out_words(sets)
    words = embedder(variant, kept)
    source = BatchSource(
        kept, seed=recipe.seed, queries=recipe.queries, negatives=recipe.negatives, text=words,
        lone_slice=variant.lone_slice, places=variant.places,
    )  # fmt: skip
    model = build(variant, source)
    high = recipe.sampling.high
    sides = {size: getattr(high, size).side for size in SIZES}
    probe = Probe(sides, options.pictures, variant.lone_slice < 1, variant.reading, new_words)
    task = Measured(source, recipe.sampling, recipe.objective, recipe.run.steps, probe)
    deciding = {"variant": asdict(replace(variant, change="")), "sets": [s.dataset.name for s in kept]}
    begun = checkpoint.locate(place / "checkpoints", "last") is not None
    limits = replace(recipe.run, threads=options.threads)
    result = fit(model, task, recipe.optim, limits, place, resume=begun, strategy="single", recipe=deciding)
    rows = [row for row in read_log(place / LOG) if row["kind"] == "train"]
    shutil.rmtree(place / "checkpoints")  # some hundred MB that nothing needs any more; the log stays
    return {
        "name": variant.name, "group": variant.group, "change": variant.change, "steps": result.step,
        "seconds_a_step": statistics.median(row["seconds"] for row in rows),
        "parameters": sum(p.numel() for p in model.parameters()), "validated_at": sides, "metrics": result.metrics,
    }  # fmt: skip


def embedder(variant: Variant, sets: Sequence[CachedDataset]) -> Embedder | None:
    dim = variant.recipe.model.text_dim
    if variant.words == "one-hot":
        return OneHot.of(sets, dim)
    return HashedLetters(dim) if variant.words == "letters" else None


def build(variant: Variant, source: BatchSource) -> CompactNet:
    phrases = source.phrase_vectors()
    model = build_compact(replace(variant.recipe.model, text_dim=phrases.shape[1]), phrases, variant.recipe.seed)
    if not variant.whiten:
        model.decoder.text.mean.zero_()
        model.decoder.text.whiten.copy_(torch.eye(phrases.shape[1]))
    return model


def run_all(chosen: Sequence[Variant], sets: Sequence[CachedDataset], options: Options, head: Entry) -> Entry:
    """Every chosen row that is not there yet, kept as soon as it is finished.

    Raises:
        SystemExit: the rows that are there were made with other settings or data.
    """
    result = {**head, "rows": {}}
    if options.out.exists():
        before = read_json(options.out)
        differ = [key for key in SAME if before[key] != head[key]]
        if differ:
            raise SystemExit(f"{options.out} was made with other {' and '.join(differ)}: name another file with --out")
        result["rows"] = before["rows"]
    for variant in chosen:
        if variant.name not in result["rows"]:
            print(f"{variant.name}: {variant.change}", flush=True)
            result["rows"][variant.name] = rounded(run(variant, sets, options))
            write_json(options.out, result)
    write_json(options.out, result)
    return result


def write_document(result: Entry, path: Path, order: Sequence[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(document(result, order), encoding="utf-8")


def document(result: Entry, order: Sequence[str]) -> str:
    """Markdown: a table for each group, the base on top of each."""
    rows = [result["rows"][name] for name in order if name in result["rows"]]
    settings = result["settings"]
    parts = [
        "# What each part of the compact model earns", "",
        f"Written by `{result['command']}`; do not edit. Each row is a run of {settings['steps']} steps from ImageNet "
        f"weights on {len(settings['sets'])} sets, equal to the base but for one thing, and measured on up to "
        f"{settings['pictures']} validation pictures of each set: no test picture was looked at. The runs are short, "
        "so that differences, not values, are to be read; the second base says how much chance makes.", "",
        *(f"- **{name}**: {says}" for _, name, says in COLUMNS), "",
    ]  # fmt: skip
    for group in dict.fromkeys(row["group"] for row in rows):
        shown = [row for row in rows if row["group"] == group or row["name"] == "base"]
        parts += [f"## {group[0].upper()}{group[1:]}", "", *table(shown), ""]
        parts += [f"- `{row['name']}`: {MEANING[row['name']]}" for row in shown if row["name"] in MEANING]
        parts += [""] if parts[-1] else []
    return "\n".join(parts)


def table(rows: Sequence[Entry]) -> list[str]:
    lines = [
        "| row | what differs | " + " | ".join(name for _, name, _ in COLUMNS) + " |",
        "|---|---|" + "---:|" * len(COLUMNS),
    ]
    for row in rows:
        values = {**row["metrics"], "seconds_a_step": row["seconds_a_step"], "millions": row["parameters"] / 1e6}
        cells = (f"{values[key]:.1f}" if key in values else "-" for key, _, _ in COLUMNS)
        lines.append(f"| `{row['name']}` | {row['change']} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these rows")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of annotated sets")
    parser.add_argument("--sets", nargs="*", default=(), help="names of sets, by default all")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "decoded", help="decoded pictures")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--pictures", type=int, default=12, help="validation pictures of each set")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "ablations.json")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="written from the results")
    typed = parser.parse_args()
    rows = {variant.name: variant for variant in variants(base_recipe(typed.steps, typed.seed))}
    if typed.list:
        print("\n".join(f"{v.name:15} {v.group:10} {v.change}" for v in rows.values()))
        return
    if unknown := sorted(set(typed.only or ()) - rows.keys()):
        parser.error(f"no row is called {', '.join(unknown)}: see --list")
    roots = sorted(p.parent for p in typed.data.glob("*/dataset.json"))
    datasets = [load_dataset(root) for root in roots if not typed.sets or root.name in typed.sets]
    sets = [open_cache(dataset, typed.cache) for dataset in datasets]
    settings = {"steps": typed.steps, "pictures": typed.pictures, "sets": [d.name for d in datasets]}
    head = {**origin(PACKAGES, datasets, seed=typed.seed, threads=typed.threads), "settings": settings}
    options = Options(typed.runs, typed.out, typed.pictures, typed.threads)
    result = run_all([rows[name] for name in typed.only or rows], sets, options, head)
    write_document(result, typed.document, list(rows))


if __name__ == "__main__":
    main()

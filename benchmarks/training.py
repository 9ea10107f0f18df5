"""How many images a second training takes in: the loader alone, the step alone, and both together in the engine.

    python benchmarks/training.py [--data DIR] [--sets NAME ...] [--repeats 5]

For every size class and side of `training.compact.Sampling`, each in a process of its own (so that its peak memory is
its own): batches drawn by one thread; engine steps on batches that were drawn beforehand, in bf16 and in fp32, taking
turns; engine steps as in a real run, where a thread draws ahead. Then the mixture of `recipes.compact.compact_open`.
Times are medians over steps after a warm-up, as `log.jsonl` has them; "waiting" is the share of time that steps waited
for pictures. Peak memory is the resident set, pages of the decoded pictures that the system keeps in memory included.
Results go to benchmarks/results/training.json. Needs lexitome[train].
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch
from provenance import DATA, RESULTS, ROOT, Entry, origin, rounded, write_json

from lexitome.data.batches import Batch, BatchSource, Draw
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import SIZES
from lexitome.recipes.compact import CompactRecipe, compact_open
from lexitome.training.compact import CompactTask, build_compact
from lexitome.training.engine import fit
from lexitome.training.progress import LOG, peak_bytes, read_log

WARM_UP = 3
"""Steps that do not count: memory is allocated, kernels are chosen, the queue of batches is filled."""
PACKAGES = ("torch", "numpy", "scipy", "accelerate")
Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Options:
    data: Path
    sets: tuple[str, ...]
    cache: Path
    repeats: int
    engine_steps: int
    mixed_steps: int
    threads: int
    seed: int
    recipe: CompactRecipe = field(default_factory=compact_open)


@dataclass(frozen=True, eq=False)
class Steady(CompactTask):
    """Steps of one kind only; with `drawn`, on these batches in turn, so that nothing is loaded."""

    draw: Draw
    drawn: tuple[Batch, ...] = ()

    def images(self, step: int) -> int:
        return self.draw.images

    def batch(self, step: int, indices: range) -> Batch:
        return self.drawn[step % len(self.drawn)] if self.drawn else self.source.batch(step, self.draw, indices)

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return {}


@dataclass(frozen=True, eq=False)
class Mixed(CompactTask):
    """The steps of a recipe. Validation is no part of what is measured."""

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return {}


def find_sets(options: Options) -> list[Dataset]:
    roots = sorted(p.parent for p in options.data.glob("*/dataset.json"))
    return [load_dataset(root) for root in roots if not options.sets or root.name in options.sets]


def open_all(options: Options) -> BatchSource:
    sets: list[CachedDataset] = [open_cache(dataset, options.cache) for dataset in find_sets(options)]
    return BatchSource(sets, seed=options.seed)


def measure_class(options: Options, draw: Draw) -> Entry:
    """One size class at one side."""
    source, recipe = open_all(options), options.recipe
    torch.set_num_threads(1)
    loader = [_seconds_to_draw(source, draw, step) for step in range(options.repeats)]
    steps = WARM_UP + options.repeats
    fixed = tuple(source.batch(step, draw, range(draw.images)) for step in range(3))
    entry: Entry = {"size": draw.size, "side": draw.side, "images_a_step": draw.images}
    entry["loader"] = {"images_per_second": draw.images / statistics.median(loader), "seconds_all": loader}
    turns: tuple[Precision, ...] = ("bf16", "fp32", "fp32", "bf16")
    rows: dict[Precision, list[Entry]] = {"bf16": [], "fp32": []}
    for precision in turns:
        task = Steady(source, recipe.sampling, recipe.objective, steps, draw, fixed)
        rows[precision] += run_engine(task, recipe, options, precision)
    entry["step"] = {precision: summary(found) for precision, found in rows.items()}
    steps = WARM_UP + options.engine_steps
    task = Steady(source, recipe.sampling, recipe.objective, steps, draw)
    entry["engine"] = summary(run_engine(task, recipe, options, "bf16"))
    return entry | {"peak_mb": _peak_mb()}


def measure_mixture(options: Options) -> Entry:
    """The steps of the recipe, of all size classes as it draws them."""
    source, recipe = open_all(options), options.recipe
    task = Mixed(source, recipe.sampling, recipe.objective, WARM_UP + options.mixed_steps)
    rows = run_engine(task, recipe, options, "bf16")
    return {"recipe": recipe.name, **summary(rows), "peak_mb": _peak_mb()}


def run_engine(task: CompactTask, recipe: CompactRecipe, options: Options, precision: Precision) -> list[Entry]:
    """Rows of `log.jsonl`, one for each step after the warm-up."""
    torch.manual_seed(options.seed)
    model = build_compact(recipe.model, task.source.phrase_vectors(), options.seed)
    run = replace(
        recipe.run, steps=task.steps, precision=precision, threads=options.threads, log_every=1, validate_every=0,
        checkpoint_every=task.steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        fit(model, task, recipe.optim, run, Path(folder), strategy="single")
        rows = [row for row in read_log(Path(folder) / LOG) if row["kind"] == "train"]
    return rows[WARM_UP:]


def summary(rows: list[Entry]) -> Entry:
    """Medians of steps; waiting as a share of all their time."""
    seconds = [row["seconds"] for row in rows]
    return {
        "steps": len(rows),
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
        "seconds_a_step": statistics.median(seconds),
        "waiting": sum(row["waiting"] * row["seconds"] for row in rows) / sum(seconds),
        "seconds_all": seconds,
    }


def _seconds_to_draw(source: BatchSource, draw: Draw, step: int) -> float:
    began = time.perf_counter()
    source.batch(step, draw, range(draw.images))
    return time.perf_counter() - began


def _peak_mb() -> float | None:
    found = peak_bytes()
    return None if found is None else found / 2**20


def alone(work: Callable[..., Entry], *arguments: object) -> Entry:
    """`work` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def draws(options: Options) -> list[Draw]:
    """Every size class that has sets, at its lower and its higher side."""
    source, sampling = open_all(options), options.recipe.sampling
    found = []
    for size in SIZES:
        for stage in (sampling.low, sampling.high):
            if source.set_chance[size].sum() > 0:
                resolution = getattr(stage, size)
                found.append(Draw(size, resolution.side, resolution.images))
    return found


def measure(options: Options, run: Callable[..., Entry] = alone) -> Entry:
    """`run` calls a function with arguments, in whatever process."""
    result = origin(PACKAGES, find_sets(options), seed=options.seed, threads=options.threads)
    classes = []
    for draw in draws(options):
        classes.append(run(measure_class, options, draw))
        print(line(classes[-1]), flush=True)
    mixture = run(measure_mixture, options)
    print(f"{mixture['recipe']}: {mixture['images_per_second']:.1f} images/s, waiting {mixture['waiting']:.1%}")
    return rounded({**result, "warm_up_steps": WARM_UP, "classes": classes, "mixture": mixture})


def line(entry: Entry) -> str:
    step = entry["step"]
    return (
        f"{entry['size']} {entry['side']}: loader {entry['loader']['images_per_second']:.1f}, step "
        f"{step['bf16']['images_per_second']:.1f} (fp32 {step['fp32']['images_per_second']:.1f}), engine "
        f"{entry['engine']['images_per_second']:.1f} images/s, waiting {entry['engine']['waiting']:.1%}, "
        f"peak {entry['peak_mb'] or 0:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of annotated sets")
    parser.add_argument("--sets", nargs="*", default=(), help="names of sets, by default all")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "decoded", help="decoded pictures")
    parser.add_argument("--repeats", type=int, default=5, help="batches and steps of each kind")
    parser.add_argument("--engine-steps", type=int, default=15)
    parser.add_argument("--mixed-steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    typed = vars(parser.parse_args())
    out = typed.pop("out")
    options = Options(**{**typed, "sets": tuple(typed["sets"])})
    write_json(out, measure(options))
    print(f"written to {out}")


if __name__ == "__main__":
    main()

"""The part of `train` that is about SAM3."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lexitome.cli.training_extra import say_tested
from lexitome.errors import InputError

if TYPE_CHECKING:
    from lexitome.cli.train import Request
    from lexitome.recipes.sam3 import Sam3Recipe
    from lexitome.recipes.sam3_run import Sam3Job

NAMES = ("sam3", "medical-sam3", "small-sam3")
"""Keys of `recipes.sam3.RECIPES`, here because importing that takes seconds."""
KIND = "sam3"
"""Of its jobs."""

Say = Callable[[str], None]


def begin(asked: Request, out: Path, cache: Path, say: Say, *, plan_only: bool) -> None:
    """Train a recipe of SAM3 in a new folder."""
    from lexitome.data.sources.find import find_sets
    from lexitome.recipes import run, sam3_run

    recipe = _recipe(asked)
    sam3_run.check_start(recipe)
    if plan_only:
        say(json.dumps(asdict(recipe), indent=1))
        return
    data = tuple(str(path.resolve()) for path in asked.data)
    datasets = find_sets(data, concept=asked.concept, unit_pattern=asked.unit_pattern)
    with run.claimed(out):
        datasets = run.prepare_splits(datasets, out, resume=False)
        job = sam3_run.Sam3Job(recipe, data, asked.concept, asked.unit_pattern)
        source = sam3_run.open_source(job, datasets, cache, say)
        pictures = sum(map(len, source.rows))
        job = replace(job, recipe=recipe.settled(pictures))
        say(f"steps        {job.recipe.run.steps} of {recipe.sampling.images} pictures; {pictures} to learn from")
        ready = sam3_run.begin(job.recipe, source, out)
        job = replace(job, start=ready.start)
        job.save(out)
        sam3_run.train(job, source, ready, out, again=False)
        _finish(job, source, out, say)


def go_on(out: Path, cache: Path, say: Say, settings: Sequence[str]) -> None:
    """Continue the run in a folder; `settings` as `recipes.run.lengthened`."""
    from lexitome.data.sources.find import find_sets
    from lexitome.recipes import run, sam3_run

    job = sam3_run.Sam3Job.load(out)
    with run.claimed(out):
        job = run.lengthened(job, settings, out)
        found = find_sets(job.data, concept=job.concept, unit_pattern=job.unit_pattern)
        source = sam3_run.open_source(job, run.prepare_splits(found, out, resume=True), cache, say)
        sam3_run.train(job, source, sam3_run.resume(job, out), out, again=True)
        _finish(job, source, out, say)


def _recipe(asked: Request) -> Sam3Recipe:
    """By its name, with what --start and --set change."""
    from lexitome.recipes.finetune import sets
    from lexitome.recipes.overrides import override
    from lexitome.recipes.sam3 import RECIPES, from_scratch

    assert asked.recipe is not None
    recipe = RECIPES[asked.recipe]()
    was_new = recipe.is_new
    recipe = replace(recipe, start=asked.start or recipe.start)
    if recipe.is_new and not was_new:
        recipe = from_scratch(recipe)
    if was_new and not recipe.is_new:
        remedy = "Teach given weights with medical-sam3, or leave --start out."
        raise InputError("--start", f"{asked.recipe} begins with random weights", remedy)
    if sets(asked.settings, "run.steps") and not sets(asked.settings, "epochs"):
        recipe = replace(recipe, epochs=0.0)  # the user has counted
    return override(recipe, asked.settings)


def _finish(job: Sam3Job, source: object, out: Path, say: Say) -> None:
    from lexitome.recipes import sam3_run

    if int(os.environ.get("RANK", "0")) != 0:
        return
    test = sam3_run.export(job, source, out)  # type: ignore[arg-type]
    say_tested(say, test, "from words alone, nothing else given", out / sam3_run.MODEL, job.data)

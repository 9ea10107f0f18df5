"""The part of `train` that is about MedDINOv3's segmenter."""

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
    from lexitome.recipes.meddinov3 import MedDinov3Recipe
    from lexitome.recipes.meddinov3_run import MedDinov3Job
    from lexitome.training.meddinov3 import SegmentationTask

MINI = "meddinov3-mini"
NAMES = ("meddinov3", MINI)
"""Keys of `recipes.meddinov3.RECIPES`, here because importing that takes seconds."""
KIND = "meddinov3"

Say = Callable[[str], None]


def begin(asked: Request, out: Path, cache: Path, say: Say, *, plan_only: bool) -> None:
    """Train a recipe in a new folder."""
    from lexitome.data.sources.find import find_sets
    from lexitome.recipes import meddinov3_run, run
    from lexitome.recipes.finetune import sets
    from lexitome.recipes.overrides import override
    from lexitome.training.pace import PRECISIONS

    recipe = _recipe(asked)
    meddinov3_run.check_start(recipe)
    if plan_only:
        say(json.dumps(asdict(recipe), indent=1))
        return
    data = tuple(str(path.resolve()) for path in asked.data)
    found = find_sets(data, concept=asked.concept, unit_pattern=asked.unit_pattern)
    job = meddinov3_run.MedDinov3Job(recipe, data, asked.concept, asked.unit_pattern)
    dataset = meddinov3_run.the_one(found)
    with run.claimed(out):
        (dataset,) = run.prepare_splits([dataset], out, resume=False)
        job = meddinov3_run.planned(job, dataset)
        for line in lines(job):
            say(line)
        task = meddinov3_run.task_of(job, meddinov3_run.open_shelf(job, dataset, cache, say))
        job, net = meddinov3_run.begin(job, task)
        if (asked.recipe == MINI or asked.minutes is not None) and not sets(asked.settings, "run.steps"):
            tried = (recipe.run.precision,) if sets(asked.settings, "run.precision") else PRECISIONS
            job = meddinov3_run.timed(job, task, asked.time, tried)
            typed = replace(override(job.recipe, asked.settings), plans=recipe.plans)
            job = run.agree(replace(job, recipe=typed))
        steps, patches = job.recipe.run.steps, job.recipe.patches
        say(f"steps        {steps} of {patches} patches; {len(task.train)} slices to learn from")
        job.save(out)
        meddinov3_run.train(job, task, net, out, resume=False)
        _finish(job, task, out, say)


def go_on(out: Path, cache: Path, say: Say, settings: Sequence[str]) -> None:
    """Continue the run in a folder; `settings` as `recipes.run.lengthened`."""
    from lexitome.data.sources.find import find_sets
    from lexitome.recipes import meddinov3_run, run

    job = meddinov3_run.MedDinov3Job.load(out)
    with run.claimed(out):
        job = run.lengthened(job, settings, out)
        found = find_sets(job.data, concept=job.concept, unit_pattern=job.unit_pattern)
        (dataset,) = run.prepare_splits([meddinov3_run.the_one(found)], out, resume=True)
        task = meddinov3_run.task_of(job, meddinov3_run.open_shelf(job, dataset, cache, say))
        meddinov3_run.train(job, task, meddinov3_run.again(job, task), out, resume=True)
        _finish(job, task, out, say)


def lines(job: MedDinov3Job) -> list[str]:
    """What the recipe came to on the data."""
    layout, normalisation = job.layout, job.normalisation
    assert layout is not None and normalisation is not None
    seen = "the whole slice" if layout.spacing is None else "{:.3g} x {:.3g} mm a pixel".format(*layout.spacing)
    stack = f", {layout.depth} slices" if layout.depth > 1 else ""
    numbers = ", ".join(f"{each:.4g}" for each in normalisation.numbers or ())
    return [
        f"patches      {layout.side} x {layout.side}{stack}, {seen}",
        f"intensity    {normalisation.policy} {numbers}".rstrip(),
    ]


def _recipe(asked: Request) -> MedDinov3Recipe:
    """By its name, with what --start and --set change."""
    from lexitome.recipes.meddinov3 import RECIPES, started
    from lexitome.recipes.overrides import override

    assert asked.recipe is not None
    recipe = RECIPES[asked.recipe]()
    if asked.start is not None:
        recipe = started(recipe, asked.start)
    recipe = override(recipe, asked.settings)
    if recipe.plans:
        path = Path(recipe.plans).expanduser()
        if not path.is_file():
            raise InputError(path, "there are no such plans", "Name an nnUNetPlans.json.")
        recipe = replace(recipe, plans=str(path.resolve()))  # as --resume will find it from anywhere
    return recipe


def _finish(job: MedDinov3Job, task: SegmentationTask, out: Path, say: Say) -> None:
    from lexitome.recipes import meddinov3_run

    if int(os.environ.get("RANK", "0")) != 0:
        return
    test = meddinov3_run.export(job, task, out)
    say_tested(say, test, "slices that show a target", out / meddinov3_run.MODEL, job.data)

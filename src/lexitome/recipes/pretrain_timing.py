"""How long the stages of a recipe of pretraining take here, and the recipe that fits into a given time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lexitome.data.unlabelled import Pictures
from lexitome.recipes.pretrain import PretrainRecipe, Stage
from lexitome.recipes.pretrain_run import Say, network, stored_config, task_of
from lexitome.training.engine import Precision, moved, shares
from lexitome.training.optim import checkpoint_activations
from lexitome.training.parallel import assemble, forward_in_bf16

TIMED_STEPS = 3
LEAST_STEPS = 10


def fitted(
    recipe: PretrainRecipe, pictures: Sequence[Pictures], folder: Path, minutes: float, say: Say
) -> PretrainRecipe:
    """The recipe with all its stages longer or shorter by the same factor, so that together they take `minutes`; on a
    CPU in the quicker precision. Each stage is timed on a network with random weights. `folder` is of the run."""
    team = assemble()
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    if team.device.type == "cpu":
        stage = next(iter(recipe.stages.values()))
        tried: dict[Precision, float] = {p: seconds(recipe, stage, pictures, folder, p) for p in ("bf16", "fp32")}
        tried = team.agreed(tried)
        quicker = min(tried, key=lambda p: tried[p])
        say("precision    " + ", ".join(f"{p} {s:.2f} s" for p, s in tried.items()) + f" a step: {quicker}")
        recipe = replace(recipe, run=replace(recipe.run, precision=quicker))
    spent = {name: seconds(recipe, stage, pictures, folder, recipe.run.precision)
             for name, stage in recipe.stages.items()}  # fmt: skip
    spent = team.agreed(spent)
    factor = 60 * minutes / sum(stage.steps * spent[name] for name, stage in recipe.stages.items())
    longer = {name: replace(stage, steps=max(LEAST_STEPS, round(stage.steps * factor)))
              for name, stage in recipe.stages.items()}  # fmt: skip
    for name, stage in longer.items():
        say(f"{name}       {stage.steps} steps at {spent[name]:.2f} s, measured")
    return replace(recipe, **longer)  # type: ignore[arg-type]


def seconds(
    recipe: PretrainRecipe, stage: Stage, pictures: Sequence[Pictures], folder: Path, precision: Precision
) -> float:
    """Of one step of this process, the median of a few: drawing crops, forward, backward."""
    team = assemble()
    net = network(recipe, stage, stored_config(folder)).to(team.device)
    checkpoint_activations(net, recipe.run.recompute)
    task = task_of(recipe, stage, pictures, net.teacher.backbone.patch)
    part = shares(stage.images, team.size, team.rank, 1)[0] or range(1)
    spent = []
    with forward_in_bf16(net, team.device, precision == "bf16"):
        for step in range(TIMED_STEPS + 1):
            began = time.perf_counter()
            batch = moved(task.batch(step, part), team.device)
            terms = task.loss(net, batch, task.counts(batch).to(team.device))
            torch.stack(list(terms.values())).sum().backward()
            net.zero_grad(set_to_none=True)
            spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:])  # the first one warms up

"""How long the stages of a recipe of pretraining take here, and the recipe that fits into a given time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lexitome.data.unlabelled import Pictures
from lexitome.recipes.pretrain import PretrainRecipe, Stage
from lexitome.recipes.pretrain_run import Say, network, stored_config, task_of
from lexitome.training.engine import Precision
from lexitome.training.pace import PRECISIONS, time_step
from lexitome.training.parallel import assemble

LEAST_STEPS = 10


def fitted(
    recipe: PretrainRecipe, pictures: Sequence[Pictures], folder: Path, minutes: float, say: Say
) -> PretrainRecipe:
    """The recipe with all its stages longer or shorter by the same factor, so that together they take `minutes`; on a
    CPU in the quicker precision. Each stage is timed on a network with random weights. `folder` is of the run."""
    team = assemble()
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)

    def seconds(stage: Stage, precision: Precision) -> float:
        net = network(recipe, stage, stored_config(folder))
        return time_step(net, task_of(recipe, stage, pictures, net.teacher.backbone.patch), precision, recipe.run)

    name, first = next(iter(recipe.stages.items()))
    tried = PRECISIONS if team.device.type == "cpu" else (recipe.run.precision,)
    trial = team.agreed({precision: seconds(first, precision) for precision in tried})
    quicker = min(trial, key=lambda p: trial[p])
    if len(trial) > 1:
        say("precision    " + ", ".join(f"{p} {s:.2f} s" for p, s in trial.items()) + f" a step: {quicker}")
    recipe = replace(recipe, run=replace(recipe.run, precision=quicker))
    others = {other: seconds(stage, quicker) for other, stage in recipe.stages.items() if other != name}
    spent = {name: trial[quicker], **team.agreed(others)}
    factor = 60 * minutes / sum(stage.steps * spent[name] for name, stage in recipe.stages.items())
    longer = {name: replace(stage, steps=max(LEAST_STEPS, round(stage.steps * factor)))
              for name, stage in recipe.stages.items()}  # fmt: skip
    for name, stage in longer.items():
        say(f"{name}       {stage.steps} steps at {spent[name]:.2f} s, measured")
    return replace(recipe, **longer)  # type: ignore[arg-type]

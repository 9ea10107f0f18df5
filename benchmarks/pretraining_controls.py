"""What stages of pretraining are compared with: as many steps from the same start without what the stage is about.

A stage trains on, and that alone changes features. So each of the later stages is trained a second time, from the same
checkpoint of the stage before, on the same pictures in the same order:

    stage 2 without Gram        its losses but that of the Gram teacher
    stage 3, low resolution     the crops of stage 2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pretraining_text import LOW, NO_GRAM, STAGES

from lexitome.data.unlabelled import Pictures
from lexitome.recipes.pretrain import PretrainRecipe
from lexitome.recipes.pretrain_run import PretrainJob, begin, open_source, run_stages
from lexitome.recipes.run import MODEL, claimed
from lexitome.training.pretrain import Ramp, Refresh

STAGE_OF = {NO_GRAM: "stage2", LOW: "stage3"}


def changed(recipe: PretrainRecipe, control: str) -> PretrainRecipe:
    """The recipe of a control, which ends with its stage."""
    if control == NO_GRAM:  # crops are made as before, by way of those that a Gram teacher would see
        objective = replace(recipe.stage2.objective, gram=Ramp(0.0, 0.0), refresh=Refresh())
        return replace(
            recipe, stage2=replace(recipe.stage2, objective=objective), stage3=replace(recipe.stage3, steps=0)
        )
    return replace(recipe, stage3=replace(recipe.stage3, crops=recipe.stage2.crops))


def trained(run: Path, job: PretrainJob, cache: Path, work: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Train the controls that are not trained yet, or go on with them; name to the folder of its stage.

    Args:
        run: the finished run of `job`, whose earlier stages they begin with.
        cache: decoded pictures of the run.
        work: of all controls, each has a folder of its own.
    """
    places = {name: work / name / stage for name, stage in STAGE_OF.items()}
    if missing := [name for name, place in places.items() if not (place / MODEL).is_dir()]:
        pictures = open_source(job, cache, say)
        for name in missing:
            _train(name, run, job, pictures, work / name, say)
    return places


def _train(
    control: str, run: Path, job: PretrainJob, pictures: Sequence[Pictures], folder: Path, say: Callable[[str], None]
) -> None:
    with claimed(folder):
        own = PretrainJob(changed(job.recipe, control), job.data)
        for before in STAGES[: STAGES.index(STAGE_OF[control])]:
            if not (folder / before).exists():
                (folder / before).symlink_to((run / before).resolve(), target_is_directory=True)
        own, weights = begin(own, folder, say)
        own.save(folder)
        run_stages(own, pictures, folder, say, weights)

"""Run a recipe of pretraining: stages in order, each from what the one before left. What a run folder holds:

recipe.json            the recipe, the data folders, what has to be remembered of the weights that the run began with
network.json           configuration of the network
stage1/ to stage3/     each as `training.engine.fit` leaves it (checkpoints/, log.jsonl, progress.png), and model/: the
                       teacher at the end of the stage
model/                 the teacher of the last stage that is done: what `load_dinov3` and `--model RUN/model` read

A stage whose model/ is there is done; `--resume` goes on with the first that is not, in the middle of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor
from transformers import DINOv3ViTConfig

from lexitome.data.licences import licence_of_weights
from lexitome.data.trained_on import TrainedOn
from lexitome.data.unlabelled import UNITS, Pictures, open_pictures
from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.models.dinov3.backbone import Dinov3
from lexitome.models.dinov3.heads import build_head
from lexitome.models.dinov3.presets import build, config_of
from lexitome.models.dinov3.weights import load_dinov3, save_folder
from lexitome.recipes.pretrain import PretrainRecipe, Stage
from lexitome.recipes.run import MODEL, load_job, save_job
from lexitome.training import checkpoint
from lexitome.training.engine import fit
from lexitome.training.parallel import assemble
from lexitome.training.pretrain import Branch, PretrainTask, SelfDistillation, hand_over

NETWORK = "network.json"
TEACHER = "teacher.backbone."
Say = Callable[[str], None]


@dataclass(frozen=True)
class PretrainStart:
    """What is kept of the weights that a run began with; they are in its checkpoints."""

    licence: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class PretrainJob:
    """A recipe and what it is run on."""

    recipe: PretrainRecipe
    data: tuple[str, ...]
    start: PretrainStart | None = None
    """None before the run begins."""
    kind: Literal["pretrain"] = "pretrain"

    def save(self, folder: Path) -> None:
        save_job(self, folder)

    @staticmethod
    def load(folder: Path) -> PretrainJob:
        """As `recipes.run.load_job`."""
        return load_job(PretrainJob, folder, "lexitome pretrain")


def open_source(job: PretrainJob, cache: Path, say: Say) -> list[Pictures]:
    """The pictures of a job; what is not decoded yet is decoded.

    Raises:
        InputError: there are none, or they have other units than the recipe wants.
    """
    recipe = job.recipe
    return open_pictures(job.data, cache, intensity=recipe.intensity, side=recipe.side, say=say)


def begin(job: PretrainJob, folder: Path, say: Say) -> tuple[PretrainJob, dict[str, Tensor] | None]:
    """The job with what is to be remembered of its start, and the weights that it starts from, if it has any. The
    configuration of the network is written into `folder`.

    Raises:
        InputError: the weights are missing or of another model.
    """
    recipe = job.recipe
    recipe.check()
    if recipe.preset is not None:
        config, weights, start = config_of(recipe.preset), None, PretrainStart()
    else:
        loaded = load_dinov3(recipe.start)
        if loaded.note:
            say(f"weights      {loaded.note}")
        if loaded.intensity != recipe.intensity:
            say(f"weights      were trained on {loaded.intensity}, this run gives {recipe.intensity}")
        config, weights = loaded.net.config, checkpoint.model_tensors(loaded.net)
        start = PretrainStart(loaded.licence, loaded.sha256)

    def keep() -> None:
        with replacing(folder / NETWORK) as temporary:
            temporary.write_text(config.to_json_string(use_diff=False), encoding="utf-8")

    assemble().on_main(keep)
    return replace(job, start=start), weights


def stored_config(folder: Path) -> DINOv3ViTConfig:
    """
    Raises:
        InputError: the run folder is incomplete.
    """
    path = folder / NETWORK
    try:
        return DINOv3ViTConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read ({error})", "Start again in another folder.") from error


def network(recipe: PretrainRecipe, stage: Stage, config: DINOv3ViTConfig) -> SelfDistillation:
    """Student, teacher and, if the stage has one, Gram teacher with the same random weights."""

    def trunk() -> Dinov3:
        return build(copy.deepcopy(config), recipe.seed)  # the student's will say how positions are augmented

    def branch() -> Branch:
        heads = [build_head(config.hidden_size, head, recipe.seed + i)
                 for i, head in enumerate((recipe.dino, recipe.ibot), start=1)]  # fmt: skip
        return Branch(trunk(), *heads)

    student = branch()
    student.backbone.augment(shift=recipe.shift, jitter=recipe.jitter, rescale=recipe.rescale)
    student.backbone.regularise(stage.drop_path)
    return SelfDistillation(student, branch(), trunk() if stage.objective.keeps_gram else None).train()


def task_of(recipe: PretrainRecipe, stage: Stage, pictures: Sequence[Pictures], patch: int) -> PretrainTask:
    return PretrainTask(
        pictures, UNITS[recipe.intensity], stage.crops, recipe.masks, stage.objective, stage.images, stage.steps,
        recipe.seed, recipe.balance, recipe.validated, patch,
    )  # fmt: skip


def run_stages(
    job: PretrainJob, pictures: Sequence[Pictures], folder: Path, say: Say, weights: Mapping[str, Tensor] | None = None
) -> dict[str, dict[str, float]]:
    """Train every stage that is not done, each to its end, and export its teacher.

    Args:
        weights: of a `Dinov3` that the first stage begins with; None = random, or a run that goes on.

    Returns:
        Validation of each stage.

    Raises:
        Interrupted, TrainingStopped, InputError: as `fit`; what is done stays done.
    """
    team, config = assemble(), stored_config(folder)
    recipe, before = job.recipe, None
    seen: list[TrainedOn] = []
    for name, stage in recipe.stages.items():
        place = folder / name
        if not team.agreed((place / MODEL).is_dir()):
            say(f"{name}       {stage.steps} steps of {stage.images} pictures, rate {stage.lr:.2g}")
            _train(recipe, stage, pictures, place, before, weights)
            team.on_main(lambda p=place, n=name: _export(job, n, config, p, folder, pictures, seen))  # type: ignore[misc]
        before = place
    return {name: _record(folder / name)["metrics"] for name in recipe.stages}


def _train(
    recipe: PretrainRecipe, stage: Stage, pictures: Sequence[Pictures], place: Path, before: Path | None,
    weights: Mapping[str, Tensor] | None,
) -> None:  # fmt: skip
    ranks = assemble().size
    if stage.images < 2 * ranks:
        cause = f"{stage.images} pictures in a step are too few for {ranks} processes"
        raise InputError(place.name, cause, f"Set {place.name}.images, or start fewer processes.")
    net = network(recipe, stage, stored_config(place.parent))
    again = assemble().agreed(checkpoint.locate(place / "checkpoints", "last") is not None)
    if not again and before is not None:
        _take_over(net, stage, before)
    elif not again and weights is not None:
        for trunk in (net.student.backbone, net.teacher.backbone):
            checkpoint.copy_into(checkpoint.model_tensors(trunk), weights, Path(recipe.start))
    if not again and before is None and net.gram is not None:
        net.anchor()
    task = task_of(recipe, stage, pictures, net.teacher.backbone.patch)
    seen = {each.name: (each.count(), each.count(held_out=True)) for each in pictures}
    shared = {name: getattr(recipe, name) for name in ("start", "intensity", "shift", "jitter", "rescale", "balance")}
    deciding = {"pictures": seen, "stage": asdict(stage), "dino": asdict(recipe.dino), "ibot": asdict(recipe.ibot),
                "masks": asdict(recipe.masks), **shared}  # fmt: skip
    fit(net, task, stage.applied, recipe.run_of(stage), place, resume=again, recipe=deciding)


def _take_over(net: SelfDistillation, stage: Stage, before: Path) -> None:
    """Begin with what the stage in the folder `before` left."""
    found = _last(before)
    state = hand_over(checkpoint.read(found, "model"), student=stage.student_from, gram=stage.gram_from)
    if net.gram is None:
        state = {name: value for name, value in state.items() if not name.startswith("gram.")}
    elif not any(name.startswith("gram.") for name in state):
        remedy = "Set gram_from=teacher, or objective.refresh of the stage before."
        raise InputError(before, "has kept no Gram teacher on its way", remedy)
    checkpoint.copy_into(checkpoint.model_tensors(net), state, found)


def _last(place: Path) -> Path:
    found = checkpoint.locate(place / "checkpoints", "last")
    if found is None:
        raise InputError(place, "holds no checkpoint", "Start again in another folder.")
    return found


def _record(place: Path) -> dict[str, Any]:
    return checkpoint.read_state(_last(place))


def _export(
    job: PretrainJob, name: str, config: DINOv3ViTConfig, place: Path, folder: Path, pictures: Sequence[Pictures],
    seen: list[TrainedOn],
) -> None:  # fmt: skip
    """Write the teacher of a stage to `place/model` and `folder/model`. `seen` is filled when first needed."""
    recipe, record = job.recipe, _record(place)
    stored = checkpoint.read(_last(place), "model")
    state = {n.removeprefix(TEACHER): value for n, value in stored.items() if n.startswith(TEACHER)}
    teacher = build(copy.deepcopy(config), recipe.seed)
    checkpoint.copy_into(checkpoint.model_tensors(teacher), state, place)
    if not seen:
        seen.append(trained_on(pictures))
    about = {
        "name": recipe.name, "licence": _licence(job, pictures), "stage": name, "steps": record["step"],
        "metrics": record["metrics"], "recipe": asdict(recipe), "start_sha256": job.start.sha256 if job.start else "",
    }  # fmt: skip
    for target in (folder / MODEL, place / MODEL):  # the one that says "done" last
        save_folder(teacher, target, intensity=recipe.intensity, about=about)
        seen[0].save(target)


def trained_on(pictures: Sequence[Pictures]) -> TrainedOn:
    """What was seen, for checks of leakage; held-out pictures count."""
    hashes = [each.hashes() for each in pictures]
    origin = np.repeat(np.arange(len(hashes)), [len(found) for found in hashes]).astype(np.uint16)
    return TrainedOn(tuple(each.name for each in pictures), origin, np.concatenate(hashes))


def _licence(job: PretrainJob, pictures: Sequence[Pictures]) -> str:
    """Of weights that come from others' the duties add up."""
    own = licence_of_weights(pictures).text
    return f"{job.start.licence}; {own}" if job.start and job.start.licence else own

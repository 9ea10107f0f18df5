"""Run a recipe of MedDINOv3's segmenter on one dataset. What its run folder holds, besides what every run has:

recipe.json   the recipe, the data, what is kept of the start
splits/       who is in which part
model/        `segmenter.json`, `model.safetensors`, `trained_on.npz`: what `--model RUN/model` takes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import save_file

from lexitome.data.cache import open_cache
from lexitome.data.dataset import Dataset, Target
from lexitome.data.intensity import choose_view
from lexitome.data.licences import licence_of_weights
from lexitome.data.nnunet_plans import find_plans, read_plans
from lexitome.data.normalisation import Normalisation, Policy, fingerprint
from lexitome.data.patches import Layout, is_mirrored
from lexitome.data.shelves import CachedShelf, Shelf, open_slices
from lexitome.data.trained_on import TrainedOn, fingerprints
from lexitome.data.traits import traits_of
from lexitome.errors import InputError
from lexitome.inference.dinov3_card import WEIGHTS, Card
from lexitome.models import hub, writing
from lexitome.models.dinov3.backbone import Dinov3
from lexitome.models.dinov3.presets import PRESETS, build, config_of
from lexitome.models.dinov3.segmentation import DinoSegmenter, build_segmenter, empty_segmenter
from lexitome.models.dinov3.weights import GET, load_dinov3
from lexitome.models.foundation import FOUNDATION, RANDOM, locate
from lexitome.models.reading import hash_of
from lexitome.recipes.finetune import steps_for
from lexitome.recipes.meddinov3 import MedDinov3Recipe, with_steps
from lexitome.recipes.run import MODEL, load_job, save_job
from lexitome.training import checkpoint
from lexitome.training.dense import exclusive
from lexitome.training.engine import FitResult, Precision, fit
from lexitome.training.export import run_state
from lexitome.training.meddinov3 import SegmentationTask, score
from lexitome.training.pace import PRECISIONS, quicker
from lexitome.training.parallel import assemble
from lexitome.training.validation import spread

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrunkStart:
    """What is kept of the transformer that a run began with; its weights are in the checkpoints.

    Attributes:
        config: `DINOv3ViTConfig`.
        licence: of its weights, "" of random ones.
    """

    config: dict[str, Any]
    licence: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class MedDinov3Job:
    """A recipe and what it is run on. `start` is None before the run begins; `layout` and `normalisation` are what the
    recipe came to on these data."""

    recipe: MedDinov3Recipe
    data: tuple[str, ...]
    concept: str = ""
    unit_pattern: str | None = None
    start: TrunkStart | None = None
    layout: Layout | None = None
    normalisation: Normalisation | None = None
    kind: Literal["meddinov3"] = "meddinov3"

    def save(self, folder: Path) -> None:
        save_job(self, folder)

    @staticmethod
    def load(folder: Path) -> MedDinov3Job:
        """As `recipes.run.load_job`."""
        return load_job(MedDinov3Job, folder)


def check_start(recipe: MedDinov3Recipe) -> None:
    """
    Raises:
        InputError: the weights are not here (the message says where to get them), or a new network has no known size.
    """
    if recipe.is_new and recipe.start.removeprefix(RANDOM) not in PRESETS:
        names = ", ".join(RANDOM + name for name in PRESETS)
        raise InputError("--start", f"there is no {recipe.start!r}", f"Choose {names}, or name weights of DINOv3.")
    if recipe.is_new or Path(recipe.start).expanduser().exists():
        return
    if recipe.start not in FOUNDATION and not hub.is_named(recipe.start):
        known = ", ".join(name for name, model in FOUNDATION.items() if model.kind == "dinov3")
        remedy = f"Choose {known}, {RANDOM}mini, or name a folder or file of weights."
        raise InputError("--start", f"there is no model or folder {recipe.start!r}", remedy)
    locate(recipe.start, GET)


def the_one(datasets: Sequence[Dataset]) -> Dataset:
    """
    Raises:
        InputError: there are several: a network with fixed outputs learns the targets of one.
    """
    if len(datasets) != 1:
        names = ", ".join(dataset.name for dataset in datasets[:4])
        cause = f"it learns the targets of one dataset, and there are {len(datasets)} ({names})"
        raise InputError("lexitome train meddinov3", cause, "Name one with --data, and train another one beside it.")
    return datasets[0]


def planned(job: MedDinov3Job, dataset: Dataset) -> MedDinov3Job:
    """With the layout and the normalisation that the recipe comes to on this dataset; reads headers and, for the
    numbers of CT without plans, the training cases.

    Raises:
        InputError: nothing to train on, or plans that do not fit.
    """
    recipe = job.recipe
    training = [case for case in dataset.cases if case.split == "train"]
    if not training:
        raise InputError(dataset.root, "has no training part", "Add annotated images, three subjects at least.")
    if dataset.dims == 2:
        if recipe.slices > 1:
            raise InputError("decoder", f"stacked3d needs volumes, and {dataset.name} has pictures", "Choose another.")
        policy = "imagenet" if recipe.intensity == "auto" else recipe.intensity
        if policy not in ("imagenet", "zscore"):
            cause = f"{policy} needs Hounsfield units, and {dataset.name} has pictures"
            raise InputError("intensity", cause, "Choose imagenet or zscore, or give volumes.")
        return replace(job, layout=Layout(recipe.side), normalisation=Normalisation(policy, window=dataset.window))
    found = Path(recipe.plans) if recipe.plans else find_plans(dataset.root)
    plan = None if found is None else read_plans(found, recipe.configuration)
    spacing = recipe.spacing or (plan.at(recipe.side).spacing if plan else _usual_spacing(dataset, recipe.side))
    normalisation = plan.normalisation if plan and recipe.intensity == "auto" else _normalisation(recipe, dataset)
    return replace(job, layout=Layout(recipe.side, spacing, recipe.slices), normalisation=normalisation)


def _normalisation(recipe: MedDinov3Recipe, dataset: Dataset) -> Normalisation:
    usual: Policy = "nnunet_ct" if dataset.family == "ct" else "zscore"
    policy: Policy = usual if recipe.intensity == "auto" else recipe.intensity
    if policy == "nnunet_ct":
        return Normalisation(policy, fingerprint([case for case in dataset.cases if case.split == "train"]))
    return Normalisation(policy, window=dataset.window if policy == "imagenet" else None)


def _usual_spacing(dataset: Dataset, side: int) -> tuple[float, float]:
    """At which a patch shows a slice of median extent, the longer side of it; of training cases."""
    extents = []
    for case in dataset.cases:
        if case.split == "train":
            volume = case.content.volume()
            view, mm = choose_view(volume), volume.spacing[::-1]
            extents.append(max(volume.grid[axis] * mm[axis] for axis in view.order[1:]))
    spacing = float(np.median(extents)) / side
    return spacing, spacing


def open_shelf(job: MedDinov3Job, dataset: Dataset, cache: Path, say: Say) -> Shelf:
    """Decode what is not decoded yet."""
    assert job.layout is not None and job.normalisation is not None
    traits = traits_of(dataset)
    if job.layout.spacing is None:
        say(f"decoding     {dataset.name}")
        return CachedShelf(open_cache(dataset, cache, traits=traits, side=job.recipe.decoded or None))
    return open_slices(dataset, cache, job.normalisation, traits, say)


def task_of(job: MedDinov3Job, shelf: Shelf) -> SegmentationTask:
    """
    Raises:
        InputError: classes shall be exclusive, and the targets overlap or are not known everywhere.
    """
    recipe = job.recipe
    assert job.layout is not None and job.normalisation is not None
    targets = tuple(target for target in shelf.dataset.targets if not target.derived)
    train, val = ([i for i, row in enumerate(shelf.rows) if row.split == part] for part in ("train", "val"))
    possible = exclusive(targets, {label for i in train for label in shelf.rows[i].unknown})
    if recipe.classes == "exclusive" and not possible:
        cause = "the targets overlap, or some image leaves one out"
        raise InputError("classes", f"cannot be exclusive: {cause}", "Choose --set classes=regions.")
    return SegmentationTask(
        shelf, job.normalisation, job.layout, recipe.augmentation, targets, possible and recipe.classes != "regions",
        recipe.patches, recipe.foreground, tuple(train), _chosen(shelf, val, recipe.validated, targets), recipe.seed,
    )  # fmt: skip


def _chosen(shelf: Shelf, rows: Sequence[int], count: int, targets: Sequence[Target]) -> tuple[int, ...]:
    """Slices to validate on, of those that show something."""
    codes = {code for target in targets for code in target.codes}
    return tuple(spread([i for i in rows if codes & set(shelf.rows[i].present)], count))


def begin(job: MedDinov3Job, task: SegmentationTask) -> tuple[MedDinov3Job, DinoSegmenter]:
    """The network with the weights it starts from, and the job that remembers them.

    Raises:
        InputError: see `check_start`; or there are no such blocks to tap.
    """
    recipe = job.recipe
    check_start(recipe)
    if recipe.is_new:
        name = next(preset for preset in PRESETS if recipe.start == RANDOM + preset)
        trunk, start = build(name, recipe.seed), TrunkStart(config_of(name).to_dict())
    else:
        loaded = load_dinov3(recipe.start)
        trunk, start = loaded.net, TrunkStart(loaded.net.config.to_dict(), loaded.licence, loaded.sha256)
    try:
        net = build_segmenter(trunk, recipe.decoder, task.outputs, recipe.taps, seed=recipe.seed)
    except ValueError as error:
        raise InputError("taps", str(error), "Leave it out, or count from 0; -1 is the last block.") from error
    return replace(job, start=start), settled(net, recipe)


def again(job: MedDinov3Job, task: SegmentationTask) -> DinoSegmenter:
    """The network of a run that goes on: all weights are those of its checkpoint."""
    assert job.start is not None
    net = empty_segmenter(job.start.config, job.recipe.decoder, task.outputs, job.recipe.taps)
    return settled(net, job.recipe)


def settled(net: DinoSegmenter, recipe: MedDinov3Recipe) -> DinoSegmenter:
    """Ready to be trained by the recipe."""
    trunk: Dinov3 = net.trunk.augment()
    if recipe.frozen:
        trunk.freeze()
    elif recipe.drop_path:
        trunk.regularise(recipe.drop_path)
    return net


def timed(
    job: MedDinov3Job, task: SegmentationTask, minutes: float, tried: Sequence[Precision] = PRECISIONS
) -> MedDinov3Job:
    """The job with as many steps as fit into the time on this machine, in the quicker of the precisions. Every process
    must take those of the first (`run.agree`)."""
    assert job.start is not None
    precision, seconds = quicker(lambda: again(job, task), task, job.recipe.run, tried)
    return replace(job, recipe=with_steps(job.recipe, steps_for(minutes, seconds), precision))


def train(job: MedDinov3Job, task: SegmentationTask, net: DinoSegmenter, folder: Path, *, resume: bool) -> FitResult:
    """Train to the end of the recipe; the result is in the checkpoints."""
    recipe = job.recipe
    if not resume:
        assemble().on_main(lambda: _keep_pictures(recipe, folder))
    deciding = {
        "dataset": task.shelf.dataset.name, "layout": asdict(task.layout), "intensity": asdict(task.normalisation),
        "recipe": asdict(replace(recipe, run=None)),  # type: ignore[arg-type]
    }  # fmt: skip
    return fit(net, task, recipe.applied, recipe.run, folder, resume=resume, recipe=deciding)


def _keep_pictures(recipe: MedDinov3Recipe, folder: Path) -> None:
    """Write down which pictures the transformer was pretrained on, if it says: it may be gone when the run ends."""
    pictures = TrainedOn.of_model(Path(recipe.start)) if Path(recipe.start).is_dir() else None
    if pictures is not None:
        pictures.save(folder)


def export(job: MedDinov3Job, task: SegmentationTask, folder: Path) -> dict[str, float]:
    """Write `folder/model` from the best checkpoint; returns the scores of the test part."""
    net, state, dataset = again(job, task), run_state(folder), task.shelf.dataset
    found = checkpoint.locate(folder / "checkpoints", "best") or checkpoint.locate(folder / "checkpoints", "last")
    assert found is not None and job.start is not None
    checkpoint.load_weights(net, found)
    net.eval()
    rows = [i for i, row in enumerate(task.shelf.rows) if row.split == "test"]
    test = score(task, net, _chosen(task.shelf, rows, job.recipe.validated, task.targets))
    own = licence_of_weights([dataset])
    about = {
        "licence": "; ".join(filter(None, (job.start.licence, own.text))), "duties": own.duties,
        "research_only": own.research_only, "datasets": [dataset.name], "steps": state["step"],
        "recipe": asdict(job.recipe), "start_sha256": job.start.sha256,
        "metrics": {"validation": state["metrics"], "test": test},
    }  # fmt: skip
    assert job.normalisation is not None
    card = Card(
        name=job.recipe.name, trunk=job.start.config, decoder=job.recipe.decoder, taps=net.taps, targets=task.targets,
        exclusive=task.exclusive, normalisation=job.normalisation, side=task.layout.side, spacing=task.layout.spacing,
        depth=task.layout.depth, modality=dataset.modality, about=about,
        mirrored=is_mirrored(task.shelf, job.recipe.augmentation),
    )  # fmt: skip
    pictures, before = fingerprints([dataset]), TrainedOn.of_model(folder)
    write_model(card, net, pictures if before is None else pictures.merged(before), folder / MODEL)
    return test


def write_model(card: Card, net: DinoSegmenter, pictures: TrainedOn, folder: Path) -> None:
    """Whole or not at all; the card gets the hash of the weights."""
    with writing.replacing(folder) as temporary:
        temporary.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, temporary / WEIGHTS)
        pictures.save(temporary)
        replace(card, sha256=hash_of((temporary / WEIGHTS,))).save(temporary)

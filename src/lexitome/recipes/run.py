"""Run a recipe on data: read, cache, train, export. What a run folder holds:

recipe.json     the recipe, the data folders, the traits of the sets, what has to be remembered of the model that the
                run began with: everything `--resume` needs
run.lock        while it is trained: the number of the process
splits/         who is in which part, with the hash of every file
checkpoints/    last and best (training.checkpoint)
log.jsonl, progress.png, tensorboard/
model/          the exported model: what `lexitome segment --model RUN/model` reads
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from lexitome.data.batches import Batch, BatchSource
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.dataset import Dataset, Target
from lexitome.data.licences import permits_commercial_use
from lexitome.data.negatives import Stranger
from lexitome.data.sources.find import find_sets
from lexitome.data.splits import resume_splits, write_splits
from lexitome.data.trained_on import TrainedOn
from lexitome.data.traits import SetTraits, traits_of
from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.io.locks import Held, holding
from lexitome.models.catalog import TrainingSet, find_model
from lexitome.models.compact import CompactNet
from lexitome.models.compact_weights import Storage, load_folder
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.recipes.compact import IMAGENET, CompactRecipe
from lexitome.recipes.overrides import override
from lexitome.training.compact import CompactTask, build_compact, compact_loss
from lexitome.training.engine import FitResult, Precision, fit, moved, shares
from lexitome.training.export import Before, load_average, run_state, write_model
from lexitome.training.optim import checkpoint_activations
from lexitome.training.parallel import assemble
from lexitome.training.validation import validate_text_only

RECIPE = "recipe.json"
LOCK = "run.lock"
MODEL = "model"
TIMED_STEPS = 4
A = TypeVar("A")
J = TypeVar("J")


@dataclass(frozen=True)
class Start:
    """What a run needs of the model that it began with: its weights are in the checkpoints, the rest is here.

    Attributes:
        sha256: of the weights (`ModelCard.measure_sha256`); "" if they were not looked at.
        concepts: words and modality families, for `negatives.Stranger`.
        sets: what it was trained on, for the card.
    """

    sha256: str = ""
    concepts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    sets: tuple[TrainingSet, ...] = ()


@dataclass(frozen=True)
class Job:
    """A recipe and what it is run on."""

    recipe: CompactRecipe
    data: tuple[str, ...]
    concept: str = ""
    unit_pattern: str | None = None
    traits: dict[str, SetTraits] = field(default_factory=dict)
    """Of sets that are not listed in `data.traits`."""
    start: Start | None = None
    """Of `recipe.start`; None before the run begins."""

    def save(self, folder: Path) -> None:
        save_job(self, folder)

    @staticmethod
    def load(folder: Path) -> Job:
        """As `load_job`."""
        return load_job(Job, folder)


def save_job(job: Any, folder: Path) -> None:
    """Keep a job, a dataclass of any kind of recipe, in a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / RECIPE) as temporary:
        temporary.write_text(json.dumps(asdict(job), indent=1), encoding="utf-8")


def lengthened(job: J, settings: Sequence[str], folder: Path) -> J:
    """A job of any kind of recipe with the `run.steps` that `settings` ask for, kept in its run folder.

    Raises:
        InputError: they ask for something else, or for fewer steps.
    """
    if not settings:
        return job
    before = job.recipe  # type: ignore[attr-defined]
    after = override(before, settings)
    if replace(after, run=replace(after.run, steps=before.run.steps)) != before or after.run.steps < before.run.steps:
        cause = f"{' '.join(settings)} does not fit a run of {before.run.steps:,} steps that goes on"
        raise InputError("--set", cause, "Ask for more steps (--set run.steps=N), or begin anew in another folder.")
    longer: J = replace(job, recipe=after)  # type: ignore[type-var]
    save_job(longer, folder)
    return longer


def kind_of_run(folder: Path) -> str:
    """What `kind` says in the job of a run folder; "" where there is none, or no such word in it."""
    try:
        stored = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(stored.get("kind", "")) if isinstance(stored, dict) else ""


def load_job(kind: type[J], folder: Path, command: str = "lexitome train") -> J:
    """The job of a run folder. `command` is what writes such jobs.

    Raises:
        InputError: there is none, or it was written by another version.
    """
    path = folder / RECIPE
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        remedy = f"Name the folder of a run (-o of {command}), or begin one with --data."
        raise InputError(folder, "holds no run to continue", remedy) from error
    except (ValueError, ValidationError) as error:
        cause = f"is not a recipe of {command} of this version ({str(error).splitlines()[0]})"
        raise InputError(path, cause, "Start again in another folder.") from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, no other run trains in `folder`; of several processes the first holds it for all.

    Raises:
        InputError: another one does; on every rank.
    """
    with ExitStack() as held:
        assemble().on_main(lambda: held.enter_context(_alone(folder)))
        yield


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(holding(folder / LOCK))
        except Held as error:
            remedy = "Wait for it or stop it, or choose another folder with -o."
            raise InputError(folder, f"is being trained by {error.holder}", remedy) from error
        yield


def start_of(recipe: CompactRecipe) -> Start:
    """What is to be remembered of the model that a recipe starts with, as it is now; nothing of ImageNet weights.

    Raises:
        InputError: there is no such model.
    """
    if recipe.start == IMAGENET:
        return Start()
    card = find_model(recipe.start)
    concepts = tuple((c.words, c.families) for c in card.trained_concepts)
    return Start(card.measure_sha256(), concepts, card.sets)


def keep_pictures(recipe: CompactRecipe, folder: Path) -> None:
    """Write down which pictures the model of `start` was taught, if it says: it may be gone when the run ends."""
    pictures = None if recipe.start == IMAGENET else TrainedOn.of_model(find_model(recipe.start).files)
    if pictures is not None:
        pictures.save(folder)


def remembered(job: Job) -> Start:
    """What the run keeps of its start, whatever the model of that name is by now. Runs that began before it was kept
    have to take what there is, and do not know whose weights they had."""
    return replace(start_of(job.recipe), sha256="") if job.start is None else job.start


def changed_start(job: Job) -> str | None:
    """What has become of the model that a run began with, if that is no longer what it was."""
    if job.start is None or not job.start.sha256:
        return None
    try:
        now = find_model(job.recipe.start).measure_sha256()
    except (InputError, OSError):
        return "is not there any more"
    before = job.start.sha256
    return None if now == before else f"has other weights now (sha256 {now[:12]}, then {before[:12]})"


def find_datasets(job: Job) -> list[Dataset]:
    """Every dataset that the data folders are or hold.

    Raises:
        InputError: a folder cannot be read, two sets have one name, or licences leave nothing.
    """
    found = find_sets(job.data, concept=job.concept, unit_pattern=job.unit_pattern)
    if job.recipe.open_only:
        found = [dataset for dataset in found if permits_commercial_use(dataset)]
    if not found:
        remedy = "Train with --set open_only=false, if research use is enough."
        raise InputError(job.data[0], "no set here has a licence that permits commercial use", remedy)
    return found


def prepare_splits(datasets: Sequence[Dataset], folder: Path, *, resume: bool) -> list[Dataset]:
    """Store who is in which part; a resumed run takes what was stored, and stops if a file has changed since."""
    stored = []
    for dataset in datasets:
        path = folder / "splits" / f"{dataset.name}.json"
        if resume:
            stored.append(resume_splits(dataset, path))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_splits(dataset, path)
            stored.append(dataset)
    return stored


def open_source(job: Job, datasets: Sequence[Dataset], cache: Path, say: Callable[[str], None]) -> BatchSource:
    """Decode what is not decoded yet, and make the source of batches."""
    sets: list[CachedDataset] = []
    for number, dataset in enumerate(datasets, start=1):
        say(f"decoding     {dataset.name} ({number} of {len(datasets)})")
        sets.append(open_cache(dataset, cache, traits=job.traits.get(dataset.name) or traits_of(dataset)))
    recipe = job.recipe
    source = BatchSource(
        sets, seed=recipe.seed, queries=recipe.queries, negatives=recipe.negatives, strangers=_strangers(job)
    )
    if not any(source.rows):
        raise InputError(job.data[0], "no annotated picture is in the training part", "Annotate more, or split again.")
    return source


def _strangers(job: Job) -> list[Stranger]:
    return [Stranger(Target(words, (), (), ()), families) for words, families in remembered(job).concepts]


def build_model(recipe: CompactRecipe, source: BatchSource) -> CompactNet:
    """The network with the weights it starts from.

    Raises:
        InputError: there is no such start, it is another network, or one that could not be exported.
    """
    if recipe.model.object_queries:
        cause = "a model with object queries cannot be exported"
        raise InputError("model.object_queries", cause, "Leave it at 0; benchmarks/ablations.py trains such models.")
    if recipe.start == IMAGENET:
        return build_compact(recipe.model, source.phrase_vectors(), recipe.seed)
    torch.manual_seed(recipe.seed)  # of what the stored weights do not have
    files = find_model(recipe.start).files
    model = load_folder(files)
    if model.config != recipe.model:
        odd = [k for k, v in asdict(recipe.model).items() if getattr(model.config, k) != v]
        raise InputError(
            recipe.start, f"was built with another {odd[0]}", "Start from imagenet, or leave model.* alone."
        )
    return model.to(memory_format=torch.channels_last)


def empty_model(recipe: CompactRecipe) -> CompactNet:
    """The network of a run that is resumed: all weights are those of its checkpoint, nothing else is read."""
    backbone = EfficientNetLite(recipe.model.backbone, frozen_blocks=recipe.model.frozen_blocks)
    return CompactNet(recipe.model, backbone).to(memory_format=torch.channels_last)


def time_steps(
    recipe: CompactRecipe, source: BatchSource, model: CompactNet, precisions: Sequence[Precision]
) -> dict[Precision, float]:
    """Seconds of a training step in each precision, the mean of a few on a copy of the model, on the same pictures;
    in the parts and with the threads of the recipe, of the share that this process has of a step."""
    run, team = recipe.run, assemble()
    if run.threads:
        torch.set_num_threads(run.threads)
    task = CompactTask(source, recipe.sampling, recipe.objective, run.steps)
    trial = copy.deepcopy(model).to(team.device).train()
    checkpoint_activations(trial, run.recompute)
    drawing: list[float] = []
    computing: dict[Precision, list[float]] = {precision: [] for precision in precisions}
    for step in range(TIMED_STEPS):
        began = time.perf_counter()
        parts = [task.batch(step, part or range(1))
                 for part in shares(task.images(step), team.size, team.rank, run.accumulate)]  # fmt: skip
        drawing.append(time.perf_counter() - began)
        for precision in precisions:
            began = time.perf_counter()
            _compute(trial, task, [moved(part, team.device) for part in parts], precision)
            computing[precision].append(time.perf_counter() - began)
    # The first one warms up.
    return {p: statistics.mean(drawing[1:]) + statistics.mean(spent[1:]) for p, spent in computing.items()}


def _compute(model: CompactNet, task: CompactTask, parts: Sequence[Batch], precision: Precision) -> None:
    """Forward and backward; ends when the device has done it."""
    half = precision == "bf16"
    for part in parts:
        device = part.pictures.device
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            decoded = model(part.pictures, part.text, part.spatial)
        terms = compact_loss(decoded, part, task.counts(part).to(device), task.objective)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        loss.item()
    model.zero_grad(set_to_none=True)


def agree(value: A) -> A:
    """What the first process has, where `torchrun` has started several."""
    agreed: A = assemble().agreed(value)
    return agreed


def train(job: Job, source: BatchSource, model: CompactNet, folder: Path, *, resume: bool) -> FitResult:
    """Train to the end of the recipe. The result is in the checkpoints: `model` itself may be on another device or
    sliced over processes afterwards."""
    recipe = job.recipe
    task = CompactTask(source, recipe.sampling, recipe.objective, recipe.run.steps)
    deciding = {"sets": sorted(s.dataset.name for s in source.sets), "recipe": asdict(replace(recipe, run=None))}  # type: ignore[arg-type]
    return fit(model, task, recipe.optim, recipe.run, folder, resume=resume, recipe=deciding)


def export(
    job: Job, source: BatchSource, folder: Path, out: Path | None = None, storage: Storage = "fp16"
) -> dict[str, Any]:
    """Write the model of the run in `folder`, by default to `folder/model`, and return its card.

    Weights, their step and their validation are those of the best checkpoint. The test split is scored for the card.
    """
    recipe, state, start = job.recipe, run_state(folder), remembered(job)
    model = load_average(folder, recipe.model)
    metrics = {"validation": state["metrics"], "test": validate_text_only(model, source, split="test")}
    origin = {"start": recipe.start, **({"start_sha256": start.sha256} if start.sha256 else {})}
    return write_model(
        model,
        source.sets,
        out or folder / MODEL,
        name=recipe.name,
        provenance={"recipe": asdict(recipe), "steps": state["step"], **origin},
        metrics=metrics,
        storage=storage,
        before=Before(start.sets, TrainedOn.of_model(folder)),
    )

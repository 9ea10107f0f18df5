"""Run a recipe on data: read, cache, train, export. What a run folder holds:

recipe.json     the recipe, the data folders, the traits of the sets: everything `--resume` needs
splits/         who is in which part, with the hash of every file
checkpoints/    last and best (training.checkpoint)
log.jsonl, progress.png, tensorboard/
model/          the exported model: what `lexitome segment --model RUN/model` reads
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from lexitome.data.batches import BatchSource
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.dataset import Dataset, Target
from lexitome.data.licences import permits_commercial_use
from lexitome.data.negatives import Stranger
from lexitome.data.sources import load_any
from lexitome.data.splits import resume_splits, write_splits
from lexitome.data.traits import SetTraits, traits_of
from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.models.catalog import find_model
from lexitome.models.compact import CompactNet
from lexitome.models.compact_weights import Storage, load_folder
from lexitome.recipes.compact import IMAGENET, CompactRecipe
from lexitome.training.compact import CompactTask, build_compact
from lexitome.training.engine import FitResult, fit
from lexitome.training.export import load_average, run_state, write_model
from lexitome.training.parallel import assemble
from lexitome.training.validation import validate_text_only

RECIPE = "recipe.json"
MODEL = "model"
TIMED_STEPS = 4


@dataclass(frozen=True)
class Job:
    """A recipe and what it is run on."""

    recipe: CompactRecipe
    data: tuple[str, ...]
    concept: str = ""
    unit_pattern: str | None = None
    traits: dict[str, SetTraits] = field(default_factory=dict)
    """Of sets that are not listed in `data.traits`."""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / RECIPE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> Job:
        """The job of a run folder.

        Raises:
            InputError: there is none, or it was written by another version.
        """
        path = folder / RECIPE
        try:
            return TypeAdapter(Job).validate_python(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            remedy = "Name the folder of a run (-o of lexitome train), or begin one with --data."
            raise InputError(folder, "holds no run to continue", remedy) from error
        except (ValueError, ValidationError) as error:
            cause = f"is not a recipe of this version ({str(error).splitlines()[0]})"
            raise InputError(path, cause, "Start again in another folder.") from error


def find_datasets(job: Job, seed: int = 0) -> list[Dataset]:
    """Every dataset that the data folders are or hold.

    Raises:
        InputError: a folder cannot be read, two sets have one name, or licences leave nothing.
    """
    found: list[Dataset] = []
    for text in job.data:
        root = Path(text)
        inside = sorted(p.parent for p in root.glob("*/dataset.json")) if not (root / "dataset.json").exists() else []
        for place in inside or [root]:
            found.append(load_any(place, seed=seed, concept=job.concept, unit_pattern=job.unit_pattern))
    names = [dataset.name for dataset in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(job.data[0], f"two datasets are called {twice[0]!r}", "Rename one of the folders.")
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
        sets, seed=recipe.seed, queries=recipe.queries, negatives=recipe.negatives, strangers=_strangers(recipe.start)
    )
    if not any(source.rows):
        raise InputError(job.data[0], "no annotated picture is in the training part", "Annotate more, or split again.")
    return source


def _strangers(start: str) -> list[Stranger]:
    if start == IMAGENET:
        return []
    concepts = find_model(start).trained_concepts
    return [Stranger(Target(c.words, (), (), ()), c.families) for c in concepts]


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


def time_step(model: CompactNet, task: CompactTask) -> float:
    """Seconds of a training step on this machine, the mean of a few on a copy of the model."""
    trial = copy.deepcopy(model)
    spent = []
    for step in range(TIMED_STEPS):
        began = time.perf_counter()
        batch = task.batch(step, range(task.images(step)))
        with torch.autocast("cpu", torch.bfloat16):
            terms = task.loss(trial, batch, task.counts(batch))
        torch.stack(list(terms.values())).sum().backward()
        spent.append(time.perf_counter() - began)
    return sum(spent[1:]) / (len(spent) - 1)  # the first one warms up


def agree(job: Job) -> Job:
    """The job of the first process, where `torchrun` has started several."""
    return assemble().agreed(job) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else job


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
    recipe, state = job.recipe, run_state(folder)
    model = load_average(folder, recipe.model)
    metrics = {"validation": state["metrics"], "test": validate_text_only(model, source, split="test")}
    return write_model(
        model,
        source.sets,
        out or folder / MODEL,
        name=recipe.name,
        provenance={"recipe": asdict(recipe), "steps": state["step"], "start": recipe.start},
        metrics=metrics,
        storage=storage,
        start=None if recipe.start == IMAGENET else find_model(recipe.start),
    )

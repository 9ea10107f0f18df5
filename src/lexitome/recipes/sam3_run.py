"""Run a recipe of SAM3 on data. What its run folder holds, besides what every run has (`recipes.run`):

start/      what the run began with: configuration and tokenizer; of a new network also its weights, so that
            `--model RUN/start` is the model before it learned anything
adapter/    with ``tune="lora"``: what was learned, a few megabytes (`models.sam3.lora`)
model/      the model: a folder of transformers with `lexitome.json`; adapters are merged
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import Sam3Config

from lexitome.concepts import Vocabulary
from lexitome.data.batches import TEMPLATES, BatchSource
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.dataset import Dataset
from lexitome.data.licences import licence_of_weights
from lexitome.data.trained_on import TrainedOn, fingerprints
from lexitome.data.traits import traits_of
from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.models.foundation import RANDOM, SAM_LICENCE, locate
from lexitome.models.sam3 import lora
from lexitome.models.sam3.network import Sam3Net
from lexitome.models.sam3.presets import Preset, build, config_of, set_side
from lexitome.models.sam3.settings import Settings
from lexitome.models.sam3.tokens import GET, Tokens
from lexitome.models.sam3.weights import load_sam3, save_folder
from lexitome.recipes.run import MODEL, load_job, save_job
from lexitome.recipes.sam3 import Sam3Recipe
from lexitome.training import checkpoint
from lexitome.training.engine import FitResult, fit
from lexitome.training.export import run_state
from lexitome.training.parallel import assemble
from lexitome.training.sam3 import Sam3Task, score_text_only

BEFORE, ADAPTER, CONFIG = "start", "adapter", "config.json"
PRESETS: tuple[Preset, ...] = ("full", "small", "tiny")


@dataclass(frozen=True)
class Sam3Start:
    """What is kept of the weights that a run began with; they are in its checkpoints."""

    settings: Settings
    licence: str
    sha256: str = ""


@dataclass(frozen=True)
class Sam3Job:
    """A recipe and what it is run on."""

    recipe: Sam3Recipe
    data: tuple[str, ...]
    concept: str = ""
    unit_pattern: str | None = None
    start: Sam3Start | None = None
    """None before the run begins."""
    kind: Literal["sam3"] = "sam3"

    def save(self, folder: Path) -> None:
        save_job(self, folder)

    @staticmethod
    def load(folder: Path) -> Sam3Job:
        """As `recipes.run.load_job`."""
        return load_job(Sam3Job, folder)


@dataclass(frozen=True, eq=False)
class Ready:
    """A network as the run trains it, and what reads its words."""

    net: Sam3Net
    tokens: Tokens
    start: Sam3Start


def check_start(recipe: Sam3Recipe) -> None:
    """
    Raises:
        InputError: the weights are not here (the message says where to get them), or a new network has no known size.
    """
    if not recipe.is_new:
        locate(recipe.start)
    elif recipe.start.removeprefix(RANDOM) not in PRESETS:
        cause = f"there is no {recipe.start!r}"
        raise InputError("--start", cause, f"Choose {', '.join(RANDOM + name for name in PRESETS)}, or name weights.")


def open_source(job: Sam3Job, datasets: Sequence[Dataset], cache: Path, say: Callable[[str], None]) -> BatchSource:
    """Decode what is not decoded yet, and make the source of batches.

    Raises:
        InputError: nothing is annotated.
    """
    sets: list[CachedDataset] = []
    for number, dataset in enumerate(datasets, start=1):
        say(f"decoding     {dataset.name} ({number} of {len(datasets)})")
        sets.append(open_cache(dataset, cache, traits=traits_of(dataset)))
    recipe = job.recipe
    source = BatchSource(
        sets, seed=recipe.seed, queries=recipe.queries, negatives=recipe.negatives, lone_slice=1.0, places=False
    )
    if not any(source.rows):
        raise InputError(job.data[0], "no annotated picture is in the training part", "Annotate more, or split again.")
    return source


def begin(recipe: Sam3Recipe, source: BatchSource, folder: Path) -> Ready:
    """The network with the weights it starts from; what `resume` needs of it is written into `folder`.

    Raises:
        InputError: the weights are missing or of another model, or come without a tokenizer.
    """
    check_start(recipe)
    ready = _new(recipe, source) if recipe.is_new else _loaded(recipe)
    assemble().on_main(lambda: _keep(recipe, ready, folder))
    _adapted(ready.net, recipe)
    return ready


def _keep(recipe: Sam3Recipe, ready: Ready, folder: Path) -> None:
    """Write what `resume` and `export` need of the start, which may be gone by then."""
    place = folder / BEFORE
    if recipe.is_new:
        about = {"name": f"{recipe.name} before training", "licence": ready.start.licence}
        save_folder(ready.net.model, place, ready.start.settings.to_json(), ready.tokens, about=about)
        return
    place.mkdir(parents=True, exist_ok=True)
    ready.tokens.save(place)
    with replacing(place / CONFIG) as temporary:
        temporary.write_text(ready.net.model.config.to_json_string(use_diff=False), encoding="utf-8")
    pictures = TrainedOn.of_model(Path(recipe.start)) if Path(recipe.start).is_dir() else None
    if pictures is not None:
        pictures.save(folder)


def resume(job: Sam3Job, folder: Path) -> Ready:
    """The network of a run that goes on: all weights are those of its checkpoint.

    Raises:
        InputError: the folder is incomplete.
    """
    place = folder / BEFORE
    try:
        config = Sam3Config.from_dict(json.loads((place / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(place / CONFIG, f"cannot be read ({error})", "Start again in another folder.") from error
    assert job.start is not None
    net = build(config, job.recipe.seed, geometry_cls=job.start.settings.geometry_cls)
    _adapted(net, job.recipe)
    return Ready(net, Tokens.load(place), job.start)


def _new(recipe: Sam3Recipe, source: BatchSource) -> Ready:
    size = next(name for name in PRESETS if recipe.start == RANDOM + name)
    words = [t.format(p, s.dataset.modality) for s in source.sets for p in source.phrases() for t in TEMPLATES]
    tokens = Tokens.learn(words, recipe.vocabulary)
    net = build(config_of(size, side=recipe.sampling.side or None, vocabulary=tokens.size), recipe.seed)
    licence = licence_of_weights([cached.dataset for cached in source.sets]).text
    return Ready(net, tokens, Sam3Start(Settings(), licence))


def _loaded(recipe: Sam3Recipe) -> Ready:
    loaded = load_sam3(recipe.start)
    if loaded.tokens_folder is None:
        raise InputError(recipe.start, "comes without a tokenizer", GET)
    settings = Settings.read(loaded.settings)
    net = Sam3Net(loaded.net, geometry_cls=settings.geometry_cls)
    if recipe.sampling.side and recipe.sampling.side != net.side:
        set_side(net, recipe.sampling.side)
    start = Sam3Start(settings, loaded.licence, loaded.sha256)
    return Ready(net, Tokens.load(loaded.tokens_folder), start)


def _adapted(net: Sam3Net, recipe: Sam3Recipe) -> None:
    if recipe.tune == "lora":
        lora.add(net.model, recipe.lora)


def task_of(job: Sam3Job, source: BatchSource, ready: Ready) -> Sam3Task:
    """The task, at the side of the network."""
    sampling = replace(job.recipe.sampling, side=ready.net.side)
    return Sam3Task(source, ready.tokens, sampling, job.recipe.wanted, job.recipe.validated)


def train(job: Sam3Job, source: BatchSource, ready: Ready, folder: Path, *, again: bool) -> FitResult:
    """Train to the end of the recipe; the result is in the checkpoints. `again`: continue the run that is there."""
    recipe, task = job.recipe, task_of(job, source, ready)
    deciding = {"sets": sorted(s.dataset.name for s in source.sets), "recipe": asdict(replace(recipe, run=None))}  # type: ignore[arg-type]
    return fit(ready.net, task, recipe.applied, recipe.run, folder, resume=again, recipe=deciding)


def export(job: Sam3Job, source: BatchSource, folder: Path) -> dict[str, float]:
    """Write `folder/model` (and `folder/adapter`) from the best checkpoint; returns the scores of the test part."""
    ready, state = resume(job, folder), run_state(folder)
    found = checkpoint.locate(folder / "checkpoints", "best") or checkpoint.locate(folder / "checkpoints", "last")
    assert found is not None
    checkpoint.load_weights(ready.net, found)
    ready.net.eval()
    if job.recipe.tune == "lora":
        (folder / ADAPTER).mkdir(exist_ok=True)
        lora.save(ready.net.model, folder / ADAPTER)
        lora.merge(ready.net.model)
    test = score_text_only(ready.net, source.sets, ready.tokens, ready.net.side, job.recipe.validated, "test")
    about = {
        "name": job.recipe.name, "licence": _licence(job, source), "steps": state["step"],
        "recipe": asdict(job.recipe), "start_sha256": ready.start.sha256,
        "metrics": {"validation": state["metrics"], "test": test},
    }  # fmt: skip
    save_folder(ready.net.model, folder / MODEL, _settings(job, ready, source), ready.tokens, about=about)
    pictures, before = fingerprints([cached.dataset for cached in source.sets]), TrainedOn.of_model(folder)
    (pictures if before is None else pictures.merged(before)).save(folder / MODEL)
    return test


def _licence(job: Sam3Job, source: BatchSource) -> str:
    """Of weights that come from others' the duties add up."""
    own = licence_of_weights([cached.dataset for cached in source.sets]).text
    start = job.start.licence if job.start else SAM_LICENCE
    return own if job.recipe.is_new else f"{start}; {own}"


def _settings(job: Sam3Job, ready: Ready, source: BatchSource) -> dict[str, Any]:
    """How the model is asked: in the windows it was taught and, if it knows no other, in the words it was taught."""
    before = ready.start.settings
    windows, trained = dict(before.windows), dict(before.trained)
    vocabulary = Vocabulary.load()
    for cached in source.sets:
        dataset = cached.dataset
        for target in dataset.targets:
            if dataset.window or dataset.applied_window:
                windows.setdefault(target.name, dataset.window or dataset.applied_window)  # type: ignore[arg-type]
            if job.recipe.is_new or trained:
                concept = vocabulary.resolve(target.name, dataset.modality).concept
                trained.setdefault(concept.name if concept else target.name, target.name)
    sets = dict.fromkeys((*before.trained_on, *(cached.dataset.name for cached in source.sets)))
    return replace(before, windows=windows, trained=trained, trained_on=tuple(sets)).to_json()

"""`train`: teach a model a user's own data, or run a recipe."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lexitome.cli import train_meddinov3, train_sam3
from lexitome.cli.console import OK
from lexitome.cli.options import Debug
from lexitome.cli.training_extra import CACHE, need_packages
from lexitome.errors import InputError

if TYPE_CHECKING:
    from lexitome.data.batches import BatchSource
    from lexitome.data.dataset import Dataset
    from lexitome.models.compact import CompactNet
    from lexitome.recipes.run import Job

UNET = "unet"
COMPACT = ("compact", "compact-open")
"""Keys of `recipes.compact.RECIPES`."""
MINUTES = 30.0
"""Of training, where nobody says how many and the recipe does not either."""
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        min=0.5,
        show_default=f"{MINUTES:g}",
        help="Time to spend on a planned recipe, unet or meddinov3-mini; more is better. For meddinov3 in place of its "
        "published number of steps.",
    ),
]

app = typer.Typer()


@dataclass(frozen=True)
class Request:
    """What was typed that decides the job. `minutes` is None where none were: published recipes have lengths."""

    recipe: str | None
    data: tuple[Path, ...]
    start: str | None
    concept: str
    unit_pattern: str | None
    settings: tuple[str, ...]
    minutes: float | None

    @property
    def time(self) -> float:
        """Minutes, typed or usual."""
        return MINUTES if self.minutes is None else self.minutes


@app.command("train")
def train(  # noqa: PLR0913 - the signature is the command line
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="compact, compact-open, unet (a MONAI U-Net for each set), sam3, medical-sam3, small-sam3 (a small "
            "SAM3 from random weights), meddinov3 or meddinov3-mini (DINOv3 with a decoder for the targets of one set; "
            "mini for a CPU); by default planned.",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="DIR", help="An annotated set or a folder of sets; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.")] = Path("runs/train"),
    minutes: Minutes = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="MODEL",
            help="Model to teach on: a name, a folder, or imagenet; else compact. "
            "For recipes of SAM3 weights of SAM3, or random:small; of MedDINOv3 those of DINOv3, or random:mini.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable.")
    ] = None,
    concept: Annotated[
        str, typer.Option("--concept", metavar="NAME", help="What the masks show, if nothing says it.")
    ] = "",
    unit_pattern: Annotated[
        str | None, typer.Option("--unit-pattern", metavar="REGEX", help="The subject within the name of an image.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Decoded pictures; by default RUN/decoded.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in RUN; with --set run.steps=N make it longer.")
    ] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Say what would be trained and why, and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Teach a model your own annotated images.

    Without a RECIPE, values are chosen from the data and the machine, and the reasons printed. The result is used with
    `lexitome segment -i IMAGE -o OUT -t WORDS --model RUN/model`. Needs the extra lexitome[train].
    """
    need_packages("train")
    place = cache or out / CACHE
    if resume:
        if recipe or data or start or concept or unit_pattern or plan_only:
            remedy = "Name only -o RUN (and --cache, or --set run.steps=N for more), or begin anew in another folder."
            raise InputError("lexitome train", "--resume takes data and settings from the run", remedy)
        _continue(out, place, settings or [])
    else:
        asked = Request(recipe, tuple(data or ()), _start(start), concept, unit_pattern, tuple(settings or ()), minutes)
        _begin(asked, out, place, plan_only=plan_only)
    raise typer.Exit(OK)


def _begin(asked: Request, out: Path, cache: Path, *, plan_only: bool) -> None:
    from lexitome.recipes import run

    if not asked.data:
        raise InputError("lexitome train", "--data is missing", "Name the folder of your annotated images: --data DIR.")
    if asked.recipe == UNET:
        _train_specialists(asked, out, cache, plan_only=plan_only)
        return
    if asked.minutes is not None and asked.recipe in (*train_sam3.NAMES, *COMPACT):
        remedy = "Leave it out, or shorten the run: --set run.steps=1000 (of sam3 and medical-sam3 --set epochs=2)."
        raise InputError("--minutes", f"{asked.recipe} has a length of its own", remedy)
    if not plan_only:
        _refuse_old_run(out)
    if asked.recipe in train_sam3.NAMES:
        train_sam3.begin(asked, out, cache, _say, plan_only=plan_only)
        return
    if asked.recipe in train_meddinov3.NAMES:
        train_meddinov3.begin(asked, out, cache, _say, plan_only=plan_only)
        return
    job, datasets = _planned(asked) if asked.recipe is None else _listed(asked)
    if plan_only:
        if asked.recipe is None:
            _say_what_waits(job, asked)
        _say(json.dumps(asdict(job.recipe), indent=1))
        return
    job = replace(job, start=run.start_of(job.recipe))
    with run.claimed(out):
        _refuse_old_run(out)  # which another process may have begun during the look at the data
        datasets = run.prepare_splits(datasets, out, resume=False)
        source = run.open_source(job, datasets, cache, _say)
        model = run.build_model(job.recipe, source)
        if asked.recipe is None:
            job = run.agree(_timed(job, source, model, asked))  # each process has timed its own steps
        run.keep_pictures(job.recipe, out)
        job.save(out)
        _finish(job, source, model, out, resume=False)


def _train_specialists(asked: Request, out: Path, cache: Path, *, plan_only: bool) -> None:
    """U-Nets of their own; what is finished in `out` is kept, what was begun goes on."""
    from lexitome.data.sources.find import find_sets
    from lexitome.recipes.finetune import sets
    from lexitome.recipes.overrides import override
    from lexitome.recipes.run import claimed
    from lexitome.recipes.specialist import SpecialistRecipe, train_specialists

    recipe = override(SpecialistRecipe(), asked.settings)
    fixed = sets(asked.settings, "run.steps")
    datasets = find_sets(_paths(asked), concept=asked.concept, unit_pattern=asked.unit_pattern)
    if plan_only:
        _say(json.dumps(asdict(recipe), indent=1))
        return
    with claimed(out):
        train_specialists(datasets, out, cache, recipe, minutes=None if fixed else asked.time, say=_say)
    data = " ".join(shlex.quote(path) for path in _paths(asked))
    _say(f"next         lexitome evaluate --model {shlex.quote(str(out))} --data {data}")


def _refuse_old_run(out: Path) -> None:
    from lexitome.training import checkpoint

    if checkpoint.locate(out / "checkpoints", "last"):
        raise InputError(out, "holds a run already", "Continue it with --resume, or choose another folder with -o.")


def _continue(out: Path, cache: Path, settings: Sequence[str]) -> None:
    from lexitome.recipes import run
    from lexitome.recipes.machine import usable_cores

    others = {train_sam3.KIND: train_sam3.go_on, train_meddinov3.KIND: train_meddinov3.go_on}
    if (kind := run.kind_of_run(out)) in others:
        others[kind](out, cache, _say, settings)
        return
    if any(out.glob(f"*/{run.RECIPE}")) and not (out / run.RECIPE).is_file():
        raise InputError(out, "holds specialists", "Type the command that began them again: it continues them.")
    job = run.Job.load(out)
    with run.claimed(out):
        job = run.lengthened(job, settings, out)
        if changed := run.changed_start(job):
            _say(f"start        {job.recipe.start} {changed}: the run goes on with its own weights")
        threads = job.recipe.run.threads and min(job.recipe.run.threads, usable_cores())  # this may be another computer
        job = replace(job, recipe=replace(job.recipe, run=replace(job.recipe.run, threads=threads)))
        datasets = run.prepare_splits(run.find_datasets(job), out, resume=True)
        source = run.open_source(job, datasets, cache, _say)
        _finish(job, source, run.empty_model(job.recipe), out, resume=True)


def _listed(asked: Request) -> tuple[Job, list[Dataset]]:
    """A recipe by its name, with what --set changes."""
    from lexitome.recipes import run
    from lexitome.recipes.compact import RECIPES
    from lexitome.recipes.overrides import override

    if asked.recipe not in RECIPES:
        names = ", ".join((*RECIPES, UNET, *train_sam3.NAMES, *train_meddinov3.NAMES))
        remedy = f"Choose from {names}, or leave it out and let one be planned from --data."
        raise InputError("lexitome train", f"there is no recipe {asked.recipe!r}", remedy)
    recipe = RECIPES[asked.recipe]()
    recipe = override(replace(recipe, start=asked.start or recipe.start), asked.settings)
    job = run.Job(recipe, _paths(asked), asked.concept, asked.unit_pattern)
    return job, run.find_datasets(job)


def _planned(asked: Request) -> tuple[Job, list[Dataset]]:
    """A recipe from a look at the data and the machine. What only the clock tells waits until a step can be timed."""
    from lexitome.recipes import run
    from lexitome.recipes.compact import CompactRecipe
    from lexitome.recipes.finetune import plan_finetune
    from lexitome.recipes.machine import this_machine
    from lexitome.recipes.overrides import override

    tried = override(CompactRecipe(""), asked.settings)  # a typing error shows before the data are read
    job = run.Job(tried, _paths(asked), asked.concept, asked.unit_pattern)
    datasets = run.find_datasets(job)
    name = "-".join(d.name for d in datasets[:3])
    plan = plan_finetune(datasets, asked.start or "compact", name, this_machine(), asked.settings)
    plan = run.agree(plan)  # each process has asked how much memory is free
    for line in plan.reasons:
        _say(line)
    return replace(job, recipe=plan.recipe, traits=plan.traits), datasets


def _timed(job: Job, source: BatchSource, model: CompactNet, asked: Request) -> Job:
    """The job in the quicker precision, if the device does not decide, and with as many steps as fit into the time; or
    as --set says. What depends on their number follows."""
    from lexitome.recipes import run
    from lexitome.recipes.finetune import BOTH, precision_for, sets, steps_for, with_steps
    from lexitome.recipes.overrides import override

    recipe = job.recipe
    open_precision = _precision_is_open(job, asked)
    if open_precision or not sets(asked.settings, "run.steps"):
        tried = BOTH if open_precision else (recipe.run.precision,)
        seconds = run.time_steps(recipe, source, model, tried)
        if open_precision:
            precision, reason = precision_for(seconds)
            _say(reason)
            recipe = replace(recipe, run=replace(recipe.run, precision=precision))
    if not sets(asked.settings, "run.steps"):
        speed = seconds[recipe.run.precision]
        recipe = with_steps(recipe, steps_for(asked.time, speed))
        _say(f"steps        {recipe.run.steps}: {asked.time:g} minutes at {speed:.2g} s a step, measured")
    else:
        recipe = with_steps(recipe, recipe.run.steps)
    return replace(job, recipe=override(recipe, asked.settings))


def _precision_is_open(job: Job, asked: Request) -> bool:
    from lexitome.recipes.finetune import sets
    from lexitome.training.parallel import assemble

    return assemble().device.type == "cpu" and not sets(asked.settings, "run.precision")


def _say_what_waits(job: Job, asked: Request) -> None:
    """The lines of a plan that need a step to be timed."""
    from lexitome.recipes.finetune import sets

    if _precision_is_open(job, asked):
        _say("precision    the quicker of bf16 and fp32: timed when training begins")
    if not sets(asked.settings, "run.steps"):
        _say(f"steps        as many as fit into {asked.time:g} minutes: timed when training begins")


def _finish(job: Job, source: BatchSource, model: CompactNet, out: Path, *, resume: bool) -> None:
    from lexitome.recipes import run

    run.train(job, source, model, out, resume=resume)
    if int(os.environ.get("RANK", "0")) == 0:
        _report(run.export(job, source, out), source, out)


def _report(card: dict, source: BatchSource, out: Path) -> None:
    test = ", ".join(f"{name} {100 * value:.1f}" for name, value in card["metrics"]["test"].items())
    _say(f"test part    {test or 'has no pictures'}: from words alone, nothing else given")
    words, model = (shlex.quote(text) for text in (source.sets[0].dataset.targets[0].name, str(out / "model")))
    _say(f"next         lexitome segment -i IMAGE -o OUT -t {words} --model {model}")


def _start(typed: str | None) -> str | None:
    """A folder or file as --resume will find it from anywhere."""
    from lexitome.models.catalog import CATALOG
    from lexitome.recipes.compact import IMAGENET

    is_path = typed is not None and typed not in (*CATALOG, IMAGENET) and Path(typed).exists()
    return str(Path(typed).resolve()) if typed is not None and is_path else typed


def _paths(asked: Request) -> tuple[str, ...]:
    return tuple(str(path.resolve()) for path in asked.data)


def _say(line: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, flush=True)

"""`pretrain`: teach an encoder on pictures without labels."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lexitome.cli.console import OK
from lexitome.cli.options import Debug
from lexitome.cli.training_extra import CACHE, need_packages
from lexitome.errors import InputError

if TYPE_CHECKING:
    from lexitome.recipes.pretrain import PretrainRecipe
    from lexitome.recipes.pretrain_run import PretrainJob

app = typer.Typer()


Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Images, NIfTI or DICOM volumes in folders, or annotated sets (labels unused); repeatable.",
    ),
]
Minutes = Annotated[
    float | None, typer.Option("--minutes", min=0.5, help="Time to spend: steps of all stages are scaled to fit.")
]
Start = Annotated[
    str | None,
    typer.Option(
        "--start",
        metavar="MODEL",
        help="Weights of DINOv3 to go on from (a name, folder or file), or random:s, random:b, random:l, ...",
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable.")
]
Cache = Annotated[Path | None, typer.Option("--cache", metavar="DIR", help="Decoded pictures; by default RUN/decoded.")]


@app.command("pretrain")
def pretrain(  # noqa: PLR0913 - the signature is the command line
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="[RECIPE]",
            help="mini (5.5 M parameters, for a CPU), dinov3, dinov3-in1k or meddinov3 (CT in Hounsfield units).",
        ),
    ] = "mini",
    data: Data = None,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.")] = Path(
        "runs/pretrain"
    ),
    minutes: Minutes = None,
    start: Start = None,
    settings: Settings = None,
    cache: Cache = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in RUN.")] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Print the recipe with all its values, and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Teach a DINOv3 encoder on your own images, without labels.

    Three stages: self-distillation, Gram anchoring, high resolution. RUN/model can be used wherever DINOv3 can, such as
    `lexitome probe`. Validation needs no labels: "rank" falls and "alike" rises to 1 if features collapse. Needs the
    extra lexitome[train].
    """
    need_packages("pretrain")
    place = cache or out / CACHE
    if resume and (data or start or settings or minutes or plan_only):
        remedy = "Name only -o RUN (and --cache), or choose another folder to begin anew."
        raise InputError("lexitome pretrain", "--resume takes data and settings from the run", remedy)
    if resume:
        _go_on(out, place)
    elif plan_only:
        print(json.dumps(asdict(_recipe(recipe, start, tuple(settings or ()))), indent=1))
    else:
        _begin(_recipe(recipe, start, tuple(settings or ())), tuple(data or ()), out, place, minutes)
    raise typer.Exit(OK)


def _recipe(name: str, start: str | None, settings: tuple[str, ...]) -> PretrainRecipe:
    from lexitome.recipes.overrides import override
    from lexitome.recipes.pretrain import RECIPES

    if name not in RECIPES:
        remedy = f"Choose from {', '.join(RECIPES)}."
        raise InputError("lexitome pretrain", f"there is no recipe {name!r}", remedy)
    recipe = RECIPES[name]()
    if start is not None:
        is_path = Path(start).exists()
        recipe = replace(recipe, start=str(Path(start).resolve()) if is_path else start)
    recipe = override(recipe, settings)
    recipe.check()
    return recipe


def _begin(recipe: PretrainRecipe, data: tuple[Path, ...], out: Path, cache: Path, minutes: float | None) -> None:
    from lexitome.recipes import pretrain_run, run
    from lexitome.recipes.pretrain_timing import fitted

    if not data:
        raise InputError("lexitome pretrain", "--data is missing", "Name the folder of your images: --data DIR.")
    with run.claimed(out):
        if (out / run.RECIPE).exists():
            raise InputError(out, "holds a run already", "Continue it with --resume, or choose another folder with -o.")
        job = pretrain_run.PretrainJob(recipe, tuple(str(path.resolve()) for path in data))
        pictures = pretrain_run.open_source(job, cache, _say)
        counts = sum(each.count() for each in pictures), sum(each.count(held_out=True) for each in pictures)
        _say(f"pictures     {counts[0]} to learn from, {counts[1]} held out")
        job, weights = pretrain_run.begin(job, out, _say)
        if minutes is not None:
            job = replace(job, recipe=fitted(job.recipe, pictures, out, minutes, _say))
        job.save(out)
        _report(job, pretrain_run.run_stages(job, pictures, out, _say, weights), out)


def _go_on(out: Path, cache: Path) -> None:
    from lexitome.recipes import pretrain_run, run

    job = pretrain_run.PretrainJob.load(out)
    with run.claimed(out):
        pictures = pretrain_run.open_source(job, cache, _say)
        first = next(iter(job.recipe.stages))
        weights = None
        if not (out / first / "checkpoints").exists():  # stopped before anything was saved
            job, weights = pretrain_run.begin(job, out, _say)
        _report(job, pretrain_run.run_stages(job, pictures, out, _say, weights), out)


def _report(job: PretrainJob, scores: dict[str, dict[str, float]], out: Path) -> None:
    for name, metrics in scores.items():
        _say(f"{name}       " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items()))
    model = shlex.quote(str(out / "model"))
    _say(f"next         lexitome probe --encoder {model} --data DIR")


def _say(line: str) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(line, flush=True)

"""`probe`: what frozen features of encoders are worth on a user's images."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lexitome.cli.console import OK
from lexitome.cli.options import Debug
from lexitome.cli.training_extra import need_packages
from lexitome.errors import InputError

if TYPE_CHECKING:
    from lexitome.recipes.probe import ProbeRecipe

app = typer.Typer()
CACHE = "cache"

Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Images with classes (a folder for each class, or labels.csv), an annotated set, or a folder of such; "
        "repeatable.",
    ),
]
Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        "-e",
        metavar="NAME",
        help="compact, imagenet, dinov3-s ... meddinov3-b, sam3, sam, timm/NAME, a folder or file of weights, or "
        "random:mini, random:s, random:timm/NAME; repeatable. By default compact and imagenet.",
    ),
]
Sides = Annotated[
    list[int] | None,
    typer.Option("--side", min=16, metavar="PIXELS", help="Size of the square pictures; repeatable. By default 224."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="knn, linear, sgd, abmil (volumes), segment, register, explore; repeatable. By default all that fit, but "
        "sgd and register.",
    ),
]
Intensity = Annotated[
    str, typer.Option("--intensity", metavar="POLICY", help="imagenet, hu_meddino, zscore; by default as trained.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable.")
]
Concept = Annotated[str, typer.Option("--concept", metavar="NAME", help="What masks show, if nothing says it.")]
UnitPattern = Annotated[
    str | None, typer.Option("--unit-pattern", metavar="REGEX", help="The subject within the name of an image.")
]


@app.command("probe")
def probe(  # noqa: PLR0913 - the signature is the command line
    data: Data = None,
    encoders: Encoders = None,
    sides: Sides = None,
    tasks: Tasks = None,
    out: Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.")] = Path("runs/probe"),
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Features and decoded pictures; by default RUN/cache."),
    ] = None,
    intensity: Intensity = "auto",
    settings: Settings = None,
    concept: Concept = "",
    unit_pattern: UnitPattern = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Print the recipe, and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Measure what frozen features of encoders are worth: k-NN, linear layers, attention over slices, outlines.

    Parts are split by subject, scores have intervals over subjects. Tables are in RUN/probe.md, plots of score over
    size beside it, pictures of features in RUN/explore. The same command continues what was stopped. Needs the extra
    lexitome[train].
    """
    need_packages("probe")
    recipe = _recipe(encoders, sides, tasks, intensity, settings)
    if plan_only:
        print(json.dumps(asdict(recipe), indent=1))
        raise typer.Exit(OK)
    if not data:
        raise InputError("lexitome probe", "--data is missing", "Name a folder of images with classes or masks.")
    from lexitome.evaluation.probing.tables import TABLE
    from lexitome.recipes.probe import open_data, run

    material = open_data(data, out, concept=concept, unit_pattern=unit_pattern)
    for dataset in (*(each.dataset for each in material.classified), *material.annotated):
        for finding in dataset.findings:
            _say(f"{finding.topic:<12} {dataset.name}: {finding.cause}")
    run(recipe, material, out, cache or out / CACHE, _say)
    _say(f"next         {out / TABLE}")
    raise typer.Exit(OK)


def _recipe(
    encoders: list[str] | None, sides: list[int] | None, tasks: list[str] | None, intensity: str,
    settings: list[str] | None,
) -> ProbeRecipe:  # fmt: skip
    from lexitome.recipes.overrides import override
    from lexitome.recipes.probe import ProbeRecipe

    recipe = ProbeRecipe(tuple(dict.fromkeys(encoders or ("compact", "imagenet"))), intensity=intensity)
    if sides:
        recipe = replace(recipe, sides=tuple(dict.fromkeys(sides)))
    if tasks:
        recipe = replace(recipe, tasks=tuple(dict.fromkeys(tasks)))  # type: ignore[arg-type] # it checks
    return override(recipe, settings or ())


def _say(line: str) -> None:
    print(line, flush=True)

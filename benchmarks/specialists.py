"""One model for everything against a specialist for each dataset, trained for the same total time.

    python benchmarks/specialists.py [--only SET ...] [--also compact]

The universal model is `compact-open`, one run from ImageNet weights on 13 sets. The seconds of its training steps, read
off its log, are the budget. The specialists are what `lexitome train unet` makes (`recipes.specialist`): a U-Net for
each of these sets, from scratch, with an equal share of the budget, on the same parts. Both are asked about the test
parts by words, a specialist by the names of its own targets, and scored by the evaluator of `lexitome evaluate`. Only
training steps count on either side, validation and timing do not; what the specialists really took is in the table.
Run it where the model was trained, and nothing beside it: time is what is compared.

Everything lies in the work folder: finished specialists are kept, one that was interrupted goes on from its last
checkpoint, an interrupted evaluation from its last image; with --only, sets are added to those that are finished.
Results: benchmarks/results/specialists.json and docs/benchmarks/specialists.md, renewed after each set. Needs
lexitome[train].
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from provenance import DATA, RESULTS, ROOT, Entry, claim, origin, rounded, write_json
from specialists_text import METRIC, SPECIALIST, as_markdown, line

from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.evaluation.answering import Answerer, compact_answerer
from lexitome.evaluation.comparison import compare_rows
from lexitome.evaluation.protocols import TEXT
from lexitome.evaluation.run_folder import Run
from lexitome.evaluation.runner import Settings, evaluate
from lexitome.io.atomic import replacing
from lexitome.models.catalog import ModelCard, find_model, read_card
from lexitome.recipes.compact import IMAGENET
from lexitome.recipes.run import claimed
from lexitome.recipes.specialist import SpecialistRecipe, train_specialists
from lexitome.recipes.specialist import read_card as read_specialist
from lexitome.recipes.specialist_answers import specialist_answerer
from lexitome.training.progress import LOG, read_log

PACKAGES = ("torch", "monai", "numpy", "scipy", "accelerate", "onnxruntime")
LOGS = ROOT / "docs" / "model-cards"
DOCUMENT = ROOT / "docs" / "benchmarks" / "specialists.md"
TRAINED = 0.9
"""Of the minutes that a specialist is given, the share that `recipes.finetune.steps_for` fills with training steps."""


@dataclass(frozen=True)
class Options:
    """`minutes`: of training steps, all specialists together. `only`: sets to work on; empty for all."""

    data: Path
    cache: Path
    work: Path
    model: str
    also: tuple[str, ...]
    minutes: float
    only: tuple[str, ...]
    limit: int | None
    jobs: int | None
    seed: int
    recipe: SpecialistRecipe

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, *self.also)


def trained_seconds(rows: Iterable[Entry]) -> float:
    """Of all training steps in a log, a line of which has the mean over the steps since the line before."""
    seconds, before = 0.0, 0
    for row in rows:
        if row["kind"] == "train":
            seconds += row["seconds"] * (row["step"] - before)
            before = row["step"]
    return seconds


def run_of(card: ModelCard) -> Entry:
    """What a card says of the model's last run: "steps", "start" (the weights that it began with), and its "seed", by
    which subjects were divided into parts."""
    stored = read_card(card.files).get("provenance", {})
    return {"steps": stored.get("steps"), "start": stored.get("start"), "seed": stored.get("recipe", {}).get("seed", 0)}


def budget(card: ModelCard) -> float:
    """Minutes that the steps of a model's training took.

    Raises:
        InputError: there is no log, or the model's run began with weights that other runs had trained.
    """
    log = LOGS / f"{card.name}-training.jsonl" if card.folder is None else Path(card.folder).parent / LOG
    remedy = "Say how long the specialists may train with --minutes-total."
    if run_of(card)["start"] != IMAGENET:
        raise InputError(card.name, f"was not trained in one run from {IMAGENET}", remedy)
    if not log.is_file():
        raise InputError(log, "is not there: nothing says how long the model was trained", remedy)
    return trained_seconds(read_log(log)) / 60


def logged(card: ModelCard) -> float | None:
    """`budget`, None where nothing tells."""
    try:
        return budget(card)
    except InputError:
        return None


def measure(options: Options, out: Path, document: Path) -> Entry:
    """Train and ask what is not done yet, and write the result after each set.

    Raises:
        InputError: a model or a set is not there, or the work folder is in use or holds a run with other settings.
    """
    card = find_model(options.model)
    sets = [trained.name for trained in card.sets]
    chosen = [name for name in sets if not options.only or name in options.only]
    unknown = sorted(set(options.only) - set(sets))
    names = [SPECIALIST, *(find_model(model).name for model in options.models)]
    if len(set(names)) < len(names):
        raise InputError("--also", f"two models have one name: {', '.join(names)}", "Name each once.")
    if unknown:
        cause = f"{options.model} was not trained on {', '.join(unknown)}"
        raise InputError("--only", cause, f"Choose from {', '.join(sets)}.")
    with claimed(options.work):
        note(options, len(sets))
        at_hand = [name for name in sets if name in chosen or finished(name, options)]
        datasets = {name: load_dataset(options.data / name, seed=run_of(card)["seed"]) for name in at_hand}
        head = origin(PACKAGES, datasets.values(), seed=options.seed, threads=options.recipe.run.threads or 0)
        answerers = [compact_answerer(model) for model in options.models]
        result: Entry = {}
        for name in chosen:
            train(datasets[name], options, options.minutes / len(sets))
            ask(specialist_answerer(specialist_folder(name, options), SPECIALIST), datasets[name], options)
            for answerer in answerers:
                ask(answerer, datasets[name], options)
            result = head | summary(datasets, sets, options)
            write_json(out, result)
            with replacing(document) as temporary:
                temporary.write_text(as_markdown(result), encoding="utf-8")
            print(line(result, name), flush=True)
    return result


def note(options: Options, sets: int) -> None:
    """In the work folder: the settings that all sets of a table share.

    Raises:
        InputError: it was begun with others.
    """
    recipe = replace(options.recipe, run=replace(options.recipe.run, threads=None))
    wanted = {
        "minutes in total": round(options.minutes, 4), "sets": sets, "seed": options.seed, "limit": options.limit,
        "recipe": asdict(recipe), "model": find_model(options.model).measure_sha256(),
    }  # fmt: skip
    claim(options.work, wanted)


def specialist_folder(name: str, options: Options) -> Path:
    return options.work / "specialists" / name


def train(dataset: Dataset, options: Options, minutes: float) -> None:
    """The specialist of a set, as `lexitome train unet --data SET --minutes M` makes it; `minutes` are of steps."""
    folder = options.work / "specialists"
    train_specialists([dataset], folder, options.cache, options.recipe, minutes=minutes / TRAINED)


def answers(model: str, name: str, options: Options) -> Path:
    return options.work / "answers" / model / name


def ask(answerer: Answerer, dataset: Dataset, options: Options) -> None:
    settings = Settings(limit=options.limit, overlays=False, command="python benchmarks/specialists.py")
    place = answers(answerer.name, dataset.name, options)
    evaluate(answerer, [dataset], [TEXT], place, seed=options.seed, jobs=options.jobs, settings=settings)


def finished(name: str, options: Options) -> dict[str, Run] | None:
    """The runs of a set by model, the specialist's first; None until all of them are there."""
    models = (SPECIALIST, *(find_model(model).name for model in options.models))
    try:
        return {model: Run.load(answers(model, name, options)) for model in models}
    except InputError:
        return None


def summary(datasets: dict[str, Dataset], sets: Sequence[str], options: Options) -> Entry:
    """Of the finished sets: how specialists were trained, and for each universal model the comparison with them."""
    runs = {name: found for name in sets if (found := finished(name, options)) is not None}
    models = [find_model(model) for model in options.models]
    rows = {
        model: [row for found in runs.values() for row in found[model].rows]
        for model in (SPECIALIST, *(card.name for card in models))
    }
    compared = compare_rows(list(rows.items()), metric=METRIC, seed=options.seed)
    settings = {
        "minutes": options.minutes, "minutes_logged": logged(models[0]), "sets": list(sets), "limit": options.limit,
        "metric": METRIC, "recipe": asdict(options.recipe),
    }  # fmt: skip
    return rounded({
        "settings": settings,
        "models": {card.name: {"sets": [s.name for s in card.sets], **run_of(card)} for card in models},
        "specialists": {name: about_specialist(datasets[name], options) for name in runs},
        "near_training_pictures": {model: leaks([found[model] for found in runs.values()]) for model in rows},
        "comparisons": [about_comparison(entry) for entry in compared["comparisons"]],
    })  # fmt: skip


def about_specialist(dataset: Dataset, options: Options) -> Entry:
    folder = specialist_folder(dataset.name, options)
    card = read_specialist(folder)
    return {
        "modality": dataset.modality, "cases": sum(case.split == "train" for case in dataset.cases),
        "dims": dataset.dims, "network": card.recipe.network, "side": card.side, "steps": card.recipe.run.steps,
        "precision": card.recipe.run.precision, "minutes": trained_seconds(read_log(folder / LOG)) / 60,
        "validation_dice": card.dice,
    }  # fmt: skip


def leaks(runs: Sequence[Run]) -> Entry:
    """Test cases that look like a training picture of the model, by perceptual hash (`evaluation.leakage`)."""
    found = [run.leakage or {} for run in runs]
    near = {part["dataset"]: part["affected"] for entry in found for part in entry.get("sets", ())}
    return {
        "checked": all(entry.get("checked") for entry in found), "cases": sum(e.get("cases", 0) for e in found),
        "near": {name: count for name, count in near.items() if count},
    }  # fmt: skip


def about_comparison(entry: Entry) -> Entry:
    """Without the names of questions that one of the two was not asked: specialists are not asked for the absent."""
    (part,) = entry["protocols"]
    kept = {key: value for key, value in entry.items() if key not in ("protocols", "unmatched")}
    return {**kept, "sets": part["datasets"], "overall": part["overall"][0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of annotated sets")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "decoded", help="decoded pictures")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "specialists")
    parser.add_argument("--model", default="compact-open", help="the universal model")
    parser.add_argument("--also", nargs="+", default=(), metavar="MODEL", help="further tables; not for equal time")
    parser.add_argument("--minutes-total", type=float, help="of all specialists; by default from the log of the model")
    parser.add_argument("--only", nargs="+", default=(), metavar="SET", help="work on these sets")
    parser.add_argument("--limit", type=int, help="test images of each set at most, for a first look")
    parser.add_argument("--jobs", type=int, help="images that are asked about at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "specialists.json")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="written from the results")
    typed = parser.parse_args()
    recipe = SpecialistRecipe(seed=typed.seed)
    recipe = replace(recipe, run=replace(recipe.run, seed=typed.seed, threads=typed.threads))
    try:
        minutes = typed.minutes_total or budget(find_model(typed.model))
        options = Options(
            typed.data, typed.cache, typed.work, typed.model, tuple(typed.also), minutes, tuple(typed.only),
            typed.limit, typed.jobs, typed.seed, recipe,
        )  # fmt: skip
        measure(options, typed.out, typed.document)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"written to {typed.out} and {typed.document}")


if __name__ == "__main__":
    main()

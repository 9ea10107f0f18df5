"""MedDINOv3 in small against U-Nets, for equal time, on one of the paper's own benchmarks.

    python benchmarks/btcv.py --minutes 30 [--trunk FOLDER] [--stages FOLDER ...] [--only NAME ...]

Abdominal CT of BTCV, as 2D slices split by patient. Contestants are trained on the same parts for the same minutes of
training steps, on the same cores:

    START-multi-HIGH    `lexitome train meddinov3-mini` from START, its decoder on four blocks, at HIGH pixels (by
                        default the size of the slices). START is "random", "pretrained" with --trunk, a folder that
                        `lexitome pretrain` wrote, and each of --stages
    unet                MONAI's U-Net, `lexitome train unet`
    nnunet              nnU-Net 2D by its own trainer, plans, augmentation and losses; the length is the only change

Two more of "random" and "pretrained" repeat the paper's ablation. As there, all of them take the same number of steps,
so that these are done in less time:

    START-last-LOW      the decoder on the last block, at LOW pixels
    START-multi-LOW     on four blocks

Of all but nnU-Net, which keeps its last weights as it always does, the checkpoint with the best validation Dice is
taken. Then the test patients are asked and scored by the code of `lexitome evaluate`; what is not found scores 0. The
time of pretraining is not in the minutes. Validation and timing a step beforehand are extra for all; nnU-Net validates
inside its epochs, which are given as much more time.

Everything lies in the work folder: what is finished is kept, a contestant that was interrupted goes on from its last
checkpoint, an interrupted evaluation from its last image; with --only, contestants are added to those that are
finished. Results: benchmarks/results/btcv.json and docs/benchmarks/dinov3/btcv.md, renewed after each. Needs
lexitome[train], monai and nnunetv2; and nothing beside it on the machine: time is what is compared.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from btcv_text import as_markdown, line
from provenance import DATA, RESULTS, ROOT, Entry, claim, origin, read_json, rounded, write_json
from specialists import TRAINED, leaks, trained_seconds

from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.evaluation.answering import Answerer
from lexitome.evaluation.comparison import compare_rows
from lexitome.evaluation.nnunet import Options as NnunetOptions
from lexitome.evaluation.nnunet import need_nnunet, run_nnunet
from lexitome.evaluation.nnunet_answers import nnunet_answerer
from lexitome.evaluation.presets import published_for
from lexitome.evaluation.protocols import TEXT
from lexitome.evaluation.run_folder import SUMMARY, Run, read_object
from lexitome.evaluation.runner import Settings, evaluate
from lexitome.evaluation.statistics import holm
from lexitome.inference.dinov3_card import Card
from lexitome.io.atomic import replacing
from lexitome.models.foundation import SEGMENTER, kind_of, weights_in
from lexitome.models.reading import hash_of
from lexitome.recipes import meddinov3_run
from lexitome.recipes.machine import usable_cores
from lexitome.recipes.meddinov3 import MedDinov3Recipe, mini, started, with_steps
from lexitome.recipes.run import MODEL, claimed
from lexitome.recipes.specialist import SpecialistRecipe, read_card, train_specialists
from lexitome.recipes.specialist_answers import specialist_answerer
from lexitome.training import checkpoint
from lexitome.training.engine import Precision
from lexitome.training.progress import LOG, read_log

SET, METRIC, COMMAND = "btcv_abdomen_ct2d", "dice", "python benchmarks/btcv.py"
PACKAGES = ("torch", "transformers", "monai", "nnunetv2", "numpy", "scipy", "accelerate")
DOCUMENT = ROOT / "docs" / "benchmarks" / "dinov3" / "btcv.md"
RANDOM, PRETRAINED, UNET, NNUNET = "random", "pretrained", "unet", "nnunet"
LAST = (-1,)
TRIED = NnunetOptions(configuration="2d", epochs=2, iterations=5, device="cpu", mirror=False)
"""The short nnU-Net by which its steps are timed; the first epoch warms up."""
VALIDATING = 1 / 5 / 3
"""Of the time of nnU-Net's training steps, what the validation in its epochs takes: one batch for five, forward only,
which is a third of a step."""
EPOCHS = 50
"""Of nnU-Net, in each of which its learning rate falls once; fewer where steps are."""
EPOCH_TIME = re.compile(r"Epoch time: ([\d.]+) s")

Kind = Literal["meddinov3", "unet", "nnunet"]


@dataclass(frozen=True)
class Options:
    """`data`: folder of the set. `minutes`: of training steps, for each contestant at `high`. `stages`: further
    trunks. `low`, `high`: sides in pixels. `only`: contestants to work on; empty for all. `limit`: test images at most.
    `jobs`: images that are asked about at a time. `recipe` and `unet` are what contestants are made from."""

    data: Path
    cache: Path
    work: Path
    minutes: float
    trunk: Path | None = None
    stages: tuple[Path, ...] = ()
    low: int = 128
    high: int = 256
    only: tuple[str, ...] = ()
    limit: int | None = None
    jobs: int = 1
    threads: int = 1
    seed: int = 0
    recipe: MedDinov3Recipe = field(default_factory=mini)
    unet: SpecialistRecipe = field(default_factory=SpecialistRecipe)

    @property
    def trunks(self) -> dict[str, Path]:
        """By name; a teacher of a stage is called by the stage.

        Raises:
            InputError: two have one name.
        """
        named = [] if self.trunk is None else [(PRETRAINED, self.trunk)]
        named += [((path.parent if path.name == MODEL else path).name, path) for path in self.stages]
        names = [RANDOM, *(name for name, _ in named)]
        if len(set(names)) < len(names):
            raise InputError("--stages", f"two trunks have one name: {', '.join(names)}", "Rename a folder.")
        return dict(named)

    @property
    def reference(self) -> str:
        """What the others are compared with."""
        return f"{RANDOM if self.trunk is None else PRETRAINED}-multi-{self.high}"


@dataclass(frozen=True)
class Contestant:
    """`trunk`, `taps` and `side` are of MedDINOv3: one of `Options.trunks` or "random", and no taps for four blocks."""

    name: str
    kind: Kind
    trunk: str = ""
    taps: tuple[int, ...] = ()
    side: int = 0


def contestants(options: Options) -> list[Contestant]:
    """
    Raises:
        InputError: see `Options.trunks`.
    """
    found = []
    for name in (RANDOM, *options.trunks):
        rungs = [("last", LAST, options.low), ("multi", (), options.low), ("multi", (), options.high)]
        for word, taps, side in rungs if name in (RANDOM, PRETRAINED) else rungs[-1:]:
            found.append(Contestant(f"{name}-{word}-{side}", "meddinov3", name, taps, side))
    return [*found, Contestant(UNET, "unet"), Contestant(NNUNET, "nnunet")]


def measure(options: Options, out: Path, document: Path) -> Entry:
    """Train and ask what is not done yet, and write the result after each contestant.

    Raises:
        InputError: the set or a trunk is not there, nnU-Net is asked for and not installed, or the work folder is in
            use or holds a run with other settings.
    """
    everyone = contestants(options)
    unknown = sorted(set(options.only) - {each.name for each in everyone})
    if unknown:
        cause = f"there is no {', '.join(unknown)}"
        raise InputError("--only", cause, f"Choose from {', '.join(each.name for each in everyone)}.")
    chosen = [each for each in everyone if not options.only or each.name in options.only]
    if any(each.kind == "nnunet" for each in chosen):
        need_nnunet()
    with claimed(options.work):
        note(options)
        dataset = load_dataset(options.data, seed=options.seed)
        head = origin(PACKAGES, [dataset], seed=options.seed, threads=options.threads)
        result: Entry = {}
        for contestant in chosen:
            ask(contestant, trained(contestant, dataset, options), dataset, options)
            result = rounded(head | summary(everyone, dataset, options))
            write_json(out, result)
            with replacing(document) as temporary:
                temporary.write_text(as_markdown(result), encoding="utf-8")
            print(line(result, contestant.name), flush=True)
    return result


def note(options: Options) -> None:
    """In the work folder: what all contestants share, and which trunks were meant.

    Raises:
        InputError: it was begun with others, or a trunk is not DINOv3's.
    """
    for path in options.trunks.values():
        if kind_of(path) != "dinov3":
            raise InputError(path, "is no encoder", "Name a folder that lexitome pretrain wrote: RUN/model.")
    shared = {
        "minutes": options.minutes, "sides": [options.low, options.high], "seed": options.seed,
        "limit": options.limit, "threads": options.threads, "recipes": [asdict(options.recipe), asdict(options.unet)],
    }  # fmt: skip
    claim(options.work, shared, growing={name: hash_of(weights_in(path)) for name, path in options.trunks.items()})


def trained(contestant: Contestant, dataset: Dataset, options: Options) -> Answerer:
    """Trained to its end, and ready to be asked."""
    if contestant.kind == "nnunet":
        return nnunet_answerer([dataset], options.work / NNUNET, nnunet_length(dataset, options))
    if contestant.kind == "unet":
        train_specialists([dataset], options.work / UNET, options.cache, unet_recipe(options),
                          minutes=options.minutes / TRAINED)  # fmt: skip
        return specialist_answerer(options.work / UNET / dataset.name, UNET)
    return meddinov3_run_of(contestant, dataset, options)


def unet_recipe(options: Options) -> SpecialistRecipe:
    run = replace(options.unet.run, seed=options.seed, threads=options.threads)
    return replace(options.unet, seed=options.seed, run=run)


def meddinov3_run_of(contestant: Contestant, dataset: Dataset, options: Options) -> Answerer:
    """As `lexitome train meddinov3-mini --data SET` makes it in that many steps."""
    from lexitome.recipes.meddinov3_answers import meddinov3_answerer

    folder = run_folder(contestant, options)
    if not (folder / MODEL / SEGMENTER).is_file():
        begun = checkpoint.locate(folder / "checkpoints", "last") is not None
        if begun:
            job = meddinov3_run.MedDinov3Job.load(folder)
        else:
            job = meddinov3_run.MedDinov3Job(recipe_of(contestant, options), (str(dataset.root),))
            job = meddinov3_run.planned(job, dataset)
        task = meddinov3_run.task_of(job, meddinov3_run.open_shelf(job, dataset, options.cache, print))
        if begun:
            net = meddinov3_run.again(job, task)
        else:
            steps, precision = meddinov3_length(dataset, options)
            job = replace(job, recipe=with_steps(job.recipe, steps, precision))
            job, net = meddinov3_run.begin(job, task)
            job.save(folder)
        print(f"{contestant.name}: {job.recipe.run.steps} steps", flush=True)
        meddinov3_run.train(job, task, net, folder, resume=begun)
        meddinov3_run.export(job, task, folder)
    return meddinov3_answerer(folder / MODEL, contestant.name)


def meddinov3_length(dataset: Dataset, options: Options) -> tuple[int, Precision]:
    """Steps of every one of them, as many as fit into the time at the high side, and the precision in which they are
    the quickest there: measured once."""
    place = options.work / "meddinov3.json"
    if not place.is_file():
        at_high = Contestant("timed", "meddinov3", RANDOM, (), options.high)
        job = meddinov3_run.planned(
            meddinov3_run.MedDinov3Job(recipe_of(at_high, options), (str(dataset.root),)), dataset
        )
        task = meddinov3_run.task_of(job, meddinov3_run.open_shelf(job, dataset, options.cache, print))
        job, _ = meddinov3_run.begin(job, task)
        run = meddinov3_run.timed(job, task, options.minutes / TRAINED).recipe.run
        write_json(place, {"steps": run.steps, "precision": run.precision})
    stored = read_json(place)
    return stored["steps"], stored["precision"]


def recipe_of(contestant: Contestant, options: Options) -> MedDinov3Recipe:
    start = options.trunks.get(contestant.trunk)
    recipe = options.recipe if start is None else started(options.recipe, str(start))
    run = replace(recipe.run, seed=options.seed, threads=options.threads)
    return replace(
        recipe, name=contestant.name, taps=contestant.taps, side=contestant.side, seed=options.seed, run=run
    )  # fmt: skip


def run_folder(contestant: Contestant, options: Options) -> Path:
    return options.work / "runs" / contestant.name


def nnunet_length(dataset: Dataset, options: Options) -> NnunetOptions:
    """As many epochs as fit into the time: those of the run that was begun, else by the steps of a short trial."""
    place = options.work / "nnunet.json"
    if not place.is_file():
        trial = options.work / "nnunet-trial"
        shutil.rmtree(trial, ignore_errors=True)  # what an interrupted one left says nothing of its time
        run_nnunet(dataset, trial, replace(TRIED, processes=options.threads), split="val")
        seconds = step_seconds(epoch_seconds(trial)[-1], TRIED.iterations)
        epochs, iterations = length_for(options.minutes, seconds)
        write_json(place, {"seconds": seconds, "epochs": epochs, "iterations": iterations})
        shutil.rmtree(trial)
    stored = read_json(place)
    return replace(
        TRIED, epochs=stored["epochs"], iterations=stored["iterations"], processes=options.threads, mirror=True
    )  # fmt: skip


def step_seconds(epoch: float, iterations: int) -> float:
    """Of one training step of nnU-Net, from an epoch; one batch of five, at least one, is validated."""
    return epoch / (iterations + max(1, iterations // 5) / 3)


def length_for(minutes: float, seconds: float) -> tuple[int, int]:
    """(epochs, steps of each) whose training steps fill the time."""
    steps = max(1, int(60 * minutes / seconds))
    iterations = max(1, steps // EPOCHS)
    return max(1, round(steps / iterations)), iterations


def epoch_seconds(work: Path) -> list[float]:
    """Of each epoch, as nnU-Net's own logs below a folder have them."""
    logs = sorted(work.rglob("fold_0/training_log_*.txt"))
    return [float(found) for log in logs for found in EPOCH_TIME.findall(log.read_text(encoding="utf-8"))]


def answers(name: str, options: Options) -> Path:
    return options.work / "answers" / name


def is_finished(folder: Path) -> bool:
    try:
        return bool(Run.load(folder).rows)
    except InputError:
        return False


def ask(contestant: Contestant, answerer: Answerer, dataset: Dataset, options: Options) -> None:
    settings = Settings(limit=options.limit, overlays=False, command=COMMAND)
    place = answers(contestant.name, options)
    evaluate(answerer, [dataset], [TEXT], place, seed=options.seed, jobs=options.jobs, settings=settings)


def summary(everyone: Sequence[Contestant], dataset: Dataset, options: Options) -> Entry:
    """Of those that are finished, in the order of `contestants`."""
    done = {each.name: each for each in everyone if is_finished(answers(each.name, options))}
    runs = {name: Run.load(answers(name, options)) for name in done}
    counts = {part: sum(case.split == part for case in dataset.cases) for part in ("train", "val", "test")}
    patients = {part: len({case.unit for case in dataset.cases if case.split == part}) for part in counts}
    return {
        "settings": {
            "minutes": options.minutes, "low": options.low, "high": options.high, "limit": options.limit,
            "metric": METRIC, "set": dataset.name, "slices": counts, "patients": patients,
            "reference": options.reference, "contestants": [each.name for each in everyone],
            "stages": [name for name in options.trunks if name != PRETRAINED],
        },
        "contestants": {
            name: about(each, dataset, options) | scores(runs[name]) | {"near": leaks([runs[name]])}
            for name, each in done.items()
        },
        "differences": differences(options.reference, runs, options.seed),
        "published": published(dataset.name),
        "steps": [
            {"from": one, "to": other, **differences(one, {one: runs[one], other: runs[other]}, options.seed)[other]}
            for one, other in ladder(options) if one in runs and other in runs
        ],
    }  # fmt: skip


def ladder(options: Options) -> list[tuple[str, str]]:
    """Pairs that differ by one thing: the paper's ablation, and resolution and several blocks for every start."""
    starts = [RANDOM, *([PRETRAINED] if options.trunk else [])]
    low, high = options.low, options.high
    pairs = [
        pair for start in starts
        for pair in ((f"{start}-last-{low}", f"{start}-multi-{low}"), (f"{start}-multi-{low}", f"{start}-multi-{high}"))
    ]  # fmt: skip
    starts += [name for name in options.trunks if name != PRETRAINED]
    pairs += [(f"{RANDOM}-last-{low}", f"{PRETRAINED}-last-{low}")]
    return pairs + [(f"{RANDOM}-multi-{high}", f"{start}-multi-{high}") for start in starts[1:]]


def about(contestant: Contestant, dataset: Dataset, options: Options) -> Entry:
    """How it was trained."""
    if contestant.kind == "nnunet":
        return about_nnunet(options, dataset)
    if contestant.kind == "unet":
        folder = options.work / UNET / dataset.name
        card = read_card(folder)
        run, pictures, dice, side = card.recipe.run, card.recipe.images, card.dice, card.side
    else:
        folder = run_folder(contestant, options)
        known = Card.load(folder / MODEL)
        recipe = meddinov3_run.MedDinov3Job.load(folder).recipe
        run, pictures, side = recipe.run, recipe.patches, known.side
        dice = known.about["metrics"]["validation"].get(METRIC)
    return {
        "kind": contestant.kind, "trunk": contestant.trunk, "side": side,
        "steps": run.steps, "pictures": pictures, "precision": run.precision, "validation_dice": dice,
        "minutes": trained_seconds(read_log(folder / LOG)) / 60,
    }  # fmt: skip


def about_nnunet(options: Options, dataset: Dataset) -> Entry:
    stored, work = read_json(options.work / "nnunet.json"), options.work / NNUNET / dataset.name
    plan = read_json(next(work.glob("preprocessed/*/nnUNetPlans.json")))["configurations"]["2d"]
    return {
        "kind": "nnunet", "trunk": "", "side": max(plan["patch_size"]), "pictures": plan["batch_size"],
        "steps": stored["epochs"] * stored["iterations"], "precision": "fp32", "validation_dice": None,
        "minutes": sum(epoch_seconds(work)) / (1 + VALIDATING) / 60,
    }  # fmt: skip


def scores(run: Run) -> Entry:
    """Of the test part: the mean over questions with its interval, over organs, and of each."""
    found = read_object(run.path / SUMMARY)
    (whole,) = found["by_dataset"]
    organs = {e["concept"]: e["metrics"][METRIC]["mean"] for e in found["by_concept"] if not e["derived"]}
    return {
        METRIC: {key: whole["metrics"][METRIC][key] for key in ("mean", "low", "high", "units", "cases")},
        "over_organs": whole["over_concepts"][METRIC]["mean"], "organs": organs,
    }  # fmt: skip


def differences(first: str, runs: Mapping[str, Run], seed: int) -> Entry:
    """Each other minus the first, over the same questions; p by Holm over the others. Empty without the first."""
    others = [(name, run.rows) for name, run in runs.items() if name != first]
    if first not in runs or not others:
        return {}
    found = compare_rows([(first, runs[first].rows), *others], metric=METRIC, seed=seed)["comparisons"]
    parts = {entry["run"]: entry["protocols"][0]["overall"][0] for entry in found}
    corrected = holm([part["p"] for part in parts.values()])
    return {
        name: {key: part[key] for key in ("difference", "low", "high", "p", "verdict")} | {"p_holm": p}
        for (name, part), p in zip(parts.items(), corrected, strict=True)
    }


def published(name: str) -> Entry:
    """What papers print for this set."""
    found = [score for score in published_for(name) if score.metric == METRIC]
    models = {score.model: score.value for score in found}
    about = {key: getattr(found[0], key) if found else "" for key in ("source", "differs")}
    return {"models": models, **about}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--minutes", type=float, default=30.0, help="of training steps, but for those at LOW")
    found.add_argument("--trunk", type=Path, help="pretrained encoder: RUN/model of lexitome pretrain")
    found.add_argument(
        "--stages", type=Path, nargs="+", default=(), metavar="FOLDER", help="more of them: RUN/stage1/model ..."
    )
    found.add_argument("--low", type=int, default=128, help="pixels of a side")
    found.add_argument("--high", type=int, default=256)
    found.add_argument("--only", nargs="+", default=(), metavar="NAME", help="work on these contestants")
    found.add_argument("--limit", type=int, help="test slices at most, for a first look")
    found.add_argument("--jobs", type=int, default=1, help="images that are asked about at a time")
    found.add_argument("--threads", type=int, default=usable_cores(), help="cores, the same ones for all")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--data", type=Path, default=DATA / SET, help="folder of the set")
    found.add_argument("--cache", type=Path, default=ROOT / "runs" / "decoded", help="decoded pictures")
    found.add_argument("--work", type=Path, default=ROOT / "runs" / "btcv")
    found.add_argument("--out", type=Path, default=RESULTS / "btcv.json")
    found.add_argument("--document", type=Path, default=DOCUMENT, help="written from the results")
    return found


def keep_to(threads: int) -> None:
    """This process and all that it starts, nnU-Net's workers too, on so many cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of what is started from here
    torch.set_num_threads(threads)


def main() -> None:
    typed = vars(parser().parse_args())
    out, document = typed.pop("out"), typed.pop("document")
    low = [
        f"--{name}" for name in ("minutes", "limit", "jobs", "threads") if typed[name] is not None and typed[name] <= 0
    ]
    if low:
        parser().error(f"{', '.join(low)}: more than 0")
    keep_to(typed["threads"])
    try:
        measure(Options(**typed | {name: tuple(typed[name]) for name in ("stages", "only")}), out, document)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"written to {out} and {document}")


if __name__ == "__main__":
    main()

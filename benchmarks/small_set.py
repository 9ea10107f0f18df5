"""A user's own small set: `lexitome train --data` against a MONAI U-Net, same images, same time, same machine.

    python benchmarks/small_set.py [--data ../shared/data/train/kvasir_seg] [--images 60] [--minutes 30]

Draws images of a set whose concept the starting model (`--start`, by default compact-open) has never seen, checked
against its card, by subjects and seeded, and lays them out as a user's folder that nothing in the project knows by
name. Of the rest, at most `--test` images are only ever asked about. Then, one after the other:

    before    the starting model is asked about the test images
    adapted   `lexitome train --data FOLDER --minutes N --start MODEL`, and nothing else, in a process of its own
    unet      the project's U-Net (`recipes.specialist`), which starts from scratch: the same pictures, augmentation,
              validation images and choice of the best checkpoint by Dice; as many seconds as the command above took
              from start to end, a tenth less at most. Network and learning rate are chosen beforehand, in extra time

All are asked for the concept by its name; the first two also by an oracle box, jittered (`evaluation.protocols`): what
do words give before and after adaptation, and what a box? (The question of Medical SAM3, asked in small.) Dice is
that of `lexitome evaluate`, at full resolution, with what is not found or fails as 0; intervals and tests resample
subjects. Lexitome keeps a fifth of the folder back for the score in its model card; the U-Net trains on these images,
too, unless `--same-parts` is given.

It takes about 2 x 30 minutes, 6 for the choice and 5 for the questions. Finished parts are kept in `--work` and not
repeated; what was interrupted while it trained begins again, since its time could not be told. To see all of it run in
a few minutes, with results that mean nothing:

    python benchmarks/small_set.py --images 12 --test 4 --minutes 0.5 --tune-minutes 0.1 --candidates UNet:1e-3 \\
        --set run.steps=10 --work runs/tried --out runs/tried.json

Results: benchmarks/results/small_set.json. Needs lexitome[dev,train].
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from provenance import DATA, RESULTS, ROOT, Entry, claim, origin, read_json, rounded, shown, write_json

from lexitome.data.cache import open_cache
from lexitome.data.dataset import Case, Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.evaluation.answering import Answerer, compact_answerer
from lexitome.evaluation.protocols import TEXT, ProtocolSpec, parse
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import LEAKAGE
from lexitome.evaluation.runner import Settings, evaluate
from lexitome.evaluation.statistics import bootstrap_mean, paired_permutation
from lexitome.models.catalog import find_model
from lexitome.recipes.compact import IMAGENET
from lexitome.recipes.machine import usable_cores
from lexitome.recipes.run import MODEL, Job, find_datasets, prepare_splits
from lexitome.recipes.specialist import (
    NetworkName,
    SpecialistRecipe,
    SpecialistTask,
    choose,
    task_of,
    train_specialist,
    with_steps,
)
from lexitome.recipes.specialist_answers import specialist_answerer
from lexitome.training.engine import RunConfig
from lexitome.training.progress import LOG, read_log

PACKAGES = ("torch", "monai", "numpy", "scipy", "accelerate", "onnxruntime")
FOLDER = "own_set"
"""No name that the project has settings for."""
META = ("title", "modality", "anatomy", "labels", "groups", "extra_masks", "license", "ignore_label")
SHORTEST = 0.5
"""Minutes that the command takes at least."""
ENOUGH = 0.9
"""Of the seconds that Lexitome took; the U-Net gets at least so many."""
REASON = re.compile(r"(?!decoding |next )[a-z]+( [a-z]+)? {2,}\S")
"""A line of the plan: a topic, and what was decided. The others tell where it is, and what to type next."""
Candidate = tuple[NetworkName, float]
CANDIDATES: tuple[Candidate, ...] = (("UNet", 3e-4), ("UNet", 1e-3), ("UNet", 3e-3), ("BasicUNet", 1e-3))
"""Network and learning rate. A step of BasicUNet takes several times as long as one of UNet."""
BOX = parse("jittered-box")
ASKED: dict[str, tuple[ProtocolSpec, ...]] = {"before": (TEXT, BOX), "adapted": (TEXT, BOX), "unet": (TEXT,)}
COMPARED = (
    ("adapted", TEXT, "unet", TEXT),
    ("adapted", TEXT, "before", TEXT),
    ("adapted", BOX, "before", BOX),
    ("before", TEXT, "before", BOX),
    ("adapted", TEXT, "adapted", BOX),
)
Answers = Mapping[str, Sequence[ResultRow]]


@dataclass(frozen=True)
class Options:
    """As typed; `settings` are those of `lexitome train --set`, `tune_minutes` of each candidate."""

    data: Path
    images: int
    test: int
    minutes: float
    tune_minutes: float
    start: str
    work: Path
    threads: int
    seed: int
    same_parts: bool
    settings: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = CANDIDATES

    @property
    def run(self) -> Path:
        return self.work / "lexitome"


def refuse_known(dataset: Dataset, start: str) -> None:
    """Raises:
    InputError: the starting model has seen the set or one of its concepts.
    """
    if start == IMAGENET:
        return
    card = find_model(start)
    own = {word.casefold() for target in dataset.targets for word in (target.name, *target.synonyms)}
    taught = {word.casefold() for concept in card.trained_concepts for word in (concept.concept, concept.words)}
    known = sorted({s.name for s in card.sets} & {dataset.name}) + sorted(own & taught)
    if known:
        raise InputError(dataset.root, f"{start} was trained on {', '.join(known)}", "Choose a set it has never seen.")


def choose_cases(dataset: Dataset, images: int, test: int, seed: int) -> tuple[list[Case], list[Case]]:
    """(the user's images, test images): whole subjects, in the order of a seeded hash, from the project's training
    part for the one and from its test part first for the other."""

    def order(case: Case) -> str:
        return hashlib.sha256(f"{seed}:{case.unit}".encode()).hexdigest()

    usable = [case for case in dataset.cases if case.image.parent.name == "images" and not case.unknown_labels]
    own: list[Case] = []
    units: set[str] = set()
    for case in sorted((c for c in usable if c.split == "train"), key=order):
        if case.unit in units or len(own) < images:
            own.append(case)
            units.add(case.unit)
    own = own[:images]
    rest = sorted((c for c in usable if c.unit not in units), key=lambda c: (c.split != "test", order(c)))
    if len(own) < images or not rest:
        raise InputError(dataset.root, f"has {len(own)} images for a user and {len(rest)} to test", "Ask for fewer.")
    return own, rest[:test]


def note(options: Options, drawn: Entry) -> None:
    """In the work folder: what its parts are made with.

    Args:
        drawn: hash of the images.

    Raises:
        InputError: it holds parts of another comparison.
    """
    decided = asdict(options) | {"data": drawn, "work": None}
    if options.start != IMAGENET:
        decided["start_sha256"] = find_model(options.start).measure_sha256()
    claim(options.work, decided)


def lay_out(dataset: Dataset, cases: Sequence[Case], folder: Path) -> None:
    """A user's folder: images, masks, dataset.json. Names tell which images are of one subject."""
    meta = read_json(dataset.root / "dataset.json")
    numbers = {unit: i for i, unit in enumerate(dict.fromkeys(case.unit for case in cases))}
    for i, case in enumerate(cases):
        for path in case.files:
            target = folder / path.parent.name / f"subject{numbers[case.unit]:03d}_slice{i:03d}{path.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    write_json(folder / "dataset.json", {key: meta[key] for key in META if key in meta})


def train_lexitome(options: Options) -> Entry:
    """What a user types, in a process of its own; wall seconds and peak memory of all of it."""
    shutil.rmtree(options.run, ignore_errors=True)  # one that was interrupted: its time could not be told
    typed = ["train", "--data", str(options.work / FOLDER), "--minutes", f"{options.minutes:g}"]
    typed += ["--start", options.start, *(word for setting in options.settings for word in ("--set", setting))]
    threads, output = {"OMP_NUM_THREADS": str(options.threads)}, options.work / "lexitome.txt"
    print(f"lexitome train, {options.minutes:g} minutes; its output is in {output}", flush=True)
    began = time.perf_counter()
    with output.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "lexitome", *typed, "-o", str(options.run)]
        done = subprocess.run(command, env={**os.environ, **threads}, stdout=file, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - began
    told = output.read_text(encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"lexitome {shlex.join(typed)} failed: {told[-2000:]}")
    peaks = [row["peak"] for row in read_log(options.run / LOG) if row["kind"] == "train" and row["peak"]]
    return {
        "command": shlex.join([*map("=".join, threads.items()), "lexitome", *map(shown, typed)]),
        "seconds": seconds, "peak_mb": max(peaks, default=0) / 2**20,
        "steps": Job.load(options.run).recipe.run.steps, "said": said(told, options.start),
    }  # fmt: skip


def said(output: str, start: str) -> list[str]:
    """The lines that explain the plan, without the place of the starting model."""
    return [line.replace(start, shown(start)) for line in output.splitlines() if REASON.match(line)]


def unet_task(options: Options) -> SpecialistTask:
    """The pictures that the run of Lexitome decoded, shown at its side, with its parts."""
    job = Job.load(options.run)
    (dataset,) = prepare_splits(find_datasets(job), options.run, resume=True)
    traits = job.traits[dataset.name]
    recipe = SpecialistRecipe(
        side=getattr(job.recipe.sampling.high, traits.size).side,
        run=RunConfig(steps=1, clip=12.0, threads=options.threads),
        seed=options.seed,
    )
    cached = open_cache(dataset, options.run / "decoded", traits=traits)
    return task_of(cached, recipe, ("train",) if options.same_parts else ("train", "test"))


def train_unet(options: Options, seconds: float) -> Entry:
    """The best candidate, trained for as long as Lexitome took. How many steps that makes is told by its trial; if the
    machine is quicker by then, so that it took less than `ENOUGH` of the time, it is trained anew with more steps."""
    torch.set_num_threads(options.threads)
    task, folder = unet_task(options), options.work / "unet"
    print(f"U-Net, {len(options.candidates)} candidates and {seconds / 60:.3g} minutes", flush=True)
    trials = choose(task, options.candidates, options.tune_minutes, options.work / "unet-choice")
    best = trials[0]
    steps, spent = seconds / best.seconds_per_step, 0.0
    while spent < ENOUGH * seconds:
        shutil.rmtree(folder, ignore_errors=True)
        recipe = with_steps(best.recipe, math.ceil(steps), best.recipe.run.precision)
        card = train_specialist(replace(task, recipe=recipe), folder)
        spent = card.seconds
        steps = card.recipe.run.steps * seconds / spent
    return {
        **_described(card.recipe), "side": card.side, "seconds": card.seconds, "train_images": len(task.train),
        "validation_images": len(task.val), "validation_dice": None if card.dice is None else 100 * card.dice,
        "choice": [
            {**_described(t.recipe), "validation_dice": 100 * t.dice, "seconds_per_step": t.seconds_per_step}
            for t in trials
        ],
    }  # fmt: skip


def _described(recipe: SpecialistRecipe) -> Entry:
    run = recipe.run
    return {"network": recipe.network, "lr": recipe.optim.lr, "precision": run.precision, "steps": run.steps}


def remembered(path: Path, compute: Callable[[], Entry]) -> Entry:
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def ask(options: Options, answerer: Answerer, who: str, test: Dataset) -> list[ResultRow]:
    """As `lexitome evaluate` asks; what is answered already is not asked again."""
    print(f"asking       {who}: {', '.join(spec.name for spec in ASKED[who])}", flush=True)
    place, settings = options.work / "asked" / who, Settings(overlays=False)
    return evaluate(answerer, [test], ASKED[who], place, seed=options.seed, jobs=options.threads, settings=settings)


def scores(answers: Answers, who: str, spec: ProtocolSpec) -> dict[str, list[float]]:
    """Dice in percent of every concept that an image shows, by subject, in the same order whoever answered."""
    found: dict[str, list[float]] = {}
    for row in sorted(answers[who], key=lambda row: row.key):
        if row.protocol == spec.name and row.present and not row.derived:
            found.setdefault(row.unit, []).append(100 * (row.metrics["dice"] or 0.0))
    return found


def compared(answers: Answers, seed: int) -> Entry:
    """Means with their intervals, and paired differences in points of Dice."""
    means = [
        {"who": who, "protocol": spec.name, **asdict(bootstrap_mean(scores(answers, who, spec), seed=seed))}
        for who in answers
        for spec in ASKED[who]
    ]
    differences = [
        {"of": f"{one} {how.name}", "against": f"{other} {way.name}",
         **asdict(paired_permutation(scores(answers, one, how), scores(answers, other, way), seed=seed))}
        for one, how, other, way in COMPARED
        if one in answers and other in answers
    ]  # fmt: skip
    return {"dice": means, "differences": differences}


def measure(options: Options) -> Entry:
    dataset = load_dataset(options.data)
    if dataset.dims != 2:
        raise InputError(options.data, "is a set of volumes", "Choose a set of images.")
    refuse_known(dataset, options.start)
    own, rest = choose_cases(dataset, options.images, options.test, options.seed)
    used = replace(dataset, cases=(*own, *rest))
    result = origin(PACKAGES, [used], seed=options.seed, threads=options.threads)
    note(options, result["data"])
    if not (options.work / FOLDER / "dataset.json").exists():
        lay_out(dataset, own, options.work / FOLDER)
    # Under the name that the U-Net was trained on.
    test = replace(dataset, name=FOLDER, cases=tuple(replace(case, split="test") for case in rest))
    answers: dict[str, list[ResultRow]] = {}
    if options.start != IMAGENET:
        answers["before"] = ask(options, compact_answerer(options.start), "before", test)
    trained = remembered(options.work / "lexitome.json", lambda: train_lexitome(options))
    answers["adapted"] = ask(options, compact_answerer(options.run / MODEL), "adapted", test)
    unet = remembered(options.work / "unet.json", lambda: train_unet(options, trained["seconds"]))
    answers["unet"] = ask(options, specialist_answerer(options.work / "unet"), "unet", test)
    leakage = {who: read_json(options.work / "asked" / who / LEAKAGE)["summary"] for who in answers}
    targets = [target.name for target in dataset.targets if not target.derived]
    return rounded({
        **result, "images": len(own), "test_images": len(rest), "targets": targets,
        "start": Path(options.start).name, "minutes": options.minutes, **compared(answers, options.seed),
        "failed": {who: sum(row.status != "ok" for row in rows) for who, rows in answers.items()},
        "leakage": leakage, "lexitome": trained, "unet": unet,
    })  # fmt: skip


def lines(result: Entry) -> list[str]:
    """Means and differences, with intervals where there are two subjects or more."""

    def span(entry: Entry, form: str) -> str:
        return "" if entry["low"] is None else f" ({entry['low']:{form}} to {entry['high']:{form}})"

    means = [f"{e['who']:<8} {e['protocol']:<20} {e['mean']:5.1f}{span(e, '.1f')}" for e in result["dice"]]
    return means + [
        f"{e['of']} - {e['against']}: {e['difference']:+.1f}{span(e, '+.1f')}, p {e['p']:.2g}"
        for e in result["differences"]
    ]


def candidate(typed: str) -> Candidate:
    """ "UNet:1e-3"."""
    network, _, lr = typed.partition(":")
    for known in get_args(NetworkName):
        if known == network:
            return known, float(lr)
    raise ValueError(typed)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, default=DATA / "kvasir_seg", help="an annotated set of images")
    found.add_argument("--images", type=int, default=60, help="that the user has")
    found.add_argument("--test", type=int, default=200, help="images at most")
    found.add_argument("--minutes", type=float, default=30.0, help=f"of `lexitome train`; {SHORTEST} at least")
    found.add_argument("--tune-minutes", type=float, default=1.5, help="of each candidate of the U-Net, extra")
    found.add_argument("--candidates", type=candidate, nargs="+", default=CANDIDATES, metavar="NETWORK:LR")
    found.add_argument("--start", default="compact-open", help="model to teach on; or imagenet")
    found.add_argument("--work", type=Path, default=ROOT / "runs" / "small_set", help="finished parts are kept here")
    found.add_argument("--threads", type=int, default=usable_cores(), help="of training; images asked at a time")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--same-parts", action="store_true", help="the U-Net gets Lexitome's training part only")
    found.add_argument("--set", nargs="+", dest="settings", default=(), metavar="FIELD=VALUE", help="of the command")
    found.add_argument("--out", type=Path, default=RESULTS / "small_set.json")
    return found


def main() -> None:
    typed = vars(parser().parse_args())
    if typed["minutes"] < SHORTEST:
        parser().error(f"--minutes: lexitome train takes {SHORTEST} at least")
    out = typed.pop("out")
    typed |= {name: tuple(typed[name]) for name in ("settings", "candidates")}
    try:
        result = measure(Options(**typed))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    write_json(out, result)
    print(*lines(result), f"written to {out}", sep="\n")


if __name__ == "__main__":
    main()

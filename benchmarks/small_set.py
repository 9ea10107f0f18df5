"""A user's own small set: `lexitome train --data` against a MONAI U-Net, same images, same time, same machine.

    python benchmarks/small_set.py --data ../shared/data/train/kvasir_seg --images 60 --minutes 30 --start compact-open

Draws images of a set that the starting model has never seen (checked against its card), by subjects and seeded, and
lays them out as a user's folder that nothing in the project knows by name. The rest, at most `--test` of them, is only
ever used for the last score. Then, one after the other:

    zero-shot    the starting model, asked by the name of the concept
    lexitome     the command `lexitome train --data FOLDER --minutes N --start MODEL`, and nothing else
    U-Net        `monai_unet`, which starts from scratch: augmentation, DiceCE, AdamW, the best checkpoint by Dice on
                 the validation images that Lexitome has set aside; as many seconds as Lexitome took from start to end.
                 Of what it also needs, network and learning rate are chosen beforehand in extra time.

Lexitome keeps a fifth of the folder back for the score in its model card; the U-Net trains on these images, too, unless
`--same-parts` is given. All are scored by one Dice at the images' full resolution; what is not found counts 0. Finished
parts are kept in the work folder and not repeated.
Results: benchmarks/results/small_set.json. Needs lexitome[dev,train].
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from monai_unet import Budget, Candidate, Parts, choose, predict, train_unet
from numpy.typing import NDArray
from provenance import RESULTS, ROOT, Entry, origin, read_json, rounded, shown, write_json
from torch import nn

from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE, Case, Dataset
from lexitome.data.intensity import Window, to_pictures
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.evaluation.metrics.overlap import count, dice
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import find_model
from lexitome.prompts import Query, Text
from lexitome.recipes.run import Job, find_datasets, prepare_splits
from lexitome.training.progress import LOG, read_log
from lexitome.volume import Volume

PACKAGES = ("torch", "monai", "numpy", "scipy", "accelerate", "onnxruntime")
FOLDER = "own_set"
"""No name that the project has settings for."""
META = ("title", "modality", "anatomy", "labels", "groups", "extra_masks", "license", "ignore_label")
RESAMPLES = 5000
CANDIDATES = tuple(Candidate(network, lr) for network in ("UNet", "BasicUNet") for lr in (3e-4, 1e-3, 3e-3))
Predict = Callable[[Volume], list[NDArray[np.bool_]]]
"""One mask (Y, X) for each target."""
Scores = dict[str, dict[str, float]]
"""Stem to target to Dice, of the targets that the image shows."""


@dataclass(frozen=True)
class Options:
    data: Path
    images: int
    test: int
    minutes: tuple[float, ...]
    tune_minutes: float
    start: str
    work: Path
    threads: int
    seed: int
    same_parts: bool
    settings: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = CANDIDATES


def refuse_known(dataset: Dataset, start: str) -> None:
    """Raises:
    InputError: the starting model has seen the set or one of its concepts.
    """
    if start == "imagenet":
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


def train_lexitome(options: Options, minutes: float) -> Entry:
    """What a user types, in a process of its own; wall seconds and peak memory of all of it."""
    run = options.work / f"lexitome-{minutes:g}"
    shutil.rmtree(run, ignore_errors=True)  # one that was interrupted: its time could not be told
    typed = ["train", "--data", str(options.work / FOLDER), "--minutes", f"{minutes:g}", "--start", options.start]
    typed += [word for setting in options.settings for word in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lexitome", *typed, "-o", str(run)], env=environment, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"lexitome {' '.join(typed)} failed: {done.stderr[-2000:]}")
    rows = read_log(run / LOG)
    peak = max((row["peak"] for row in rows if row["kind"] == "train" and row["peak"]), default=0)
    recipe = Job.load(run).recipe
    return {
        "command": shlex.join(["lexitome", *map(shown, typed)]),
        "seconds": seconds, "peak_mb": peak / 2**20, "steps": recipe.run.steps,
        "said": said(done.stdout, options.start),
    }  # fmt: skip


def said(output: str, start: str) -> list[str]:
    """The lines that explain the plan, without the place of the starting model."""
    topics = ("data  ", "resolution  ", "pictures  ", "objects  ", "start  ", "optimiser  ", "steps  ", "test part  ")
    return [line.replace(start, shown(start)) for line in output.splitlines() if line.startswith(topics)]


def parts_of(run: Path, cache: Path, *, same: bool) -> Parts:
    """The pictures that a run of Lexitome decoded, and who is in which part; the side it showed them at."""
    job = Job.load(run)
    (dataset,) = prepare_splits(find_datasets(job, job.recipe.seed), run, resume=True)
    traits = job.traits[dataset.name]
    cached: CachedDataset = open_cache(dataset, cache, traits=traits)
    side = getattr(job.recipe.sampling.high, traits.size).side
    fitted = ("train",) if same else ("train", "test")
    rows = {part: [i for i, row in enumerate(cached.rows) if row.split in part] for part in (fitted, ("val",))}
    return Parts(cached, rows[fitted], rows["val",], side)


def train_baseline(options: Options, parts: Parts, minutes: float, seconds: float) -> tuple[nn.Module, Entry]:
    """The U-Net of the best candidate, trained for as long as Lexitome took."""
    chosen = remembered(
        options.work / "unet-choice.json",
        lambda: choose(parts, options.candidates, Budget(60 * options.tune_minutes, options.threads, options.seed)),
    )
    candidate = Candidate(**chosen["best"])
    network, record = train_unet(parts, candidate, Budget(seconds, options.threads, options.seed))
    return network, {**record, "minutes": minutes, "choice": chosen}


def remembered(path: Path, compute: Callable[[], Entry]) -> Entry:
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def score(cases: Sequence[Case], dataset: Dataset, find: Predict) -> Scores:
    """Dice of every target that an image shows, in pixels of the image as it is."""
    targets = [target for target in dataset.targets if not target.derived]
    found: Scores = {}
    for case in cases:
        volume, codes = read_case(case)
        masks = find(volume)
        truths = [np.isin(codes[0], target.codes) for target in targets]
        found[case.stem] = {
            target.name: dice(count(mask & (codes[0] != UNKNOWN_CODE), truth)) or 0.0
            for target, mask, truth in zip(targets, masks, truths, strict=True)
            if truth.any()
        }
    return found


def lexitome_predictor(model: str, names: Sequence[str], threads: int) -> Predict:
    """Words only. What the model says is not there is an empty mask."""
    segmenter = Segmenter.load(model, threads=threads)
    queries = [Query(Text(name)) for name in names]

    def find(volume: Volume) -> list[NDArray[np.bool_]]:
        return [finding.mask[0] for finding in segmenter.decode(segmenter.encode(volume, queries), queries).findings]

    return find


def unet_predictor(network: nn.Module, side: int, window: Window | None) -> Predict:
    return lambda volume: list(predict(network, to_pictures(volume, window)[0], side))


def mean(scores: Scores) -> float:
    """Percent, over images and targets."""
    return 100 * float(np.mean([value for of_image in scores.values() for value in of_image.values()]))


def difference(one: Scores, other: Scores, units: dict[str, str], seed: int) -> Entry:
    """Mean of the paired differences in points of Dice, with a 95 % interval of resampled subjects."""
    groups: dict[str, list[float]] = {}
    for stem, of_image in one.items():
        groups.setdefault(units[stem], []).extend(of_image[name] - other[stem][name] for name in of_image)
    sums = np.array([(sum(values), len(values)) for values in groups.values()])
    rng = np.random.default_rng(seed)
    drawn = sums[rng.integers(len(sums), size=(RESAMPLES, len(sums)))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    points = sums[:, 0].sum() / sums[:, 1].sum()
    return {"points": 100 * float(points), "low": 100 * float(low), "high": 100 * float(high), "subjects": len(sums)}


def measure(options: Options) -> Entry:
    dataset = load_dataset(options.data)
    if dataset.dims != 2:
        raise InputError(options.data, "is a set of volumes", "Choose a set of images.")
    refuse_known(dataset, options.start)
    own, test = choose_cases(dataset, options.images, options.test, options.seed)
    used = replace(dataset, cases=(*own, *test))
    result = origin(PACKAGES, [used], seed=options.seed, threads=options.threads)
    if not (options.work / FOLDER / "dataset.json").exists():
        lay_out(dataset, own, options.work / FOLDER)
    names = [target.name for target in dataset.targets if not target.derived]
    units = {case.stem: case.unit for case in test}
    result |= {"images": len(own), "test_images": len(test), "targets": names, "start": Path(options.start).name}
    if options.start != "imagenet":
        untrained = score(test, dataset, lexitome_predictor(options.start, names, options.threads))
        result["before_training"] = {"dice": mean(untrained), "scores": untrained}
        print(f"before training: {mean(untrained):.1f}", flush=True)
    result["runs"] = []
    for minutes in options.minutes:
        result["runs"].append(compare(options, dataset, test, minutes, units))
        print(line(result["runs"][-1]), flush=True)
    return rounded(result)


def compare(options: Options, dataset: Dataset, test: list[Case], minutes: float, units: dict[str, str]) -> Entry:
    """Both, for the same time."""
    place = options.work / f"compared-{minutes:g}.json"
    if place.exists():
        return read_json(place)
    names = [target.name for target in dataset.targets if not target.derived]
    ours = remembered(options.work / f"lexitome-{minutes:g}.json", lambda: train_lexitome(options, minutes))
    run = options.work / f"lexitome-{minutes:g}"
    own_scores = score(test, dataset, lexitome_predictor(str(run / "model"), names, options.threads))
    parts = parts_of(run, run / "decoded", same=options.same_parts)
    network, record = train_baseline(options, parts, minutes, ours["seconds"])
    their_scores = score(test, dataset, unet_predictor(network, parts.side, dataset.window))
    entry = {
        "minutes": minutes,
        "lexitome": {**ours, "dice": mean(own_scores), "scores": own_scores},
        "unet": {**record, "dice": mean(their_scores), "scores": their_scores},
        "difference": difference(own_scores, their_scores, units, options.seed),
    }
    write_json(place, entry)
    return entry


def line(entry: Entry) -> str:
    gap = entry["difference"]
    return (
        f"{entry['minutes']:g} minutes: lexitome {entry['lexitome']['dice']:.1f}, U-Net {entry['unet']['dice']:.1f}, "
        f"difference {gap['points']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an annotated set of images")
    parser.add_argument("--images", type=int, default=60, help="that the user has")
    parser.add_argument("--test", type=int, default=200, help="images at most")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 30.0])
    parser.add_argument("--tune-minutes", type=float, default=3.0, help="for each candidate of the U-Net, extra")
    parser.add_argument("--start", default="compact-open")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "small_set")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--same-parts", action="store_true", help="the U-Net gets Lexitome's training part only")
    parser.add_argument("--set", nargs="+", dest="settings", default=(), metavar="FIELD=VALUE", help="of the command")
    parser.add_argument("--out", type=Path, default=RESULTS / "small_set.json")
    typed = vars(parser.parse_args())
    out = typed.pop("out")
    try:
        write_json(
            out, measure(Options(**{**typed, "minutes": tuple(typed["minutes"]), "settings": tuple(typed["settings"])}))
        )
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"written to {out}")


if __name__ == "__main__":
    main()

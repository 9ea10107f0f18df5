"""What each stage of `lexitome pretrain` is worth: frozen features of the teachers and of random weights.

    python benchmarks/pretraining.py RUN [--classify DIR] [--data DIR] [--sets NAME ...] [--sides 224 448]
        [--cache DIR]

RUN is the folder of a finished run from random weights: RUN/stage1/model to RUN/stage3/model are its teachers. Random
weights are those that the run began with. Stage 2 is trained again without Gram anchoring and stage 3 at low resolution
(`pretraining_controls`; nothing should run beside it). All are frozen and asked by `lexitome probe`:

    knn, linear   images with classes, k and C chosen on validation images; of the run's own stages
    segment       a linear head on the last map, of a CT, an X-ray, an ultrasound and a microscopy set, at two sides

Differences are paired: accuracy image by image, Dice case by case (the mean over the targets that a case shows), means
over sets; intervals resample subjects within each set. The test parts of the annotated sets were not seen in
pretraining; whether images with classes look like pictures that were is counted by perceptual hash.

Everything is kept in `--work`: an interrupted run goes on, and the same command repeats nothing. Results:
benchmarks/results/pretraining.json and docs/benchmarks/dinov3/pretraining.md. Needs lexitome[train].
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from pretraining_controls import trained
from pretraining_text import CONTROLLED, DENSE, PAIRS, RANDOM, STAGES, as_markdown, claims
from provenance import DATA, RESULTS, ROOT, Entry, origin, rounded, write_json
from specialists import trained_seconds

from lexitome.cli.training_extra import CACHE
from lexitome.data.dataset import Dataset
from lexitome.data.trained_on import TrainedOn
from lexitome.errors import InputError
from lexitome.evaluation.leakage import check
from lexitome.evaluation.probing.dense import DenseConfig
from lexitome.evaluation.probing.tables import chosen
from lexitome.evaluation.statistics import stratified_mean
from lexitome.io.atomic import replacing
from lexitome.models.dinov3.weights import load_dinov3
from lexitome.recipes import probe
from lexitome.recipes.pretrain_run import PretrainJob
from lexitome.recipes.probe import Material, ProbeRecipe, open_data
from lexitome.recipes.run import MODEL, claimed
from lexitome.training.progress import LOG, read_log

PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")
DOCUMENT = ROOT / "docs" / "benchmarks" / "dinov3" / "pretraining.md"
SETS = ("btcv_abdomen_ct2d", "jsrt_scr", "hc18_fetal_head_us", "bccd_wbc")
"""CT, X-ray, ultrasound, microscopy."""


@dataclass(frozen=True)
class Options:
    """`class_side`, `sides`: of pictures in pixels, for classes and for outlines. `dense`: of linear heads. `cache`:
    decoded pictures of the run."""

    run: Path
    cache: Path
    classify: Path
    data: Path
    sets: tuple[str, ...]
    class_side: int
    sides: tuple[int, ...]
    dense: DenseConfig
    draws: int
    work: Path


def finished_job(run: Path) -> PretrainJob:
    """The job of a run folder.

    Raises:
        InputError: it holds no run with three finished stages from random weights.
    """
    job = PretrainJob.load(run)
    if not job.recipe.is_new:
        cause = f"began with weights of {job.recipe.start}, not with random ones"
        raise InputError(run, cause, "Name a run of lexitome pretrain mini.")
    absent = [stage for stage in STAGES if not (run / stage / MODEL).is_dir()]
    if absent:
        cause = f"is not finished: it holds no model of {', '.join(absent)}"
        raise InputError(run, cause, f"Type: lexitome pretrain --resume -o {run}")
    return job


def encoders_of(options: Options, job: PretrainJob) -> dict[str, str]:
    """Our name to what `load_encoder` takes."""
    return {RANDOM: job.recipe.start, **{stage: str(options.run / stage / MODEL) for stage in STAGES}}


def measure(options: Options, out: Path, document: Path, say: Callable[[str], None] = print) -> Entry:
    """Probe what is not probed yet, and write the result.

    Raises:
        InputError: the run is not finished, a set is not there, or the work folder is in use.
    """
    job = finished_job(options.run)
    encoders = encoders_of(options, job)
    with claimed(options.work):
        controls = trained(options.run, job, options.cache, options.work / "controls", say)
        every = encoders | {name: str(place / MODEL) for name, place in controls.items()}
        ours = {typed: name for name, typed in every.items()}
        classes, outlines = (options.work / part for part in ("classes", "outlines"))
        material = open_data([options.classify], classes)
        annotated = open_data([options.data / name for name in options.sets], outlines)
        recipe = ProbeRecipe(tuple(encoders.values()), (options.class_side,), ("knn", "linear"), draws=options.draws,
                             seed=job.recipe.seed)  # fmt: skip
        entries = _probed(recipe, material, classes, options, say)
        recipe = ProbeRecipe(tuple(every.values()), options.sides, ("segment",), draws=options.draws,
                             dense=options.dense, seed=job.recipe.seed)  # fmt: skip
        entries += _probed(recipe, annotated, outlines, options, say)
        entries = [{**entry, "encoder": ours[entry["encoder"]]} for entry in entries]
        datasets = [each.dataset for each in material.classified] + list(annotated.annotated)
        head = origin(PACKAGES, datasets, seed=job.recipe.seed, threads=torch.get_num_threads())
        settings = {"class_side": options.class_side, "sides": list(options.sides), "dense": asdict(options.dense)}
        places = {stage: options.run / stage for stage in STAGES} | controls
        about = [_about(name, place) for name, place in places.items()]
        result: Entry = rounded(
            head
            | {"settings": settings, "pretrained": about}
            | {"recipe": job.recipe.name, "seen": seen(options.run, [each.dataset for each in material.classified])}
            | {"rows": [shown(entry) for entry in entries], "differences": differences(entries, options)}
        )
        write_json(out, result)
        document.parent.mkdir(parents=True, exist_ok=True)
        with replacing(document) as temporary:
            temporary.write_text(as_markdown(result), encoding="utf-8")
    return result


def _probed(
    recipe: ProbeRecipe, material: Material, out: Path, options: Options, say: Callable[[str], None]
) -> list[Entry]:
    return probe.run(recipe, material, out, options.work / "cache", say)


def _about(name: str, place: Path) -> Entry:
    """What a stage was: its length, time (training steps only, as the log has them) and label-free validation."""
    loaded, plan = load_dinov3(place / MODEL), PretrainJob.load(place.parent).recipe.stages[place.name]
    return {
        "stage": name, "steps": plan.steps, "images": plan.images, "sides": list(plan.crops.global_sides),
        "gram": plan.objective.anchored, "minutes": trained_seconds(read_log(place / LOG)) / 60,
        "parameters": sum(each.numel() for each in loaded.net.parameters()), "sha256": loaded.sha256,
        "validation": loaded.about["metrics"],
    }  # fmt: skip


def seen(run: Path, datasets: Sequence[Dataset]) -> list[Entry]:
    """Test images with classes that look like a picture of pretraining (whose labels it did not see)."""
    found = check(TrainedOn.of_model(run / MODEL), datasets)
    return [{"dataset": part.dataset, "images": part.cases, "alike": part.affected} for part in found.sets]


def shown(entry: Entry) -> Entry:
    """A row of the result: without what is there for comparisons."""
    kept = ("dataset", "encoder", "side", "task", "features", "pooling", "chosen", "validation", "scores", "dice",
            "targets", "cases", "classes")  # fmt: skip
    return {key: entry[key] for key in kept if key in entry}


def differences(entries: Sequence[Entry], options: Options) -> list[Entry]:
    """Of every pair of `PAIRS` by every probe, and of `CONTROLLED` by outlines, over all sets and for each, in
    percent."""
    outlines = [(DENSE, side) for side in options.sides]
    probes = [("knn", options.class_side), ("linear", options.class_side), *outlines]
    found = []
    for later, earlier in (*CONTROLLED, *PAIRS):
        for task, side in probes if (later, earlier) in PAIRS else outlines:
            mine = [entry for entry in entries if (entry["task"], entry["side"]) == (task, side)]
            names = dict.fromkeys(entry["dataset"] for entry in mine)
            values = {name: difference(*(_entry(mine, task, name, who) for who in (later, earlier))) for name in names}
            for title, some in ((None, values), *((name, {name: values[name]}) for name in names)):
                interval = stratified_mean(some, seed=0, draws=options.draws)
                ends = {key: None if (value := getattr(interval, key)) is None else 100 * value
                        for key in ("mean", "low", "high")}  # fmt: skip
                found.append({"later": later, "earlier": earlier, "task": task, "side": side, "dataset": title,
                              "subjects": interval.units, "cases": interval.cases, **ends})  # fmt: skip
    return found


def _entry(entries: Iterable[Entry], task: str, dataset: str, encoder: str) -> Entry:
    """With the features that were best on validation images."""
    return next(each for each in chosen(list(entries), task, dataset) if each["encoder"] == encoder)


def difference(later: Entry, earlier: Entry) -> dict[str, list[float]]:
    """Subject to the differences of its images: of accuracy, or of Dice."""
    if later["task"] != DENSE:
        return {unit: list(np.subtract(values, earlier["right"][unit])) for unit, values in later["right"].items()}
    found: dict[str, list[float]] = {}
    for stem, case in later["by_case"].items():
        pairs = zip(case["dice"], earlier["by_case"][stem]["dice"], strict=True)
        gains = [a - b for a, b in pairs if a is not None and b is not None]
        if gains:
            found.setdefault(case["unit"], []).append(float(np.mean(gains)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of lexitome pretrain")
    parser.add_argument("--classify", type=Path, default=DATA.parent / "classify", help="folder of sets with classes")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of annotated sets")
    parser.add_argument("--sets", nargs="+", default=SETS, help="of these")
    parser.add_argument("--class-side", type=int, default=128)
    parser.add_argument("--sides", type=int, nargs="+", default=(224, 448), help="the highest decides about stage 3")
    parser.add_argument("--steps", type=int, default=500, help="of each linear head")
    parser.add_argument("--rate", type=float, default=DenseConfig().rate, help="of each linear head")
    parser.add_argument("--cache", type=Path, help="decoded pictures of the run; by default RUN/decoded")
    parser.add_argument("--draws", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pretraining")
    parser.add_argument("--out", type=Path, default=RESULTS / "pretraining.json")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    typed = parser.parse_args()
    torch.set_num_threads(typed.threads)
    options = Options(
        typed.run, typed.cache or typed.run / CACHE, typed.classify, typed.data, tuple(typed.sets),
        typed.class_side, tuple(sorted(typed.sides)), DenseConfig(steps=typed.steps, rate=typed.rate, loss_side=112),
        typed.draws, typed.work,
    )  # fmt: skip
    try:
        result = measure(options, typed.out, typed.document)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    for claim in claims(result):
        print(f"{claim.text}: {claim.verdict}")
    print(f"written: {typed.out}, {typed.document}")


if __name__ == "__main__":
    main()

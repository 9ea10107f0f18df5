"""The experiment of Medical SAM3 in small: a small SAM3 before and after `lexitome train small-sam3`.

    python benchmarks/small_sam3.py RUN [--data DIR ...] [--external DIR ...] [--limit N] [--volumes]

RUN is the folder of a finished run: RUN/start holds the network with the random weights it began with, RUN/model what
became of it. First the decoding policy (`models.sam3.settings.Policy`) is chosen for RUN/model by words alone, on a few
validation pictures of each 2D set that the run was taught. Then, with that policy, both are asked about the test parts
of these sets (of volumes, too, with --volumes) and about external 2D sets, of which nothing was trained on:

    text               the name of the concept
    oracle-box         the tight box around all of it, and no words (ORACLE: it comes from the reference)
    text+oracle-box    both (ORACLE)

Questions and scores are those of `lexitome evaluate`; what is not found scores 0. Intervals of differences resample
subjects within each set. Which concepts of an external set were taught is said by the trained network.

Answers are kept in `--work`: an interrupted run goes on from its last picture, and what is answered is not asked again.
Results: benchmarks/results/small_sam3.json and docs/benchmarks/small-sam3.md, renewed after each set. Needs
lexitome[train].
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import get_args

from provenance import DATA, RESULTS, ROOT, Entry, claim, origin, rounded, write_json
from small_sam3_text import AFTER, BEFORE, EXTERNAL, METRIC, OWN, SUBSETS, VOLUMES, as_markdown, line
from specialists import leaks, trained_seconds

from lexitome.cli.train_sam3 import KIND
from lexitome.data.dataset import Dataset
from lexitome.data.sources.find import find_sets
from lexitome.errors import InputError
from lexitome.evaluation.comparison import compare_rows
from lexitome.evaluation.presence import presence_table
from lexitome.evaluation.presets import load_preset, published_for
from lexitome.evaluation.protocols import TEXT, ProtocolSpec, parse
from lexitome.evaluation.reference import as_external, test_sets
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import SUMMARY, Run, read_object
from lexitome.evaluation.runner import Settings, evaluate
from lexitome.io.atomic import replacing
from lexitome.models.sam3.settings import Policy
from lexitome.models.sam3.weights import SIDECAR, load_sam3
from lexitome.recipes.machine import usable_cores
from lexitome.recipes.run import MODEL, claimed, kind_of_run, prepare_splits
from lexitome.recipes.sam3_answers import Sam3Answerer, sam3_answerer
from lexitome.recipes.sam3_run import BEFORE as START
from lexitome.recipes.sam3_run import Sam3Job
from lexitome.training.progress import LOG, read_log

PACKAGES = ("torch", "transformers", "numpy", "scipy", "accelerate")
COMMAND = "python benchmarks/small_sam3.py"
DOCUMENT = ROOT / "docs" / "benchmarks" / "small-sam3.md"
ASKED: tuple[ProtocolSpec, ...] = (TEXT, parse("box"), parse("text+oracle-box"))
FOLDERS = {BEFORE: START, AFTER: MODEL}
PAPER = "medical-sam3"
NONE = 1
"""Draws, where neither p-values nor intervals are shown: one is the least."""
GROUPS = {OWN: "internal", EXTERNAL: "external"}
"""Ours, and what the paper calls such sets."""
Sides = Mapping[str, Run]
"""The answers about a set, by who gave them."""


@dataclass(frozen=True)
class Options:
    """`data`: folders of the sets that the run was taught, () for those it remembers. `pictures`: of each set, to
    choose the policy by. `limit`: test pictures of each set at most. `jobs`: pictures that are asked about at a time.
    """

    run: Path
    data: tuple[Path, ...]
    external: tuple[Path, ...]
    work: Path
    pictures: int
    limit: int | None
    volumes: bool
    jobs: int
    seed: int


def finished_job(run: Path) -> Sam3Job:
    """The job of a run folder.

    Raises:
        InputError: it holds no finished run of SAM3 from random weights.
    """
    if kind_of_run(run) != KIND:
        raise InputError(run, "holds no run of SAM3", "Make one: lexitome train small-sam3 --data DIR -o RUN.")
    job = Sam3Job.load(run)
    if not job.recipe.is_new:
        cause = f"began with weights of {job.recipe.start}, not with random ones"
        raise InputError(run, cause, "Name a run of lexitome train small-sam3.")
    absent = [name for name in FOLDERS.values() if not (run / name / SIDECAR).is_file()]
    if absent:
        cause = f"is not finished: it holds no {' and no '.join(absent)}"
        raise InputError(run, cause, f"Type: lexitome train --resume -o {run}")
    return job


def own_sets(job: Sam3Job, options: Options) -> list[Dataset]:
    """The sets that the run was taught, in the parts that it was taught them in.

    Raises:
        InputError: one is not there, or was changed since.
    """
    data = tuple(map(str, options.data)) or job.data
    found = find_sets(data, concept=job.concept, unit_pattern=job.unit_pattern)
    names = {path.stem for path in (options.run / "splits").glob("*.json")}
    missing = sorted(names - {dataset.name for dataset in found})
    if missing:
        cause = f"does not hold {', '.join(missing)}, which the run was trained on"
        raise InputError(" ".join(data), cause, "Name the folder of its training sets with --data.")
    return prepare_splits([dataset for dataset in found if dataset.name in names], options.run, resume=True)


def external_sets(own: Sequence[Dataset], options: Options) -> list[Dataset]:
    """2D sets with all their cases for testing.

    Raises:
        InputError: a folder holds no set, or one that the run was taught.
    """
    found = [as_external(dataset) for dataset in test_sets(options.external)] if options.external else []
    known = sorted({dataset.name for dataset in found} & {dataset.name for dataset in own})
    if known:
        cause = f"the run was trained on {', '.join(known)}"
        raise InputError("--external", cause, "Name folders of sets that it has never seen.")
    return [dataset for dataset in found if dataset.dims == 2]


def has_part(dataset: Dataset, split: str) -> bool:
    return any(case.split == split for case in dataset.cases)


def measure(options: Options, out: Path, document: Path) -> Entry:
    """Ask what is not answered yet, and write the result after each set.

    Raises:
        InputError: the run is not finished, a set is not there, or the work folder is in use or of another comparison.
    """
    job = finished_job(options.run)
    own = own_sets(job, options)
    external = external_sets(own, options)
    kinds = {dataset.name: OWN if dataset.dims == 2 else VOLUMES for dataset in own}
    kinds |= {dataset.name: EXTERNAL for dataset in external}
    wanted = [d for d in (*own, *external) if options.volumes or kinds[d.name] != VOLUMES]
    chosen = [dataset for dataset in wanted if has_part(dataset, "test")]
    if not chosen:
        raise InputError(options.run, "was taught no set with a test part", "Train on more pictures.")
    with claimed(options.work):
        model = answerer(AFTER, options)
        shared = {"run": model.segmenter.weights, "seed": options.seed, "limit": options.limit,
                  "validation pictures": options.pictures}  # fmt: skip
        claim(options.work, shared)
        head = origin(PACKAGES, wanted, seed=options.seed, threads=options.jobs)
        head |= {"settings": settings_of(options, own, chosen, kinds), "trained": trained(job, own, model, options)}
        head["policies"] = policies([d for d in own if d.dims == 2 and has_part(d, "val")], model, options)
        head["published"] = published([dataset.name for dataset in chosen])
        asked = {who: answerer(who, options, head["policies"]["chosen"]) for who in FOLDERS}
        runs: dict[str, Sides] = {}
        result: Entry = {}
        for dataset in chosen:
            runs[dataset.name] = {who: ask(asked[who], who, dataset, options) for who in FOLDERS}
            result = rounded(head | summary(runs, kinds, options.seed))
            write_json(out, result)
            with replacing(document) as temporary:
                temporary.write_text(as_markdown(result), encoding="utf-8")
            print(line(result, dataset.name), flush=True)
    return result


def answerer(who: str, options: Options, policy: Policy | None = None) -> Sam3Answerer:
    threads = max(1, usable_cores() // options.jobs)
    return sam3_answerer(options.run / FOLDERS[who], threads=threads, policy=policy)


def settings_of(options: Options, own: Sequence[Dataset], chosen: Sequence[Dataset], kinds: Mapping[str, str]) -> Entry:
    asked = [dataset.name for dataset in chosen]
    return {
        "limit": options.limit, "validation_pictures": options.pictures, "metric": METRIC, "sets": asked,
        "not_asked": [d.name for d in own if d.name not in asked],
        "volumes_not_asked": sum(kinds[d.name] == VOLUMES and d.name not in asked for d in own),
    }  # fmt: skip


def trained(job: Sam3Job, own: Sequence[Dataset], model: Sam3Answerer, options: Options) -> Entry:
    """What was trained, on what, and for how long (training steps only, as the log has them)."""
    recipe, folder = job.recipe, options.run / MODEL
    about = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    net = load_sam3(folder).net  # the segmenter's takes its layers apart
    log = read_log(options.run / LOG)
    steps = [row for row in log if row["kind"] == "train" and row["step"] > recipe.optim.warmup]
    return {
        "name": recipe.name, "start": recipe.start, "prompts": recipe.sampling.prompts,
        "precision": recipe.run.precision, "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "megabytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
        "side": model.segmenter.net.side, "steps": recipe.run.steps, "best_step": about["steps"],
        "pictures": recipe.run.steps * recipe.sampling.images,
        "minutes": trained_seconds(log) / 60,
        "made_longer_after": [row["step"] for row, later in pairwise(steps) if later["lr"] > row["lr"]],
        "sha256": model.segmenter.weights, "licence": model.segmenter.licence,
        "sets": {dataset.name: sum(case.split == "train" for case in dataset.cases) for dataset in own},
    }  # fmt: skip


def policies(sets: Sequence[Dataset], model: Sam3Answerer, options: Options) -> Entry:
    """Every policy on validation pictures, by words; the best by Dice, and by what is stored where two are as good.

    Raises:
        InputError: there are no such pictures.
    """
    if not sets:
        cause = "was taught no 2D set with a validation part, which chooses the policy"
        raise InputError(options.run, cause, "Train on more pictures.")
    stored = model.segmenter.settings.policy
    settings = Settings(limit=options.pictures, overlays=False, leakage=False, command=COMMAND)
    tried = []
    for policy in get_args(Policy):
        place = options.work / "policies" / policy
        asked = answerer(AFTER, options, policy)
        evaluate(asked, sets, [TEXT], place, split="val", seed=options.seed, jobs=options.jobs, settings=settings)
        found = read_object(place / SUMMARY)
        overall = found["overall"][0]
        dice = {key: percent(overall["metrics"][METRIC][key]) for key in ("mean", "low", "high")}
        tried.append({"policy": policy, **dice, "presence": balanced_accuracy(found["presence"])})
    best = max(tried, key=lambda entry: (entry["mean"], entry["policy"] == stored))
    print(f"policy: {best['policy']} ({best['mean']:.1f} on validation pictures); stored with the model: {stored}")
    cases = overall["counts"]["cases"]
    return {"chosen": best["policy"], "stored": stored, "sets": len(sets), "cases": cases, "tried": tried}


def ask(asked: Sam3Answerer, who: str, dataset: Dataset, options: Options) -> Run:
    """As `lexitome evaluate` asks; what is answered already is not asked again."""
    place = options.work / "answers" / who / dataset.name
    settings = Settings(limit=options.limit, overlays=False, leakage=who == AFTER, command=COMMAND)
    evaluate(asked, [dataset], ASKED, place, seed=options.seed, jobs=options.jobs, settings=settings)
    return Run.load(place)


def summary(runs: Mapping[str, Sides], kinds: Mapping[str, str], seed: int) -> Entry:
    """Of the sets that are answered: means over sets first, then each set."""
    rows = []
    for kind, subset in SUBSETS:
        sides = gathered([runs[name] for name in runs if kinds[name] == kind], subset)
        if sides[AFTER]:
            rows.append({"name": None, "kind": kind, "subset": subset, **compared(sides, seed)})
    for name, found in runs.items():
        rows.append({"name": name, "kind": kinds[name], "subset": "all", **compared(gathered([found], "all"), seed)})
    answers = [row for found in runs.values() for run in found.values() for row in run.rows]
    return {
        "rows": rows, "unanswered": sum(row.status != "ok" for row in answers),
        "near_training_pictures": leaks([found[AFTER] for found in runs.values()]),
    }  # fmt: skip


def gathered(runs: Iterable[Sides], subset: str) -> dict[str, list[ResultRow]]:
    """The rows of several sets, by who answered; of a subset, those of concepts that the trained one was ("taught") or
    was not ("untaught") taught. What it was taught is not known to the one before, so its rows are matched."""
    found: dict[str, list[ResultRow]] = {BEFORE: [], AFTER: []}
    for run in runs:
        wanted = {row.key for row in run[AFTER].rows if subset == "all" or row.taught is (subset == "taught")}
        for who, rows in found.items():
            rows += [row for row in run[who].rows if row.key in wanted]
    return found


def compared(sides: Mapping[str, Sequence[ResultRow]], seed: int) -> Entry:
    """Both over the same questions, by protocol: means over sets and their paired difference, in percent."""
    shown = [row for row in sides[AFTER] if row.present and not row.derived]
    protocols = {}
    if shown:
        (comparison,) = compare_rows(list(sides.items()), metric=METRIC, seed=seed, draws=NONE)["comparisons"]
        for part in comparison["protocols"]:
            (entry,) = part["overall"]
            numbers = {BEFORE: entry["a"]["mean"], AFTER: entry["b"]["mean"]}
            numbers |= {key: entry[key] for key in ("difference", "low", "high")}
            questions = {"questions": entry["cases"], "subjects": entry["units"]}
            protocols[part["protocol"]] = {key: percent(value) for key, value in numbers.items()} | questions
    concepts = {(row.dataset, row.concept): row.taught is True for row in shown}
    return {
        "sets": len({row.dataset for row in shown}), "concepts": len(concepts), "taught": sum(concepts.values()),
        "protocols": protocols, "presence": {who: presence_of(rows, seed) for who, rows in sides.items()},
    }  # fmt: skip


def presence_of(rows: Iterable[ResultRow], seed: int) -> float | None:
    asked = [row for row in rows if row.protocol == TEXT.name]
    return balanced_accuracy(presence_table(asked, seed=seed, draws=NONE))


def balanced_accuracy(table: Sequence[Entry]) -> float | None:
    """Mean over the sets that asked for present and for absent concepts, in percent; None where none did."""
    mean = next((entry["balanced_accuracy"] for entry in table if entry["dataset"] is None), None)
    return None if mean is None else percent(mean["mean"])


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def published(names: Iterable[str]) -> Entry:
    """Dice that the paper prints, in percent: of its groups of sets, and of those sets of ours that it used."""
    preset = load_preset(PAPER)
    groups = {}
    for ours, theirs in GROUPS.items():
        (group,) = (group for group in preset.groups if group.key == theirs)
        means = {preset.column(key).model: percent(values[METRIC]) for key, values in group.means.items()}
        groups[ours] = {"title": group.title, "text": means}
    sets: dict[str, Entry] = {}
    for name in names:
        for score in published_for(name):
            if score.preset == PAPER and score.metric == METRIC:
                entry = sets.setdefault(name, {"differs": score.differs})
                entry.setdefault(score.protocol, {})[score.model] = percent(score.value)
    return {"paper": preset.paper, "url": preset.url, "groups": groups, "sets": sets}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("run", type=Path, metavar="RUN", help="folder of a finished lexitome train small-sam3")
    found.add_argument("--data", type=Path, nargs="+", default=(), help="training sets; by default as the run has them")
    found.add_argument("--external", type=Path, nargs="*", default=(DATA.parent / "external",), help="sets never seen")
    found.add_argument("--volumes", action="store_true", help="ask about the test volumes of training sets, too: slow")
    found.add_argument("--limit", type=int, help="test pictures of each set at most, for a first look")
    found.add_argument("--pictures", type=int, default=10, help="validation pictures of each set to choose the policy")
    found.add_argument("--jobs", type=int, default=usable_cores(), help="pictures that are asked about at a time")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--work", type=Path, default=ROOT / "runs" / "small_sam3", help="answers are kept here")
    found.add_argument("--out", type=Path, default=RESULTS / "small_sam3.json")
    found.add_argument("--document", type=Path, default=DOCUMENT, help="written from the results")
    return found


def main() -> None:
    typed = vars(parser().parse_args())
    out, document = typed.pop("out"), typed.pop("document")
    low = [f"--{name}" for name in ("limit", "pictures", "jobs") if typed[name] is not None and typed[name] < 1]
    if low:
        parser().error(f"{', '.join(low)}: 1 at least")
    try:
        measure(Options(**typed | {name: tuple(typed[name]) for name in ("data", "external")}), out, document)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"written to {out} and {document}")


if __name__ == "__main__":
    main()

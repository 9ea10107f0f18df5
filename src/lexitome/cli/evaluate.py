"""`evaluate`: how good a model, or another tool's masks, are on annotated data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lexitome.cli.answerers import model_answerer, taken
from lexitome.cli.console import OK, SOME_FAILED, Console
from lexitome.cli.options import Debug, PolicyOption, PrecisionOption, Side
from lexitome.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from lexitome.data.dataset import Dataset
    from lexitome.evaluation.answering import Answerer
    from lexitome.evaluation.protocols import ProtocolSpec
    from lexitome.evaluation.run_folder import Run
    from lexitome.evaluation.runner import Settings

app = typer.Typer()
_SHOWN = 5
CAPTION = (
    "Dice in %, mean over cases with 95 % interval; presence: balanced accuracy in %, where only present things were "
    "asked for: recall"
)


Data = Annotated[
    list[Path] | None, typer.Option("--data", metavar="DIR", help="An annotated set or a folder of sets; repeatable.")
]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="A name or a folder; by default compact.")]
Predictions = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="DIR",
        help="Score another tool's masks instead: CASE.nii.gz (or .png) or CASE/CONCEPT.nii.gz.",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        metavar="P[,P2]",
        help="text, box, jittered-box, boxes:N, points:N, center-point, iterative-clicks:N, exemplar, text+box; by "
        "default text. All but text are drawn from the reference and called oracle.",
    ),
]
Baselines = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline",
        metavar="NAME",
        help="Ask a baseline the same: empty, full, otsu, mean-shape, or nnunet[:EPOCHS], which is trained first; "
        "repeatable.",
    ),
]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the results.")]
Split = Annotated[str, typer.Option("--split", metavar="PART", help="train, val, test or all.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="At most N images of each set, for a first look.")
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, metavar="N", help="Images at a time; by default one for each core.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of splits and of the places that are drawn.")]
Tolerance = Annotated[
    float, typer.Option("--tolerance", min=0.0, metavar="MM", help="Of surface Dice; pixels without spacing.")
]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="What tables call the tool of --predictions.")]
ConceptName = Annotated[
    str, typer.Option("--concept", metavar="NAME", help="What the masks show, if the data do not say it.")
]
UnitPattern = Annotated[
    str | None, typer.Option("--unit-pattern", metavar="REGEX", help="The subject within the name of an image.")
]
SaveMasks = Annotated[bool, typer.Option("--save-masks", help="Keep every mask in RUN/masks.")]
NoLeakageCheck = Annotated[
    bool, typer.Option("--no-leakage-check", help="Do not look for training pictures in the test set.")
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write the numbers, but no page about them.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]


@app.command("evaluate")
def evaluate(  # noqa: PLR0913 - the signature is the command line
    data: Data = None,
    model: Model = None,
    policy: PolicyOption = None,
    side: Side = None,
    precision: PrecisionOption = None,
    predictions: Predictions = None,
    prompts: Prompts = None,
    baselines: Baselines = None,
    out: Out = Path("runs/evaluate"),
    split: Split = "test",
    limit: Limit = None,
    jobs: Jobs = None,
    seed: Seed = 0,
    tolerance: Tolerance = 2.0,
    name: Name = "",
    concept: ConceptName = "",
    unit_pattern: UnitPattern = None,
    save_masks: SaveMasks = False,
    no_leakage_check: NoLeakageCheck = False,
    no_report: NoReport = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a model on annotated images: one row for each image, concept and prompt, with all metrics.

    Type the same command again to continue after an interruption. A folder called external/ counts as test data as a
    whole; of other sets the test part is asked. Answers that are missing or cannot be used are named and score as empty
    masks; the exit code is then 3.
    """
    from lexitome.evaluation.protocols import parse_all
    from lexitome.evaluation.reference import test_sets
    from lexitome.evaluation.run_folder import BASELINE_RUNS
    from lexitome.evaluation.runner import Settings

    if not data:
        raise InputError("lexitome evaluate", "--data is missing", "Name the folder of annotated images: --data DIR.")
    chosen = list(dict.fromkeys(baselines or []))
    if predictions is not None:
        from lexitome.inference.loading import refuse_sam3_options

        refuse_sam3_options(predictions, policy, side, precision)
    _check(model, predictions, split, chosen)
    protocols = parse_all(prompts or ["text"])
    datasets = test_sets(data, seed=seed, concept=concept, unit_pattern=unit_pattern)
    command = shlex.join(["lexitome", *sys.argv[1:]])
    settings = Settings(tolerance, tolerance, limit, save_masks, True, not no_leakage_check, command, quiet)
    asked = _Asked(datasets, protocols, split, seed, jobs, settings)
    problems = asked.run(
        model_answerer(model or "compact", "evaluate", name, policy=policy, side=side, precision=precision)
        if predictions is None
        else _from_folder(predictions, name, asked),
        out,
    )
    for baseline in chosen:
        place = out / BASELINE_RUNS / _folder_of(baseline)
        answerer = _baseline(baseline, asked, place)
        asked.run(answerer, place, taken(asked.protocols, answerer, settings.say))
    _conclude(out, [_folder_of(baseline) for baseline in chosen], Console(quiet=quiet), report=not no_report)
    raise typer.Exit(SOME_FAILED if problems else OK)


@dataclass(frozen=True)
class _Asked:
    """What is the same for the model and for every baseline."""

    datasets: Sequence[Dataset]
    protocols: Sequence[ProtocolSpec]
    split: str
    seed: int
    jobs: int | None
    settings: Settings

    def run(self, answerer: Answerer, out: Path, protocols: Sequence[ProtocolSpec] = ()) -> int:
        """Evaluate by all protocols, or by those given, and return the number of problems."""
        from lexitome.evaluation import runner
        from lexitome.evaluation.run_folder import Run

        runner.evaluate(
            answerer, self.datasets, protocols or self.protocols, out,
            split=self.split, seed=self.seed, jobs=self.jobs, settings=self.settings,
        )  # fmt: skip
        found = Run.load(out).info["problems"]
        return int(found["missing"] + found["failed"] + len(found["unreadable"]))


def _check(model: str | None, predictions: Path | None, split: str, baselines: list[str]) -> None:
    from lexitome.evaluation.baselines import BASELINES
    from lexitome.evaluation.nnunet import need_nnunet
    from lexitome.evaluation.nnunet_answers import NAME, epochs_of

    if model is not None and predictions is not None:
        remedy = "Evaluate each in a run of its own, then type lexitome compare RUN RUN2."
        raise InputError("lexitome evaluate", "--model and --predictions are both given", remedy)
    if split not in ("train", "val", "test", "all"):
        raise InputError(f"--split {split}", "there is no such part", "Choose train, val, test or all.")
    for baseline in baselines:
        if epochs_of(baseline) is not None:
            need_nnunet()
        elif baseline not in BASELINES:
            remedy = f"Choose from {', '.join((*BASELINES, NAME))}."
            raise InputError(f"--baseline {baseline}", "there is no such baseline", remedy)


def _from_folder(predictions: Path, name: str, asked: _Asked) -> Answerer:
    from lexitome.evaluation.predictions import folder_answerer

    if len(asked.protocols) > 1:
        remedy = "Name the one with which the masks were made, or leave it out."
        raise InputError("--prompts", "a folder of masks holds the answers to one protocol", remedy)
    return folder_answerer(predictions, asked.datasets, split=asked.split, name=name)


def _folder_of(baseline: str) -> str:
    return baseline.replace(":", "-")


def _baseline(name: str, asked: _Asked, place: Path) -> Answerer:
    """
    Args:
        place: the run folder; nnU-Net works below it.
    """
    from lexitome.evaluation.baselines import BASELINES
    from lexitome.evaluation.nnunet import Options
    from lexitome.evaluation.nnunet_answers import WORK, epochs_of, nnunet_answerer

    if name in BASELINES:
        return BASELINES[name](asked.datasets)
    options = Options(epochs=epochs_of(name) or Options.epochs)
    say = asked.settings.say
    return nnunet_answerer(asked.datasets, place / WORK, options, split=asked.split, say=say)


def _conclude(out: Path, baselines: Sequence[str], console: Console, *, report: bool) -> None:
    """The report, the table, what went wrong, and what to type next."""
    from lexitome.evaluation.run_folder import BASELINE_RUNS, Run

    runs = [Run.load(out), *(Run.load(out / BASELINE_RUNS / name) for name in baselines)]
    if report:
        from lexitome.evaluation.report import write_report

        write_report([out], out)
    if not console.quiet:
        _show(runs)
    for run in runs:
        for line in problem_lines(run):
            console.note(line)
    place = shlex.quote(str(out))
    console.say(f"results: {out / 'rows.csv'}, summary.json, run.json")
    if report:
        console.say(f"report: {out / 'report.html'}")
    else:
        console.say(f"next: lexitome report {place}")
    console.say(f"next: lexitome compare {place} OTHER_RUN")


def problem_lines(run: Run) -> list[str]:
    """What could not be scored, with the first few by name."""
    found: dict[str, Any] = run.info["problems"]
    lines = []
    for status, words in (("missing", "answers are missing"), ("failed", "answers cannot be used")):
        bad = [row for row in run.rows if row.status == status]
        if bad:
            cases = list(dict.fromkeys(f"{row.dataset}/{row.case} ({row.note})" for row in bad))
            lines.append(f"{run.name}: {len(bad)} {words} and score as empty masks: {_some(cases)}")
    if found["unreadable"]:
        names = [f"{entry['dataset']}/{entry['case']} ({entry['cause']})" for entry in found["unreadable"]]
        lines.append(f"{run.name}: {len(names)} cases cannot be read and are in no mean: {_some(names)}")
    if found.get("extra"):
        lines.append(f"{run.name}: {len(found['extra'])} files belong to no question: {_some(found['extra'])}")
    leakage, kind = run.leakage, run.info["model"].get("kind")
    if leakage is not None and (leakage.get("affected") or (kind != "baseline" and not leakage.get("checked"))):
        lines.append(f"{run.name}: {leakage['summary']} (see leakage.json)")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _show(runs: Sequence[Run]) -> None:
    from rich.console import Console as Screen

    screen = Screen(highlight=False)
    if not screen.is_terminal:
        screen = Screen(highlight=False, width=160)
    screen.print(table_of(runs))


def table_of(runs: Sequence[Run]) -> Table:
    """Mean Dice and presence by dataset, protocol and model."""
    from rich import box
    from rich.table import Table

    from lexitome.evaluation.run_folder import SUMMARY, read_object

    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left")
    for head in ("dataset", "prompts", "model", "concepts", "cases", "Dice", "presence", "s each"):
        table.add_column(head, justify="left" if head in ("dataset", "prompts", "model") else "right", overflow="fold")
    lines = []
    for run in runs:
        summary = read_object(run.path / SUMMARY)
        presence = {(e["dataset"], e["protocol"]): e for e in summary["presence"]}
        for entry in summary["by_dataset"]:
            found = presence.get((entry["dataset"], entry["protocol"]), {})
            seconds = f"{entry['seconds']['mean']:.2g}" if entry["seconds"] else ""
            lines.append((
                entry["dataset"], entry["protocol"], run.name, str(entry["concepts"]), str(entry["counts"]["cases"]),
                in_percent(entry["metrics"].get("dice")), presence_of(found), seconds,
            ))  # fmt: skip
    for line in sorted(lines, key=lambda line: line[:2]):
        table.add_row(*line)
    return table


def in_percent(interval: dict[str, Any] | None) -> str:
    """ "81.2 [78.0, 84.1]"; without an interval where a single subject leaves none."""
    if interval is None:
        return "-"
    mean = f"{100 * interval['mean']:.1f}"
    if interval["low"] is None:
        return mean
    return f"{mean} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def presence_of(entry: dict[str, Any]) -> str:
    if entry.get("balanced_accuracy"):
        return f"{100 * entry['balanced_accuracy']['mean']:.1f}"
    return f"recall {100 * entry['recall']['mean']:.1f}" if entry.get("recall") else "-"

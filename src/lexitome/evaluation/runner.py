"""Run an evaluation: ask every test case of every dataset, keep what is done, and leave a run folder.

An interrupted run continues when it is started again. Cases are worked on side by side by threads; neither their order
nor their number changes a row, but for `seconds`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lexitome.data.dataset import Case, Dataset
from lexitome.errors import InputError
from lexitome.evaluation.answering import Answer, Answerer, Remembers, is_told_names
from lexitome.evaluation.asking import (
    Asked,
    Exam,
    Tolerances,
    answers_of,
    evaluate_case,
    explained,
    measures_centre_lines,
    read_exam,
    save_masks,
)
from lexitome.evaluation.journal import Done, Journal
from lexitome.evaluation.protocols import ProtocolSpec, check_taken
from lexitome.evaluation.reference import cases_of, data_hash, is_external
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import INFO, LEAKAGE, LEDGER, MASKS, SUMMARY, write_json, write_rows
from lexitome.evaluation.tables import summarise

_ANSWERING = ("data", "inference", "io", "models", "evaluation/metrics", "assets/*.*", "text.py", "concepts.py",
              "prompts.py", "segmentation.py", "volume.py",
              *(f"evaluation/{name}.py" for name in ("answering", "asking", "baselines", "predictions", "protocols",
                                                     "reference", "rows")))  # fmt: skip
"""Parts of the package that a row depends on; the weights are told apart by the answerer's provenance."""
_LIBRARIES = ("numpy", "scipy", "onnxruntime", "pillow", "nibabel", "SimpleITK", "scikit-image", "torch")


@dataclass(frozen=True)
class Settings:
    """Args:
    tolerance_mm: of normalised surface Dice and boundary IoU, where the image has a spacing.
    tolerance_px: ... and where it has none.
    limit: at most so many cases of each dataset.
    save_masks: keep every mask in RUN/masks.
    overlays: draw the worst, median and best answers at the end; those few cases are asked once more.
    leakage: look for the model's training pictures in the test set.
    command: as typed, for the record.
    quiet: no progress bar and no remarks on standard error.
    """

    tolerance_mm: float = 2.0
    tolerance_px: float = 2.0
    limit: int | None = None
    save_masks: bool = False
    overlays: bool = True
    leakage: bool = True
    command: str = ""
    quiet: bool = False

    @property
    def deciding(self) -> dict[str, Any]:
        """Those that a row depends on."""
        return {"tolerance_mm": self.tolerance_mm, "tolerance_px": self.tolerance_px, "limit": self.limit}

    def say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A run: who is asked what about which data, and where the results go."""

    answerer: Answerer
    datasets: tuple[Dataset, ...]
    protocols: tuple[ProtocolSpec, ...]
    out: Path
    split: str
    seed: int
    settings: Settings

    @cached_property
    def cases(self) -> dict[str, list[Case]]:
        return {dataset.name: cases_of(dataset, self.split, self.settings.limit) for dataset in self.datasets}

    @cached_property
    def provenance(self) -> dict[str, Any]:
        stated = {**self.answerer.provenance(), "name": self.answerer.name}
        return {key: value for key, value in stated.items() if key != "extra_files"}  # told among the problems

    @cached_property
    def hashes(self) -> dict[str, str]:
        return {name: data_hash(cases) for name, cases in self.cases.items()}

    def check_cases(self) -> None:
        """Raises InputError where no dataset has a case in the part."""
        empty = [name for name, cases in self.cases.items() if not cases]
        if len(empty) == len(self.datasets):
            where = self.datasets[0].root if self.datasets else "--data"
            remedy = "Choose another --split (train, val, test, all)."
            raise InputError(where, f"has no case in the {self.split} part", remedy)
        for name in empty:
            self.settings.say(f"{name}: has no case in the {self.split} part")

    @property
    def asks_absent(self) -> bool:
        return "text" in self.answerer.takes and any(not spec.oracle for spec in self.protocols)

    def journals(self) -> list[Journal]:
        asked = {
            "model": self.answerer.name, "protocols": [spec.name for spec in self.protocols], "split": self.split,
            "seed": self.seed, "settings": self.settings.deciding,
        }  # fmt: skip
        given = {"program": program_hash(), "model files": self.provenance, "clDice": measures_centre_lines()}
        found = []
        for dataset in self.datasets:
            place = self.out / LEDGER / f"{dataset.name}.jsonl"
            journal = Journal(place, asked, given | {"images or masks": self.hashes[dataset.name]})
            if journal.changed:
                self.settings.say(
                    f"{dataset.name}: measured again, since the {' and the '.join(journal.changed)} changed"
                )
            found.append(journal)
        return found

    def exam(self, dataset: Dataset, case: Case) -> Exam:
        return read_exam(dataset, case, absent=self.asks_absent, seed=self.seed)

    def work(self, dataset: Dataset, case: Case) -> Done:
        """
        Raises:
            InputError: masks cannot be saved.
        """
        try:
            exam = self.exam(dataset, case)
        except InputError as error:
            return Done(unreadable=f"{Path(error.path).name}: {error.cause}")
        except Exception as error:
            return Done(unreadable=explained(error))
        tolerances = Tolerances(self.settings.tolerance_mm, self.settings.tolerance_px)
        keep = self._keep if self.settings.save_masks else None
        return Done(tuple(evaluate_case(self.answerer, exam, self.protocols, tolerances, keep)))

    def _keep(self, exam: Exam, spec: ProtocolSpec, asked: Sequence[Asked], answers: Sequence[Answer]) -> None:
        save_masks(self.out / MASKS / spec.name.replace(":", "-"), exam, asked, answers)


def evaluate(
    answerer: Answerer, datasets: Sequence[Dataset], protocols: Sequence[ProtocolSpec], out: str | Path, *,
    split: str = "test", seed: int = 0, jobs: int | None = None, settings: Settings | None = None,
) -> list[ResultRow]:  # fmt: skip
    """Ask `answerer` about the cases of a part, and write the run folder `out` (see `evaluation.run_folder`).

    Args:
        protocols: see `protocols.parse`.
        split: "train", "val", "test" or "all".
        jobs: cases at a time; by default one for each core.

    Returns:
        Rows in the order of datasets, their cases, protocols and concepts.

    Raises:
        InputError: the answerer does not take a protocol, there are no cases, `out` holds another run or cannot be
            written.
    """
    run = Evaluation(
        answerer, tuple(datasets), tuple(protocols), Path(out), split, seed, settings or Settings()
    )  # fmt: skip
    for spec in run.protocols:
        check_taken(spec, answerer.name, answerer.takes)
    run.check_cases()
    journals = run.journals()
    cores = jobs or os.cpu_count() or 1
    kept = sum(len(journal.done) for journal in journals)
    info = {**described(run), "jobs": cores, "cases_done_before": kept, "started": _now(), "finished": None}
    write_json(run.out / INFO, info)
    ask_all(run, journals, cores)
    done = {(d.name, case.stem): journal.done[case.stem]
            for d, journal in zip(run.datasets, journals, strict=True) for case in run.cases[d.name]}  # fmt: skip
    rows = [row for entry in done.values() for row in entry.rows]
    write_rows(run.out, rows)
    write_json(run.out / SUMMARY, summarise(rows, seed=seed))
    if run.settings.leakage:
        look_for_leaks(run)
    unreadable = [
        {"dataset": name, "case": stem, "cause": e.unreadable} for (name, stem), e in done.items() if e.unreadable
    ]
    extra = run.answerer.provenance().get("extra_files", [])
    problems = {
        "unreadable": unreadable,
        "extra": extra,
        **{s: sum(row.status == s for row in rows) for s in ("missing", "failed")},
    }
    write_json(run.out / INFO, info | {"finished": _now(), "problems": problems, "peak_memory_mb": peak_memory()})
    if run.settings.overlays:
        draw_overlays(run, rows)
    return rows


def ask_all(run: Evaluation, journals: Sequence[Journal], jobs: int) -> None:
    """Every case that is not done yet. Ctrl-C keeps what is done."""
    todo = [
        (dataset, case, journal)
        for dataset, journal in zip(run.datasets, journals, strict=True)
        for case in run.cases[dataset.name]
        if case.stem not in journal.done or journal.done[case.stem].unreadable
    ]
    total = sum(len(cases) for cases in run.cases.values())
    stop = threading.Event()
    with progress(run.answerer.name, total, total - len(todo), shown=not run.settings.quiet) as advance:

        def work(job: tuple[Dataset, Case, Journal]) -> None:
            dataset, case, journal = job
            if not stop.is_set():
                journal.add(case.stem, run.work(dataset, case))
                advance(dataset.name)

        with ThreadPoolExecutor(jobs) as pool:
            try:
                for _ in pool.map(work, todo):
                    pass
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


@contextmanager
def progress(what: str, total: int, done: int, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar on standard error, which vanishes when done; yields what tells it that a case of a dataset is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    hidden = not shown or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda name: bar.update(task, advance=1, description=f"{what}: {name}")


def draw_overlays(run: Evaluation, rows: Sequence[ResultRow]) -> None:
    """Pictures of the worst, median and best answers of each dataset and protocol."""
    from lexitome.evaluation.report.overlays import choose_examples, render_overlay, save_examples

    chosen, drawn = choose_examples(rows), []
    with progress("examples", len(chosen), 0, shown=not run.settings.quiet) as advance:
        for row, rank in chosen:
            exam, question, mask = answered_again(run, row)
            drawn.append((row, rank, *render_overlay(exam.volume, mask, question.mask)))
            advance(row.dataset)
    save_examples(run.out, drawn)


def answered_again(run: Evaluation, row: ResultRow) -> tuple[Exam, Asked, NDArray[np.bool_]]:
    """The case of a row, its question, and the mask that it was answered with: what was not answered is empty."""
    dataset = next(dataset for dataset in run.datasets if dataset.name == row.dataset)
    case = next(case for case in run.cases[row.dataset] if case.stem == row.case)
    spec = next(spec for spec in run.protocols if spec.name == row.protocol)
    exam = run.exam(dataset, case)
    question = next(question for question in exam.asked if question.concept == row.concept)
    if row.status != "ok":
        return exam, question, np.zeros_like(question.mask)
    session = run.answerer.begin(exam.volume, replace(exam.about, concepts=(row.concept,)))
    (answer,) = answers_of(session, exam, spec, [question], tell_name=is_told_names(run.answerer))
    return exam, question, answer.mask


def look_for_leaks(run: Evaluation) -> None:
    """Write what `evaluation.leakage` finds; of an answerer that carries no hashes, that nobody can tell."""
    from lexitome.evaluation.leakage import check

    training = run.answerer.training() if isinstance(run.answerer, Remembers) else None
    asked = [replace(dataset, cases=tuple(run.cases[dataset.name])) for dataset in run.datasets]
    total = sum(len(dataset.cases) for dataset in asked)
    taught = tuple(run.provenance.get("trained_on") or ())
    with progress("leakage", total, 0, shown=training is not None and not run.settings.quiet) as advance:
        report = check(training, asked, split=run.split, taught=taught, progress=lambda done: advance("test images"))
    write_json(run.out / LEAKAGE, report)


def described(run: Evaluation) -> dict[str, Any]:
    """What was asked of whom about which data; JSON-able, without paths but those in the command."""
    trained_on = run.provenance.get("trained_on") or ()
    data = {
        dataset.name: {
            "hash": run.hashes[dataset.name], "title": dataset.title, "split": run.split,
            "cases": len(run.cases[dataset.name]), "units": len({case.unit for case in run.cases[dataset.name]}),
            "dims": dataset.dims, "modality": dataset.modality, "licence": dataset.licence,
            "source": dataset.source, "form": dataset.form, "external": is_external(dataset),
            "in_training": dataset.name in trained_on,
        }
        for dataset in run.datasets
    }  # fmt: skip
    return {
        "command": run.settings.command, "model": run.provenance, "data": data,
        "protocols": [spec.name for spec in run.protocols], "split": run.split, "seed": run.seed,
        "settings": run.settings.deciding | {"clDice": measures_centre_lines()}, "versions": versions(),
        "machine": {"cores": os.cpu_count(), "system": platform.system(), "processor": platform.machine()},
        "program": program_hash(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("lexitome", *_LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def program_hash() -> str:
    """Of the parts of the package that decide a row, first 16 characters."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for part in _ANSWERING:
        place = package / part
        found = sorted(place.rglob("*.py")) if place.is_dir() else sorted(package.glob(part))
        for path in found:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def peak_memory() -> float | None:
    """Most memory that the process has held so far, in MB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

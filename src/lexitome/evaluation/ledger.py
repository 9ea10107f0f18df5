"""What was measured so far, on disk, so that an interrupted evaluation continues where it was.

One JSONL file for each (model, program, dataset): one line for each case, written when the case is done. A line that
was cut short does not count. Other weights, another card, other images or any change of the program begin anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress

from lexitome.data.dataset import Case, Dataset
from lexitome.evaluation.cases import Row, data_hash, evaluate_case
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import FILES

ANSWERING = ("data", "evaluation", "inference", "io", "models", "text.py", "concepts.py", "volume.py", "assets")
"""Parts of the package that a row depends on."""


class Ledger:
    """The rows of one dataset. Threads may add to it."""

    def __init__(self, folder: Path, identity: str, dataset: Dataset) -> None:
        self.dataset, self.data_sha256 = dataset, data_hash(dataset)
        name = hashlib.sha256(f"{identity}:{self.data_sha256}".encode()).hexdigest()[:16]
        self._path, self._lock = folder / f"{dataset.name}-{name}.jsonl", threading.Lock()
        self._rows: dict[str, list[Row]] = {}
        lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.exists() else []
        for line in lines[:-1]:
            try:
                entry = json.loads(line)
                self._rows[entry["case"]] = [Row.from_json(row) for row in entry["rows"]]
            except (ValueError, KeyError, TypeError):
                continue  # cut short by an interruption: the case is asked again

    @property
    def missing(self) -> list[Case]:
        return [case for case in self.dataset.cases if case.split == "test" and case.stem not in self._rows]

    @property
    def rows(self) -> list[Row]:
        """In the order of the dataset's cases, whatever the order in which they were done."""
        return [row for case in self.dataset.cases for row in self._rows.get(case.stem, [])]

    def add(self, case: Case, rows: list[Row]) -> None:
        line = json.dumps({"case": case.stem, "rows": [asdict(row) for row in rows]})
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                if file.tell() and self._ends_open():
                    file.write(b"\n")
                file.write(line.encode() + b"\n")
            self._rows[case.stem] = rows

    def _ends_open(self) -> bool:
        return not self._path.read_bytes().endswith(b"\n")


def fill(segmenter: Segmenter, ledgers: Sequence[Ledger], others: Sequence[Dataset], *, threads: int | None) -> None:
    """Evaluate every case that is missing, one for each core at a time. The segmenter should use one thread itself."""
    jobs = [(ledger, case) for ledger in ledgers for case in ledger.missing]
    with Progress() as progress, ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        task = progress.add_task("evaluating", total=len(jobs))

        def work(job: tuple[Ledger, Case]) -> None:
            ledger, case = job
            ledger.add(case, evaluate_case(segmenter, ledger.dataset, case, others))
            progress.update(task, advance=1, description=ledger.dataset.name)

        try:
            for _ in pool.map(work, jobs):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def identity_of(segmenter: Segmenter) -> str:
    """Of the model's files and of the program that asks it."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(segmenter.card.files.joinpath(name).read_bytes())
    package = Path(__file__).parents[1]
    for part in ANSWERING:
        place = package / part
        found = sorted(place.glob("**/*.py")) + sorted(place.glob("*.*")) if place.is_dir() else [place]
        for path in found:
            digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()

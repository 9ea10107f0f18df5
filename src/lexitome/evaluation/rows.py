"""What an evaluation leaves: one `ResultRow` for each (case, concept, protocol), on disk as CSV.

A number is None where it has no meaning for the row (Dice of an absent target, surface distance to nothing); what an
empty prediction or reference scores instead is said in docs/metrics.md.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from lexitome.errors import InputError
from lexitome.evaluation.metrics.calibration import from_text

Status = Literal["ok", "missing", "failed"]
METRIC = "metric."
"""Columns of metrics begin with this."""


@dataclass(frozen=True)
class ResultRow:
    """One question and how it was answered.

    Args:
        unit: the subject, video or section of the case: what intervals are clustered by.
        derived: the concept is a union that the files do not name; means leave it out.
        protocol: what was given, e.g. "text", "text+oracle-box"; contains "oracle" wherever prompts came from the
            reference.
        present: whether the reference shows the concept.
        status: "missing" where there is no prediction, "failed" where it cannot be used; both score as an empty mask.
        note: the reason in words, or what the model had to say.
        presence: probability that the concept is there, None where the model does not say.
        found: whether the predicted mask holds anything.
        taught: whether the model was taught the concept under any name; None where nobody knows.
        seconds: of the answer, the image's encoding shared among its questions.
        length: unit of the metrics that are lengths: "mm", or "px" where the image has no spacing.
        metrics: by name, see `evaluation.metrics.METRICS`.
        bins: of the reliability diagram of the mask's probability (`metrics.calibration.to_text`); "" where there is
            none, as in tables that an earlier version wrote.
    """

    dataset: str
    split: str
    case: str
    unit: str
    modality: str
    dims: int
    concept: str
    derived: bool
    model: str
    protocol: str
    present: bool
    status: Status = "ok"
    note: str = ""
    presence: float | None = None
    found: bool = False
    taught: bool | None = None
    seconds: float | None = None
    length: Literal["mm", "px"] = "px"
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    bins: str = ""

    @property
    def oracle(self) -> bool:
        return "oracle" in self.protocol

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes a row of one model unique; rows of two models with the same key are a pair."""
        return self.dataset, self.case, self.concept, self.protocol


PLAIN = tuple(f.name for f in fields(ResultRow) if f.name != "metrics")
TRUTH = {"True": True, "False": False, "": None}


def to_csv(rows: Sequence[ResultRow]) -> str:
    """A table with one column for each field and each metric that some row has; None is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*PLAIN, *(METRIC + name for name in names)])
    for row in rows:
        cells = [getattr(row, name) for name in PLAIN] + [row.metrics.get(name) for name in names]
        table.writerow(["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue()


def read_csv(path: Path) -> list[ResultRow]:
    """
    Raises:
        InputError: the file is missing or not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_row(cells) for cells in csv.DictReader(file)]
    except FileNotFoundError as error:
        raise InputError(path, "there is no such file", "Make one with lexitome evaluate -o RUN.") from error
    except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise InputError(
            path, f"not a table of results ({error})", "Make one with lexitome evaluate -o RUN."
        ) from error


def _row(cells: Mapping[str, str]) -> ResultRow:
    given = {"bins": "", **cells}
    metrics = {k.removeprefix(METRIC): _number(v) for k, v in cells.items() if k.startswith(METRIC)}
    return ResultRow(
        dataset=given["dataset"], split=given["split"], case=given["case"], unit=given["unit"],
        modality=given["modality"], dims=int(given["dims"]), concept=given["concept"],
        derived=given["derived"] == "True", model=given["model"], protocol=given["protocol"],
        present=given["present"] == "True", status=_status(given["status"]), note=given["note"],
        presence=_number(given["presence"]), found=given["found"] == "True", taught=TRUTH[given["taught"]],
        seconds=_number(given["seconds"]), length="mm" if given["length"] == "mm" else "px", metrics=metrics,
        bins=_bins(given["bins"] or ""),
    )  # fmt: skip


def _bins(text: str) -> str:
    if text:
        from_text(text)  # a damaged table is refused when it is read, not when its report is drawn
    return text


def _status(word: str) -> Status:
    for known in ("ok", "missing", "failed"):
        if word == known:
            return known
    raise ValueError(f"status {word!r}")


def _number(cell: str) -> float | None:
    return None if cell == "" else float(cell)


def protocols_of(rows: Iterable[ResultRow]) -> list[str]:
    """In the order in which they first occur."""
    return list(dict.fromkeys(row.protocol for row in rows))

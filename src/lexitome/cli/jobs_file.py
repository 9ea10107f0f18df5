"""`--jobs FILE`: a JSON list of `{"input", "output", "text", ...}`, one job each."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from lexitome.cli.options import Ask, Click, Corners, Job, parse_box, parse_point
from lexitome.cli.plan import check_folder
from lexitome.errors import InputError

REMEDY = 'A job is {"input": "a.png", "output": "out/a", "text": ["polyp"]}; see docs/cli.md.'


class Entry(BaseModel):
    """One job as written in the file. Boxes and points are lists of numbers, or strings as on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Path
    output: Path
    text: str | list[str] = Field(default_factory=list, validation_alias=AliasChoices("text", "prompts"))
    boxes: list[str | list[float]] = Field(default_factory=list)
    points: list[str | list[float]] = Field(default_factory=list)
    series: str | int | None = None
    frame: int | None = None

    def ask(self, default: Ask) -> Ask:
        """What the job asks for; one without any prompt asks what the command line does."""
        texts = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        boxes: tuple[Corners, ...] = tuple(parse_box(_typed(box)) for box in self.boxes)
        points: tuple[Click, ...] = tuple(parse_point(_typed(point)) for point in self.points)
        if not (texts or boxes or points):
            texts, boxes, points = default.texts, default.boxes, default.points
        return Ask(texts, boxes, points, None if self.series is None else str(self.series), self.frame)


def _typed(values: str | list[float]) -> str:
    return values if isinstance(values, str) else ",".join(str(value) for value in values)


def read_jobs(path: Path, default: Ask) -> list[Job]:
    """The jobs of the file; relative paths are relative to the working directory, as on the command line.

    Raises:
        InputError: the file is not a list of jobs, or two jobs write to the same folder.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else f"is not JSON ({error})"
        raise InputError(path, cause or "cannot be read", REMEDY) from error
    if not isinstance(entries, list) or not entries:
        raise InputError(path, "is not a list of jobs", REMEDY)
    jobs = [_job(path, number, entry, default) for number, entry in enumerate(entries, start=1)]
    folders = [job.folder.resolve() for job in jobs]
    for number, folder in enumerate(folders, start=1):
        if folder in folders[: number - 1]:
            raise InputError(path, f"job {number} writes to the folder of an earlier job", "Give each its own output.")
    return jobs


def _job(path: Path, number: int, entry: object, default: Ask) -> Job:
    try:
        checked = Entry.model_validate(entry)
        ask = checked.ask(default)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the entry"
        raise InputError(path, f"job {number}: {place}: {first['msg']}", REMEDY) from error
    except ValueError as error:
        raise InputError(path, f"job {number}: {error}", REMEDY) from error
    check_folder(checked.output)
    return Job(checked.input, checked.output, ask)

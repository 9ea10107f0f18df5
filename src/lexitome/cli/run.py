"""Carrying out jobs: read, segment, write, report; one after the other, each on its own."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lexitome.cli.console import OK, SOME_FAILED, Console
from lexitome.cli.options import Format, Job, Settings
from lexitome.cli.report import lines, make_report, request_of
from lexitome.cli.staging import REPORT, finished, staged

if TYPE_CHECKING:
    from lexitome.inference.loading import AnySegmenter
    from lexitome.io.write import Written
    from lexitome.prompts import Query
    from lexitome.segmentation import Segmentation
    from lexitome.volume import Volume

_PICTURES = frozenset({"png", "jpeg", "tiff"})
"""Formats of `Source` whose masks are pictures too, unless the user says otherwise."""

Show = Callable[[int, int, str], None]
"""Told (done, total, what) to move the progress bar."""

STATISTICS = "statistics.json"
PREVIEW = "preview.png"


@dataclass
class Stopwatch:
    """Wall seconds of each stage, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 4)


def run_jobs(jobs: Sequence[Job], settings: Settings, console: Console) -> int:
    """Do all jobs and return the exit code. A single job raises what goes wrong; of several, each has its line.

    Raises:
        InputError: there is no such model, or the only job failed.
    """
    from lexitome.inference.loading import check_model, load_segmenter

    check_model(settings.model)

    @cache
    def load() -> AnySegmenter:
        """Once, and only when an input could be read: a typo in a path should not wait for weights."""
        return load_segmenter(
            settings.model, threads=settings.threads, policy=settings.policy, side=settings.side,
            precision=settings.precision,
        )  # fmt: skip

    if len(jobs) == 1:
        with _progress(console) as show:
            _report_job(jobs[0], settings, load, console, show)
        return OK
    failed = 0
    with _progress(console) as show:
        for done, job in enumerate(jobs, 1):
            try:
                _report_job(job, settings, load, console)
            except Exception as error:
                console.error(error, about=str(job.source))
                failed += 1
            show(done, len(jobs), job.source.name)
    if failed:
        console.note(f"{failed} of {len(jobs)} inputs failed")
    return SOME_FAILED if failed else OK


def _report_job(
    job: Job, settings: Settings, load: Callable[[], AnySegmenter], console: Console, show: Show | None = None
) -> None:
    if not settings.overwrite and finished(job.folder, request_of(job, settings)):
        console.note(f"{job.source}: done earlier, see {job.folder / REPORT}")
        return
    segmentation, report = run_job(job, settings, load, show)
    for fix in segmentation.volume.fixes:
        console.note(f"{job.source}: {fix}")
    for line in [json.dumps(report, ensure_ascii=False)] if console.as_json else lines(segmentation, report, job):
        console.say(line)
    console.detail(f"{job.source}: seconds {report['seconds']}, peak {report['peak_ram_mb']} MB")


def run_job(
    job: Job, settings: Settings, load: Callable[[], AnySegmenter], show: Show | None = None
) -> tuple[Segmentation, dict[str, object]]:
    """Segment one input and write everything that was asked for into the job's folder; `show` is told of its slices.

    Raises:
        InputError: the input, a prompt or the output cannot be used; the folder is as it was.
    """
    from lexitome import io
    from lexitome.io.write import write_json

    watch = Stopwatch()
    with watch.stage("read"):
        ask = job.ask
        volume = io.read(job.source, series=ask.series, frame=ask.frame, fix_slices=settings.fix_slices)
        queries = queries_of(job, volume)
    segmenter = load()
    progress = None if show is None or volume.is_2d else lambda done, total: show(done, total, "slices")
    encoded = segmenter.encode(volume, queries)
    segmentation = segmenter.decode(encoded, queries, flips=settings.flips, progress=progress)
    with staged(job.folder) as staging:
        with watch.stage("write"):
            written, files = write_results(segmentation, staging, settings)
        instances = [None if path is None else path.name for path in written.instances]
        report = make_report(job, settings, segmentation, files, watch.seconds, instances)
        report["notes"] = list(written.notes)
        write_json(report, staging / REPORT)
    return segmentation, report


def queries_of(job: Job, volume: Volume) -> tuple[Query, ...]:
    from lexitome.api import make_queries, to_box, to_point

    boxes = [to_box(volume, box.values) for box in job.ask.boxes]
    points = [to_point(volume, click.values, click.inside) for click in job.ask.points]
    return make_queries(volume, job.ask.texts, boxes, points)


def natural_format(volume: Volume) -> Format:
    """PNG for pictures, NIfTI for everything else: what the viewer of the input also opens."""
    return Format.png if volume.is_2d and volume.source.format in _PICTURES else Format.nifti


def write_results(segmentation: Segmentation, folder: Path, settings: Settings) -> tuple[Written, list[str]]:
    """Masks, then preview and statistics if asked for; returns what was written, and the names of all files."""
    from lexitome.io.write import write, write_json, write_picture

    format = settings.format or natural_format(segmentation.volume)
    written = write(
        segmentation, folder, format=format.value, combined=settings.combined,
        segment_type=settings.segment_type.value, instances=settings.instances,
    )  # fmt: skip
    files = [path.name for path in written.paths]
    if settings.preview:
        from lexitome.inference.preview import preview

        write_picture(preview(segmentation), folder / PREVIEW)
        files.append(PREVIEW)
    if settings.stats:
        from lexitome.inference.statistics import statistics

        write_json(statistics(segmentation), folder / STATISTICS)
        files.append(STATISTICS)
    return written, files


@contextmanager
def _progress(console: Console) -> Iterator[Show]:
    """A bar on stderr where that is a terminal; it appears when it is first told (done, total, name)."""
    if console.quiet or not sys.stderr.isatty():
        yield lambda done, total, name: None
        return
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # Results that go into a pipe must not be diverted to the bar's stream.
    with Progress(*columns, console=Terminal(stderr=True), redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("", visible=False)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=name, visible=True)

        yield show

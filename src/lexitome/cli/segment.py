"""`lexitome segment`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lexitome.cli.console import Console
from lexitome.cli.options import (
    Ask,
    Click,
    Corners,
    Debug,
    FixSlices,
    Format,
    Frame,
    Job,
    PolicyOption,
    PrecisionOption,
    SegmentType,
    Series,
    Settings,
    Side,
    parse_box,
    parse_point,
)

app = typer.Typer()

Inputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--input", "-i", metavar="PATH", help="Image, DICOM folder or zip, or a folder of images; repeatable."
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")]
Texts = Annotated[
    list[str] | None, typer.Option("--text", "-t", metavar="WORDS", help="What to find, in words; repeatable.")
]
Boxes = Annotated[
    list[Corners] | None,
    typer.Option(
        "--box", parser=parse_box, metavar="X0,Y0,X1,Y1[,Z0,Z1]", help="Where it is, in pixels; corners included."
    ),
]
Points = Annotated[
    list[Click] | None,
    typer.Option(
        "--point", parser=parse_point, metavar="X,Y[,Z][,+|-]", help="A click on it (+, the default) or beside it (-)."
    ),
]
Jobs = Annotated[
    Path | None,
    typer.Option("--jobs", metavar="FILE", help="JSON list of {input, output, text, ...}, instead of -i and -o."),
]
FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="nifti, nrrd, mha, png, dicom-seg or dicom-rtstruct. By default png for pictures, else nifti.",
    ),
]
Multilabel = Annotated[
    bool, typer.Option("--multilabel", "-ml", help="One label map for all prompts instead of a mask each.")
]
Kind = Annotated[
    SegmentType, typer.Option("--segment-type", metavar="KIND", help="How DICOM SEG stores masks: binary or labelmap.")
]
Preview = Annotated[bool, typer.Option("--preview", "-p", help="Also write preview.png.")]
Stats = Annotated[bool, typer.Option("--stats", "-s", help="Also write statistics.json.")]
ReportOption = Annotated[
    bool, typer.Option("--report", help="Print the report (JSON, one line per input) instead of the summary.")
]
Instances = Annotated[
    bool, typer.Option("--instances", help="Also write the objects of each mask: <prompt>_instances, ids from 1.")
]
Flips = Annotated[
    bool | None,
    typer.Option(
        "--flips/--no-flips",
        help="Average with the mirrored image, where no side is named; by default where validation found it better.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME|PATH", help="See `lexitome models`; or the folder or file of a model's weights."
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads. By default all cores.")
]
NoOverwrite = Annotated[bool, typer.Option("--no-overwrite", help="Skip inputs whose results are complete.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print timings too.")]


@app.command("segment")
def segment(  # noqa: PLR0913 - the signature is the command line
    inputs: Inputs = None,
    output: Output = None,
    texts: Texts = None,
    boxes: Boxes = None,
    points: Points = None,
    jobs: Jobs = None,
    format: FormatOption = None,
    multilabel: Multilabel = False,
    segment_type: Kind = SegmentType.binary,
    preview: Preview = False,
    stats: Stats = False,
    instances: Instances = False,
    flips: Flips = None,
    report: ReportOption = False,
    model: Model = "compact",
    policy: PolicyOption = None,
    side: Side = None,
    precision: PrecisionOption = None,
    threads: Threads = None,
    series: Series = None,
    frame: Frame = None,
    fix_slices: FixSlices = False,
    no_overwrite: NoOverwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Find things by words, boxes or points.

    One input writes OUT/<prompt>.<ending>, several write OUT/<name>/<prompt>.<ending>; report.json is always written.
    Boxes and points together describe one thing; with words they say where to look for each.

    \b
    Example:
      lexitome segment -i fundus.jpg -o out -t "optic disc" -t "retinal vessel" -p -s
    """
    ask = Ask(tuple(texts or ()), tuple(boxes or ()), tuple(points or ()), series, frame)
    settings = Settings(
        format=format,
        combined=multilabel,
        segment_type=segment_type,
        preview=preview,
        stats=stats,
        instances=instances,
        flips=flips,
        model=model,
        policy=policy,
        side=side,
        precision=precision,
        threads=threads,
        fix_slices=fix_slices,
        overwrite=not no_overwrite,
    )
    if instances and format in (Format.dicom_seg, Format.dicom_rtstruct):
        raise typer.TyperException(f"{format} holds masks, not the objects in them; use --format nifti --instances")
    console = Console(quiet=quiet, verbose=verbose, debug=debug, as_json=report)
    from lexitome.cli.run import run_jobs

    raise typer.Exit(run_jobs(_jobs(inputs or [], output, jobs, ask), settings, console))


def _jobs(inputs: list[Path], output: Path | None, jobs_file: Path | None, ask: Ask) -> list[Job]:
    """What to do, from -i and -o or from --jobs.

    Raises:
        TyperException: both, neither, or nothing to find.
    """
    prompted = bool(ask.texts or ask.boxes or ask.points)
    if jobs_file is not None:
        if inputs or output:
            raise typer.TyperException("--jobs names inputs and outputs; leave out -i and -o")
        from lexitome.cli.jobs_file import read_jobs

        jobs = read_jobs(jobs_file, ask)
        if not all(job.ask.texts or job.ask.boxes or job.ask.points for job in jobs):
            raise typer.TyperException("a job has no prompt; name one in the file, or for all with -t")
        return jobs
    if not inputs or output is None:
        raise typer.TyperException("name the input with -i and a folder for the results with -o")
    if not prompted:
        raise typer.TyperException("say what to find: -t 'polyp', --box or --point")
    from lexitome.cli.plan import plan

    return plan(inputs, output, ask)

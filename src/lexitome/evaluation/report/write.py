"""From run folders to files: report.html, report.md, summary.json, figures/ and pictures/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lexitome.errors import InputError
from lexitome.evaluation.report.blocks import Document, Picture
from lexitome.evaluation.report.content import load_labelled, make_document, rename, summarised
from lexitome.evaluation.report.html import render_html
from lexitome.evaluation.report.markdown import FIGURES, render_markdown
from lexitome.evaluation.run_folder import INFO, SUMMARY, write_json
from lexitome.io.atomic import replacing

HTML, MARKDOWN = "report.html", "report.md"


def write_report(run_folders: Sequence[Path], out: Path, *, images: bool = True) -> None:
    """Describe one or more finished runs, and their baselines, in one report.

    Args:
        out: a folder; what an earlier report left there is written over.
        images: show examples, that is, pictures of the data; leave them out to publish a report without its images.

    Raises:
        InputError: no run, one that is not finished, or `out` cannot be written.
    """
    if not run_folders:
        raise InputError("lexitome report", "no run is named", "Name the folder of a run: lexitome report RUN.")
    if out.exists() and not out.is_dir():
        raise InputError(out, "is a file, not a folder", "Name a folder: -o DIR.")
    labelled = load_labelled(run_folders)
    named = rename(labelled)
    summary = summarised(named)
    document = make_document(labelled, named, summary, images=images)
    page = render_markdown(document)
    for path, data in page.pictures.items():
        _write(out / path, data)
    for picture in pictures_of(document):
        _write(out / FIGURES / f"{picture.name}.png", picture.png)
        _write(out / FIGURES / f"{picture.name}.svg", picture.svg.encode())
    if not (out / INFO).exists():  # a run's own summary is of that run alone, without baselines
        write_json(out / SUMMARY, summary)
    _write(out / MARKDOWN, page.text.encode())
    _write(out / HTML, render_html(document).encode())


def pictures_of(document: Document) -> list[Picture]:
    return [block for section in document.sections for block in section.blocks if isinstance(block, Picture)]


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)

"""`models`, `info`, `doctor`, `check`: what there is, what it may be used for, whether it works, what an input is."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lexitome.cli.console import EXIT_CODES, OK, SOME_FAILED, UNEXPECTED, Console
from lexitome.cli.options import AsJson, Debug, FixSlices, Format, Frame, SegmentType, Series
from lexitome.errors import InputError

if TYPE_CHECKING:
    from lexitome.models.catalog import ModelCard
    from lexitome.models.foundation import FoundationModel

app = typer.Typer()


Models = Annotated[
    list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names, or folders of models; by default all names.")
]


def _cards(models: list[str] | None) -> list[ModelCard]:
    """The models that are named, or all that ship.

    Raises:
        InputError: there is no such model.
    """
    from lexitome.models.catalog import CATALOG, find_model

    return [find_model(model) for model in models or CATALOG]


@app.command("models")
def models(models: Models = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the models and their licences.

    With the licence of the weights, whether they are for research only, and what the training data ask of users; of
    foundation models whether their weights are on this machine, and where to get them.
    """
    from lexitome.models.foundation import FOUNDATION

    ours = None if models is None else [name for name in models if name not in FOUNDATION]
    cards = _cards(ours) if ours is None or ours else []
    brought = [known for name, known in FOUNDATION.items() if models is None or name in models]
    if as_json:
        _print_json([*map(describe_model, cards), *map(describe_foundation, brought)])
        return
    if cards:
        _print_cards(cards)
    if brought:
        print("\n" * bool(cards) + "Foundation models, whose weights you bring:")
        _print_foundation(brought)


def _print_cards(cards: Sequence[ModelCard]) -> None:
    head = ("NAME", "TIER", "SIZE", "WEIGHTS LICENCE", "RESEARCH ONLY", "SUMMARY")
    rows = [
        (c.name, c.tier, f"{c.size_mb:g} MB", c.weights_licence, "yes" if c.research_only else "no", c.summary)
        for c in cards
    ]
    for line in align((head, *rows)):
        print(line)
    for card in cards:
        if card.weights_duties:
            print(f"{card.name}: {card.weights_duties}")


def _print_foundation(brought: Sequence[FoundationModel]) -> None:
    from lexitome.models.foundation import is_here

    here = {model.name: is_here(model.name) for model in brought}
    head = ("NAME", "HERE", "SIZE", "WEIGHTS LICENCE", "SUMMARY")
    rows = [
        (m.name, "yes" if here[m.name] else "no", f"{m.size_gb:g} GB", m.licence, m.summary) for m in brought
    ]  # fmt: skip
    for line in align((head, *rows)):
        print(line)
    duties: dict[str, list[str]] = {}
    for model in brought:
        duties.setdefault(model.duties, []).append(model.name)
    for said, names in duties.items():
        print(f"{', '.join(names)}: {said}.")
    for model in brought:
        if not here[model.name]:
            print(f"{model.name}: {model.get}.")


def describe_foundation(model: FoundationModel) -> dict[str, Any]:
    """A model whose weights the user brings, JSON-able."""
    from lexitome.models.foundation import is_here

    return {
        "name": model.name,
        "tier": "foundation",
        "kind": model.kind,
        "summary": model.summary,
        "weights_licence": model.licence,
        "weights_duties": model.duties,
        "size_mb": model.size_gb * 1000,
        "here": is_here(model.name),
        "page": model.page,
        "get": model.get,
    }


def describe_model(card: ModelCard) -> dict[str, Any]:
    """A model card, JSON-able."""
    return {
        "name": card.name,
        "tier": card.tier,
        "summary": card.summary,
        "licence": card.licence,
        "weights_licence": card.weights_licence,
        "weights_duties": card.weights_duties,
        "research_only": card.research_only,
        "size_mb": card.size_mb,
        "sha256": card.sha256,
        "trained_concepts": sorted(trained.concept for trained in card.trained_concepts),
        "countable": sorted(trained.concept for trained in card.trained_concepts if trained.countable),
        "metrics": dict(card.metrics),
        "sets": [asdict(dataset) for dataset in card.sets],
    }


@app.command("info")
def info(models: Models = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what this installation can do.

    Versions, models, formats, exit codes.
    """
    facts = describe_installation(_cards(models))
    if as_json:
        _print_json(facts)
        return
    print(f"lexitome {facts['version']}, {facts['machine']['system']}, Python {facts['machine']['python']}")
    print(f"models: {', '.join(card['name'] for card in facts['models'])}")
    foundation = ", ".join(f"{name} ({'here' if here else 'not here'})" for name, here in facts["foundation"].items())
    print(f"foundation models: {foundation}")
    print(f"concepts: {facts['concepts']['known']} known by name, {facts['concepts']['trained']} trained")
    for direction, formats in facts["formats"].items():
        print(f"formats to {direction}: {', '.join(formats)}")
    print("libraries: " + ", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    for code, meaning in facts["exit_codes"].items():
        print(f"exit code {code}: {meaning}")


def describe_installation(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """Everything `info` says, JSON-able."""
    from lexitome import __version__
    from lexitome.cli.report import machine, versions
    from lexitome.concepts import Vocabulary
    from lexitome.io.formats import IMAGE_SUFFIXES
    from lexitome.models.foundation import FOUNDATION, is_here

    return {
        "version": __version__,
        "machine": machine(),
        "models": [describe_model(card) for card in cards],
        "foundation": {name: is_here(name) for name in FOUNDATION},
        "concepts": {
            "known": len(Vocabulary.load().concepts),
            "trained": len({trained.concept for card in cards for trained in card.trained_concepts}),
        },
        "prompts": ["text", "box", "point"],
        "formats": {
            "read": [ending for ending in IMAGE_SUFFIXES] + ["DICOM file, folder or zip"],
            "write": [format.value for format in Format],
        },
        "segment_types": [kind.value for kind in SegmentType],
        "versions": versions(),
        "exit_codes": {str(code): meaning for code, meaning in EXIT_CODES.items()},
    }


@app.command("doctor")
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Check that this machine can segment.

    Device, memory, decoders, weights; exit code 1 if the built-in model cannot run.
    """
    findings = diagnose()
    if as_json:
        _print_json(findings)
    else:
        for name, value in findings.items():
            print(
                f"{name}: {value if not isinstance(value, dict) else ', '.join(f'{k} {v}' for k, v in value.items())}"
            )
    raise typer.Exit(OK if findings["ready"] else UNEXPECTED)


def diagnose() -> dict[str, Any]:
    """Facts about the machine; ``ready`` says whether the built-in model runs on it."""
    from importlib.metadata import PackageNotFoundError, version

    import onnxruntime

    from lexitome.cli.report import machine, versions

    try:
        torch = f"{version('torch')} (optional)"
    except PackageNotFoundError:
        torch = "not installed (optional: training and foundation models)"
    weights, ready = _try_model("compact")
    return {
        **machine(),
        "memory": _memory(),
        "onnxruntime providers": " ".join(onnxruntime.get_available_providers()),
        "torch": torch,
        "versions": versions(),
        "dicom decoders": _decoders(),
        "model compact": weights,
        "cache": "none needed: the weights are part of the installation",
        "ready": ready,
    }


def _try_model(name: str) -> tuple[str, bool]:
    from lexitome.inference.segmenter import Segmenter

    start = time.perf_counter()
    try:
        Segmenter.load(name)
    except (InputError, OSError, ValueError) as error:
        return f"cannot be loaded ({error})", False
    return f"loads in {time.perf_counter() - start:.2f} s", True


def _memory() -> str:
    """Total and available RAM in GiB, where the system tells."""
    import os

    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (os.sysconf(name) * page / 2**30 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return "unknown"
    return f"{total:.1f} GiB, {free:.1f} GiB free"


def _decoders() -> dict[str, str]:
    """DICOM transfer syntax to "yes" or "no": whether compressed pixels of that kind can be read here."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    from lexitome.io import dicom_gdcm

    syntaxes = {
        "RLE": uid.RLELossless,
        "JPEG": uid.JPEGBaseline8Bit,
        "JPEG-lossless": uid.JPEGLosslessSV1,
        "JPEG-LS": uid.JPEGLSLossless,
        "JPEG-2000": uid.JPEG2000Lossless,
    }
    return {
        name: "yes" if get_decoder(syntax).is_available or syntax in dicom_gdcm.SYNTAXES else "no"
        for name, syntax in syntaxes.items()
    }


@app.command("check")
def check(
    paths: Annotated[list[Path], typer.Argument(help="Images, DICOM folders or zips, folders of images.")],
    series: Series = None,
    frame: Frame = None,
    fix_slices: FixSlices = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Report the geometry of images.

    Grid, spacing, orientation, and what would be fixed or refused; writes nothing.
    """
    from lexitome import io
    from lexitome.cli.plan import find

    console = Console(debug=debug)
    reports, failed = [], 0
    inputs = find(paths)
    for path in inputs:
        try:
            report = io.geometry_report(path, series=series, frame=frame, fix_slices=fix_slices)
        except Exception as error:
            if len(inputs) == 1:
                raise
            console.error(error, about=str(path))
            failed += 1
            continue
        reports.append(report)
        if not as_json:
            print("\n".join(_report_lines(path, report)))
    if as_json:
        _print_json(reports)
    raise typer.Exit(SOME_FAILED if failed else OK)


def _report_lines(path: Path, report: dict[str, Any]) -> list[str]:
    entries = [(key, value) for key, value in report.items() if key != "path"]
    return [str(path), *(f"  {key}: {_plain(value)}" for key, value in entries)]


def _plain(value: object) -> str:
    """JSON-able values as words: `x 0.7, y 0.7, z 5` for a mapping, `none` for nothing."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        nested = any(isinstance(item, list | dict) for item in value)
        return ("; " if nested else ", ").join(_plain(item) for item in value) or "none"
    if value is None or value == "":
        return "unknown"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """A text table with columns as wide as their widest cell; the last column runs free."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])) for row in rows
    ]


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))

"""`report.json` and the lines on the screen: what was asked, what was found, with which weights, at what cost."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from lexitome import __version__
from lexitome.cli.options import Job, Settings
from lexitome.models.foundation import identity

if TYPE_CHECKING:
    from lexitome.segmentation import Finding, Segmentation
    from lexitome.volume import Volume

LIBRARIES = ("numpy", "scipy", "onnxruntime", "SimpleITK", "nibabel", "pydicom", "highdicom", "pillow")
_UNITS = {"area_px": "px", "area_mm2": "mm2", "volume_ml": "ml", "volume_voxels": "voxels"}


def request_of(job: Job, settings: Settings) -> dict[str, object]:
    """All that decides the result: an earlier report with the same request need not be made again. A model that was
    trained or exported again in the same folder is another one."""
    return {
        "input": str(job.source),
        **asdict(job.ask),
        **{name: value for name, value in asdict(settings).items() if name not in ("threads", "overwrite")},
        "model_card_sha256": identity(settings.model),
    }


def make_report(
    job: Job, settings: Settings, segmentation: Segmentation, files: Sequence[str], seconds: Mapping[str, float],
    instances: Sequence[str | None] = (),
) -> dict[str, object]:  # fmt: skip
    """The run in one JSON-able value.

    Args:
        files: names of the files written, masks first in the order of the findings.
        seconds: wall time of reading and writing; loading, encoding and decoding are in the segmenter's provenance.
        instances: name of each finding's map of objects, None for one without; empty if they were not asked for.
    """
    model = dict(segmentation.provenance)
    inner = model.pop("seconds", {})
    assert isinstance(inner, dict)
    stages = {"read": seconds["read"], **inner, "write": seconds["write"]}
    separate = len(files) >= len(segmentation.findings) and _one_file_each(settings)
    return {
        "lexitome": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "request": request_of(job, settings),
        "input": _describe_input(segmentation.volume),
        "findings": [
            _describe_finding(finding, files[index if separate else 0], instances[index] if instances else None)
            for index, finding in enumerate(segmentation.findings)
        ],
        "files": list(files),
        "model": model,
        "seconds": {stage: round(float(value), 4) for stage, value in stages.items()},
        "peak_ram_mb": peak_ram_mb(),
        "machine": machine(),
        "versions": versions(),
    }


def _one_file_each(settings: Settings) -> bool:
    return not settings.combined and not (settings.format or "").startswith("dicom")


def _describe_input(volume: Volume) -> dict[str, object]:
    """Geometry and fixes; of the headers nothing, since they hold who the patient is."""
    return {
        "path": volume.source.path,
        "format": volume.source.format,
        "modality": volume.modality,
        "channels": volume.array.shape[0],
        "grid_zyx": list(volume.grid),
        "spacing_xyz": list(volume.spacing),
        "unit": volume.unit,
        "affine_ras": volume.affine.tolist(),
        "fixes": list(volume.fixes),
    }


def _describe_finding(finding: Finding, file: str, instances_file: str | None) -> dict[str, object]:
    concept = finding.concept
    code = concept.code if concept else None
    return {
        "prompt": finding.name,
        "file": file,
        "found": finding.found,
        "presence": round(float(finding.presence), 4),
        "score": round(float(finding.score), 4),
        "objects": finding.objects,
        "instances_file": instances_file,
        "concept": concept.name if concept else None,
        "code": asdict(code) if code else None,
        "notes": list(finding.notes),
    }


def lines(segmentation: Segmentation, report: Mapping[str, object], job: Job) -> Iterator[str]:
    """What the user reads: a line for each prompt, its notes below it, and the other files."""
    from lexitome.inference.statistics import size

    entries = report["findings"]
    files = report["files"]
    assert isinstance(entries, list) and isinstance(files, list)
    for finding, entry in zip(segmentation.findings, entries, strict=True):
        path = job.folder / entry["file"]
        if finding.found:
            key, amount = size(finding.mask, segmentation.volume)
            count = "" if finding.objects is None else f"{finding.objects} object{'s' * (finding.objects != 1)}, "
            what = f"found, {count}{_amount(amount)} {_UNITS[key]}, presence {finding.presence:.2f}"
        else:
            what = f"not found, presence {finding.presence:.2f}"
        yield f"{finding.name}: {what} -> {path}"
        yield from (f"  {note}" for note in finding.notes)
    yield from (f"note: {note}" for note in _strings(report.get("notes")))
    named = {entry["file"] for entry in entries}
    others = [str(job.folder / name) for name in (*files, "report.json") if name not in named]
    yield f"also: {', '.join(others)}"


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _amount(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def peak_ram_mb() -> float | None:
    """The most memory this process has held so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def machine() -> dict[str, object]:
    return {
        "device": "cpu",
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

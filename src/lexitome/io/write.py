"""Write segmentations: masks, label maps and DICOM objects, each on exactly the grid of its image."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.io.names import file_stems
from lexitome.palette import colour
from lexitome.segmentation import Segmentation
from lexitome.volume import LPS_TO_RAS, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "nifti": (".nii.gz", ".nii"),
    "nrrd": (".nrrd",),
    "mha": (".mha",),
    "dicom-seg": (".dcm",),
    "dicom-rtstruct": (".dcm",),
}
"""What each format's files end in; the first is ours, the others are taken when the user names the file."""

FORMATS = tuple(ENDINGS)

_OBJECT_NAMES = {"dicom-seg": "segmentation.dcm", "dicom-rtstruct": "rtstruct.dcm"}


@dataclass(frozen=True)
class Written:
    """What `write` did.

    Args:
        paths: the files, in the order of the findings; then the label table, then the maps of objects.
        notes: what the user should know, e.g. that overlapping voxels keep one label only.
        instances: the map of objects of each finding, None where there is none; empty if they were not asked for.
    """

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    instances: tuple[Path | None, ...] = ()


def write(
    segmentation: Segmentation,
    folder: Path,
    *,
    format: str,
    combined: bool = False,
    segment_type: str = "binary",
    instances: bool = False,
    overwrite: bool = True,
) -> Written:
    """Write one mask for each finding, or all in one file.

    Masks are uint8, 1 inside (255 in a PNG), on the grid of the volume; an absent target is an empty mask. No file
    appears under its final name before it is complete.

    Args:
        segmentation: what to write.
        folder: receives ``<prompt>.<ending>``, made if missing. If it ends like a file of the format it is the file
            itself: for DICOM, for `combined`, and where there is exactly one finding.
        format: one of `FORMATS`. The DICOM formats write one object with all findings.
        combined: one label map ``segmentation.<ending>`` (finding i is i + 1) and ``labels.json`` instead.
        segment_type: of a DICOM SEG, "binary" or "labelmap".
        instances: also write ``<prompt>_instances.<ending>``, a uint16 map of the objects of each finding that has
            `Finding.instances`. The DICOM formats have no place for it.
        overwrite: if False, existing files are an error and nothing is written.

    Raises:
        InputError: the format cannot hold this image (PNG of a volume, DICOM without a DICOM source) or its objects,
            files exist, or the place cannot be written to.
    """
    if format not in ENDINGS:
        raise ValueError(f"format must be one of {FORMATS}, got {format!r}")
    if not segmentation.findings:
        raise ValueError("nothing to write: the segmentation has no findings")
    folder = Path(folder)
    source = segmentation.volume.source.path or "the image"
    if format == "png" and not segmentation.volume.is_2d:
        cause = f"a PNG holds one slice, the image has {segmentation.volume.grid[0]}"
        raise InputError(source, cause, "Write a volume instead: --format nifti.")
    if format in _OBJECT_NAMES:
        if instances:
            raise InputError(source, f"{format} holds masks, not the objects in them", "Use --format nifti for both.")
        return _write_object(segmentation, folder, format, segment_type, overwrite)
    maps = _instance_paths(segmentation, folder, format) if instances else ()
    _refuse_existing([path for path in maps if path is not None], overwrite)
    written = (_write_combined if combined else _write_masks)(segmentation, folder, format, overwrite)
    return _write_instances(segmentation, format, maps, written) if instances else written


def write_json(value: object, path: Path) -> None:
    """JSON with two spaces, UTF-8 as is; statistics, reports and label tables. Atomic."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_picture(rgb: NDArray[np.uint8], path: Path) -> None:
    """(H, W, 3) uint8 as PNG, e.g. a preview. Atomic."""
    from PIL import Image

    with replacing(Path(path)) as temporary:
        Image.fromarray(rgb).save(temporary, format="PNG")


def _write_masks(segmentation: Segmentation, folder: Path, format: str, overwrite: bool) -> Written:
    findings = segmentation.findings
    single = _as_file(folder, format)
    if single is not None and len(findings) > 1:
        cause = f"one file cannot hold {len(findings)} masks"
        raise InputError(single, cause, "Name a folder, or ask for one label map (combined).")
    ending = ENDINGS[format][0]
    paths = [single] if single else [folder / f"{stem}{ending}" for stem in file_stems(f.name for f in findings)]
    _refuse_existing(paths, overwrite)
    for path, finding in zip(paths, findings, strict=True):
        _WRITERS[format](finding.mask.astype(np.uint8), segmentation.volume, path)
    return Written(tuple(paths))


def _write_combined(segmentation: Segmentation, folder: Path, format: str, overwrite: bool) -> Written:
    single = _as_file(folder, format)
    path = single or folder / f"segmentation{ENDINGS[format][0]}"
    table = path.with_name(f"{_stem(single, format)}.labels.json") if single else folder / "labels.json"
    _refuse_existing([path, table], overwrite)
    labels, overlap = segmentation.label_map()
    compact = labels.astype(np.uint8) if len(segmentation.findings) < 256 else labels
    # A PNG mask is 0 and 255 to be seen; its label map holds the labels themselves.
    writer = _write_png_labels if format == "png" else _WRITERS[format]
    writer(compact, segmentation.volume, path)
    write_json(_label_table(segmentation, path.name, overlap), table)
    return Written((path, table), _overlap_notes(overlap))


def _instance_paths(segmentation: Segmentation, folder: Path, format: str) -> tuple[Path | None, ...]:
    """Where the objects of each finding go, None for a finding without."""
    single, findings, ending = _as_file(folder, format), segmentation.findings, ENDINGS[format][0]
    place = folder if single is None else single.parent
    masks = file_stems(f.name for f in findings)
    if single is not None and len(findings) == 1:
        masks = [_stem(single, format)]
    # All stems together, so that the objects of "cell" do not take the place of a mask named "cell instances".
    stems = file_stems([*masks, *(f"{stem}_instances" for stem in masks)])[len(masks) :]
    return tuple(
        None if finding.instances is None else place / f"{stem}{ending}"
        for finding, stem in zip(findings, stems, strict=True)
    )


def _write_instances(
    segmentation: Segmentation, format: str, paths: tuple[Path | None, ...], written: Written
) -> Written:
    """The maps of objects, beside what is written already."""
    writer = _write_png_labels if format == "png" else _WRITERS[format]
    notes = []
    for path, finding in zip(paths, segmentation.findings, strict=True):
        if path is None or finding.instances is None:
            notes.append(f"no map of objects for {finding.name!r}: the model does not tell them apart")
        else:
            writer(finding.instances, segmentation.volume, path)
    made = tuple(path for path in paths if path is not None)
    return Written((*written.paths, *made), (*written.notes, *notes), paths)


def _write_object(segmentation: Segmentation, folder: Path, format: str, segment_type: str, overwrite: bool) -> Written:
    path = _as_file(folder, format) or folder / _OBJECT_NAMES[format]
    _refuse_existing([path], overwrite)
    overlap = 0
    dataset: Dataset
    # pydicom and highdicom take a while to load, so only where they are needed.
    if format == "dicom-seg":
        from lexitome.io.dicom_seg import segmentation_object

        dataset, overlap = segmentation_object(segmentation, segment_type)
    else:
        from lexitome.io.rtstruct import structure_set

        dataset = structure_set(segmentation)
    with replacing(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)
    return Written((path,), _overlap_notes(overlap))


def _overlap_notes(voxels: int) -> tuple[str, ...]:
    if voxels == 0:
        return ()
    return (f"{voxels} voxels belong to more than one finding; the label map keeps the smaller structure",)


def _as_file(target: Path, format: str) -> Path | None:
    """`target` if it names a file of this format, None if it is a folder.

    Raises:
        InputError: it names a file of another format.
    """
    if target.is_dir():
        return None
    name = target.name.lower()
    if any(name.endswith(ending) for ending in ENDINGS[format]):
        return target
    for other, endings in ENDINGS.items():
        if any(name.endswith(ending) for ending in endings):
            cause = f"the name asks for {other}, the format is {format}"
            raise InputError(target, cause, f"Use --format {other}, or a name in {ENDINGS[format][0]}.")
    return None


def _stem(path: Path, format: str) -> str:
    ending = next(e for e in ENDINGS[format] if path.name.lower().endswith(e))
    return path.name[: -len(ending)]


def _refuse_existing(paths: list[Path], overwrite: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise InputError(path, "a folder has the name of the output file", "Choose another output folder.")
        if not overwrite and path.exists():
            raise InputError(path, "exists already", "Choose another output folder, or allow overwriting.")


def _label_table(segmentation: Segmentation, file: str, overlap: int) -> dict[str, object]:
    rows = []
    for index, finding in enumerate(segmentation.findings):
        code = finding.concept.code if finding.concept is not None else None
        rows.append(
            {
                "label": index + 1,
                "name": finding.name,
                "concept": finding.concept.name if finding.concept is not None else None,
                "code": {"value": code.value, "scheme": code.scheme, "meaning": code.meaning} if code else None,
                "colour": list(colour(index)),
                "found": finding.found,
                "objects": finding.objects,
            }
        )
    return {"file": file, "background": 0, "labels": rows, "overlapping_voxels": overlap}


def _write_png(mask: NDArray[np.unsignedinteger], volume: Volume, path: Path) -> None:
    _write_png_labels((mask * 255).astype(np.uint8), volume, path)


def _write_png_labels(labels: NDArray[np.unsignedinteger], volume: Volume, path: Path) -> None:
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(labels[0]).save(temporary, format="PNG")


def _write_nifti(mask: NDArray[np.unsignedinteger], volume: Volume, path: Path) -> None:
    """sform is the volume's affine (NIfTI-1 keeps it in 32-bit floats); qform too, unless it is sheared.

    A quaternion cannot say shear: the qform of a sheared grid is left unset rather than made to contradict the sform.
    """
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(mask.transpose(2, 1, 0)), volume.affine)
    image.set_sform(volume.affine, code=1)
    if is_sheared(volume.affine):
        image.set_qform(None, code=0)
        # set_qform(None) leaves the voxel sizes, which readers of the bare header rely on.
        image.header.set_zooms(volume.spacing)
    else:
        image.set_qform(volume.affine, code=1)
    image.header.set_xyzt_units("mm" if volume.spacing_known else "unknown")
    with replacing(path) as temporary:
        nibabel.save(image, temporary)


def _write_itk(mask: NDArray[np.unsignedinteger], volume: Volume, path: Path) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(mask)
    lps = LPS_TO_RAS @ volume.affine
    spacing = np.array(volume.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    with replacing(path) as temporary:
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OSError(f"SimpleITK: {str(error).splitlines()[-1]}") from error


def is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether the voxel axes are not at right angles (beyond the precision of 32-bit headers)."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-5)


_WRITERS: dict[str, Callable[[NDArray[np.unsignedinteger], Volume, Path], None]] = {
    "png": _write_png,
    "nifti": _write_nifti,
    "nrrd": _write_itk,
    "mha": _write_itk,
}

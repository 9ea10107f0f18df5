"""From the command line, or a jobs file, to the list of inputs and the folder each writes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lexitome.cli.options import Ask, Job
from lexitome.cli.staging import REPORT
from lexitome.errors import InputError

_DOUBLE_ENDINGS = (".nii.gz", ".img.gz", ".hdr.gz", ".dcm.gz")
_FILE_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".gz", ".nrrd", ".mha", ".mhd", ".dcm"))


def plan(inputs: Sequence[Path], out: Path, ask: Ask) -> list[Job]:
    """One input writes to `out` itself; several, or a folder of images, write to `out`/<stem>.

    Raises:
        InputError: nothing to read, or `out` is no place for results.
    """
    check_folder(out)
    found = find(inputs)
    if found == list(inputs) and len(found) == 1:
        return [Job(found[0], out, ask)]
    fresh = [path for path in found if not (path.parent / REPORT).exists()]
    if not fresh:
        raise InputError(inputs[0], "holds only results of earlier runs", "Name the folder of the images.")
    return [Job(path, out / name, ask) for path, name in zip(fresh, folder_names(fresh), strict=True)]


def check_folder(out: Path) -> None:
    """Refuse an output that is a file or is named like one.

    Raises:
        InputError: so it is.
    """
    if out.is_dir():
        return
    if out.exists():
        raise InputError(out, "is a file", "Name a folder with -o.")
    if out.suffix.lower() in _FILE_ENDINGS:
        raise InputError(
            out, "is named like a file", "Name a folder with -o; the masks in it are named by their prompts."
        )


def find(inputs: Sequence[Path]) -> list[Path]:
    """Every image below `inputs`; among several, one that cannot be searched stands for itself.

    Raises:
        InputError: the only input does not exist or holds no image.
    """
    from lexitome import io

    found: list[Path] = []
    for path in inputs:
        try:
            found += io.find_inputs([path])
        except InputError:
            if len(inputs) == 1:
                raise
            found.append(path)  # reading it will say what is wrong with it, and the others go on
    return list(dict.fromkeys(found))


def stem(path: Path) -> str:
    """The file name without its ending; for a DICOM folder its name."""
    path = path.resolve()
    name = path.name
    if path.is_dir():
        return name
    for ending in _DOUBLE_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return path.stem


def folder_names(paths: Sequence[Path]) -> list[str]:
    """A different folder name for each input: its stem or, where two share that, with more of the path.

    Raises:
        InputError: two inputs cannot be told apart.
    """
    ways: tuple[Callable[[Path], str], ...] = (
        stem,
        lambda path: f"{path.resolve().parent.name}_{stem(path)}",
        lambda path: f"{path.resolve().parent.name}_{path.name}",
    )
    names = [""] * len(paths)
    for way in ways:
        crowded = _repeated(names)
        names = [
            way(path) if not name or name.casefold() in crowded else name
            for path, name in zip(paths, names, strict=True)
        ]
    crowded = _repeated(names)
    for path, name in zip(paths, names, strict=True):
        if name.casefold() in crowded:
            raise InputError(path, "shares its name and folder name with another input", "Process them one at a time.")
    return names


def _repeated(names: Iterable[str]) -> set[str]:
    return {name for name, count in Counter(name.casefold() for name in names).items() if count > 1}

"""Datasets by folder: one, a folder of several, or a folder of such folders (`train/`, `external/`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lexitome.data.dataset import Dataset
from lexitome.data.sources import load_any
from lexitome.errors import InputError


def find_sets(
    paths: Sequence[str | Path],
    *,
    seed: int = 0,
    concept: str = "",
    unit_pattern: str | None = None,
    nested: bool = False,
) -> list[Dataset]:
    """Every dataset that the folders are or hold, in order of names below each.

    Args:
        paths: folders; each is an annotated set in any form of `load_any`, or holds folders with `dataset.json`.
        seed: of the splits. Training leaves it alone, whatever its own seed: a model that goes on from another must not
            learn the other's test cases. With `concept` and `unit_pattern` as in `load_any`.
        nested: look one level further down, too, for folders such as `train/` and `external/` side by side.

    Raises:
        InputError: a folder cannot be read or holds no set, or two sets have one name.
    """
    found: list[Dataset] = []
    for path in paths:
        root = Path(path).resolve()  # who is in which part depends on the name of the folder, which "." does not tell
        for place in _places(root, nested=nested):
            found.append(load_any(place, seed=seed, concept=concept, unit_pattern=unit_pattern))
    names = [dataset.name for dataset in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        where = " and ".join(str(dataset.root) for dataset in found if dataset.name == twice[0])
        raise InputError(where, f"two datasets are called {twice[0]!r}", "Rename one of the folders.")
    return found


def _places(root: Path, *, nested: bool) -> list[Path]:
    if (root / "dataset.json").exists():
        return [root]
    inside = sorted(path.parent for path in root.glob("*/dataset.json"))
    if nested and not inside:  # further down other kinds of data may lie about
        further = sorted(path.parent for path in root.glob("*/*/dataset.json"))
        inside = [place for place in further if (place / "images").is_dir() or (place / "imagesTr").is_dir()]
    return inside or [root]

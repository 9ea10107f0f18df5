"""nnU-Net as an `evaluation.answering.Answerer`: trained for each dataset that is asked, then a folder of masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lexitome.data.dataset import Dataset
from lexitome.data.trained_on import TrainedOn, fingerprints
from lexitome.errors import InputError
from lexitome.evaluation.answering import Kind
from lexitome.evaluation.nnunet import Options, run_nnunet
from lexitome.evaluation.predictions import FolderAnswerer, folder_answerer

NAME, WORK = "nnunet", "work"
"""What it is called as a baseline, and its folder in the folder of that run."""
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class NnunetAnswerer(FolderAnswerer):
    """The masks that it predicted; it is asked by the names of a dataset's own targets, whatever the protocol."""

    takes: frozenset[Kind] = frozenset({"label"})
    datasets: tuple[Dataset, ...] = ()
    options: Options = field(default_factory=Options)

    def provenance(self) -> dict[str, Any]:
        length = {"epochs": self.options.epochs, "iterations": self.options.iterations}
        taught = {"trained_on": [dataset.name for dataset in self.datasets]}
        return {**super().provenance(), "kind": "baseline", "licence": "", **length, **taught}

    def training(self) -> TrainedOn:
        return fingerprints(self.datasets)


def nnunet_answerer(
    datasets: Sequence[Dataset], work: Path, options: Options | None = None, *, split: str = "test", say: Say = print
) -> NnunetAnswerer:
    """nnU-Net, trained for each of the datasets that has a training part, with its masks of the part `split`. Of other
    sets the answers are missing.

    Args:
        work: folder; what is finished there is not repeated.

    Raises:
        InputError: see `run_nnunet`; or no dataset has a training part.
    """
    options, masks = options or Options(), work / "masks"
    taught = tuple(dataset for dataset in datasets if any(case.split == "train" for case in dataset.cases))
    if not taught:
        raise InputError(datasets[0].root, "has no training part for nnU-Net", "Leave the baseline out.")
    for dataset in taught:
        say(f"nnU-Net: {dataset.name}, {options.epochs} epochs of {options.iterations} steps on {options.on}")
        run_nnunet(dataset, work / dataset.name, options, split=split, masks=masks / dataset.name)
    found = folder_answerer(masks, taught, split=split)
    name = f"nnU-Net ({options.epochs} epochs)"
    return NnunetAnswerer(found.folder, name, found.extra, datasets=taught, options=options)


def epochs_of(baseline: str) -> int | None:
    """Of "nnunet" or "nnunet:EPOCHS"; None for any other name.

    Raises:
        InputError: that is no number of epochs.
    """
    name, colon, number = baseline.partition(":")
    if name != NAME:
        return None
    if colon and not (number.isdecimal() and int(number)):
        raise InputError(f"--baseline {baseline}", f"{number!r} is no number of epochs", f"Type e.g. {NAME}:50.")
    return int(number) if colon else Options.epochs

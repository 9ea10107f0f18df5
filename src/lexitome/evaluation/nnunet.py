"""nnU-Net v2 as an opponent, through its own command line: convert, plan, train, predict; its masks are then scored as
any folder of predictions (`evaluation.nnunet_answers`). Pictures and volumes, the grid of a volume as its affine.

Source: Isensee et al., Nature Methods 2021; nnU-Net 2.8, documentation/dataset_format.md and extending_nnunet.md. What
is ours: the split (fold 0 is the project's train and val part), the length (a trainer class in a file of its own, which
nnU-Net finds through `nnUNet_extTrainer`), and the labels: every code of the dataset is a class, so that overlapping
targets survive. Everything else is its default, but for its 1000 epochs and the ensemble of five folds.

A work folder holds raw/, preprocessed/, results/, trainer/, converted.json, predictions/, and a log of each command.
What is finished is not repeated.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE, Case, Dataset
from lexitome.errors import InputError
from lexitome.evaluation.reference import cases_of, data_hash
from lexitome.evaluation.run_folder import write_json
from lexitome.io.atomic import replacing
from lexitome.volume import Volume

TRAINER = "nnUNetTrainerOfGivenLength"
PLANS = "nnUNetPlans"
NUMBER = 900
"""Dataset numbers 1 to 899 may be the user's own."""
INSTALL = 'Type: pip install "lexitome[nnunet]"'
_TRAINER_FILE = f'''"""Written by lexitome: nnU-Net's trainer, its learning rate falling over another length."""
import os
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {TRAINER}(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["LEXITOME_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["LEXITOME_ITERATIONS"])
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)
'''


@dataclass(frozen=True)
class Options:
    """Args:
    configuration: "2d", "3d_fullres", ...; "" takes 2d for pictures and 3d_fullres for volumes.
    epochs, iterations: iterations of an epoch; nnU-Net's own length is 1000 x 250.
    device: None takes a CUDA device where there is one, else the CPU.
    processes: for preprocessing and augmentation.
    mirror: average predictions of mirrored images, as nnU-Net does by default.
    """

    configuration: str = ""
    epochs: int = 100
    iterations: int = 250
    device: Literal["cpu", "cuda", "mps"] | None = None
    processes: int = 2
    mirror: bool = True

    @property
    def on(self) -> str:
        """The device, chosen."""
        if self.device is not None:
            return self.device
        import torch  # nnU-Net brings it

        return "cuda" if torch.cuda.is_available() else "cpu"

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"nnU-Net {name}", f"{getattr(self, name)} is below 1", "Choose at least 1.")


@dataclass(frozen=True)
class Converted:
    """How nnU-Net sees a dataset.

    Args:
        identifier: "Dataset900_NAME".
        ending: of its files.
        classes: code of the dataset to nnU-Net's label, 1 and up without gaps.
        cases: part to {nnU-Net's name of a case: ours}.
        left_out: training cases that are only partly annotated: nnU-Net takes what is not drawn for background.
        data: hash of all files and of who is in which part.
    """

    identifier: str
    ending: str
    classes: dict[int, int]
    cases: dict[str, dict[str, str]]
    data: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """The folders of a run."""

    root: Path
    identifier: str = field(default="")

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.identifier

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.identifier

    def environment(self, options: Options) -> dict[str, str]:
        """What nnU-Net reads its folders, its processes and the length of our trainer from."""
        folders = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results",
                   "nnUNet_extTrainer": "trainer"}  # fmt: skip
        numbers = {"nnUNet_def_n_proc": options.processes, "nnUNet_n_proc_DA": options.processes,
                   "LEXITOME_EPOCHS": options.epochs, "LEXITOME_ITERATIONS": options.iterations}  # fmt: skip
        paths = {name: str((self.root / folder).resolve()) for name, folder in folders.items()}
        return {**paths, **{name: str(number) for name, number in numbers.items()}, "MPLBACKEND": "Agg"}


def run_nnunet(
    dataset: Dataset, work: Path, options: Options | None = None, *, split: str = "test", masks: Path | None = None
) -> Path:
    """Train nnU-Net on the training part of `dataset`, predict the part `split`, and return the folder of masks for
    `predictions.folder_answerer`.

    Args:
        masks: that folder; by default work/predictions.

    Raises:
        InputError: nnU-Net is not installed, the data do not fit it, `work` holds another run, or one of its commands
            failed; says where its own words are.
    """
    need_nnunet()
    options = options or Options()
    converted = convert(dataset, work, split)
    place = Work(work, converted.identifier)
    (work / "trainer").mkdir(parents=True, exist_ok=True)
    (work / "trainer" / "given_length.py").write_text(_TRAINER_FILE, encoding="utf-8")
    configuration = options.configuration or ("2d" if dataset.dims == 2 else "3d_fullres")
    for name, command in commands(place, options, configuration).items():
        if name == "train":
            write_splits(place, converted)
        run(name, command, place, options)
    return collect(dataset, place, converted, masks or work / "predictions")


def need_nnunet() -> None:
    if importlib.util.find_spec("nnunetv2") is None:
        raise InputError("nnU-Net", "is not installed", INSTALL)


def convert(dataset: Dataset, work: Path, split: str = "test") -> Converted:
    """Write `dataset` as nnU-Net wants it, or take what was written before.

    8-bit 2D images become PNG (grey, or RGB if the first is a colour image), all others NIfTI with one file for each
    channel. Pixels that nobody judged get the label "ignore".

    Raises:
        InputError: no complete training case, no case in `split`, or `work` was written for other data.
    """
    note = work / "converted.json"
    data = "-".join(data_hash(cases_of(dataset, part)) for part in ("train", "val", split))
    if note.is_file():
        stored = _stored(note)
        if stored.data != data:
            raise InputError(work, "holds a run on other images, masks or parts", "Choose another folder.")
        return stored
    partial = tuple(c.stem for c in dataset.cases if c.split in ("train", "val") and c.unknown_labels)
    chosen = {
        part: [c for c in dataset.cases if c.split == part and c.stem not in partial] for part in ("train", "val")
    }
    chosen["test"] = cases_of(dataset, split)
    if not chosen["train"] or not chosen["test"]:
        part = "train" if not chosen["train"] else split
        raise InputError(dataset.root, f"has no completely annotated case in {part}", "nnU-Net needs some.")
    first = read_case(chosen["train"][0])[0]
    ending = ".png" if dataset.dims == 2 and first.array.dtype == np.uint8 else ".nii.gz"
    codes = sorted({code for target in dataset.targets for code in target.codes})
    classes = {code: number for number, code in enumerate(codes, start=1)}
    identifier = f"Dataset{NUMBER}_{_plain(dataset.name)}"
    converted = Converted(identifier, ending, classes, _numbered(chosen), data, partial)
    place = Work(work, converted.identifier)
    shutil.rmtree(place.raw, ignore_errors=True)
    channels = first.array.shape[0]
    for part, cases in chosen.items():
        for name, case in zip(converted.cases[part], cases, strict=True):
            _write_case(place.raw, name, case, (part != "test", channels), converted)
    labels = {"background": 0, **{f"code{code}": number for code, number in classes.items()}}
    write_json(place.raw / "dataset.json", {
        "channel_names": {str(i): word for i, word in enumerate(_channel_names(dataset, channels, ending))},
        "labels": {**labels, "ignore": len(classes) + 1}, "numTraining": len(chosen["train"]) + len(chosen["val"]),
        "file_ending": ending,
    })  # fmt: skip
    write_json(note, asdict(converted))
    return converted


def _numbered(chosen: Mapping[str, Sequence[Case]]) -> dict[str, dict[str, str]]:
    """Names without anything that a file system or nnU-Net might not like."""
    return {part: {f"{part}{i:05d}": case.stem for i, case in enumerate(cases)} for part, cases in chosen.items()}


def _plain(name: str) -> str:
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in name)


def _channel_names(dataset: Dataset, channels: int, ending: str) -> list[str]:
    """nnU-Net normalises a channel called CT by the intensities of its training set, all others by the image."""
    if channels == 3 and ending == ".png":
        return ["red", "green", "blue"]
    return ["CT" if dataset.family == "ct" and ending != ".png" else f"channel{i}" for i in range(channels)]


def _write_case(raw: Path, name: str, case: Case, kind: tuple[bool, int], converted: Converted) -> None:
    """kind: (for training?, channels)."""
    for_training, channels = kind
    volume, codes = read_case(case)
    ending, images = converted.ending, raw / ("imagesTr" if for_training else "imagesTs")
    images.mkdir(parents=True, exist_ok=True)
    array = _with_channels(volume.array, channels)
    if ending == ".png":
        plane = array[:, 0] if array.dtype == np.uint8 else np.clip(array[:, 0], 0, 255).astype(np.uint8)
        Image.fromarray(plane[0] if channels == 1 else np.moveaxis(plane, 0, -1)).save(images / f"{name}_0000.png")
    else:
        for i, channel in enumerate(array):
            _write_nifti(images / f"{name}_{i:04d}.nii.gz", channel, volume)
    if for_training:
        labels = np.zeros(codes.shape, np.uint8)
        for code, number in converted.classes.items():
            labels[codes == code] = number
        labels[codes == UNKNOWN_CODE] = len(converted.classes) + 1
        folder = raw / "labelsTr"
        folder.mkdir(parents=True, exist_ok=True)
        if ending == ".png":
            Image.fromarray(labels[0]).save(folder / f"{name}.png")
        else:
            _write_nifti(folder / f"{name}.nii.gz", labels, volume)


def _with_channels(array: NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    """Grey repeated, colours averaged, where a case differs from the first."""
    if array.shape[0] == channels:
        return array
    if array.shape[0] == 1:
        return np.repeat(array, channels, axis=0)
    return np.repeat(array.mean(axis=0, keepdims=True).astype(array.dtype), channels, axis=0)


def _write_nifti(path: Path, array: NDArray[np.generic], volume: Volume) -> None:
    """(Z, Y, X) with the affine of the volume."""
    stored = array.astype(np.float32) if array.dtype.kind == "f" or array.dtype.itemsize > 2 else array
    nibabel.save(nibabel.Nifti1Image(np.asarray(stored.transpose(2, 1, 0)), volume.affine), path)


def commands(work: Work, options: Options, configuration: str) -> dict[str, list[str]]:
    """What is typed, in order: plan, train, predict."""
    number, processes = str(NUMBER), str(options.processes)
    plan = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", configuration, "-np", processes, "-npfp", processes,
            "--verify_dataset_integrity", "--no_pbar"]  # fmt: skip
    train = [
        "nnUNetv2_train",
        number,
        configuration,
        "0",
        "-tr",
        TRAINER,
        "-p",
        PLANS,
        "-device",
        options.on,
        "--c",
    ]
    predict = ["nnUNetv2_predict", "-i", str(work.raw / "imagesTs"), "-o", str(work.root / "predicted"), "-d", number,
               "-c", configuration, "-f", "0", "-tr", TRAINER, "-p", PLANS, "-device", options.on, "-npp", "1",
               "-nps", "1", "--disable_progress_bar", "--continue_prediction"]  # fmt: skip
    return {"plan": plan, "train": train, "predict": predict + ([] if options.mirror else ["--disable_tta"])}


def write_splits(work: Work, converted: Converted) -> None:
    """Fold 0: our training part, and our validation part or, where that is empty, the training part again."""
    train, val = (sorted(converted.cases[part]) for part in ("train", "val"))
    write_json(work.preprocessed / "splits_final.json", [{"train": train, "val": val or train}])


def run(name: str, command: Sequence[str], work: Work, options: Options) -> None:
    """One command of nnU-Net; its words go to `NAME.log`. What has ended well is not repeated.

    Raises:
        InputError: it failed, or it ended well for another length of training.
    """
    done, log = work.root / f"{name}.done", work.root / f"{name}.log"
    length = {"epochs": options.epochs, "iterations": options.iterations}
    if done.is_file():
        if json.loads(done.read_text(encoding="utf-8"))["length"] != length:
            raise InputError(work.root, "holds a run of another length", "Choose another folder.")
        return
    beside = Path(sysconfig.get_path("scripts")) / command[0]
    typed = [str(beside) if beside.is_file() else command[0], *command[1:]]
    environment = {**os.environ, **work.environment(options)}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", "")))
    with log.open("w", encoding="utf-8") as words:
        try:
            code = subprocess.run(typed, env=environment, stdout=words, stderr=subprocess.STDOUT).returncode
        except OSError as error:
            raise InputError(command[0], f"cannot be started ({error.strerror})", INSTALL) from error
    if code:
        said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        cause = f"failed with code {code} ({said[-1] if said else 'it said nothing'})"
        raise InputError(command[0], cause, f"Its words are in {log}.")
    write_json(done, {"command": list(command), "length": length})


def collect(dataset: Dataset, work: Work, converted: Converted, masks: Path) -> Path:
    """Its label maps under our names in `masks`, and what their values mean; what it did not write stays missing."""
    masks.mkdir(parents=True, exist_ok=True)
    for name, stem in converted.cases["test"].items():
        path = work.root / "predicted" / f"{name}{converted.ending}"
        if path.is_file():
            with replacing(masks / f"{stem}{converted.ending}") as temporary:
                shutil.copyfile(path, temporary)
    values = {target.name: [converted.classes[code] for code in target.codes] for target in dataset.targets}
    write_json(masks / "labels.json", values)
    return masks


def _stored(path: Path) -> Converted:
    entry = json.loads(path.read_text(encoding="utf-8"))
    classes = {int(code): number for code, number in entry["classes"].items()}
    left_out = tuple(entry["left_out"])
    return Converted(entry["identifier"], entry["ending"], classes, entry["cases"], entry["data"], left_out)

"""A specialist: a MONAI U-Net for the classes of one dataset, trained by the engine from scratch. The fair opponent of
a model that answers anything: same pictures, augmentation, precision, validation and time.

Networks: "UNet" with residual units (Kerfoot et al., STACOM 2018), 6.5 M parameters; "BasicUNet", 2.0 M. Volumes are
seen slice by slice with their neighbours. A trained one is a folder:

specialist.json     the recipe, the dataset's targets, how pictures are shown
model.safetensors   averaged weights of the best validation
trained_on.npz      hashes of the pictures it was taught (`data.trained_on`)
checkpoints/, log.jsonl, ...  of the engine
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.augment import change_tone, draw_warp, warp_labels, warp_picture
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.dataset import Dataset, Target
from lexitome.data.intensity import Window
from lexitome.data.trained_on import FILE, fingerprints
from lexitome.data.traits import traits_of
from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.models.foundation import SPECIALIST
from lexitome.recipes.finetune import steps_for
from lexitome.training import checkpoint
from lexitome.training.dense import Batch, TargetScores, judged_of, known_of, masks_of, pairs, region_terms, row_at
from lexitome.training.engine import Precision, RunConfig, fit
from lexitome.training.optim import OptimConfig
from lexitome.training.pace import quicker
from lexitome.training.progress import LOG, read_log
from lexitome.training.validation import USUAL_SIDE

K = TypeVar("K")
CARD, PLAN, WEIGHTS = SPECIALIST, "recipe.json", "model.safetensors"
NetworkName = Literal["UNet", "BasicUNet"]
Say = Callable[[str], None]
SIDE_STEP = 32
"""Both networks halve a picture four times; a side may be any multiple of this."""
FEWEST_TRIED = 10
"""Steps of a trial, however slow the network is."""
VALIDATED = 64
"""Pictures of a validation, at most."""


@dataclass(frozen=True)
class SpecialistRecipe:
    """A run.

    Attributes:
        side: of the square pictures; 0 takes what a compact model would see the set at.
        images: of a step. The loss is cross-entropy and Dice of each (picture, target) pair by itself, since targets
            may lie in each other.
    """

    network: NetworkName = "UNet"
    side: int = 0
    images: int = 8
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(1e-3, weight_decay=1e-4))
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=2000, clip=12.0))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side % SIDE_STEP or self.side < 0:
            raise InputError("side", f"{self.side} is not a multiple of {SIDE_STEP}", "Choose e.g. 256 or 320.")
        if self.images < 1:
            raise InputError("images", f"{self.images} pictures make no step", "Choose at least 1.")


@dataclass(frozen=True)
class Card:
    """What `CARD` holds. `side`, `window`, `neighbours` say how pictures are shown, `targets` what the channels mean;
    `seconds` are those of the process that finished it."""

    dataset: str
    recipe: SpecialistRecipe
    targets: tuple[Target, ...]
    side: int
    window: Window | None
    neighbours: bool
    licence: str
    dice: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class SpecialistTask:
    """A `training.engine.Task`. `train` and `val` are rows of the cache."""

    cached: CachedDataset
    recipe: SpecialistRecipe
    targets: tuple[Target, ...]
    side: int
    train: tuple[int, ...]
    val: tuple[int, ...]

    def images(self, step: int) -> int:
        return self.recipe.images

    def batch(self, step: int, indices: range) -> Batch:
        drawn = [self._picture(step, index) for index in indices]
        pictures, masks, known, judged = (torch.stack(list(each)) for each in zip(*drawn, strict=True))
        return Batch(pictures.contiguous(memory_format=torch.channels_last), masks, known, judged)

    def _picture(self, step: int, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Picture `index` of a step, changed at random."""
        row = row_at(self.train, self.recipe.seed, step * self.recipe.images + index)
        rng = np.random.default_rng((self.recipe.seed, step, index, 1))
        warp = draw_warp(self.cached.traits, rng)
        picture = warp_picture(self.cached.images[row], warp, self.side)
        is_colour = not self.cached.rows[row].stacked and bool((picture[0] != picture[1]).any())
        picture = change_tone(picture, rng, colour=is_colour)
        codes = warp_labels(self.cached.codes[row], warp, self.side)
        known = known_of(self.cached.rows[row].unknown, self.targets)
        return normalised(picture), masks_of(codes, self.targets), known, judged_of(codes)

    def counts(self, batch: Batch) -> Tensor:
        return pairs(batch)

    def loss(self, model: nn.Module, batch: Batch, totals: Tensor) -> dict[str, Tensor]:
        return region_terms(model(batch.pictures), batch, totals)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean Dice of the targets that the validation pictures show, at the resolution of the cache."""
        scores = TargetScores()
        for row in self.val:
            codes = self.cached.codes[row]
            likely = probabilities(model, np.array(self.cached.images[row])[None], self.side)[0]
            for target, plane in zip(self.targets, likely, strict=True):
                scores.add(target, resized(plane, *codes.shape) >= 0.5, codes, self.cached.rows[row].unknown)
        return scores.metrics()


def build_network(name: NetworkName, targets: int) -> nn.Module:
    """
    Raises:
        InputError: MONAI is not installed.
    """
    try:
        from monai.networks.nets import BasicUNet, UNet
    except ImportError as error:
        raise InputError("lexitome train unet", "needs monai", "Type: pip install monai") from error
    if name == "UNet":
        network: nn.Module = UNet(2, 3, targets, (32, 64, 128, 256, 512), (2, 2, 2, 2), num_res_units=2)
    else:
        network = BasicUNet(spatial_dims=2, in_channels=3, out_channels=targets)
    return network.to(memory_format=torch.channels_last)


def _network_of(task: SpecialistTask) -> nn.Module:
    return build_network(task.recipe.network, len(task.targets))


def normalised(picture: Tensor) -> Tensor:
    """(..., 3, S, S) in any scale to mean 0 and deviation 1 in each channel."""
    mean, deviation = picture.mean((-2, -1), keepdim=True), picture.std((-2, -1), keepdim=True)
    return (picture - mean) / deviation.clamp_min(1e-3)


@torch.no_grad()
def probabilities(model: nn.Module, pictures: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """(N, H, W, 3) pictures to (N, T, side, side) probabilities."""
    device = next(model.parameters()).device
    shown = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    shown = F.interpolate(shown, (side, side), mode="bilinear", antialias=True)
    return np.asarray(model(normalised(shown).to(device)).float().sigmoid().cpu().numpy())


def resized(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(h, w) to (height, width), bilinear."""
    whole = torch.from_numpy(np.ascontiguousarray(plane))[None, None].float()
    return np.asarray(F.interpolate(whole, (height, width), mode="bilinear")[0, 0].numpy())


def task_of(cached: CachedDataset, recipe: SpecialistRecipe, train: Sequence[str] = ("train",)) -> SpecialistTask:
    """
    Args:
        train: the parts that are trained on; "val" always chooses the checkpoint.

    Raises:
        InputError: nothing to train on.
    """
    targets = tuple(target for target in cached.dataset.targets if not target.derived)
    rows = [i for i, row in enumerate(cached.rows) if row.split in train]
    val = [i for i, row in enumerate(cached.rows) if row.split == "val"]
    if not rows or not targets:
        raise InputError(cached.dataset.root, "has no training part", "Add annotated images, three subjects at least.")
    chosen = np.random.default_rng(len(val)).permutation(len(val))[:VALIDATED]
    side = recipe.side or USUAL_SIDE[cached.traits.size]
    return SpecialistTask(cached, recipe, targets, side, tuple(rows), tuple(sorted(val[i] for i in chosen)))


def train_specialist(task: SpecialistTask, folder: Path, *, resume: bool = False) -> Card:
    """Train to the end of the recipe and write `CARD` and `WEIGHTS` of the best checkpoint.

    Raises:
        InputError: see `training.engine.fit`.
    """
    recipe, began = task.recipe, time.perf_counter()
    torch.manual_seed(recipe.seed)
    network = _network_of(task)
    deciding = {"dataset": task.cached.dataset.name, "specialist": asdict(replace(recipe, run=RunConfig(steps=1)))}
    result = fit(network, task, recipe.optim, recipe.run, folder, resume=resume, recipe=deciding)
    checkpoint.load_weights(network, result.best or result.last)
    with replacing(folder / WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)
    dataset, seconds = task.cached.dataset, time.perf_counter() - began
    taught = {task.cached.rows[row].split for row in (*task.train, *task.val)}
    with replacing(folder / FILE) as temporary:
        temporary.write_bytes(fingerprints([dataset], sorted(taught)).to_bytes())
    card = Card(
        dataset=dataset.name, recipe=recipe, targets=task.targets, side=task.side, window=dataset.window,
        neighbours=task.cached.traits.neighbours, licence=dataset.licence, dice=result.best_metric, seconds=seconds,
    )  # fmt: skip
    with replacing(folder / CARD) as temporary:
        temporary.write_text(json.dumps(asdict(card), indent=1), encoding="utf-8")
    return card


def train_specialists(
    datasets: Sequence[Dataset],
    out: Path,
    cache: Path,
    recipe: SpecialistRecipe,
    *,
    minutes: float | None,
    say: Say = print,
) -> list[Card]:
    """A specialist for each dataset in `out`/NAME. Finished ones are kept, begun ones continued.

    Args:
        cache: of decoded pictures, see `data.cache`.
        minutes: for all of them together, shared out by the square roots of the numbers of training pictures; None
            takes the recipe's steps for each.
    """
    tasks = [task_of(open_cache(dataset, cache, traits=traits_of(dataset)), recipe) for dataset in datasets]
    whole = sum(math.sqrt(len(task.train)) for task in tasks)
    cards = []
    for task in tasks:
        folder, name = out / task.cached.dataset.name, task.cached.dataset.name
        if (folder / CARD).is_file():
            card = read_card(folder)
        else:
            begun = checkpoint.locate(folder / "checkpoints", "last") is not None
            share = None if minutes is None else minutes * math.sqrt(len(task.train)) / whole
            planned = (
                _parsed(folder / PLAN, SpecialistRecipe) if begun else recipe if share is None else within(task, share)
            )
            _store_plan(folder, planned)
            say(f"{name}: {planned.run.steps} steps" + ("" if share is None else f", planned for {share:.1f} minutes"))
            card = train_specialist(replace(task, recipe=planned), folder, resume=begun)
        say(f"{name}: validation Dice {'unknown' if card.dice is None else f'{100 * card.dice:.1f}'}")
        cards.append(card)
    return cards


def within(task: SpecialistTask, minutes: float) -> SpecialistRecipe:
    """The recipe of a task with as many steps as fit into the time on this machine."""
    precision, seconds = quicker(partial(_network_of, task), task, task.recipe.run)
    return with_steps(task.recipe, steps_for(minutes, seconds), precision)


def with_steps(recipe: SpecialistRecipe, steps: int, precision: Precision) -> SpecialistRecipe:
    """The recipe with a number of steps, and the intervals, averaging and warm-up that suit it."""
    run = replace(
        recipe.run, steps=steps, precision=precision, ema=float(np.clip(1 - 10 / steps, 0.9, 0.998)),
        validate_every=max(20, steps // 10), checkpoint_every=max(20, min(200, steps // 8)),
        log_every=max(1, min(20, steps // 50)),
    )  # fmt: skip
    return replace(recipe, run=run, optim=replace(recipe.optim, warmup=min(50, steps // 20)))


@dataclass(frozen=True)
class Trial:
    """A short training of a candidate: the best validation Dice, and the seconds of a step, the median."""

    recipe: SpecialistRecipe
    dice: float
    seconds_per_step: float


def choose(
    task: SpecialistTask, candidates: Sequence[tuple[NetworkName, float]], minutes: float, work: Path
) -> list[Trial]:
    """Train each (network, learning rate) for so many minutes below `work`, the one with the highest validation Dice
    first. Finished trials are kept, unfinished ones begin again."""
    tried = []
    for network, lr in candidates:
        folder = work / f"{network}-{lr:g}"
        if not is_specialist(folder):
            shutil.rmtree(folder, ignore_errors=True)
            recipe = replace(task.recipe, network=network, optim=replace(task.recipe.optim, lr=lr))
            trial = replace(task, recipe=recipe)
            precision, seconds = quicker(partial(_network_of, trial), trial, recipe.run)
            steps = max(FEWEST_TRIED, int(60 * minutes / seconds))
            train_specialist(replace(task, recipe=with_steps(recipe, steps, precision)), folder)
        card = read_card(folder)
        pace = median(row["seconds"] for row in read_log(folder / LOG) if row["kind"] == "train")
        tried.append(Trial(card.recipe, card.dice or 0.0, pace))
    return sorted(tried, key=lambda trial: -trial.dice)


def _store_plan(folder: Path, recipe: SpecialistRecipe) -> None:
    with replacing(folder / PLAN) as temporary:
        temporary.write_text(json.dumps(asdict(recipe), indent=1), encoding="utf-8")


def is_specialist(folder: Path) -> bool:
    return (folder / CARD).is_file()


def read_card(folder: Path) -> Card:
    """
    Raises:
        InputError: there is none, or of another version.
    """
    return _parsed(folder / CARD, Card)


def load_specialist(folder: Path) -> tuple[Card, nn.Module]:
    """The card and the network, in evaluation mode.

    Raises:
        InputError: not the folder of a specialist, or damaged.
    """
    card = read_card(folder)
    network = build_network(card.recipe.network, len(card.targets))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors and torch raise several kinds
        raise InputError(
            folder / WEIGHTS, f"cannot be used ({str(error).splitlines()[0]})", "Train it again."
        ) from error
    return card, network.eval()


def _parsed(path: Path, kind: type[K]) -> K:
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Name the folder of a specialist.") from error
    except (ValueError, ValidationError) as error:
        cause = f"is not of this version ({str(error).splitlines()[0]})"
        raise InputError(path, cause, "Train it again in another folder.") from error

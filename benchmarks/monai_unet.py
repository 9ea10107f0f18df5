"""A U-Net as its users train it, within a given time: MONAI's networks, loss and augmentation, AdamW, cosine.

Everything a practitioner would do short of pre-trained weights: the learning rate and the network are chosen by short
trials on the validation images, bf16 is used where it is faster, the weights with the best validation Dice are kept.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai import transforms as T
from monai.data import Dataset, ThreadDataLoader
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet, UNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.data.cache import CachedDataset
from lexitome.data.traits import SetTraits
from lexitome.evaluation.metrics.overlap import count, dice

Entry = dict[str, Any]
IMAGES = 8
"""A step."""
WARM_UP = 0.03
"""Of the time, during which the learning rate rises."""
VALIDATIONS = 25
"""Spread over the time."""
TIMED = 3
"""Steps in each precision that tell which one is faster."""


@dataclass(frozen=True)
class Candidate:
    network: str
    lr: float


@dataclass(frozen=True)
class Budget:
    """Wall ``seconds`` by a ``clock``, in which validation counts."""

    seconds: float
    threads: int
    seed: int
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True, eq=False)
class Parts:
    """Decoded pictures, which of them are trained on, which choose the checkpoint, and the side they are shown at."""

    cached: CachedDataset
    train: list[int]
    val: list[int]
    side: int

    @property
    def codes(self) -> list[tuple[int, ...]]:
        """Of each target that is asked for."""
        return [target.codes for target in self.cached.dataset.targets if not target.derived]


def build(name: str, targets: int) -> nn.Module:
    """ "UNet": residual units, strided (Kerfoot et al. 2018), 6.5 M parameters; "BasicUNet": plain, 2.0 M."""
    if name == "UNet":
        return UNet(2, 3, targets, (32, 64, 128, 256, 512), (2, 2, 2, 2), num_res_units=2)
    return BasicUNet(spatial_dims=2, in_channels=3, out_channels=targets)


def choose(parts: Parts, candidates: Sequence[Candidate], budget: Budget) -> Entry:
    """A short training of each; the one with the highest validation Dice."""
    tried = [{**asdict(c), "dice": train_unet(parts, c, budget)[1]["best_validation"]} for c in candidates]
    best = max(tried, key=lambda entry: entry["dice"])
    return {"best": {"network": best["network"], "lr": best["lr"]}, "seconds_each": budget.seconds, "tried": tried}


def train_unet(parts: Parts, candidate: Candidate, budget: Budget) -> tuple[nn.Module, Entry]:
    """The network with its best weights, in evaluation mode, and how it was trained."""
    torch.set_num_threads(budget.threads)
    torch.manual_seed(budget.seed)
    network = build(candidate.network, len(parts.codes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=candidate.lr, weight_decay=1e-4)
    stream = batches(parts, budget.seed)
    half = bf16_is_faster(network, next(stream))
    history: list[dict[str, float]] = []
    best, steps, began = copy.deepcopy(network.state_dict()), 0, budget.clock()
    while (spent := budget.clock() - began) < budget.seconds:
        pictures, masks = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = candidate.lr * schedule(spent / budget.seconds)
        optimizer.zero_grad(set_to_none=True)
        loss_of(network, pictures, masks, half).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        steps += 1
        if spent >= budget.seconds * (len(history) + 1) / VALIDATIONS:
            value = validate(network, parts)
            history.append({"seconds": budget.clock() - began, "step": steps, "dice": 100 * value})
            if value >= max(entry["dice"] for entry in history) / 100:
                best = copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return network.eval(), {
        **asdict(candidate), "parameters": sum(p.numel() for p in network.parameters()), "side": parts.side,
        "precision": "bf16" if half else "fp32", "images_a_step": IMAGES, "steps": steps,
        "seconds": budget.clock() - began, "train_images": len(parts.train), "validation_images": len(parts.val),
        "best_validation": max((entry["dice"] for entry in history), default=0.0), "history": history,
    }  # fmt: skip


def schedule(share: float) -> float:
    """Factor of the learning rate after a share of the time."""
    return min(1.0, share / WARM_UP + 0.1) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def loss_of(network: nn.Module, pictures: Tensor, masks: Tensor, half: bool) -> Tensor:
    """Dice and cross-entropy of every target by itself, since targets may lie in each other."""
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        logits = network(pictures)
    loss: Tensor = DiceCELoss(sigmoid=True)(logits.float().flatten(0, 1)[:, None], masks.flatten(0, 1)[:, None])
    return loss


def bf16_is_faster(network: nn.Module, batch: tuple[Tensor, Tensor]) -> bool:
    trial, seconds = copy.deepcopy(network), {}
    for half in (False, True):
        loss_of(trial, *batch, half).backward()
        began = time.perf_counter()
        for _ in range(TIMED):
            loss_of(trial, *batch, half).backward()
        seconds[half] = time.perf_counter() - began
    return seconds[True] < seconds[False]


def batches(parts: Parts, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented pictures (N, 3, S, S) and masks (N, T, S, S) without end, made by a thread while others train."""
    items = [_item(parts, index) for index in parts.train]
    change = augmentation(parts.cached.traits, parts.side)
    change.set_random_state(seed)
    count = min(IMAGES, len(items))
    loader = ThreadDataLoader(
        Dataset(items, change), buffer_size=2, batch_size=count, shuffle=True, drop_last=True, num_workers=0,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    while True:
        for batch in loader:
            pictures = batch["image"].as_tensor().contiguous(memory_format=torch.channels_last)
            yield pictures, (batch["mask"].as_tensor() > 0.5).float()


def augmentation(traits: SetTraits, side: int) -> T.Compose:
    """Flips and turns that the pictures allow (as Lexitome's), zoom and shift, contrast, brightness, blur, noise."""
    turn = math.pi if traits.rotate else math.radians(15)
    both = ["image", "mask"]
    affine = T.RandAffined(
        both, prob=0.7, rotate_range=turn, scale_range=(0.25, 0.25), translate_range=(0.1 * side,) * 2,
        mode=("bilinear", "nearest"), padding_mode="zeros",
    )  # fmt: skip
    return T.Compose([
        *([T.RandFlipd(both, prob=0.5, spatial_axis=1)] if traits.mirror else []),
        *([T.RandFlipd(both, prob=0.5, spatial_axis=0)] if traits.rotate else []),
        affine,
        T.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
        T.RandScaleIntensityd("image", factors=0.25, prob=0.3),
        T.RandShiftIntensityd("image", offsets=0.1, prob=0.3),
        T.RandGaussianSmoothd("image", sigma_x=(0.4, 1.5), sigma_y=(0.4, 1.5), prob=0.15),
        T.RandGaussianNoised("image", prob=0.15, std=0.05),
        T.NormalizeIntensityd("image", channel_wise=True),
    ])  # fmt: skip


def _item(parts: Parts, index: int) -> dict[str, Tensor]:
    codes = parts.cached.codes[index]
    masks = torch.from_numpy(np.stack([np.isin(codes, wanted) for wanted in parts.codes])).float()
    masks = F.interpolate(masks[None], (parts.side, parts.side), mode="nearest")[0]
    return {"image": shrunk(np.array(parts.cached.images[index]), parts.side), "mask": masks}


def shrunk(picture: NDArray[np.uint8], side: int) -> Tensor:
    """(H, W, 3) to (3, side, side) in 0..1."""
    values = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(values, (side, side), mode="bilinear", antialias=True)[0]


def validate(network: nn.Module, parts: Parts) -> float:
    """Mean Dice of the targets that the validation pictures show, at the resolution of the cache."""
    found = []
    for index in parts.val:
        codes = parts.cached.codes[index]
        masks = predict(network, np.array(parts.cached.images[index]), parts.side)
        truths = [np.isin(codes, wanted) for wanted in parts.codes]
        found += [dice(count(mask, truth)) or 0.0 for mask, truth in zip(masks, truths, strict=True) if truth.any()]
    network.train()
    return float(np.mean(found)) if found else 0.0


@torch.no_grad()
def predict(network: nn.Module, picture: NDArray[np.uint8], side: int) -> NDArray[np.bool_]:
    """(T, H, W) masks of a picture (H, W, 3) at its own resolution."""
    network.eval()
    shown = T.NormalizeIntensity(channel_wise=True)(shrunk(picture, side))
    logits = network(torch.as_tensor(shown)[None])
    return np.asarray(F.interpolate(logits, picture.shape[:2], mode="bilinear")[0].numpy() > 0)

"""Random changes of a training picture: what moves pixels is drawn first (`draw_warp`) and then applied to picture and
labels alike. Needs torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from lexitome.data.traits import SetTraits


@dataclass(frozen=True, eq=False)
class Warp:
    """(2, 3) affine map from the coordinates (x, y in -1..1) of the new picture to those of the cached one."""

    matrix: Tensor


def draw_warp(traits: SetTraits, rng: np.random.Generator) -> Warp:
    """Zoom (a little anisotropic), shift, rotation, and the flips that the traits allow. A camera comes near or stays
    far (0.64 to 1.57), a scanner's table hardly does (0.74 to 1.28)."""
    angle = rng.uniform(-math.pi, math.pi) if traits.rotate and rng.random() < 0.5 else rng.normal(0, math.radians(8))
    nearest, farthest = (-0.45, 0.45) if traits.rotate else (-0.3, 0.25)
    zoom = np.exp(rng.uniform(nearest, farthest) + rng.normal(0, 0.06, 2))
    if traits.mirror and rng.random() < 0.5:
        zoom[0] = -zoom[0]
    if traits.rotate and rng.random() < 0.5:
        zoom[1] = -zoom[1]
    shift = rng.normal(0, 0.1, 2)
    cos, sin = math.cos(angle), math.sin(angle)
    rows = [[cos * zoom[0], -sin * zoom[1], shift[0]], [sin * zoom[0], cos * zoom[1], shift[1]]]
    return Warp(torch.tensor(rows, dtype=torch.float32))


def warp_picture(picture: NDArray[np.uint8], warp: Warp, side: int) -> Tensor:
    """(H, W, 3) uint8 to (3, side, side) float32 in 0..255, bilinear, black outside."""
    source = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    return F.grid_sample(source, _grid(warp, side), "bilinear", "zeros", align_corners=False)[0]


def warp_labels(labels: NDArray[np.generic], warp: Warp, side: int) -> NDArray[np.int32]:
    """(H, W) labels (below 2^24) to (side, side), nearest, 0 outside."""
    source = torch.from_numpy(np.asarray(labels, dtype=np.float32))[None, None]
    moved = F.grid_sample(source, _grid(warp, side), "nearest", "zeros", align_corners=False)[0, 0]
    return moved.numpy().astype(np.int32)


def _grid(warp: Warp, side: int) -> Tensor:
    return F.affine_grid(warp.matrix[None], [1, 1, side, side], align_corners=False)


def keep_middle(picture: Tensor) -> Tensor:
    """A slice without its neighbours: its own channel (the middle one) thrice."""
    return picture[1:2].expand(3, -1, -1)


def swap_neighbours(picture: Tensor) -> Tensor:
    """The slice seen with its stack turned over."""
    return picture.flip(0)


def change_window(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the time another window and gamma of a (3, S, S) CT picture in 0..255: exports come with any."""
    if rng.random() < 0.5:
        return picture
    low, high = rng.uniform(-0.3, 0.25), rng.uniform(0.6, 1.4)
    x = ((picture / 255.0 - low) / (high - low)).clamp(0, 1)
    return 255.0 * x ** float(np.exp(rng.normal(0, 0.35)))


def change_tone(picture: Tensor, rng: np.random.Generator, *, colour: bool) -> Tensor:
    """Gamma, contrast, brightness, tint, blur and noise of a (3, S, S) picture in 0..255. `colour`: its channels are
    colours, which vary between stains, lamps and cameras more than any training set shows."""
    x = (picture / 255.0).clamp(0, 1)
    if rng.random() < 0.7:
        x = x ** float(np.exp(rng.normal(0, 0.25)))
        x = (x - 0.5) * float(np.exp(rng.normal(0, 0.2))) + 0.5 + float(rng.normal(0, 0.06))
    if colour and rng.random() < 0.7:
        mix = np.eye(3) * np.exp(rng.normal(0, 0.15, 3)) + rng.normal(0, rng.uniform(0, 0.15), (3, 3))
        x = torch.einsum("ij,jyx->iyx", torch.tensor(mix, dtype=torch.float32), x)
    if colour and rng.random() < 0.3:
        x = x * _lamp(x.shape[-1], rng)
    if colour and rng.random() < 0.08:
        x = x.mean(0, keepdim=True).expand(3, -1, -1)
    if rng.random() < 0.2:
        x = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, *[rng.uniform(0.4, 1.6)] * 2)))
    if rng.random() < 0.15:
        noise = rng.standard_normal(x.shape[1:], dtype=np.float32) * np.float32(rng.uniform(0.01, 0.06))
        x = x + torch.from_numpy(noise)
    return x.clamp(0, 1) * 255.0


def _lamp(side: int, rng: np.random.Generator) -> Tensor:
    """(S, S) factors of a lamp that shines from one side and fades from or to the middle."""
    line = torch.linspace(-1, 1, side)
    from_left, from_top, from_middle = rng.normal(0, 0.25, 3)
    x, y = line[None, :], line[:, None]
    return torch.exp(from_left * x + from_top * y + from_middle * (x**2 + y**2 - 0.66))

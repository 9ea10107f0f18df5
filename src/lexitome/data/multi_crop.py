"""Views of a picture for self-distillation: large and small crops that are changed in tone, the undistorted twins that
a Gram teacher sees, and the patches that are hidden from the student. Needs torch.

All randomness comes from generators the caller gives. Tones are changed as scanners and windows differ (brightness,
contrast, gamma, noise, blur): hue and solarisation mean nothing in grey levels and Hounsfield units. Boxes are drawn as
in DINO's multi-crop (torchvision's `RandomResizedCrop`), masks as in iBOT and BEiT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from lexitome.errors import InputError

GLOBALS = 2
ASPECT = (3 / 4, 4 / 3)
"""Width / height of a box before it is made square, drawn log-uniform."""
FLAT = 0.02
"""Deviation, as a share of the range of values, below which a crop shows nothing: air, or the frame of a picture."""
_BLOCK_ASPECT, _SMALLEST_BLOCK, _BLOCK_TRIES = 0.3, 4, 10


@dataclass(frozen=True)
class Tone:
    """How tones are changed; shares are of the range of values.

    Attributes:
        jitter: chance of brightness, contrast, gamma and saturation together.
        brightness: largest shift. torchvision multiplies by 1 +- 0.4, which moves mid-grey by 0.2, and air not at all.
        contrast: factor 1 +- this around the mean.
        gamma: largest logarithm of the exponent.
        saturation: factor 1 +- this, of colour pictures.
        grey: chance that a colour picture loses its colours.
        blur: chance in the first global, the second global and the local crops.
        blur_sigma: deviation in pixels of the crop.
        noise: chance of Gaussian noise.
        noise_sigma: its largest deviation.
    """

    jitter: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.4
    gamma: float = 0.2
    saturation: float = 0.2
    grey: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.2
    noise_sigma: float = 0.05


@dataclass(frozen=True)
class Crops:
    """
    Attributes:
        global_sides, local_sides, gram_sides: in pixels; entry i of all belongs together and is taken in a step with
            chance `chances[i]`. No gram sides: no twins.
        local_views: local crops of a picture; global ones are two.
        global_scale, local_scale: area of the box as a share of the picture.
        mirror: left and right change places half of the time. DINOv3's largest runs do not, and patients have sides.
        tries: boxes drawn at most until one shows something; 1 takes what comes.
    """

    global_sides: tuple[int, ...] = (224,)
    local_sides: tuple[int, ...] = (96,)
    gram_sides: tuple[int, ...] = ()
    chances: tuple[float, ...] = (1.0,)
    local_views: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    mirror: bool = False
    tries: int = 1
    tone: Tone = field(default_factory=Tone)

    def __post_init__(self) -> None:
        sides = (*self.global_sides, *self.local_sides, *self.gram_sides)
        allowed = {
            "global_sides": bool(self.global_sides) and min(sides, default=0) > 0,
            "chances": min(self.chances, default=0) >= 0 and sum(self.chances) > 0,
            "local_views": self.local_views > 0,
            "global_scale": 0 < self.global_scale[0] <= self.global_scale[1] <= 1,
            "local_scale": 0 < self.local_scale[0] <= self.local_scale[1] <= 1,
            "tries": self.tries > 0,
        }
        for name, fine in allowed.items():
            if not fine:
                raise InputError(f"crops.{name}", f"{getattr(self, name)!r} is out of range", "See Crops.")

    def check(self) -> None:
        """Whether sides and chances fit each other, which cannot be while they are set one after the other.

        Raises:
            InputError: they do not.
        """
        count = len(self.global_sides)
        for name in ("local_sides", "chances", "gram_sides"):
            length = len(getattr(self, name))
            if length != count and not (name == "gram_sides" and not length):
                cause = f"has {length} entries, and global_sides {count}"
                raise InputError(f"crops.{name}", cause, "Give all of them as many: entry i belongs to entry i.")

    def sizes(self, rng: np.random.Generator) -> Sizes:
        """Of one step."""
        chances = np.array(self.chances)
        index = int(rng.choice(len(chances), p=chances / chances.sum()))
        gram = self.gram_sides[index] if self.gram_sides else None
        return Sizes(self.global_sides[index], self.local_sides[index], gram)


class Sizes(NamedTuple):
    """Sides in pixels."""

    large: int
    small: int
    gram: int | None


class Views(NamedTuple):
    """Of one picture, values in 0..1.

    Args:
        large: (2, 3, S, S).
        small: (L, 3, s, s).
        gram: (2, 3, G, G), twins of `large` from the same boxes, undistorted; None if there is no Gram teacher.
    """

    large: Tensor
    small: Tensor
    gram: Tensor | None


Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


def draw_views(picture: Tensor, crops: Crops, sizes: Sizes, rng: np.random.Generator, *, twins: bool = True) -> Views:
    """
    Args:
        picture: (1 or 3, H, W) float32 in 0..1; grey levels need one channel only.
        twins: whether to cut those of the Gram teacher, if `sizes` has them.
    """
    large, small, gram = [], [], []
    for number in range(GLOBALS):
        cut = _cut(picture, crops, crops.global_scale, rng)
        if sizes.gram is None:
            view = resized(cut, sizes.large)
        else:  # the published order: once at the larger side, the student's is made of it
            twin = resized(cut, max(sizes.gram, sizes.large))
            view = resized(twin, sizes.large)
            if twins:
                gram.append(_coloured(resized(twin, sizes.gram)))
        large.append(_coloured(change_tone(view, crops.tone, crops.tone.blur[number], rng)))
    for _ in range(crops.local_views):
        view = resized(_cut(picture, crops, crops.local_scale, rng), sizes.small)
        small.append(_coloured(change_tone(view, crops.tone, crops.tone.blur[GLOBALS], rng)))
    return Views(torch.stack(large), torch.stack(small), torch.stack(gram) if gram else None)


def draw_box(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A box of a random share of the area, nearly square; after ten that do not fit, the largest in the middle."""
    low, high = np.log(ASPECT)
    for _ in range(10):
        area, aspect = height * width * rng.uniform(*scale), math.exp(rng.uniform(low, high))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
    rows = min(height, max(1, round(width / ASPECT[0])))
    columns = min(width, max(1, round(height * ASPECT[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _cut(picture: Tensor, crops: Crops, scale: tuple[float, float], rng: np.random.Generator) -> Tensor:
    for _ in range(crops.tries):
        top, left, rows, columns = draw_box(picture.shape[-2], picture.shape[-1], scale, rng)
        cut = picture[:, top : top + rows, left : left + columns]
        if crops.tries == 1 or float(cut.std(correction=0)) >= FLAT:
            break
    return cut.flip(-1) if crops.mirror and rng.random() < 0.5 else cut


def resized(picture: Tensor, side: int) -> Tensor:
    """(C, H, W) to (C, side, side), bicubic with antialiasing."""
    if picture.shape[-2:] == (side, side):
        return picture
    return F.interpolate(picture[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _coloured(view: Tensor) -> Tensor:
    return view.expand(3, -1, -1)


def change_tone(view: Tensor, tone: Tone, blur: float, rng: np.random.Generator) -> Tensor:
    """(C, S, S) in 0..1 to the same."""
    x = view
    if rng.random() < tone.jitter:
        shift, factor = rng.uniform(-1, 1) * tone.brightness, 1 + rng.uniform(-1, 1) * tone.contrast
        mean = float(x.mean())
        x = ((x - mean) * factor + mean + shift).clamp(0, 1) ** math.exp(rng.uniform(-1, 1) * tone.gamma)
        strength = 1 + rng.uniform(-1, 1) * tone.saturation
        if len(x) == 3:
            x = (x - x.mean(0)) * strength + x.mean(0)
    if rng.random() < tone.grey and len(x) == 3:
        x = x.mean(0, keepdim=True)
    if rng.random() < blur:
        sigma = rng.uniform(*tone.blur_sigma)
        x = torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, sigma, sigma), truncate=3))
    if rng.random() < tone.noise:
        sigma = rng.uniform(0, tone.noise_sigma)
        x = x + sigma * torch.from_numpy(rng.standard_normal(x.shape[-2:], dtype=np.float32))
    return x.clamp(0, 1)


@dataclass(frozen=True)
class Masks:
    """What is hidden from the student.

    Attributes:
        share: of the global crops that have masks.
        ratio: smallest and largest share of their patches; the crops of a step have evenly spread ones.
    """

    share: float = 0.5
    ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not 0 <= self.ratio[0] <= self.ratio[1] <= 1:
            raise InputError("masks", f"share {self.share}, ratio {self.ratio} is out of range", "Give shares in 0..1.")

    def ratios(self, crops: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """(crops,) share of the patches that each crop of a step hides, 0 for those without masks. Each of the M crops
        with masks draws from its own M-th of the range."""
        masked = int(crops * self.share)
        edges = np.linspace(*self.ratio, masked + 1)
        drawn = [rng.uniform(low, high) for low, high in pairwise(edges)]
        return rng.permutation(np.array([*drawn, *[0.0] * (crops - masked)]))


def block_mask(grid: tuple[int, int], count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(h, w) with exactly `count` true: rectangles of aspect 0.3 to 3.3, and single patches for what they leave."""
    height, width = grid
    count = min(count, height * width)
    mask = np.zeros(grid, dtype=bool)
    while (left := count - int(mask.sum())) > 0:
        if not _place_block(mask, left, rng):
            break
    free = np.flatnonzero(~mask)
    mask.ravel()[rng.choice(free, count - int(mask.sum()), replace=False)] = True
    return mask


def _place_block(mask: NDArray[np.bool_], most: int, rng: np.random.Generator) -> bool:
    """Cover some more patches, at most `most`; False if no drawn rectangle does."""
    height, width = mask.shape
    bound = abs(math.log(_BLOCK_ASPECT))
    for _ in range(_BLOCK_TRIES):
        area, aspect = rng.uniform(min(_SMALLEST_BLOCK, most), most), math.exp(rng.uniform(-bound, bound))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < rows <= height and 0 < columns <= width):
            continue
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        block = mask[top : top + rows, left : left + columns]
        if 0 < int((~block).sum()) <= most:
            block[:] = True
            return True
    return False

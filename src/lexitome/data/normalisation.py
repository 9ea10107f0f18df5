"""From the values of an image to what a vision transformer was trained on: policies with their exact numbers.

imagenet    8-bit pictures (CT in a window), x / 255, then the mean and deviation of ImageNet; DINOv3's
hu_meddino  HU cut to +-1000, (x - 65.1084) / 178.0166; MedDINOv3's pretraining and demo
nnunet_ct   cut to the 0.5 and 99.5 percentile of the foreground, then its mean and deviation: nnU-Net's
            `CTNormalization`; numbers of a dataset (`fingerprint`) or of a plan, MedDINOv3's segmentation
zscore      mean 0 and deviation 1 of each channel of an image: nnU-Net's for what is not CT
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE, Case
from lexitome.data.intensity import View, Window, is_hounsfield, to_pictures
from lexitome.errors import InputError
from lexitome.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

Policy = Literal["imagenet", "hu_meddino", "nnunet_ct", "zscore"]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HU_MEDDINO = (-1000.0, 1000.0, 65.1084, 178.0166)
"""Low, high, mean, deviation. Where the last two come from is not published (its issue 13)."""
SAMPLED = 100_000
"""Voxels of the foreground of a case that count for `fingerprint`."""
LEAST = 1e-4
"""Deviation below which an image is flat; nnU-Net's for half precision."""


@dataclass(frozen=True)
class Normalisation:
    """
    Args:
        numbers: low, high, mean, deviation of "nnunet_ct"; None for other policies.
        window: in which CT becomes a picture ("imagenet"); None takes the usual one.
    """

    policy: Policy
    numbers: tuple[float, float, float, float] | None = None
    window: Window | None = None

    def __post_init__(self) -> None:
        if (self.policy == "nnunet_ct") != (self.numbers is not None):
            cause = "nnunet_ct needs low, high, mean and deviation, and only that"
            raise InputError("intensity", cause, "Take them from a plan, or let them be measured.")

    def prepare(self, volume: Volume, view: View) -> NDArray[np.generic]:
        """(slice, C, row, column) of a volume as it is stored: uint8 for "imagenet", else normalised float16.

        Raises:
            InputError: a policy for Hounsfield units, and the image has none.
        """
        if self.policy == "imagenet":
            pictures = to_pictures(volume, self.window, view)
            is_grey = bool((pictures == pictures[..., :1]).all())
            return np.moveaxis(pictures[..., :1] if is_grey else pictures, -1, 1)
        seen = volume.array[:3] if len(volume.array) >= 3 else volume.array[:1]  # as `intensity.to_pictures`
        channels = [view.apply(channel) for channel in seen]
        if self.policy != "zscore" and not is_hounsfield(volume):
            remedy = "Give CT as NIfTI or DICOM; to train on other images, choose --set intensity=zscore."
            cause = f"holds no Hounsfield units, which {self.policy} needs"
            raise InputError(volume.source.path or "image", cause, remedy)
        return np.stack([self.scaled(channel.astype(np.float32)) for channel in channels], 1).astype(np.float16)

    def scaled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values as they are stored, but for "zscore" Hounsfield units, to those of the network; not of "imagenet"."""
        if self.policy == "zscore":
            return (values - values.mean()) / max(float(values.std()), LEAST)
        low, high, mean, deviation = self.numbers or HU_MEDDINO
        return (np.clip(values, low, high) - np.float32(mean)) / np.float32(max(deviation, LEAST))

    def finish(self, pictures: Tensor, *, is_8_bit: bool) -> Tensor:
        """(N, 1 or 3, ...) of what `prepare` or the cache of decoded pictures holds to (N, 3, ...) for the network."""
        whole = pictures.float()
        whole = whole.expand(-1, 3, *whole.shape[2:]) if whole.shape[1] == 1 else whole
        if self.policy == "imagenet":
            shape = (1, 3, *(1,) * (whole.ndim - 2))
            mean, deviation = (whole.new_tensor(v).reshape(shape) for v in (MEAN, DEVIATION))
            return (whole / 255 - mean) / deviation
        if is_8_bit:
            axes = tuple(range(2, whole.ndim))
            return (whole - whole.mean(axes, keepdim=True)) / whole.std(axes, keepdim=True).clamp_min(LEAST)
        return whole


def fingerprint(cases: Sequence[Case], seed: int = 0) -> tuple[float, float, float, float]:
    """Numbers of "nnunet_ct" as nnU-Net measures them: of the voxels that show any target, in all cases together.

    Raises:
        InputError: nothing is annotated.
    """
    rng, found = np.random.default_rng(seed), []
    for case in cases:
        volume, codes = read_case(case)
        inside = volume.array[0][(codes > 0) & (codes != UNKNOWN_CODE)]
        found.append(rng.choice(inside, SAMPLED, replace=False) if len(inside) > SAMPLED else inside)
    values = np.concatenate(found).astype(np.float64) if found else np.zeros(0)
    if not values.size:
        raise InputError("intensity", "no voxel is annotated", "Choose another policy: --set intensity=hu_meddino.")
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), float(high), float(values.mean()), float(values.std())

"""Recipes of MedDINOv3's segmenter. A recipe says everything that decides a run, but where its files lie.

meddinov3       as published (2509.02379, and its trainer `meddinov3_base_primus_multiscale_Trainer`): maps of four
                blocks, 896 x 896 pixels, Dice + cross-entropy, AdamW, linear decay, nnU-Net's augmentation
meddinov3-mini  the same objective and decoder for a small transformer, at 320 pixels, on a CPU

One flag each: ``--set taps=-1`` decodes the last block only, ``--set decoder=linear`` (segdino, stacked3d) takes
another decoder, ``--set side=640`` another resolution, ``--set frozen=true`` keeps the transformer as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lexitome.data.nnunet_plans import HIGH_RESOLUTION
from lexitome.data.normalisation import Policy
from lexitome.data.patches import Augmentation
from lexitome.errors import InputError
from lexitome.models.dinov3.decoders import DecoderName
from lexitome.models.dinov3.segmentation import TRUNK
from lexitome.models.foundation import RANDOM
from lexitome.training.engine import Precision, RunConfig
from lexitome.training.optim import OptimConfig

PATCH = 16
BLOCKS = ("trunk.model.model.layer.*",)
"""What to compute again in the backward pass where memory is short (`RunConfig.recompute`)."""
TRUNK_RATE, LVD_RATE = 3e-5, 1e-4
"""Published rates of the transformer: of MedDINOv3's own weights, and of DINOv3's. (The paper names one rate, 3e-4, for
all; these are of its code.)"""


@dataclass(frozen=True)
class MedDinov3Recipe:
    """A run of `training.meddinov3`.

    Attributes:
        name: of the model that comes out.
        start: of the transformer: what `models.dinov3.weights.load_dinov3` takes, or "random:mini" (or another preset
            of `models.dinov3.presets`) for a new one.
        decoder: see `models.dinov3.decoders`.
        taps: blocks that are decoded, from 0, or -1 for the last; none takes the last of each quarter.
        side: of the square patches in pixels, a multiple of 16.
        spacing: mm of rows and columns of volumes as the network sees them. None: from the plans of nnU-Net where they
            are found, such that a patch shows what the planned one shows; else such that it shows a whole slice of
            median size.
        plans: `nnUNetPlans.json`; by default looked for beside the dataset and where nnU-Net writes it.
        configuration: of the plans.
        decoded: side of the decoded pictures of a 2D set, which patches are taken from; 0 as for every other network.
        depth: slices of a patch, with ``decoder=stacked3d``.
        intensity: how values are normalised (`data.normalisation`). "auto": as the plans say; CT as nnU-Net does it,
            which MedDINOv3's trainer leaves so although its pretraining differs (`hu_meddino`); 8-bit pictures by
            ImageNet's numbers, all else to mean 0 and deviation 1.
        classes: "exclusive" makes targets and background the classes of a softmax, "regions" asks each by itself.
            "auto": exclusive, unless targets overlap or some image leaves one out.
        frozen: whether the transformer stays as it is.
        drop_path: of the transformer.
        patches: of a step.
        foreground: share of the patches that show a target for sure.
        validated: slices.
        seed: of patches, drop-path and new weights.
    """

    name: str = "meddinov3-tuned"
    start: str = "meddinov3-b"
    decoder: DecoderName = "multiscale"
    taps: tuple[int, ...] = ()
    side: int = HIGH_RESOLUTION
    spacing: tuple[float, float] | None = None
    plans: str = ""
    configuration: str = "2d"
    decoded: int = 0
    depth: int = 8
    intensity: Literal["auto", Policy] = "auto"
    classes: Literal["auto", "exclusive", "regions"] = "auto"
    frozen: bool = False
    drop_path: float = 0.2
    patches: int = 12
    foreground: float = 0.33
    augmentation: Augmentation = field(default_factory=Augmentation)
    optim: OptimConfig = field(default_factory=lambda: published_optim(TRUNK_RATE))
    run: RunConfig = field(default_factory=lambda: published_run())
    validated: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side % PATCH or self.side < PATCH:
            raise InputError("side", f"{self.side} is not a multiple of {PATCH}", "Choose e.g. 640 or 896.")
        for name, least in (("decoded", 0), ("depth", 1), ("patches", 1), ("validated", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(name, f"{getattr(self, name)} is out of range", f"The least is {least}.")
        for name in ("foreground", "drop_path"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(name, f"{getattr(self, name)} is no share", "Choose from 0 to 1.")

    @property
    def is_new(self) -> bool:
        """Whether the transformer begins with random weights."""
        return self.start.startswith(RANDOM)

    @property
    def slices(self) -> int:
        """Slices of a patch."""
        return self.depth if self.decoder == "stacked3d" else 1

    @property
    def applied(self) -> OptimConfig:
        """The optimiser, whose linear decay lasts as long as the run if it is to last to its end at all."""
        cooldown = min(self.optim.cooldown, self.run.steps)
        return replace(self.optim, cooldown=cooldown)


def published_optim(trunk: float) -> OptimConfig:
    """AdamW (0.9, 0.98), weight decay 0.05 (here not of norms and biases), 3e-4 for the decoder and no warm-up; linear
    decay over the whole run."""
    return OptimConfig(
        3e-4, groups=((TRUNK, trunk),), weight_decay=0.05, betas=(0.9, 0.98), schedule="constant", cooldown=10**9
    )  # fmt: skip


def published_run() -> RunConfig:
    """1000 epochs of 250 steps, gradients clipped at 12, no average of the weights. bfloat16, where the trainer has
    float16, which a CPU cannot do."""
    return RunConfig(
        steps=250_000, clip=12.0, ema=None, validate_every=5000, checkpoint_every=500, log_every=50, recompute=BLOCKS
    )  # fmt: skip


def meddinov3() -> MedDinov3Recipe:
    """As published."""
    return MedDinov3Recipe()


def mini() -> MedDinov3Recipe:
    """For two cores: a transformer of 5.5 million parameters. Zoom and rotation are those that our specialists know."""
    return MedDinov3Recipe(
        "meddinov3-mini", start=f"{RANDOM}mini", side=320, drop_path=0.0, patches=8, depth=4,
        augmentation=Augmentation(rotation=15.0, turned=0.5, zoom=(0.75, 1.3), zoomed=0.7, shift=0.08),
        optim=OptimConfig(1e-3, weight_decay=0.05, betas=(0.9, 0.98), schedule="constant", cooldown=10**9, warmup=50),
        run=RunConfig(steps=2000, clip=12.0),
    )  # fmt: skip


def started(recipe: MedDinov3Recipe, start: str) -> MedDinov3Recipe:
    """Another start, with the rates that suit it: random weights learn at the rate of the decoder, DINOv3's own at
    1e-4, and those of a small one that was pretrained at a third of the decoder's."""
    lr = recipe.optim.lr
    if start.startswith(RANDOM):
        groups: tuple[tuple[str, float], ...] = ()
    elif recipe.is_new:
        groups = ((TRUNK, lr / 3),)
    else:
        groups = ((TRUNK, LVD_RATE if start.startswith("dinov3-") else TRUNK_RATE),)
    return replace(recipe, start=start, optim=replace(recipe.optim, groups=groups))


def with_steps(recipe: MedDinov3Recipe, steps: int, precision: Precision) -> MedDinov3Recipe:
    """A number of steps, and the intervals, averaging and warm-up that suit it; the published one has none of the two
    latter."""
    averaged = None if recipe.run.ema is None else float(np.clip(1 - 10 / steps, 0.9, 0.998))
    run = replace(
        recipe.run, steps=steps, precision=precision, ema=averaged,
        validate_every=max(20, steps // 10), checkpoint_every=max(20, min(200, steps // 8)),
        log_every=max(1, min(20, steps // 50)),
    )  # fmt: skip
    return replace(recipe, run=run, optim=replace(recipe.optim, warmup=min(recipe.optim.warmup, steps // 20)))


RECIPES = {"meddinov3": meddinov3, "meddinov3-mini": mini}

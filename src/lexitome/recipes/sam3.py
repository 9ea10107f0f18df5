"""Recipes of SAM3. A recipe says everything that decides a run, but where its files lie (`recipes.sam3_run`).

sam3            Meta's fine-tuning (`roboflow_v100_full_ft_100_images.yaml`), and the mask loss of its comments
medical-sam3    Medical SAM3: text only, the published rates and weights, and the loss of instance masks that they lack
small-sam3      the objective of medical-sam3, for a small SAM3 from random weights on a CPU

Of each, `tune` chooses what learns: everything, the decoder (image and text encoders frozen), or low-rank adapters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from lexitome.errors import InputError
from lexitome.losses.set_prediction import MEDICAL_SAM3_MASKS, SAM3_SEGMENTATION, SetPredictionConfig
from lexitome.models.foundation import RANDOM
from lexitome.models.sam3.lora import Lora
from lexitome.training.engine import RunConfig
from lexitome.training.optim import OptimConfig, medical_sam3_decay, sam3_decay
from lexitome.training.sam3 import Sam3Sampling

VISION, TEXT, GEOMETRY = ("*vision_encoder.*",), ("*text_encoder.*", "*text_projection.*"), ("*geometry_encoder.*",)
"""Names of the parts that the published recipes treat apart; all else is "the transformer"."""
LAYERS = ("*vision_encoder.backbone.layers.*", "*text_encoder.*layers.*", "*detr_encoder.layers.*")
"""What to compute again in the backward pass where memory is short (`RunConfig.recompute`)."""


def _rates(*, vision: float, text: float, geometry: float | None = None) -> tuple[tuple[str, float], ...]:
    parts = ((VISION, vision), (TEXT, text), (GEOMETRY if geometry else (), geometry or 0.0))
    return tuple((glob, rate) for globs, rate in parts for glob in globs)


def sam3_optim() -> OptimConfig:
    """Meta's rates (already times its `lr_scale` of 0.1), layer decay 0.9 on the image trunk, weight decay 0.1."""
    return OptimConfig(
        8e-5, groups=_rates(vision=2.5e-5, text=5e-6), weight_decay=0.1, layer_decay=sam3_decay(),
        schedule="inverse_sqrt", warmup=20, timescale=20, cooldown=20,
    )  # fmt: skip


def medical_sam3_optim() -> OptimConfig:
    """The rates of Medical SAM3. Its paper writes layer decay 0.85 with L = 12 for a trunk of 32 blocks: by default
    Meta's rule counts them; ``optim.layer_decay.depth=12`` takes the 12 at its word. The paper gives no lengths of the
    schedule and no weight decay: those of the authors' later configuration (V2) stand here, and Meta's weight decay."""
    return OptimConfig(
        3e-4, groups=_rates(vision=5e-5, text=5e-5, geometry=1e-4), weight_decay=0.1, layer_decay=medical_sam3_decay(),
        schedule="inverse_sqrt", warmup=100, timescale=10, cooldown=50,
    )  # fmt: skip


def scratch_optim() -> OptimConfig:
    """For random weights: one rate for all parts and no layer decay, which would leave the image encoder as it is.
    At 1e-3 the small network had not learned anything after 1,000 steps, at 3e-4 it had after 300."""
    return OptimConfig(4e-4, weight_decay=0.05, betas=(0.9, 0.98), warmup=150, floor=0.02)


@dataclass(frozen=True)
class Sam3Recipe:
    """A run of `training.sam3`.

    Attributes:
        name: of the model that comes out.
        start: weights that it begins with: what `models.sam3.weights.load_sam3` takes, or "random:small" (or "full",
            "tiny") for a new network of that size.
        vocabulary: tokens that a new network learns at most.
        tune: what learns.
        frozen_text: whether the text encoder stays as it is.
        lora: adapters, with ``tune="lora"``; each learns at ``optim.lr``, since the lower rates of encoders and their
            decay protect weights that are frozen then.
        instance_masks: whether `objective.masks` counts. Table 2 of Medical SAM3 has no such loss.
        queries: concepts asked of each picture, of which some are not there if `negatives`.
        epochs: passes over the training pictures, from which `run.steps` follows; 0 takes `run.steps`.
        validated: pictures of each set.
        seed: of batches, dropout and new weights.
    """

    name: str
    start: str = "sam3"
    vocabulary: int = 2048
    tune: Literal["full", "decoder", "lora"] = "full"
    frozen_text: bool = False
    lora: Lora = field(default_factory=Lora)
    sampling: Sam3Sampling = field(default_factory=Sam3Sampling)
    objective: SetPredictionConfig = MEDICAL_SAM3_MASKS
    instance_masks: bool = True
    optim: OptimConfig = field(default_factory=medical_sam3_optim)
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=1000))
    queries: int = 4
    negatives: bool = True
    epochs: float = 10.0
    validated: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("vocabulary", 514), ("queries", 1), ("epochs", 0), ("validated", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(name, f"{getattr(self, name)} is out of range", f"The least is {least}.")

    @property
    def is_new(self) -> bool:
        """Whether it begins with random weights."""
        return self.start.startswith(RANDOM)

    @property
    def wanted(self) -> SetPredictionConfig:
        """The objective that is trained."""
        return self.objective if self.instance_masks else replace(self.objective, masks=None)

    @property
    def applied(self) -> OptimConfig:
        """The optimiser with what `tune` and `frozen_text` make of it."""
        if self.tune == "lora":
            return replace(self.optim, groups=(), layer_decay=None)
        frozen = VISION + TEXT if self.tune == "decoder" else TEXT if self.frozen_text else ()
        return replace(self.optim, freeze=(*self.optim.freeze, *frozen))

    def settled(self, pictures: int) -> Sam3Recipe:
        """With the steps that `epochs` over so many pictures take, validated and saved once an epoch at least."""
        if not self.epochs:
            return self
        epoch = max(1, math.ceil(pictures / self.sampling.images))
        steps = max(1, math.ceil(self.epochs * pictures / self.sampling.images))
        run = replace(
            self.run, steps=steps, validate_every=epoch, checkpoint_every=min(epoch, self.run.checkpoint_every)
        )
        return replace(self, run=run, epochs=0.0)


def sam3() -> Sam3Recipe:
    """Full fine-tuning as Meta publishes it, 20 epochs of single pictures."""
    return Sam3Recipe(
        "sam3-tuned", objective=SAM3_SEGMENTATION, optim=sam3_optim(), run=_published_run(), epochs=20.0,
    )  # fmt: skip


def medical_sam3() -> Sam3Recipe:
    """Full fine-tuning by text alone, as Medical SAM3."""
    return Sam3Recipe("medical-sam3-tuned", run=_published_run())


def small_sam3() -> Sam3Recipe:
    """What an hour and a half on two cores teaches a small SAM3 that knows nothing."""
    return Sam3Recipe(
        "small-sam3", start=f"{RANDOM}small", optim=scratch_optim(),
        sampling=Sam3Sampling(side=168, images=8, prompts="mixed", box_chance=0.3),
        run=RunConfig(steps=11_000, clip=0.1, ema=0.998, validate_every=500), queries=3, epochs=0.0, validated=5,
    )  # fmt: skip


def from_scratch(recipe: Sam3Recipe) -> Sam3Recipe:
    """A recipe of fine-tuning whose rates suit random weights; published ones are made for trained ones."""
    return replace(recipe, optim=scratch_optim(), run=replace(recipe.run, ema=small_sam3().run.ema))


def _published_run() -> RunConfig:
    """bf16, gradients clipped at 0.1, no average of the weights."""
    return RunConfig(steps=1000, clip=0.1, ema=None, recompute=LAYERS)


RECIPES = {"sam3": sam3, "medical-sam3": medical_sam3, "small-sam3": small_sam3}

"""Recipes of pretraining DINOv3 in three stages. A recipe says everything that decides a run, but where its files lie
(`recipes.pretrain_run`).

stage1   self-distillation of global and local crops: DINO + iBOT + KoLeo
stage2   Gram anchoring: the same, and patches hold their similarities to those of an older teacher at twice the pixels
stage3   high resolution: the same on larger crops, from the teacher of stage 2

mini         what two CPU cores do in an hour or two, on pictures of any kind
dinov3       the published values of the 7B run, in a network that is released
dinov3-in1k  the published values of ViT-L on ImageNet-1k, stage 1 alone
meddinov3    MedDINOv3: ViT-B from Meta's weights, CT in Hounsfield units

Lengths within a stage (warm-up, ramps) are shares of its steps, so that ``--set stage1.steps=500`` keeps its shape.
Values are of facebookresearch/dinov3 (configs/train) and of MedDINOv3 (arXiv 2509.02379, section 3); batches are
counted in pictures over all processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from lexitome.data.multi_crop import Crops, Masks, Tone
from lexitome.data.unlabelled import UNITS
from lexitome.errors import InputError
from lexitome.models.dinov3.heads import Head
from lexitome.models.dinov3.presets import PRESETS, Preset
from lexitome.models.foundation import RANDOM
from lexitome.training.engine import RunConfig
from lexitome.training.optim import LayerDecay, OptimConfig
from lexitome.training.pretrain import Objective, Ramp, Refresh

TRUNK = "student.backbone.model."
PATCHES = f"{TRUNK}embeddings.patch_embeddings.*"
LAST_LAYERS = ("student.dino.last_layer.*", "student.ibot.last_layer.*")
PARTS = ("student.backbone.*", "student.dino.*", "student.ibot.*")
"""Clipped on their own, as published."""
BLOCKS = (f"{TRUNK}model.layer.*",)
"""What to compute again in the backward pass where memory is short: ``--set run.recompute=...``."""


def trunk_decay(rate: float) -> LayerDecay:
    """DINOv3's rule: class token, registers, mask token and patches lie below the first block; heads and norm at 1."""
    return LayerDecay(rate, (f"{TRUNK}model.layer.{{i}}.",), (f"{TRUNK}embeddings.*",))


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        steps: 0 leaves the stage out.
        images: of a step.
        optim: `lr` is the rate before `scale_rate`; `warmup` follows from the attribute here.
        scale_rate: multiply rates by 4 x sqrt(images / 1024), as published configurations are read.
        patch_rate: factor on the rate of the patch embedding.
        warmup: share of the steps.
        hold: share of the steps in which the last layers of the heads stay as they are.
        drop_path: of the student.
        clip: largest norm of the gradient of trunk and heads, each on its own.
        student_from: of a stage that follows another: which of its networks the student begins with.
        gram_from: likewise the Gram teacher: the last teacher, or the one that the stage before kept on its way
            (`objective.refresh`).
    """

    steps: int
    images: int
    crops: Crops
    optim: OptimConfig
    objective: Objective = field(default_factory=Objective)
    scale_rate: bool = True
    patch_rate: float = 0.2
    warmup: float = 0.1
    hold: float = 0.01
    drop_path: float = 0.0
    clip: float = 3.0
    student_from: Literal["student", "teacher"] = "student"
    gram_from: Literal["teacher", "gram"] = "teacher"

    def __post_init__(self) -> None:
        allowed = {
            "steps": self.steps >= 0,
            "images": self.images >= 2,
            "patch_rate": self.patch_rate > 0,
            "warmup": 0 <= self.warmup <= 1,
            "hold": 0 <= self.hold <= 1,
            "drop_path": 0 <= self.drop_path < 1,
            "clip": self.clip >= 0,
        }
        for name, fine in allowed.items():
            if not fine:
                raise InputError(f"stage.{name}", "the value is out of range", "See the attributes of Stage.")

    @property
    def lr(self) -> float:
        """The rate that is applied."""
        return self.optim.lr * (4 * math.sqrt(self.images / 1024) if self.scale_rate else 1.0)

    @property
    def applied(self) -> OptimConfig:
        held = tuple((glob, round(self.hold * self.steps)) for glob in LAST_LAYERS)
        groups = ((PATCHES, self.patch_rate * self.lr), *self.optim.groups)
        return replace(self.optim, lr=self.lr, groups=groups, warmup=round(self.warmup * self.steps),
                       held=(*held, *self.optim.held))  # fmt: skip


@dataclass(frozen=True)
class PretrainRecipe:
    """
    Attributes:
        name: of the model that comes out.
        start: "random:" and a preset of `models.dinov3.presets`, or weights: what `load_dinov3` takes.
        intensity: policy of `data.normalisation`; "imagenet" for pictures of any kind, "hu_meddino" for CT.
        side: longest side of pictures that are decoded for the run.
        dino, ibot: heads.
        shift, jitter, rescale: of the positions of patches, while the student learns.
        balance: see `training.pretrain.PretrainTask`.
        run: steps, clipping and averages are those of the stages.
        validated: pictures.
        seed: of new weights, batches and dropout.
    """

    name: str
    stage1: Stage
    stage2: Stage
    stage3: Stage
    start: str = f"{RANDOM}mini"
    intensity: Literal["imagenet", "hu_meddino"] = "imagenet"
    side: int = 512
    dino: Head = field(default_factory=Head)
    ibot: Head = field(default_factory=Head)
    masks: Masks = field(default_factory=Masks)
    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = 2.0
    balance: float = 0.5
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=1, ema=None))
    validated: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.run.accumulate != 1:
            cause = "Sinkhorn balances a whole batch, which cannot come in parts"
            raise InputError("run.accumulate", cause, "Leave it at 1; --set run.recompute=... saves memory.")
        for name, usual in (("steps", 1), ("clip", 1.0), ("clip_apart", ()), ("ema", None), ("seed", 0)):
            if getattr(self.run, name) != usual:
                remedy = "Set seed, stage1.steps, stage1.clip or stage1.objective.momentum.first."
                raise InputError(f"run.{name}", "has no effect here", remedy)
        if self.is_new and self.preset not in PRESETS:
            raise InputError("--start", f"there is no {self.start!r}", f"Choose {RANDOM} and {', '.join(PRESETS)}.")
        if self.intensity not in UNITS:
            raise InputError("intensity", f"{self.intensity!r} is unknown here", f"Choose {' or '.join(UNITS)}.")
        for name, least in (("side", 16), ("validated", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(name, f"{getattr(self, name)} is out of range", f"The least is {least}.")

    def check(self) -> None:
        """What has to fit together once all fields are set.

        Raises:
            InputError: it does not.
        """
        if not self.stages:
            raise InputError("--set", "no stage has any steps", "Give one some, such as --set stage1.steps=1000.")
        for name, stage in self.stages.items():
            stage.crops.check()
            if stage.objective.anchored and not stage.crops.gram_sides:
                cause = "is empty, and the Gram teacher needs crops"
                raise InputError(
                    f"{name}.crops.gram_sides", cause, f"Set it, or {name}.objective.gram.first and .last."
                )

    @property
    def is_new(self) -> bool:
        """Whether it begins with random weights."""
        return self.start.startswith(RANDOM)

    @property
    def preset(self) -> Preset | None:
        """Of random weights."""
        name = self.start.removeprefix(RANDOM)
        return next((preset for preset in get_args(Preset) if preset == name), None) if self.is_new else None

    @property
    def stages(self) -> dict[str, Stage]:
        """Those with steps, in order, by name."""
        every = {"stage1": self.stage1, "stage2": self.stage2, "stage3": self.stage3}
        return {name: stage for name, stage in every.items() if stage.steps}

    def run_of(self, stage: Stage) -> RunConfig:
        return replace(self.run, steps=stage.steps, clip=stage.clip, clip_apart=PARTS, ema=None, seed=self.seed)


def mini() -> PretrainRecipe:
    """Small crops and heads, rates and ramps for thousands of steps; 5.5 million parameters.

    What matters in so short a run is that assignments leave "all prototypes alike", where the losses rest at
    log(prototypes). How far an assignment is from it grows in each round from teacher to student by about (temperature
    of the student / of the teacher) x (correlation between views of what tells pictures apart). Of random features the
    latter is 0.57 with the published changes of tone and 0.73 with half of them, so that with the published ramp to
    0.07 it shrinks: after 300 steps features were worse than random ones. Hence a teacher of 0.02 to 0.03, milder
    tones, prototypes of length 1 that are held only briefly, few enough to be used, a teacher that follows soon, less
    KoLeo, which spreads class tokens by what is noise as well, and patches hidden in all global crops instead of half.
    """
    tone = Tone(brightness=0.1, contrast=0.2, gamma=0.1, saturation=0.1, grey=0.1, blur=(0.5, 0.1, 0.3),
                blur_sigma=(0.1, 1.0))  # fmt: skip
    crops = Crops((96,), (48,), local_views=4, local_scale=(0.08, 0.32), tries=4, tone=tone)
    optim = OptimConfig(7e-4, weight_decay=0.04, weight_decay_end=0.2, betas=(0.9, 0.99), floor=0.02)
    objective = Objective(
        teacher_temperature=Ramp(0.02, 0.03), momentum=Ramp(0.97, 0.996, shape="cosine"), koleo=0.05
    )  # fmt: skip
    stage1 = Stage(2400, 32, crops, optim, objective, scale_rate=False, patch_rate=1.0, hold=0.02)
    later = replace(objective, teacher_temperature=Ramp(0.03, 0.03), local=Ramp(0.5, 0.5), gram=Ramp(2.0, 2.0))
    stage2 = Stage(
        500, 32, replace(crops, gram_sides=(192,)), replace(optim, lr=2e-4, weight_decay=0.2, weight_decay_end=None),
        replace(later, momentum=Ramp(0.99, 0.996), refresh=Refresh(0.4, 0.3, 2)),
        scale_rate=False, patch_rate=1.0, hold=0.0, warmup=0.1,
    )  # fmt: skip
    high = replace(
        crops, global_sides=(160, 224, 224), local_sides=(48, 48, 80), gram_sides=(240, 336, 336),
        chances=(0.4, 0.4, 0.2),
    )  # fmt: skip
    stage3 = Stage(
        120, 32, high, replace(stage2.optim, lr=1e-4), replace(later, momentum=Ramp(0.98, 0.99), gram=Ramp(1.5, 1.5)),
        scale_rate=False, patch_rate=1.0, hold=0.0, warmup=0.1, student_from="teacher",
    )  # fmt: skip
    head = Head(1024, 128, 1024, spread=128**-0.5)
    run = RunConfig(steps=1, ema=None, validate_every=200, checkpoint_every=100, log_every=10)
    return PretrainRecipe("dinov3-mini", stage1, stage2, stage3, dino=head, ibot=head, masks=Masks(1.0), run=run)


def dinov3() -> PretrainRecipe:
    """The 7B run: 1000 k steps of 4096 pictures, 200 k of Gram anchoring, 30 k at high resolution. Its network is none
    of the released sizes, which were distilled from it; ``--start random:h_plus`` is the largest."""
    crops = Crops((256,), (112,))
    optim = OptimConfig(5e-5, weight_decay=0.04, betas=(0.9, 0.99), layer_decay=trunk_decay(0.98), schedule="constant")
    objective = Objective(teacher_temperature=Ramp(0.04, 0.07, 0.1), momentum=Ramp(0.994, 0.994), koleo_among=16)
    stage1 = Stage(1_000_000, 4096, crops, optim, objective, warmup=0.1, hold=0.005, drop_path=0.4, clip=30.0)
    later = replace(objective, teacher_temperature=Ramp(0.07, 0.07), momentum=Ramp(0.999, 0.999), local=Ramp(0.5, 0.5))
    stage2 = replace(
        stage1, steps=200_000, warmup=0.0, hold=0.0, crops=replace(crops, gram_sides=(512,)),
        optim=replace(optim, lr=3e-5),
        objective=replace(later, gram=Ramp(2.0, 2.0), refresh=Refresh(0.05, 0.05, 3)),
    )  # fmt: skip
    stage3 = replace(
        stage2, steps=30_000, images=2048, warmup=1 / 3, crops=high_resolution(), student_from="teacher",
        optim=replace(optim, lr=1.25e-5), objective=replace(later, gram=Ramp(1.5, 1.5)),
    )  # fmt: skip
    return PretrainRecipe(
        "dinov3", stage1, stage2, stage3, f"{RANDOM}l", dino=Head(8192, 512, 262_144), ibot=Head(4096, 384, 98_304),
        run=_long_run(),
    )  # fmt: skip


def high_resolution() -> Crops:
    """Pairs of global and local sides of the 7B run's last stage, and of MedDINOv3's."""
    return Crops(
        (512, 768, 768, 768, 768), (112, 112, 168, 224, 336), (768, 1152, 1152, 1152, 1152), (0.3, 0.3, 0.3, 0.05, 0.05)
    )


def dinov3_in1k() -> PretrainRecipe:
    """ViT-L on ImageNet-1k: 125 k steps of 2048 pictures; no further stages are published for it."""
    optim = OptimConfig(
        1e-3, weight_decay=0.04, weight_decay_end=0.4, layer_decay=trunk_decay(0.9), floor=1e-3
    )  # fmt: skip
    stage1 = Stage(125_000, 2048, Crops((224,), (96,), mirror=True), optim, warmup=0.1, hold=0.01, drop_path=0.3)
    none = replace(stage1, steps=0)
    return PretrainRecipe("dinov3-in1k", stage1, none, none, f"{RANDOM}l", run=_long_run())


def meddinov3() -> PretrainRecipe:
    """100 k, 10 k and 10 k steps of 512 CT slices. The paper gives rates, lengths, sizes and the weight 2 of Gram; the
    rest is that of `dinov3_in1k`, which its authors name as their template. Whether its rates are before or after the
    scaling by the batch is not said: here they are applied as they stand. The Gram teacher is the teacher as it was
    after 20 k steps; the paper's text has 10 k and 20 k steps of stage 2 in different places."""
    first = dinov3_in1k().stage1
    objective = replace(first.objective, refresh=Refresh(0.2, 1.0, 1))
    stage1 = replace(
        first, steps=100_000, images=512, scale_rate=False, optim=replace(first.optim, lr=2e-4), objective=objective,
        crops=replace(first.crops, mirror=False),
    )  # fmt: skip
    later = Objective(teacher_temperature=Ramp(0.07, 0.07), momentum=Ramp(0.999, 0.999), gram=Ramp(2.0, 2.0))
    stage2 = replace(
        stage1, steps=10_000, hold=0.0, crops=Crops((256,), (112,), (512,)), gram_from="gram", objective=later,
        optim=replace(stage1.optim, lr=5e-5, weight_decay_end=None, schedule="constant"),
    )  # fmt: skip
    stage3 = replace(
        stage2, steps=10_000, crops=high_resolution(), student_from="teacher", gram_from="teacher", warmup=1 / 3,
        optim=replace(stage2.optim, lr=2.5e-5),
    )  # fmt: skip
    return PretrainRecipe(
        "meddinov3", stage1, stage2, stage3, "dinov3-b", intensity="hu_meddino", side=512, run=_long_run(),
    )  # fmt: skip


def _long_run() -> RunConfig:
    return RunConfig(steps=1, ema=None, validate_every=2000, checkpoint_every=1000, log_every=20)


RECIPES: dict[str, Callable[[], PretrainRecipe]] = {
    "mini": mini, "dinov3": dinov3, "dinov3-in1k": dinov3_in1k, "meddinov3": meddinov3,
}  # fmt: skip

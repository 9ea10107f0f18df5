"""Recipes of the compact models that ship. A recipe says everything that decides a run, but where its files lie.

compact_open   from ImageNet weights, on the sets whose licence permits commercial use
compact        teaches the shipped weights on, with all sets: research use, as the strictest licence says
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lexitome.errors import InputError
from lexitome.models.compact import CompactConfig
from lexitome.training.compact import CompactObjective, Sampling, Share
from lexitome.training.engine import RunConfig
from lexitome.training.optim import OptimConfig

IMAGENET = "imagenet"


@dataclass(frozen=True)
class CompactRecipe:
    """A run of `training.compact`.

    Attributes:
        name: of the model that comes out.
        start: where its weights come from: "imagenet" (the backbone only), a model of the catalog, or a model folder.
        open_only: leave out the sets that `data.licences` does not call permissive.
        queries: asked of each picture of a step.
        negatives: whether some of them ask for what is not there.
        seed: of batches, dropout and new weights.
    """

    name: str
    start: str = IMAGENET
    open_only: bool = False
    model: CompactConfig = field(default_factory=CompactConfig)
    sampling: Sampling = field(default_factory=Sampling)
    objective: CompactObjective = field(default_factory=CompactObjective)
    optim: OptimConfig = field(default_factory=lambda: compact_optim(8e-4, warmup=200))
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=5000))
    queries: int = 3
    negatives: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("queries", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(name, f"{getattr(self, name)} is out of range", f"The least is {least}.")


def compact_optim(lr: float, *, warmup: int) -> OptimConfig:
    """AdamW whose backbone learns at a quarter of the rate, cosine to 2 %."""
    return OptimConfig(lr, groups=(("encoder.backbone.*", lr / 4),), weight_decay=0.02, warmup=warmup, floor=0.02)


def compact_open() -> CompactRecipe:
    """The weights for everyone: ImageNet backbone, permissive sets only."""
    return CompactRecipe("compact-open", open_only=True, run=RunConfig(steps=3000))


def compact() -> CompactRecipe:
    """The weights for research: the shipped ones taught on with all sets."""
    return CompactRecipe(
        "compact",
        start="compact",
        sampling=Sampling(high_from=0.6, share=Share(small=0.14, medium=0.66, fine=0.2)),
        optim=compact_optim(5e-4, warmup=100),
        run=RunConfig(steps=2400),
    )


RECIPES = {"compact": compact, "compact-open": compact_open}

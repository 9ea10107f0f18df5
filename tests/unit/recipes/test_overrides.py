"""`--set`: what it replaces, and what it says about a typing error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from lexitome.errors import InputError
from lexitome.recipes.overrides import override


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    freeze: tuple[str, ...] = ()
    schedule: Literal["cosine", "constant"] = "cosine"
    groups: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Outer:
    steps: int = 5
    ema: float | None = 0.9
    flips: bool = False
    name: str = "x"
    optim: Inner = field(default_factory=Inner)


def test_fields_at_every_depth_are_replaced_and_the_rest_is_kept() -> None:
    changed = override(Outer(), ["optim.lr=1e-4", "steps=7", "optim.betas=0.8, 0.99", "flips=yes", "name=y"])
    assert changed == Outer(7, 0.9, True, "y", Inner(1e-4, (0.8, 0.99)))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [("ema=none", None), ("ema=0.5", 0.5)],
)
def test_optional_values(assignment: str, value: float | None) -> None:
    assert override(Outer(), [assignment]).ema == value


def test_lists_of_any_length() -> None:
    assert override(Outer(), ["optim.freeze=a.*,b.*"]).optim.freeze == ("a.*", "b.*")
    assert override(Outer(), ["optim.freeze="]).optim.freeze == ()


def test_the_recipe_itself_is_not_changed() -> None:
    recipe = Outer()
    override(recipe, ["optim.lr=5"])
    assert recipe == Outer()


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("optim.lrr=1", "Did you mean lr?"),
        ("zzz=1", "Fields there: steps, ema"),
        ("optim=1", "optim.lr"),
        ("steps.x=1", "has no fields"),
        ("steps=1.5", "a whole number"),
        ("optim.lr=fast", "a number"),
        ("flips=maybe", "true or false"),
        ("optim.schedule=linear", "one of cosine, constant"),
        ("optim.betas=0.9", "2 values"),
        ("optim.groups=a", "2 values"),
        ("steps", "has no '='"),
    ],
)
def test_a_typing_error_is_explained(assignment: str, part: str) -> None:
    with pytest.raises(InputError, match=r"--set") as caught:
        override(Outer(), [assignment])
    assert part in str(caught.value)

"""What is stored beside SAM3's weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lexitome.models.sam3.settings import POLICIES, Settings


def test_survives_json() -> None:
    settings = Settings(
        policy="union", keep=0.1, windows={"lungs": (-1000.0, 400.0)}, trained={"polyp": "Polyp"}, trained_on=("a", "b")
    )
    assert Settings.read(json.loads(json.dumps(settings.to_json()))) == settings


def test_others_keys_are_left_alone() -> None:
    assert Settings.read({"format": 1, "policy": "best"}) == Settings(policy="best")
    assert Settings.read({}) == Settings()


def test_policies() -> None:
    assert set(POLICIES) == {"best", "union", "semantic", "semantic-presence"}


@pytest.mark.parametrize(
    "stored",
    [{"policy": "argmax"}, {"keep": 0}, {"present": 1.0}, {"window": [3, 1]}, {"window": [1]}, {"window": None},
     {"windows": {"liver": "wide"}}, {"trained_on": 3}, {"keep": "high"}],
)  # fmt: skip
def test_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Settings.read(stored)

"""`lexitome probe` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.cli import probe
from lexitome.errors import InputError

QUICK = ["--set", "precision=fp32", "--set", "draws=50", "--set", "ks=3", "--side", "32", "-e", "random:tiny"]


def typed(*words: str) -> int:
    """The command alone, as the group that holds it calls it."""
    return int(probe.app(list(words), standalone_mode=False) or 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for value, kind in ((60, "dark"), (180, "bright")):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(12):
            grey = np.clip(rng.normal(value, 20, (32, 32)), 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(tmp_path / "set" / kind / f"{kind}{i}.png")
    return tmp_path / "set"


def test_scores_are_said_and_stored(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert typed("--data", str(data), "-o", str(out), "--task", "knn", *QUICK) == 0
    told = capsys.readouterr().out
    assert "knn          set, random:tiny at 32 (cls): auc " in told and f"next         {out / 'probe.md'}" in told
    assert "every image counts as a subject of its own" in told
    table = (out / "probe.md").read_text()
    assert "| knn | random:tiny | 32 |" in table and "None of these was probed here" in table


def test_a_plan_shows_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("--plan", "--side", "224", "--side", "512", "-e", "compact", "--task", "linear") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["sides"] == [224, 512] and plan["encoders"] == ["compact"] and len(plan["cs"]) == 45
    assert (plan["ks"], plan["temperature"]) == ([10, 20, 100, 200], 0.07)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data is missing"),
        (["--data", "nowhere"], "nowhere"),
        (["--task", "guess"], "knn, linear, sgd, abmil, segment, register, explore"),
        (["--intensity", "loud"], "imagenet"),
        (["--set", "dense.depth=3"], "no 'depth'"),
    ],
)
def test_mistakes_are_told_in_a_line(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        typed(*words, "-o", str(tmp_path / "run"))

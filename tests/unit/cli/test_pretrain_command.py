"""`lexitome pretrain` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.cli.app import run

TINY = (
    "start=random:tiny", "dino.hidden=32", "dino.bottleneck=16", "dino.prototypes=32", "ibot.hidden=32",
    "ibot.bottleneck=16", "ibot.prototypes=32", "stage1.steps=2", "stage1.images=2", "stage1.crops.global_sides=32",
    "stage1.crops.local_sides=16", "stage2.steps=0", "stage3.steps=0", "run.precision=fp32", "run.log_every=1",
    "validated=2",
)  # fmt: skip


def settings(*more: str) -> list[str]:
    return [word for value in (*TINY, *more) for word in ("--set", value)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def test_a_run_from_a_folder_of_images_and_its_end(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(["pretrain", "--data", str(images), "-o", str(out), *settings()]) == 0
    said = capsys.readouterr().out
    assert "stage1       2 steps of 2 pictures" in said and "lexitome probe --encoder" in said
    assert json.loads((out / "model" / "lexitome.json").read_text())["intensity"] == "imagenet"
    assert run(["pretrain", "--data", str(images), "-o", str(out), *settings()]) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(["pretrain", "-o", str(out), "--resume"]) == 0, "what is done is done"


def test_the_plan_shows_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "meddinov3", "--plan", "--set", "stage1.steps=7"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stage1"]["steps"] == 7 and plan["intensity"] == "hu_meddino"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["pretrain"], "--data DIR"),
        (["pretrain", "maxi", "--data", "x"], "mini"),
        (["pretrain", "--data", "x", "--set", "stage1.step=7"], "steps"),
        (["pretrain", "--resume", "--data", "x"], "--resume"),
        (["pretrain", "--resume", "-o", "nowhere"], "no run to continue"),
    ],
)
def test_bad_usage(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert word in message and message.count("\n") == 1

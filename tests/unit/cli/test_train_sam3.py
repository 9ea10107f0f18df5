"""`lexitome train small-sam3` and its kin as they are typed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from lexitome.cli import main
from lexitome.cli.console import BAD_INPUT, OK
from lexitome.models.sam3.weights import load_sam3
from lexitome.training import engine

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets
from train_command import asked_at_once, steps_of, tiny

TINY = [
    "vocabulary=700", "sampling.side=64", "sampling.images=2", "queries=2", "validated=1", "run.precision=fp32",
    "run.threads=1", "run.ema=none", "run.checkpoint_every=1", "run.log_every=1",
]  # fmt: skip


def typed(recipe: str, data: Path, out: Path, *settings: str) -> list[str]:
    return tiny(recipe, data, out, (*TINY, *settings))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data") / "sets", 6)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_says_what_to_type_next(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(engine.StopRequest, "__enter__", asked_at_once)
        assert main(typed("medical-sam3", data, out, "run.steps=3")) == 128 + signal.SIGTERM
    assert steps_of(out) == [1] and "--resume" in capsys.readouterr().err
    assert main(["train", "--resume", "-o", str(out)]) == OK
    assert steps_of(out) == [1, 2, 3]
    said = capsys.readouterr().out
    assert "test part" in said and f"lexitome evaluate --model {out / 'model'}" in said
    assert load_sam3(out / "model").settings["trained"]
    for refused in ("run.steps=2", "optim.lr=1"):
        assert main(["train", "--resume", "-o", str(out), "--set", refused]) == BAD_INPUT
        assert "Ask for more steps (--set run.steps=N)" in capsys.readouterr().err
    assert main(["train", "--resume", "-o", str(out), "--set", "run.steps=4"]) == OK
    assert main(["train", "--resume", "-o", str(out)]) == OK
    assert steps_of(out) == [1, 2, 3, 4]
    assert main(typed("medical-sam3", data, out, "run.steps=3")) == BAD_INPUT
    assert "holds a run already" in capsys.readouterr().err


def test_a_plan_names_the_rates_and_reads_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*typed("medical-sam3", tmp_path, tmp_path / "run", "run.steps=7"), "--plan"]) == OK
    plan = json.loads(capsys.readouterr().out)
    assert plan["run"]["steps"] == 7 and plan["epochs"] == 0 and plan["optim"]["layer_decay"] is None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["medical-sam3"], "huggingface"),
        (["small-sam3", "--start", "somewhere"], "begins with random weights"),
        (["small-sam3", "--start", "random:huge"], "random:small"),
        (["sam4"], "small-sam3"),
        (["medical-sam3", "--start", "random:tiny", "--set", "tune=half"], "one of full, decoder, lora"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LEXITOME_WEIGHTS", raising=False)
    assert main(["train", *words, "--data", str(tmp_path), "-o", str(tmp_path / "run")]) == BAD_INPUT
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1

"""`lexitome train unet`: specialists to compare with, trained and measured from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lexitome.cli import main
from lexitome.cli.console import BAD_INPUT, OK
from lexitome.data.trained_on import TrainedOn
from lexitome.evaluation.run_folder import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets

pytestmark = pytest.mark.slow


def test_specialists_are_trained_kept_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write_sets(tmp_path / "sets", 8), tmp_path / "run"
    command = ["train", "unet", "--data", str(data), "-o", str(run), "--set", "run.steps=2", "--set", "side=64"]
    assert main(command) == OK
    names = sorted(path.name for path in data.iterdir())
    assert sorted(card.parent.name for card in run.glob("*/specialist.json")) == names
    assert f"next         lexitome evaluate --model {run}" in capsys.readouterr().out
    weights = {path: path.stat().st_mtime_ns for path in run.glob("*/model.safetensors")}
    assert main(command) == OK and len(weights) == len(names)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights  # finished ones are not trained again
    assert main(["train", "--resume", "-o", str(run)]) == BAD_INPUT
    assert "Type the command that began them again" in capsys.readouterr().err

    measured = tmp_path / "measured"
    assert main(["evaluate", "--model", str(run), "--data", str(data), "-o", str(measured), "--no-report", "-q"]) == OK
    found = Run.load(measured)
    assert found.name == "specialist" and {row.dataset for row in found.rows} == set(names)
    assert all(row.status == "ok" for row in found.rows)
    assert found.leakage is not None and found.leakage["checked"]
    taught = [TrainedOn.of_model(card.parent) for card in run.glob("*/specialist.json")]
    assert all(entry is not None and len(entry.hashes) for entry in taught)

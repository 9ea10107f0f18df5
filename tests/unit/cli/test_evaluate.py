"""`lexitome evaluate` as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lexitome.cli import evaluate as module
from lexitome.cli.console import OK, SOME_FAILED
from lexitome.errors import InputError
from lexitome.evaluation.run_folder import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from eval_sets import write_eval_sets

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))
from tiny_model import Bright, write_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("bright") / "model", Bright()))


def typed(*words: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    result = CliRunner().invoke(module.app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_model_beside_baselines(data: Path, model: str, tmp_path: Path) -> None:
    words = ("--data", data / "organs", "--model", model, "--prompts", "text,box", "--baseline", "empty",
             "-o", tmp_path / "run", "--jobs", "1", "--limit", "2")  # fmt: skip
    code, out, err = typed(*words)
    assert code == OK and "overlap cannot be told" in err
    for word in ("organs", "tiny", "empty", "oracle-box", "Dice", "presence", "report.html"):
        assert word in out, word
    assert f"next: lexitome compare {tmp_path / 'run'}" in out
    run, empty = Run.load(tmp_path / "run"), Run.load(tmp_path / "run" / "baselines" / "empty")
    assert {row.key for row in run.rows} == {row.key for row in empty.rows} and run.rows
    assert not any(row.found for row in empty.rows)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    written = (tmp_path / "run" / "rows.csv").read_bytes()
    assert typed(*words, "--no-report")[0] == OK  # nothing to do, the same again
    assert (tmp_path / "run" / "rows.csv").read_bytes() == written


def test_masks_of_another_tool_and_what_is_wrong_with_them(data: Path, tmp_path: Path) -> None:
    masks = tmp_path / "their masks"
    masks.mkdir()
    Image.fromarray(np.asarray(Image.open(data / "organs" / "masks" / "p1_a.png"))).save(masks / "p1_a.png")
    Image.fromarray(np.full((40, 50), 77, np.uint8)).save(masks / "p2_a.png")
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(masks / "other.png")
    code, out, err = typed("--data", data / "organs", "--predictions", masks, "--name", "theirs",
                           "-o", tmp_path / "run", "--no-report", "--no-leakage-check")  # fmt: skip
    assert code == SOME_FAILED and "theirs" in out
    assert "6 answers are missing" in err and "organs/p0_a (there is no prediction for this case)" in err
    assert "3 answers cannot be used" in err and "p2_a.png holds 77, which is no label of the dataset" in err
    assert "1 files belong to no question: other.png: no case has this name" in err
    assert f"next: lexitome report {tmp_path / 'run'}" in out and not (tmp_path / "run" / "leakage.json").exists()
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["problems"]["extra"] == ["other.png: no case has this name"] and info["model"]["name"] == "theirs"
    perfect = [row for row in Run.load(tmp_path / "run").rows if row.case == "p1_a"]
    assert [row.metrics["dice"] for row in perfect] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data is missing"),
        (["--data", "DATA", "--model", "m", "--predictions", "p"], "--model and --predictions are both given"),
        (["--data", "DATA", "--split", "tset"], "there is no such part"),
        (["--data", "DATA", "--baseline", "otus"], "Choose from empty, full, otsu, mean-shape, nnunet"),
        (["--data", "DATA", "--baseline", "nnunet:x"], "'x' is no number of epochs"),
        (["--data", "DATA", "--prompts", "bix"], "there is no such protocol"),
        (["--data", "DATA", "--prompts", "exemplar"], "does not take exemplars"),
        (["--data", "DATA", "--model", "nope"], "there is no such model"),
        (
            ["--data", "DATA", "--predictions", "DATA/organs/masks", "--prompts", "text,box"],
            "the answers to one protocol",
        ),
        (["--data", "nowhere"], "there is no such folder"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    given = [word.replace("DATA", str(data)) for word in words]
    with pytest.raises(InputError, match=message) as caught:
        typed(*given, "-o", str(tmp_path / "run"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_nnunet_as_a_baseline_needs_something_to_learn_from(data: Path, model: str, tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2")
    words = ("--data", data / "organs", "--model", model, "--limit", "1", "--jobs", "1", "--no-report", "-o", tmp_path)
    with pytest.raises(InputError, match="has no training part for nnU-Net"):
        typed(*words, "--baseline", "nnunet:2")


def test_intervals_in_words() -> None:
    assert module.in_percent({"mean": 0.8123, "low": 0.78, "high": 0.841}) == "81.2 [78.0, 84.1]"
    assert module.in_percent({"mean": 0.8123, "low": None, "high": None}) == "81.2" and module.in_percent(None) == "-"
    assert module.presence_of({"balanced_accuracy": None, "recall": {"mean": 0.5}}) == "recall 50.0"
    assert module.presence_of({"balanced_accuracy": {"mean": 0.75}, "recall": {"mean": 0.5}}) == "75.0"


def test_help_names_every_protocol() -> None:
    out = typed("--help")[1]
    assert all(
        name in " ".join(out.split()) for name in ("jittered-box", "iterative-clicks:N", "text+box", "--baseline")
    )

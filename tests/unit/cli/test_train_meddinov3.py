"""`lexitome train meddinov3`, and what it writes in `segment` and `evaluate`, as they are typed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from lexitome.cli import main
from lexitome.cli.console import BAD_INPUT, OK
from lexitome.evaluation.run_folder import Run
from lexitome.inference.dinov3_card import Card
from lexitome.training import engine

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets
from train_command import asked_at_once, steps_of, tiny

TINY = ["side=32", "patches=2", "validated=1", "run.precision=fp32", "run.threads=1", "run.checkpoint_every=1",
        "run.log_every=1", "run.recompute="]  # fmt: skip


def typed(recipe: str, data: Path, out: Path, *settings: str) -> list[str]:
    return tiny(recipe, data, out, (*TINY, *settings))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data") / "sets", 6)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_its_model_is_asked_by_the_names_of_its_targets(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, polyps = tmp_path / "run", data / "kvasir_seg"
    with monkeypatch.context() as patch:
        patch.setattr(engine.StopRequest, "__enter__", asked_at_once)
        assert main(typed("meddinov3", polyps, out, "run.steps=3")) == 128 + signal.SIGTERM
    assert steps_of(out) == [1] and "--resume" in capsys.readouterr().err
    assert main(["train", "--resume", "-o", str(out)]) == OK
    assert steps_of(out) == [1, 2, 3]
    model, said = out / "model", capsys.readouterr().out
    assert "test part" in said and f"lexitome evaluate --model {model} --data {polyps}" in said
    assert Card.load(model).about["recipe"]["optim"]["groups"] == []
    assert main(typed("meddinov3", polyps, out, "run.steps=3")) == BAD_INPUT
    assert "holds a run already" in capsys.readouterr().err

    picture, masks = str(polyps / "images" / "image0.png"), tmp_path / "masks"
    assert main(["segment", "-i", picture, "-o", str(masks), "-t", "polyp", "--model", str(model)]) == OK
    assert (masks / "polyp.png").is_file()
    report = json.loads((masks / "report.json").read_text())
    assert report["model"]["weights_sha256"] == Card.load(model).sha256
    capsys.readouterr()
    assert main(["segment", "-i", picture, "-o", str(tmp_path / "no"), "-t", "liver", "-m", str(model)]) == BAD_INPUT
    assert "not taught 'liver'. It knows: polyp" in capsys.readouterr().err

    measured = tmp_path / "measured"
    assert (
        main(["evaluate", "--model", str(model), "--data", str(polyps), "-o", str(measured), "--no-report", "-q"]) == OK
    )
    found = Run.load(measured)
    assert found.name == "meddinov3-tuned" and all(row.status == "ok" for row in found.rows)
    assert found.leakage is not None and found.leakage["checked"]


@pytest.mark.slow
def test_mini_takes_the_time_that_it_is_given(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kidneys = data / "btcv_abdomen_ct2d"
    settings = ("taps=-1", "decoder=segdino", "augmentation.tones=false", "run.checkpoint_every=500")
    words = typed("meddinov3-mini", kidneys, tmp_path / "run", *settings)
    assert main([*words, "--minutes", "0.5"]) == OK
    card = Card.load(tmp_path / "run" / "model")
    run = card.about["recipe"]["run"]
    assert card.taps == (3,) and card.decoder == "segdino" and run["steps"] != 2000
    assert (run["precision"], run["checkpoint_every"]) == ("fp32", 500)  # as typed, not as the clock would have it
    assert "patches      32 x 32, the whole slice\nintensity    imagenet" in capsys.readouterr().out


def test_a_plan_names_the_rates_and_reads_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = typed("meddinov3", tmp_path, tmp_path / "run", "run.steps=7", "taps=-1", "side=640", "spacing=0.5,0.7")
    assert main([*words, "--plan"]) == OK
    plan = json.loads(capsys.readouterr().out)
    assert (plan["run"]["steps"], plan["taps"], plan["side"], plan["spacing"]) == (7, [-1], 640, [0.5, 0.7])
    assert plan["optim"]["betas"] == [0.9, 0.98] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["meddinov3"], "hf download ricklisz123/MedDINOv3"),
        (["meddinov3", "--start", "random:huge"], "random:mini"),
        (["meddinov3", "--start", "nowhere"], "there is no model or folder 'nowhere'. Choose dinov3-s"),
        (["meddinov3-mini", "--set", "plans=nowhere.json"], "there are no such plans"),
        (["meddinov3-mini", "--set", "side=50"], "not a multiple of 16"),
        (["meddinov3-mini", "--set", "decoder=unet"], "one of multiscale, linear, segdino, stacked3d"),
        (["meddinov3-mini"], "targets of one dataset, and there are 2"),
        (["meddinov4"], "meddinov3-mini"),
    ],
)
def test_what_cannot_be_is_one_line(
    data: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.delenv("LEXITOME_WEIGHTS", raising=False)
    assert main(["train", *words, "--data", str(data), "-o", str(tmp_path / "run")]) == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["segment", "evaluate"])
def test_an_encoder_alone_is_refused_with_what_to_type(
    data: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "dinov3_vit"}')
    given = ["--data", str(data)] if command == "evaluate" else ["-i", str(data), "-t", "polyp"]
    assert main([command, *given, "-o", str(tmp_path / "out"), "--model", str(encoder)]) == BAD_INPUT
    assert f"lexitome train meddinov3 --start {encoder} --data DIR" in capsys.readouterr().err

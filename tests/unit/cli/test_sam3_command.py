"""`lexitome segment --model FOLDER|FILE` with a tiny SAM3, and `lexitome models` on foundation models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from segment_command import report_of, segment  # noqa: E402

import lexitome  # noqa: E402
from lexitome.cli import main  # noqa: E402
from lexitome.cli.console import BAD_INPUT, OK  # noqa: E402
from lexitome.models.foundation import FOUNDATION, WEIGHTS_FOLDER  # noqa: E402
from lexitome.models.sam3.eight import is_supported  # noqa: E402
from lexitome.models.sam3.presets import build, config_of  # noqa: E402
from lexitome.models.sam3.settings import Settings  # noqa: E402
from lexitome.models.sam3.tokens import Tokens  # noqa: E402
from lexitome.models.sam3.weights import save_folder, save_official  # noqa: E402

DEMO = Path(lexitome.__file__).parent / "assets" / "demo"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SAM3 with random weights."""
    tokens = Tokens.learn(["polyp", "optic disc", "liver"], 560)
    net = build(config_of("tiny", vocabulary=tokens.size), seed=0)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_folder(net.model, folder, Settings().to_json(), tokens, about={"licence": "CC0"})
    return folder


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(WEIGHTS_FOLDER, raising=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def fundus(tmp_path: Path) -> Path:
    path = tmp_path / "fundus.png"
    Image.open(DEMO / "fundus.jpg").resize((96, 72)).save(path)
    return path


def test_a_folder_is_asked_and_reported(tiny: Path, fundus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = segment("-i", fundus, "-o", out, "-t", "optic disc", "-m", tiny, "--policy", "semantic", "--threads", "1")
    assert code == OK
    report = report_of(out)
    assert report["model"]["weights_licence"] == "CC0"  # type: ignore[index]
    assert report["model"]["settings"]["policy"] == "semantic"  # type: ignore[index]
    assert Image.open(out / "optic_disc.png").size == (96, 72)


def test_no_overwrite_knows_the_weights(
    tiny: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ("-i", fundus, "-o", out, "-t", "polyp", "-m", tiny, "--no-overwrite")
    assert segment(*asked) == segment(*asked) == OK
    assert "done earlier" in capsys.readouterr().err
    assert segment(*asked, "--policy", "best") == BAD_INPUT
    assert "another request or model" in capsys.readouterr().err


def test_an_official_file_and_another_size(tiny: Path, fundus: Path, tmp_path: Path) -> None:
    from lexitome.models.sam3.weights import load_sam3

    loaded = load_sam3(tiny)
    save_official(loaded.net, tmp_path / "w" / "mine.pt", kept=loaded.kept)
    (tmp_path / "w" / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    asked = ("-i", fundus, "-t", "polyp", "-m", tmp_path / "w" / "mine.pt")
    assert segment(*asked, "-o", tmp_path / "a") == OK
    assert segment(*asked, "-o", tmp_path / "b", "--side", "32") == OK
    assert report_of(tmp_path / "b")["model"]["side"] == 32  # type: ignore[index]


@pytest.mark.skipif(not is_supported(), reason="the processor has no 8-bit products (VNNI)")
def test_8_bit_products(tiny: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("-i", fundus, "-o", tmp_path / "out", "-t", "polyp", "--precision", "int8")
    assert segment(*asked, "-m", tiny, "--no-overwrite") == OK
    assert report_of(tmp_path / "out")["model"]["dtype"].startswith("int8 and ")  # type: ignore[index]
    assert segment(*asked[:-1], "float32", "-m", tiny, "--no-overwrite") == BAD_INPUT, "another request"
    assert segment(*asked, "-m", tiny, "--side", "40") == BAD_INPUT
    assert "--side" in capsys.readouterr().err
    assert segment(*asked) == BAD_INPUT  # the built-in model
    assert "--precision is an option of SAM3" in capsys.readouterr().err.replace(":", "")


def test_damaged_weights_are_one_line(
    tiny: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sam3.pt").write_bytes(b"not a checkpoint")
    assert segment("-i", fundus, "-o", tmp_path / "out", "-t", "polyp", "-m", tmp_path / "sam3.pt") == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "hf download" in said
    assert not (tmp_path / "out").exists()


def test_named_weights_that_are_missing(fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("-i", fundus, "-o", tmp_path / "out", "-t", "polyp", "-m", "medical-sam3") == BAD_INPUT
    said = capsys.readouterr().err
    assert "SAM License" in said and "hf download ChongCong/Medical-SAM3 checkpoint_2D.pt" in said


def test_the_python_function_takes_the_same_models(tiny: Path, fundus: Path) -> None:
    found = lexitome.segment(fundus, "polyp", model=tiny, threads=1)
    assert found.findings[0].mask.shape == (1, 72, 96)


def test_models_lists_what_users_bring(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WEIGHTS_FOLDER, str(tmp_path))
    (tmp_path / "sam3").symlink_to(tiny)
    assert main(["models", "--json"]) == OK
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {name: listed[name]["here"] for name in FOUNDATION} == {name: name == "sam3" for name in FOUNDATION}
    assert main(["models"]) == OK
    shown = capsys.readouterr().out
    assert "compact-open" in shown and "hf download ChongCong/Medical-SAM3" in shown
    assert "hf download facebook/sam3 " not in shown  # these are here


def test_models_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "medical-sam3"]) == OK
    shown = capsys.readouterr().out
    assert "medical-sam3" in shown and "compact-open" not in shown
    assert main(["models", "compact"]) == OK
    assert "medical-sam3" not in capsys.readouterr().out
    assert main(["models", "sam5"]) == BAD_INPUT

"""SAM3 as an answerer, from a folder that is written and read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lexitome.errors import InputError
from lexitome.evaluation.answering import About, Answerer
from lexitome.models.sam3.presets import build, config_of
from lexitome.models.sam3.settings import Settings
from lexitome.models.sam3.tokens import Tokens
from lexitome.models.sam3.weights import save_folder
from lexitome.prompts import Box, Query, Text
from lexitome.recipes.sam3_answers import Sam3Answerer, sam3_answerer
from lexitome.volume import PIXEL_AFFINE, Volume

TOKENS = Tokens.learn(["polyp", "liver"], 530)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sam3")
    settings = Settings(policy="union", keep=0.1, trained={"polyp": "polyp"}, trained_on=("kvasir",))
    net = build(config_of("tiny", vocabulary=TOKENS.size), 0)
    save_folder(net.model, root / "model", settings.to_json(), TOKENS)
    return root / "model"


@pytest.fixture(scope="module")
def answerer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sam3Answerer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return sam3_answerer(folder)


def test_answers(answerer: Sam3Answerer) -> None:
    as_protocol: Answerer = answerer
    volume = Volume(
        np.random.default_rng(0).integers(0, 255, (3, 1, 30, 50), np.uint8), PIXEL_AFFINE, spacing_known=False
    )
    session = as_protocol.begin(volume, About("set", "case", concepts=("polyp",)))
    answers = session.answer([Query(Text("polyp")), Query(Text("liver")), Query(None, (Box(2, 2, 20, 20),))])
    assert [answer.taught for answer in answers] == [True, False, None]
    for answer in answers:
        assert answer.mask.shape == volume.grid and answer.probability is not None and answer.instances is not None
        assert answer.presence is not None and 0 <= answer.presence <= 1 and answer.status == "ok"


def test_provenance(answerer: Sam3Answerer) -> None:
    said = json.loads(json.dumps(answerer.provenance()))
    assert said["name"] == "model" and said["kind"] == "sam3" and said["trained_on"] == ["kvasir"]
    assert said["settings"]["policy"] == "union" and len(said["weights_sha256"]) == 64
    assert answerer.training() is None


def test_settings_may_be_chosen_anew(folder: Path) -> None:
    chosen = sam3_answerer(folder, policy="best", side=32)
    assert chosen.segmenter.settings.policy == "best" and chosen.provenance()["side"] == 32
    assert chosen.name == "model best", "else tables would call two policies the same"
    with pytest.raises(InputError, match="Policies are"):
        sam3_answerer(folder, policy="argmax")  # type: ignore[arg-type]


def test_a_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Tokens.learn(["polyp", "optic cup and disc"], 900).save(tmp_path)
    with pytest.raises(InputError, match="tokens"):
        sam3_answerer(tmp_path)

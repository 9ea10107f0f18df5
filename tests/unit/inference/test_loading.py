"""Which segmenter a model gets, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lexitome.errors import InputError
from lexitome.inference.loading import check_model, load_segmenter
from lexitome.inference.segmenter import Segmenter
from lexitome.models.foundation import WEIGHTS_FOLDER, kind_of
from lexitome.prompts import Box, Query, Text
from lexitome.volume import Volume


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_FOLDER, raising=False)
    try:
        from huggingface_hub import constants
    except ImportError:
        return
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_names_of_the_catalog_get_the_compact_segmenter() -> None:
    assert isinstance(load_segmenter("compact", threads=1), Segmenter)


@pytest.mark.parametrize(("option", "value"), [("policy", "union"), ("side", 560)])
def test_options_of_sam3_are_not_ignored(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"--{option}: is an option of SAM3"):
        load_segmenter("compact", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sam3", "medical-sam3"])
def test_missing_weights_are_said_before_anything_is_read(name: str) -> None:
    with pytest.raises(InputError, match=r"not on this machine.*hf download"):
        check_model(name)


def test_sam_is_a_baseline_only() -> None:
    with pytest.raises(InputError, match=r"boxes alone.*lexitome evaluate"):
        check_model("sam")


def test_so_are_specialists(tmp_path: Path) -> None:
    card = tmp_path / "several" / "polyps" / "specialist.json"
    card.parent.mkdir(parents=True)
    card.touch()
    for folder in (card.parent, card.parent.parent):
        assert kind_of(folder) == "specialist"
        with pytest.raises(InputError, match=r"a baseline only.*lexitome evaluate"):
            check_model(folder)


def test_without_the_packages_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sam3.pt").touch()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lexitome.inference.loading import load_segmenter\n"
        "try: load_segmenter(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sam3.pt")], capture_output=True, text=True, check=True, timeout=120
    )
    assert "needs torch" in done.stdout and 'pip install "lexitome[train]"' in done.stdout


def test_the_tracker_comes_along_at_another_side(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from lexitome.inference.sam3_segmenter import Sam3Segmenter
    from lexitome.models.sam3.presets import build, config_of
    from lexitome.models.sam3.settings import Settings
    from lexitome.models.sam3.tokens import Tokens
    from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config
    from lexitome.models.sam3.weights import save_folder

    tokens = Tokens.learn(["liver"], 530)
    config = config_of("tiny", vocabulary=tokens.size)
    config.vision_config.fpn_hidden_size = config.mask_decoder_config.hidden_size = 64
    for part in (config.geometry_encoder_config, config.detr_encoder_config, config.detr_decoder_config):
        part.hidden_size = 64  # transformers gives the tracker the width of the detector
    tracker = Sam3Tracker(tracker_config(config.vision_config))
    save_folder(build(config, 0).model, tmp_path / "m", Settings().to_json(), tokens, tracker=tracker)
    segmenter = Sam3Segmenter.load(tmp_path / "m", side=32, cache=tmp_path / "cache")
    assert segmenter.tracker is not None and segmenter.tracker.side == segmenter.net.side == 32
    scan = Volume(np.random.default_rng(0).normal(0, 100, (1, 6, 40, 40)).astype(np.int16), np.diag([2.0, 2, 9, 1]))
    result = segmenter.decode(segmenter.encode(scan), [Query(Text("liver")), Query(None, (Box(5, 5, 30, 30, 2, 3),))])
    assert result.findings[0].mask.shape == scan.grid and result.provenance["tracker"] is True

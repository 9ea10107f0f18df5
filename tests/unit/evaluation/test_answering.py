"""The compact model as an answerer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.trained_on import TrainedOn
from lexitome.evaluation.answering import About, CompactAnswerer, Remembers, compact_answerer, is_told_names
from lexitome.evaluation.predictions import FolderAnswerer
from lexitome.prompts import Box, Query, Text
from lexitome.volume import PIXEL_AFFINE, Volume

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))
from tiny_model import Bright, write_model


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> CompactAnswerer:
    return compact_answerer(write_model(tmp_path_factory.mktemp("bright") / "model", Bright()))


def picture() -> Volume:
    array = np.zeros((3, 1, 40, 60), np.uint8)
    array[1, 0, 10:30, 10:40] = 230
    array[2] = 255
    return Volume(array, PIXEL_AFFINE, spacing_known=False)


def test_it_answers_as_the_segmenter_does(answerer: CompactAnswerer) -> None:
    volume, queries = picture(), [Query(Text("polyp")), Query(Text("zeppelin")), Query(None, (Box(5, 5, 50, 35),))]
    answers = answerer.begin(volume, About("set", "case", concepts=("polyp",))).answer(queries)
    segmenter = answerer.segmenter
    for answer, finding in zip(answers, segmenter.decode(segmenter.encode(volume), queries).findings, strict=True):
        assert (answer.mask == finding.mask).all() and answer.presence == pytest.approx(finding.presence)
        assert answer.probability is not None and answer.probability.shape == volume.grid and answer.status == "ok"
    assert [answer.taught for answer in answers] == [True, False, None]
    assert any("guess" in note for note in answers[1].notes)


def test_provenance_names_the_weights(answerer: CompactAnswerer) -> None:
    stated = answerer.provenance()
    assert stated["weights_sha256"] == answerer.segmenter.weights and stated["licence"] == "CC0"
    assert stated["trained_on"] == [] and answerer.name == stated["name"] == "tiny"
    assert isinstance(answerer, Remembers) and answerer.training() is None


def test_the_built_in_model_says_what_it_was_trained_on() -> None:
    built_in = compact_answerer()
    assert "kvasir_seg" in built_in.provenance()["trained_on"]
    assert built_in.training() is None or isinstance(built_in.training(), TrainedOn)


def test_only_fixed_classes_are_told_names_under_every_protocol(answerer: CompactAnswerer) -> None:
    assert not is_told_names(answerer) and is_told_names(FolderAnswerer(Path("x"), "x"))

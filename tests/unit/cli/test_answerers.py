"""`--model` of evaluate and benchmark: the same folder is the same model for both, and what it takes is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lexitome.cli.answerers import model_answerer, taken
from lexitome.errors import InputError
from lexitome.evaluation.baselines import BASELINES
from lexitome.evaluation.protocols import parse_all

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))
from tiny_model import Bright, write_model


def test_the_folder_says_what_it_is(tmp_path: Path) -> None:
    """A folder that claims to be a specialist or a SAM is read as one: its own reader says what is wrong with it."""
    assert model_answerer(str(write_model(tmp_path / "m", Bright())), "evaluate").provenance()["kind"] == "compact"
    assert model_answerer("compact-open", "benchmark").name == "compact-open"
    (tmp_path / "unets" / "polyps").mkdir(parents=True)
    (tmp_path / "unets" / "polyps" / "specialist.json").write_text("{}")
    for folder in ("unets", "unets/polyps"):
        with pytest.raises(InputError, match=r"specialist.json.*Train it again"):
            model_answerer(str(tmp_path / folder), "evaluate")
    for kind, message in (("sam", "Get facebook/sam-vit-base"), ("sam3", "sam3")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(InputError, match=message):
            model_answerer(str(tmp_path / kind), "evaluate")
    with pytest.raises(InputError, match="--policy: is an option of SAM3"):
        model_answerer("compact", "evaluate", policy="union")
    with pytest.raises(InputError, match="there is no such model"):
        model_answerer("nope", "evaluate")


def test_what_it_does_not_take_is_left_out_with_a_note() -> None:
    said: list[str] = []
    otsu, specs = BASELINES["otsu"]([]), parse_all(["text,points:2,box"])
    assert [spec.name for spec in taken(specs, otsu, said.append)] == ["text", "oracle-box"]
    assert len(said) == 1 and "otsu does not take points" in said[0]
    with pytest.raises(InputError, match="does not take points"):
        taken(parse_all(["points:2"]), otsu, said.append)

"""Models by name and by folder: what is offered, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lexitome.errors import InputError
from lexitome.models.catalog import CATALOG, FILES, find_model, read_card, weights_hash

CONCEPT = {
    "concept": "nuclei", "words": "cell nuclei", "families": ["fluorescence"], "window": [-125, 275],
    "threshold": 0.3, "side": 448, "stacked": False, "views": True, "countable": True, "mirrored": False, "pairs": 12,
}  # fmt: skip
CARD: dict[str, Any] = {
    "name": "mine", "side": 320, "sha256": weights_hash(b"encoder", b"decoder"), "size_mb": 1.5,
    "weights_licence": "CC0", "research_only": False, "default_threshold": 0.5, "metrics": {"dice": 0.7},
    "trained_concepts": [CONCEPT], "provenance": {"steps": 3},
    "sets": [{"name": "a", "title": "A", "modality": "CT", "licence": "CC0", "source": "here", "dims": 2}],
}  # fmt: skip


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "encoder.onnx").write_bytes(b"encoder")
    (folder / "decoder.onnx").write_bytes(b"decoder")
    (folder / "card.json").write_text(json.dumps({**CARD, **changes}))
    return folder


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    for typed in (folder, str(folder)):
        card = find_model(typed)
        assert (card.name, card.side, card.size_mb, card.default_threshold) == ("mine", 320, 1.5, 0.5)
        assert card.metrics == {"dice": 0.7} and not card.research_only and str(folder) in card.summary
        assert card.measure_sha256() == card.sha256
    (trained,) = card.trained_concepts
    assert (trained.side, trained.stacked, trained.views, trained.countable) == (448, False, True, True)
    assert trained.families == ("fluorescence",) and trained.window == (-125, 275) and trained.words == "cell nuclei"
    assert card.sets[0].name == "a"


def test_names_are_found_and_count_before_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "compact")
    monkeypatch.chdir(tmp_path)
    assert find_model("compact") is CATALOG["compact"]
    assert find_model("./compact").name == "mine"


def test_only_models_that_are_there_are_offered() -> None:
    assert "compact" in CATALOG
    assert all(card.name == name and card.files.is_dir() for name, card in CATALOG.items())


@pytest.mark.parametrize("typed", ["compct", "", "runs/nowhere/model"])
def test_unknown_models_are_told_what_there_is(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="compact") as caught:
        find_model(typed)
    assert all(file in str(caught.value) for file in FILES)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"encoder\.onnx, decoder\.onnx, card\.json not there"):
        find_model(tmp_path / "empty")
    write(tmp_path / "run" / "model")
    with pytest.raises(InputError, match=r"Did you mean .*run.model\?"):
        find_model(tmp_path / "run")
    (tmp_path / "run" / "model" / "decoder.onnx").unlink()
    with pytest.raises(InputError, match=r"decoder\.onnx not there"):
        find_model(tmp_path / "run" / "model")


def without(entry: dict[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("card", "word"),
    [
        (without(CARD, "metrics"), "the card lacks metrics"),
        ({**CARD, "trained_concepts": [without(without(CONCEPT, "side"), "views")]}, "concept lacks side, views"),
        ({**CARD, "sets": [{"name": "a"}]}, "a training set lacks"),
        ({**CARD, "sets": ["a"]}, "a training set is not"),
        ({**CARD, "side": 300}, "side of 300"),
        ({**CARD, "trained_concepts": [{**CONCEPT, "side": "large"}]}, "side of 'large'"),
        ([CARD], "the card is not a JSON object"),
    ],
)  # fmt: skip
def test_cards_of_another_version_are_refused(card: object, word: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=word) as caught:
        find_model(folder)
    assert "card.json" in str(caught.value)


def test_a_broken_card(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "card.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_card(folder)
    (folder / "card.json").unlink()
    with pytest.raises(InputError, match=r"card\.json"):
        read_card(folder)

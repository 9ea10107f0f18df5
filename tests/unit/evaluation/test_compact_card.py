"""The model card: its means by hand, what it refuses, and a whole small evaluation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from result_rows import row

from lexitome.data.cache import open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.evaluation.card_text import render
from lexitome.evaluation.compact_card import BOX, ask, gain_of_box, main, mean_dice, run_folder, summary_of, write_card
from lexitome.evaluation.run_folder import Run, write_json, write_rows
from lexitome.evaluation.tables import summarise
from lexitome.inference.segmenter import Segmenter
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training.export import write_model

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=2)


def test_means_are_over_concepts_and_leave_out_unions() -> None:
    rows = [row(0.9, case="c1", unit="u1"), row(0.7, case="c2", unit="u2"), row(0.2, concept="spleen"),
            row(0.6, dataset="other"), row(0.0, concept="both", derived=True), row(None, concept="heart"),
            row(1.0, protocol=BOX)]  # fmt: skip
    found = mean_dice(rows)
    assert (found["concepts"], found["subjects"], found["dice"]) == (3, 3, round(100 * (0.8 + 0.2 + 0.6) / 3, 1))
    assert found["low"] <= found["dice"] <= found["high"] > found["low"]
    assert mean_dice(rows[2:3]) == {"concepts": 1, "subjects": 1, "dice": 20.0, "low": None, "high": None}
    assert mean_dice([]) == {"concepts": 0, "dice": None}


def test_an_unanswered_question_scores_zero() -> None:
    rows = [row(0.8, case="c1"), row(None, case="c2", present=True, status="failed")]
    assert mean_dice(rows)["dice"] == 40.0
    boxed = [row(0.9, case="c1", protocol=BOX), row(None, case="c2", present=True, status="failed", protocol=BOX)]
    assert gain_of_box(rows + boxed)[0]["gain"] == 5.0


def test_the_gain_of_a_box_is_of_the_same_cases() -> None:
    rows = [row(0.5, case="c1", unit="u1"), row(0.6, case="c2", unit="u2"), row(0.1, case="without a box")]
    rows += [row(0.7, case="c1", unit="u1", protocol=BOX), row(0.6, case="c2", unit="u2", protocol=BOX)]
    (entry,) = gain_of_box([*rows, row(0.9, dataset="b")])
    low, high = entry.pop("low"), entry.pop("high")
    assert entry == {"dataset": "set", "targets": 1, "text": 55.0, "oracle_box": 65.0, "gain": 10.0}
    assert 0.0 <= low < 10.0 < high <= 20.0  # what the two subjects gained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets, the objects of polyps told apart, and external ones like them under other names."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 10), ("external", 3)):
        write_sets(root / part, count)
    polyps = root / "train" / "kvasir_seg"
    (polyps / "instances").mkdir()
    for path in (polyps / "masks").iterdir():
        (polyps / "instances" / path.name).write_bytes(path.read_bytes())
    for folder in list((root / "external").iterdir()):
        folder.rename(folder.with_name(f"other_{folder.name}"))
    return root


@pytest.fixture(scope="module")
def segmenter(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Taught nothing; its card says that it was taught kidneys and spleens."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    cached = open_cache(load_dataset(data / "train" / "btcv_abdomen_ct2d"), folder / "cache", side=64)
    net = CompactNet(TINY, EfficientNetLite(0)).eval()
    recorded = {"steps": 0, "recipe": {"start": str(folder / "first")}}
    write_model(net, [cached], folder / "model", name="tiny", provenance=recorded, metrics={"dice": 0.0})
    return Segmenter.load(folder / "model", threads=1)


@pytest.fixture(scope="module")
def run(segmenter: Segmenter, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ask(segmenter, data, run_folder(segmenter, tmp_path_factory.mktemp("rows")), jobs=2)


@pytest.fixture(scope="module")
def summary(run: Run) -> dict[str, Any]:
    return summary_of(run)


def test_sets_it_was_not_trained_on_are_apart(summary: dict[str, Any]) -> None:
    assert {e["dataset"] for e in summary["in_domain"]} == {"btcv_abdomen_ct2d"}
    assert {e["dataset"] for e in summary["not_trained_on"]} == {"kvasir_seg"}
    assert {e["dataset"] for e in summary["external"]} == {"other_kvasir_seg", "other_btcv_abdomen_ct2d"}
    assert set(summary["data_sha256"]) == {e["dataset"] for part in ("in_domain", "not_trained_on", "external")
                                           for e in summary[part]}  # fmt: skip
    organs = [e for e in summary["in_domain"] if not e["derived"]]
    mean, (polyp,) = summary["mean_in_domain_2d"], summary["not_trained_on"]
    assert mean["concepts"] == len(organs) == 3 and mean["low"] is not None
    assert mean["dice"] == pytest.approx(sum(e["dice"] for e in organs) / 3, abs=0.11)
    same = {key: polyp[key] for key in ("subjects", "dice", "low", "high")}
    assert summary["mean_not_trained_on"] == {"concepts": 1, **same} and polyp["subjects"] > 1
    assert summary["mean_in_domain_3d"] == {"concepts": 0, "dice": None}
    assert summary["mean_external_trained_concepts"]["concepts"] == 3 < summary["mean_external"]["concepts"] == 4
    assert summary["mean_external_oracle_box"]["concepts"] == summary["mean_external"]["concepts"]


def test_presence_and_objects_are_measured(summary: dict[str, Any], run: Run) -> None:
    asked = [r for r in run.rows if r.dataset == "btcv_abdomen_ct2d" and r.protocol == "text" and not r.derived]
    assert summary["presence"]["present"] == sum(r.present for r in asked) > 0
    assert summary["presence"]["absent"] == sum(not r.present for r in asked) > 0
    assert 0 <= summary["presence"]["auc"]["low"] <= summary["presence"]["auc"]["high"] <= 100
    (polyps,), (polyp,) = summary["objects"]["not_trained_on"], summary["not_trained_on"]
    assert polyps["objects"] == 1.0 and polyps["cases"] == polyp["cases"]
    assert summary["objects"]["in_domain"] == summary["objects"]["external"] == []


def test_card_says_what_was_measured(run: Run, segmenter: Segmenter, tmp_path: Path) -> None:
    summary = write_card(run, segmenter, tmp_path)
    assert json.loads((tmp_path / "tiny.json").read_text()) == json.loads(json.dumps(summary))
    text = (tmp_path / "tiny.md").read_text()
    assert "no commercial use by btcv_abdomen_ct2d" in segmenter.card.weights_duties in text
    for part in ("in_domain", "not_trained_on", "external"):
        for e in summary[part]:
            interval = "" if e["low"] is None else f" ({e['low']}–{e['high']})"
            assert f"| {e['dataset']} | {e['target']}" in text and f"| {e['dice']}{interval} |" in text
    for trained in segmenter.card.sets:
        assert trained.name in text and trained.licence in text
    assert "words + ORACLE box" in text and "F1 at IoU 0.5" in text and "Not a medical" in text
    assert '"steps": 0' in text and segmenter.card.sha256[:16] in text and "--model FOLDER" in text
    assert "A first look" not in text and "A first look" in render({**summary, "limit": 2}, segmenter.card)
    assert "3 questions" in render(
        {**summary, "problems": {"missing": 1, "failed": 2, "unreadable": 0}}, segmenter.card
    )


def test_card_holds_no_local_path(run: Run, segmenter: Segmenter, data: Path, tmp_path: Path) -> None:
    write_card(run, segmenter, tmp_path)
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert "Text-, box- and point-prompted" in text or path.suffix == ".json"
        for place in (segmenter.card.files, data, run.path):
            assert str(Path(str(place)).parent) not in text


def test_what_was_measured_is_not_asked_again(run: Run, segmenter: Segmenter, data: Path) -> None:
    again = ask(segmenter, data, run.path, jobs=1)
    assert again.rows == run.rows and again.info["cases_done_before"] == len({(r.dataset, r.case) for r in run.rows})


def test_a_run_of_another_model_or_part_is_refused(run: Run, segmenter: Segmenter, tmp_path: Path) -> None:
    model = {**run.info["model"], "card_sha256": "0" * 64}
    for change, words in (
        ({"model": model}, "'tiny' as it is now"), ({"split": "val"}, "test split"),
        ({"protocols": [BOX]}, "text among"), ({"seed": 1}, "seed 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            write_card(Run(run.path, {**run.info, **change}, run.rows), segmenter, tmp_path)
    assert not list(tmp_path.iterdir())


def test_command_takes_a_finished_run(
    run: Run, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked by `lexitome evaluate` by words alone: no box in the card."""
    by_words, words = tmp_path / "run", [r for r in run.rows if r.protocol == "text"]
    write_rows(by_words, words)
    write_json(by_words / "run.json", {**run.info, "protocols": ["text"]})
    write_json(by_words / "summary.json", summarise(words))
    typed = ["compact_card", "--model", str(segmenter.card.files), "--out", str(tmp_path / "cards"), "--run"]
    monkeypatch.setattr(sys, "argv", [*typed, str(by_words)])
    main()
    text = (tmp_path / "cards" / "tiny.md").read_text()
    assert "ORACLE" not in text and "In-domain test splits" in text
    monkeypatch.setattr(sys, "argv", [*typed, str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="no such folder"):
        main()

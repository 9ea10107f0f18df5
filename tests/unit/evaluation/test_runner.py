"""A whole evaluation: one row for every question, the same whatever the order, and a folder that can be read again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eval_sets import Bright, write_eval_sets
from PIL import Image

from lexitome.data.dataset import Dataset
from lexitome.errors import InputError
from lexitome.evaluation import runner
from lexitome.evaluation.metrics import ece_of
from lexitome.evaluation.metrics.calibration import from_text
from lexitome.evaluation.predictions import folder_answerer
from lexitome.evaluation.protocols import parse_all
from lexitome.evaluation.reference import test_sets as load_sets
from lexitome.evaluation.report.overlays import load_examples
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import SUMMARY, Run, plain, write_json
from lexitome.evaluation.runner import Settings, evaluate

QUIET = Settings(quiet=True, overlays=False, leakage=False)
EVERY = ("text", "box", "text+box", "points:2", "center-point", "iterative-clicks:3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eval_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sets(data: Path) -> list[Dataset]:
    return load_sets([data])


@pytest.fixture(scope="module")
def whole(sets: list[Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything on but overlays, which take their time."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    settings = Settings(quiet=True, overlays=False, save_masks=True, command="x")
    evaluate(Bright(), sets, parse_all(EVERY), out, jobs=2, settings=settings)
    return out


def timeless(rows: list[ResultRow]) -> list[ResultRow]:
    return told([replace(row, seconds=None) for row in rows])


def told(rows: list[ResultRow]) -> list[ResultRow]:
    """Without metrics that have no value, which a table cannot tell from metrics that were not measured."""
    return [replace(row, metrics={k: v for k, v in row.metrics.items() if v is not None}) for row in rows]


def test_there_is_one_row_for_every_question(whole: Path) -> None:
    rows = Run.load(whole).rows
    text = [row for row in rows if row.protocol == "text"]
    assert Counter(row.dataset for row in text) == {"organs": 12, "cells": 2, "scans": 2}
    assert {row.concept for row in text if row.derived} == {"kidney"}
    absent = [row for row in text if not row.present]
    assert {(row.case, row.concept) for row in absent} == {("p0_a", "right kidney"), ("p2_a", "right kidney")}
    for name in {row.protocol for row in rows} - {"text"}:
        asked = [row for row in rows if row.protocol == name]
        assert "oracle" in name and all(row.oracle and row.present for row in asked)
        assert len(asked) == len(text) - len(absent)
    assert len({row.key for row in rows}) == len(rows)
    assert [row.dataset for row in rows] == sorted(row.dataset for row in rows)  # in the order of the sets
    assert {row.unit for row in text if row.dataset == "organs"} == {"p0", "p1", "p2", "p3"} or len(text) == 16


def test_numbers_are_those_of_the_masks(whole: Path) -> None:
    rows = {(row.case, row.concept, row.protocol): row for row in Run.load(whole).rows}
    both = rows["p1_a", "kidney", "text"]
    assert both.metrics["dice"] == 1.0 and both.found and both.presence == 0.9 and both.length == "px"
    left = rows["p1_a", "left kidney", "text"]  # it finds both kidneys, whichever is asked
    assert left.metrics["dice"] is not None and left.metrics["dice"] < 1 and left.metrics["recall"] == 1.0
    assert rows["p1_a", "left kidney", "oracle-box"].metrics["dice"] == 1.0
    absent = rows["p0_a", "right kidney", "text"]
    assert absent.metrics["dice"] is None and absent.metrics["false_volume"] > 0 and absent.found  # type: ignore[operator]
    liver = rows["s0", "liver", "text"]
    assert liver.length == "mm" and liver.dims == 3 and liver.taught and liver.metrics["ece"] is not None
    assert ece_of(from_text(liver.bins)) == pytest.approx(liver.metrics["ece"]) and not absent.bins
    pooled = {(e["protocol"], e["dataset"]): e for e in json.loads((whole / SUMMARY).read_text())["mask_calibration"]}
    assert pooled["text", liver.dataset]["ece"] == pytest.approx(liver.metrics["ece"])
    assert rows["s0", "liver", "oracle-box"].taught  # told by the words of the other protocol
    clicks, point = (rows["s0", "liver", f"oracle-{p}"].metrics["dice"] for p in ("clicks:3", "center-point"))
    assert clicks is not None and point is not None and clicks > point  # each goes where the last answer was wrong


def test_objects_are_connected_parts_where_nobody_tells_them_apart(whole: Path) -> None:
    (first, _) = (row for row in Run.load(whole).rows if row.dataset == "cells" and row.protocol == "text")
    assert first.metrics["objects_wanted"] == 3 and first.metrics["pq"] == 1.0
    assert first.metrics["dice"] == 1.0  # what nobody judged does not count
    assert all(row.metrics["pq"] is None for row in Run.load(whole).rows if row.dataset == "organs")


def test_neither_order_nor_interruption_changes_a_row(
    sets: list[Dataset], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocols, asked = parse_all(EVERY), []
    work = runner.Evaluation.work

    def stops_after_two(run: runner.Evaluation, dataset: Dataset, case: object) -> object:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(case)
        return work(run, dataset, case)  # type: ignore[arg-type]

    monkeypatch.setattr(runner.Evaluation, "work", stops_after_two)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Bright(), sets, protocols, tmp_path / "run", jobs=1, settings=QUIET)
    with pytest.raises(InputError, match="was interrupted before its end"):
        Run.load(tmp_path / "run")
    monkeypatch.setattr(runner.Evaluation, "work", work)
    rows = evaluate(Bright(), sets, protocols, tmp_path / "run", jobs=3, settings=QUIET)
    found = Run.load(tmp_path / "run")
    assert found.info["cases_done_before"] == 2 and told(found.rows) == told(rows)
    assert timeless(rows) == timeless(Run.load(whole).rows)
    alone = evaluate(Bright(), [sets[1]], protocols, tmp_path / "alone", jobs=1, settings=QUIET)
    assert timeless(alone) == [row for row in timeless(rows) if row.dataset == sets[1].name]


def test_a_finished_run_is_not_asked_again(sets: list[Dataset], tmp_path: Path) -> None:
    first = evaluate(Bright(), sets[:1], parse_all(["text"]), tmp_path / "run", settings=QUIET)
    again = evaluate(Bright(), sets[:1], parse_all(["text"]), tmp_path / "run", settings=QUIET)
    assert first == again  # seconds, too
    with pytest.raises(InputError, match="holds a run with another protocols"):
        evaluate(Bright(), sets[:1], parse_all(["box"]), tmp_path / "run", settings=QUIET)


def test_the_folder_says_what_was_run(whole: Path, data: Path) -> None:
    run = Run.load(whole)
    assert run.name == "bright" and run.info["model"]["licence"] == "CC0" and run.info["command"] == "x"
    assert run.info["protocols"][0] == "text" and run.info["seed"] == 0 and run.info["settings"]["tolerance_mm"] == 2.0
    organs = run.info["data"]["organs"]
    assert organs["external"] and organs["cases"] == 4 and organs["split"] == "test" and len(organs["hash"]) == 16
    assert run.info["data"]["cells"]["in_training"] and not organs["in_training"]
    assert run.info["versions"]["numpy"] == np.__version__ and run.info["finished"] >= run.info["started"]
    assert str(data) not in json.dumps(dict(run.info))
    summary = json.loads((whole / "summary.json").read_text())
    assert {entry["dataset"] for entry in summary["by_dataset"]} == {"organs", "cells", "scans"}
    assert run.leakage is not None and run.leakage["checked"] is False


def test_saved_masks_score_the_same(sets: list[Dataset], whole: Path, tmp_path: Path) -> None:
    for folder, typed in (("text", "text"), ("oracle-points-2", "points:2")):
        answerer = folder_answerer(whole / "masks" / folder, sets)
        assert answerer.extra == ()
        rows = evaluate(answerer, sets, parse_all([typed]), tmp_path / folder, settings=QUIET)
        before = [row for row in Run.load(whole).rows if row.protocol == rows[0].protocol]
        assert [(r.key, r.metrics["dice"], r.metrics["hd95"]) for r in rows] == [
            (r.key, r.metrics["dice"], r.metrics["hd95"]) for r in before
        ]
        assert {row.status for row in rows} == {"ok"} and {row.presence for row in rows} == {None}


@pytest.mark.parametrize(
    ("how", "note"),
    [
        ("raise", "ValueError: cannot say"),
        ("shape", "its mask has the shape (1, 39, 50), the image (1, 40, 50)"),
        ("nan", "its probability is not finite everywhere"),
        ("logits", "its probability does not lie between 0 and 1"),
    ],
)
def test_one_bad_answer_does_not_spoil_the_others(sets: list[Dataset], tmp_path: Path, how: str, note: str) -> None:
    organs = [dataset for dataset in sets if dataset.name == "organs"]
    rows = evaluate(Bright("left kidney", how), organs, parse_all(["text"]), tmp_path / "run", settings=QUIET)
    assert len(rows) == 12
    for row in rows:
        assert (row.status == "failed") == (row.concept == "left kidney")
        if row.status == "failed":
            assert row.note == note and row.metrics["dice"] == 0.0 and not row.found and row.presence is None
    assert Run.load(tmp_path / "run").info["problems"]["failed"] == 4


def test_an_image_that_cannot_be_begun_fails_as_a_whole(sets: list[Dataset], tmp_path: Path) -> None:
    organs = [dataset for dataset in sets if dataset.name == "organs"]
    protocols = parse_all(["text", "iterative-clicks:2"])
    settings = replace(QUIET, overlays=True)
    rows = evaluate(Bright("p1_a", "begin"), organs, protocols, tmp_path / "run", settings=settings)
    bad = [row for row in rows if row.case == "p1_a"]
    assert len(bad) == 6 and {row.note for row in bad} == {"RuntimeError: no memory for this image"}
    assert {row.status for row in bad} == {"failed"} and {row.status for row in rows if row not in bad} == {"ok"}
    examples = load_examples(tmp_path / "run")
    assert {e.protocol for e in examples} == {"text", "oracle-clicks:2"}
    assert all((tmp_path / "run" / e.file).stat().st_size > 500 for e in examples)
    assert examples[0].rank == "worst" and examples[0].case == "p1_a"  # drawn as the empty mask that it scored as


def test_missing_predictions_are_rows(sets: list[Dataset], whole: Path, tmp_path: Path) -> None:
    organs = [dataset for dataset in sets if dataset.name == "organs"]
    mask = np.asarray(Image.open(whole / "masks" / "text" / "organs" / "p1_a" / "kidney.png"))
    (tmp_path / "masks").mkdir()
    Image.fromarray((mask > 0).astype(np.uint8)).save(tmp_path / "masks" / "p1_a.png")
    rows = evaluate(
        folder_answerer(tmp_path / "masks", organs), organs, parse_all(["text"]), tmp_path / "r", settings=QUIET
    )
    missing = [row for row in rows if row.status == "missing"]
    assert {row.case for row in missing} == {"p0_a", "p2_a", "p3_a"} and len(rows) == 12
    assert all(row.note == "there is no prediction for this case" for row in missing)
    assert all(row.metrics["dice"] == (0.0 if row.present else None) for row in missing)
    assert Run.load(tmp_path / "r").info["problems"]["missing"] == 9


def test_cases_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = write_eval_sets(tmp_path / "data") / "organs"
    (folder / "images" / "p1_a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "masks" / "p2_a.png")
    rows = evaluate(Bright(), load_sets([folder]), parse_all(["text"]), tmp_path / "run", settings=QUIET)
    assert {row.case for row in rows} == {"p0_a", "p3_a"}
    named = {entry["case"]: entry["cause"] for entry in Run.load(tmp_path / "run").info["problems"]["unreadable"]}
    assert set(named) == {"p1_a", "p2_a"} and "p2_a.png: mask grid (1, 9, 9) differs" in named["p2_a"]


def test_changed_images_are_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_eval_sets(tmp_path / "data") / "organs"
    loud = replace(QUIET, quiet=False)
    before = evaluate(Bright(), load_sets([folder]), parse_all(["text"]), tmp_path / "run", settings=loud)
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / "images" / "p1_a.png")
    after = evaluate(Bright(), load_sets([folder]), parse_all(["text"]), tmp_path / "run", settings=loud)
    assert "organs: measured again, since the images or masks changed" in capsys.readouterr().err
    assert [row.found for row in before if row.case == "p1_a"] != [row.found for row in after if row.case == "p1_a"]


def test_what_cannot_be_asked_is_refused_before_any_work(sets: list[Dataset], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bright does not take exemplars"):
        evaluate(Bright(), sets, parse_all(["exemplar"]), tmp_path / "run", settings=QUIET)
    with pytest.raises(InputError, match="has no case in the val part"):
        evaluate(Bright(), sets, parse_all(["text"]), tmp_path / "run", split="val", settings=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_limit_is_part_of_the_request(sets: list[Dataset], tmp_path: Path) -> None:
    few = replace(QUIET, limit=1)
    rows = evaluate(Bright(), sets, parse_all(["text"]), tmp_path / "run", settings=few)
    assert Counter(row.dataset for row in rows) == {"organs": 3, "cells": 1, "scans": 1}
    with pytest.raises(InputError, match="another settings"):
        evaluate(Bright(), sets, parse_all(["text"]), tmp_path / "run", settings=QUIET)


def test_run_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Run.load(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no run\.json"):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match="is not a JSON object"):
        Run.load(tmp_path)


def test_json_of_numpy_and_of_what_is_not_finite(tmp_path: Path) -> None:
    write_json(
        tmp_path / "a" / "x.json", {"a": np.float32(0.5), "b": [np.nan, float("inf")], "c": np.arange(2), 3: {2, 1}}
    )
    entry = json.loads((tmp_path / "a" / "x.json").read_text())
    assert entry == {"a": 0.5, "b": [None, None], "c": [0, 1], "3": [1, 2]}
    with pytest.raises(TypeError, match="no form in JSON"):
        plain(object())

"""`lexitome compare` as it is typed: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lexitome.cli import compare
from lexitome.errors import InputError
from lexitome.evaluation.rows import ResultRow
from lexitome.evaluation.run_folder import INFO, Run, write_json, write_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from result_rows import row


def rows(gain: float, *, protocol: str = "text") -> list[ResultRow]:
    rng = np.random.default_rng(0)
    return [
        row(0.5 + gain * (dataset == "polyps") + 0.1 * float(rng.random()), dataset=dataset, case=f"c{i}", unit=f"u{i}",
            protocol=protocol)
        for dataset in ("polyps", "nuclei") for i in range(12)
    ]  # fmt: skip


def save(folder: Path, model: str, some: list[ResultRow], *, finished: bool = True) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / INFO, {"model": {"name": model}, "finished": "2026-01-01T00:00:00" if finished else None})
    write_rows(folder, some)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [str(save(tmp_path / name, name, rows(gain))) for name, gain in (("before", 0.0), ("after", 0.2))]


def typed(*words: str) -> int | None:
    return compare.app(list(words), standalone_mode=False)


def test_a_table_and_the_score_are_printed(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(*runs) == 0
    shown = capsys.readouterr().out
    assert "Dice, text: B = after against A = before, in percent" in shown
    assert "B wins on 1, ties on 1, loses on 0 of 2 datasets." in shown
    line = next(line for line in shown.splitlines() if "polyps" in line)
    assert "+20.0 [+20.0, +20.0]" in line and "< 0.001" in line and "B wins" in line and len(line) <= 200
    assert "mean over 2 datasets" in shown and "Holm" in shown


def test_files_hold_the_same_and_are_written_anew(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    for _ in range(2):
        typed(*runs, "-o", str(out), "--metric", "dice", "--metric", "presence")
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.md", "compare.csv"}
    found = json.loads((out / "compare.json").read_text())["results"]
    assert [result["metric"] for result in found] == ["dice", "presence"]
    part = found[0]["comparisons"][0]["protocols"][0]
    lines = list(csv.DictReader((out / "compare.csv").open()))
    assert len(lines) == 6 and float(lines[1]["difference"]) == part["datasets"][1]["difference"]
    assert "| polyps | 12 | 12 |" in (out / "compare.md").read_text()


def test_json_for_programs(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    typed(*runs, "--json", "--metric", "DICE")
    found = json.loads(capsys.readouterr().out)["results"][0]
    assert found["first"] == "before" and found["comparisons"][0]["pairs"] == 24


def test_runs_of_one_model_are_told_apart_by_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(save(tmp_path / where / "run", "compact", rows(0.0))) for where in ("x", "y")]
    typed(*folders, "--json")
    found = json.loads(capsys.readouterr().out)["results"][0]
    assert [found["first"], found["comparisons"][0]["run"]] == folders  # folders of one name: by their paths
    typed(str(save(tmp_path / "third", "compact", rows(0.0))), folders[0], "--json")
    found = json.loads(capsys.readouterr().out)["results"][0]
    assert found["first"] == "compact (third)" and found["comparisons"][0]["run"] == "compact (run)"


def test_the_word_oracle_reaches_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = rows(0.0, protocol="oracle-box")
    folders = [str(save(tmp_path / name, name, some)) for name in ("a", "b")]
    typed(*folders, "-o", str(tmp_path / "out"))
    assert "Dice, oracle-box:" in capsys.readouterr().out
    assert "**Oracle**" in (tmp_path / "out" / "compare.md").read_text()


def test_what_cannot_be_compared_is_refused_in_one_line(runs: list[str], tmp_path: Path) -> None:
    unfinished = save(tmp_path / "half", "half", rows(0.0), finished=False)
    (tmp_path / "file").write_text("")
    for words, cause in (
        (runs[:1], "at least two"),
        ([runs[0], runs[0]], "named twice"),
        ([runs[0], str(tmp_path / "none")], "no such folder"),
        ([runs[0], str(unfinished)], "interrupted"),
        ([runs[0], str(tmp_path / "file")], "not a folder"),
        ([*runs, "--metric", "f1"], "no metric 'f1'"),
    ):
        with pytest.raises(InputError, match=cause):
            typed(*words)
    assert Run.load(runs[0]).name == "before"

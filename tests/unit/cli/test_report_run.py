"""`lexitome report`: where it writes, and what it says when it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lexitome.cli.report_run import app
from lexitome.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from scored_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", sets=1, cases=3)


def test_one_run_is_described_in_its_own_folder(run: Path) -> None:
    done = CliRunner().invoke(app, [str(run)])
    assert done.exit_code == 0, done.output
    assert f"report: {run / 'report.html'}" in done.output
    assert "<img" in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "report.md").is_file()


def test_images_can_be_left_out(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(run), "-o", str(tmp_path / "public"), "--no-images"])
    assert done.exit_code == 0, done.output
    assert "<img" not in (tmp_path / "public" / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "public" / "pictures").exists()


def test_several_runs_need_a_place(run: Path) -> None:
    done = CliRunner().invoke(app, [str(run), str(run)])
    assert isinstance(done.exception, InputError)
    assert "-o DIR" in str(done.exception)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert "lexitome evaluate" in str(done.exception)

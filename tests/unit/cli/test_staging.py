"""Results appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lexitome.cli.staging import REPORT, finished, staged
from lexitome.errors import InputError

REQUEST = {"input": "a.png", "texts": ("polyp",)}


def write_result(folder: Path, text: str = "new") -> None:
    (folder / "polyp.png").write_text(text)
    (folder / REPORT).write_text(json.dumps({"request": REQUEST, "files": ["polyp.png"]}))


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out" / "a"
    with staged(target) as staging:
        write_result(staging)
        assert not (target / "polyp.png").exists()
    assert everything_below(target) == ["polyp.png", REPORT]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, InputError])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged(tmp_path / "out" / "a") as staging:
        write_result(staging)
        raise error("a", "b", "c") if error is InputError else error
    assert everything_below(tmp_path) == []


def test_earlier_results_survive_an_error(tmp_path: Path) -> None:
    write_result(tmp_path, "old")
    with pytest.raises(RuntimeError), staged(tmp_path) as staging:
        write_result(staging)
        raise RuntimeError
    assert everything_below(tmp_path) == ["polyp.png", REPORT]
    assert (tmp_path / "polyp.png").read_text() == "old"


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with staged(tmp_path) as staging:
        write_result(staging)
    assert everything_below(tmp_path) == ["mine.txt", "polyp.png", REPORT]


def test_report_is_gone_while_masks_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted move must not look finished: the report goes first and comes last."""
    write_result(tmp_path, "old")
    seen = []
    move = os.replace

    def watch(source: Path, target: Path) -> None:
        seen.append((target.name, (tmp_path / REPORT).exists()))
        move(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with staged(tmp_path) as staging:
        write_result(staging)
    assert seen == [("polyp.png", False), (REPORT, False)]


def test_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), staged(tmp_path / "file" / "out"):
        pass


def test_finished(tmp_path: Path) -> None:
    assert not finished(tmp_path, REQUEST)
    write_result(tmp_path)
    assert finished(tmp_path, REQUEST)
    (tmp_path / "polyp.png").unlink()
    assert not finished(tmp_path, REQUEST)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"files": []}', '{"request": {}, "files": [3]}'])
def test_a_broken_report_is_not_finished(tmp_path: Path, content: str) -> None:
    (tmp_path / REPORT).write_text(content)
    assert not finished(tmp_path, REQUEST)


def test_results_of_another_request_are_not_overwritten(tmp_path: Path) -> None:
    write_result(tmp_path)
    with pytest.raises(InputError, match="another request"):
        finished(tmp_path, {**REQUEST, "texts": ("lesion",)})

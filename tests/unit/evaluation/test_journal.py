"""Interrupted evaluations continue, and only the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lexitome.errors import InputError
from lexitome.evaluation.journal import Done, Journal
from lexitome.evaluation.rows import ResultRow

ASKED, GIVEN = {"model": "m", "seed": 0}, {"program": "1", "images": "a"}


def opened(folder: Path, asked: Mapping[str, Any] = ASKED, given: Mapping[str, Any] = GIVEN) -> Journal:
    return Journal(folder / "RUN" / "ledger" / "set.jsonl", asked, given)


def row(case: str, **metrics: float | None) -> ResultRow:
    return ResultRow("set", "test", case, "u", "ct", 2, "liver", False, "m", "text", True, metrics=metrics)


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.add("a", Done((row("a", dice=np.float64(0.1), hd=None, nsd=float("nan")),)))
    journal.add("b", Done(unreadable="b.png is damaged"))
    again = opened(tmp_path)
    assert dict(again.done) == dict(journal.done) and not again.changed
    assert again.done["a"].rows == (row("a", dice=0.1, hd=None, nsd=None),)
    assert again.done["b"].unreadable == "b.png is damaged"


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_line_that_was_cut_short_does_not_count(tmp_path: Path, cut: int) -> None:
    journal = opened(tmp_path)
    journal.add("a", Done((row("a"),)))
    path = tmp_path / "RUN" / "ledger" / "set.jsonl"
    whole = path.read_bytes()
    journal.add("b", Done((row("b"),)))
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:cut])
    again = opened(tmp_path)
    assert set(again.done) == {"a"}
    again.add("b", Done((row("b"),)))
    assert set(opened(tmp_path).done) == {"a", "b"}


def test_another_request_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    opened(tmp_path).add("a", Done((row("a"),)))
    with pytest.raises(InputError, match=r"RUN: holds a run with another seed\. Choose another folder with -o"):
        opened(tmp_path, {**ASKED, "seed": 1})
    assert set(opened(tmp_path).done) == {"a"}


def test_other_weights_or_images_begin_anew_and_say_so(tmp_path: Path) -> None:
    opened(tmp_path).add("a", Done((row("a"),)))
    changed = opened(tmp_path, given={**GIVEN, "images": "b"})
    assert changed.changed == ("images",) and not changed.done
    assert not opened(tmp_path).done  # the old numbers are gone


def test_a_damaged_first_line_begins_anew(tmp_path: Path) -> None:
    opened(tmp_path).add("a", Done((row("a"),)))
    path = tmp_path / "RUN" / "ledger" / "set.jsonl"
    path.write_bytes(b'{"asked": {' + path.read_bytes()[30:])
    assert not opened(tmp_path).done


def test_threads_may_add(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: journal.add(f"c{i}", Done((row(f"c{i}"),))), range(60)))
    assert set(opened(tmp_path).done) == {f"c{i}" for i in range(60)}

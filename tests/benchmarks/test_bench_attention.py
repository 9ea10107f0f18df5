"""The benchmark of attention: both ways give the same, and ours is what it says."""

from __future__ import annotations

import pytest

bench = pytest.importorskip("attention")


@pytest.mark.parametrize("purpose", ["training", "frozen"])
@pytest.mark.parametrize("keys", [9, 190, 260])
def test_both_ways_are_timed_and_agree(purpose: str, keys: int) -> None:
    row = bench.measure(purpose, keys, repeats=1)
    assert row["times"] > 0 and row["changed"] == (keys == (9 if purpose == "training" else 260))
    assert all(0 < error < 0.03 for error in row["error"].values())
    assert (row["error"]["torch"] != row["error"]["ours"]) == row["changed"]

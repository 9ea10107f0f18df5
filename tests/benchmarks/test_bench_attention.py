"""The benchmark of attention: both ways give the same, and the engine's does what it says."""

from __future__ import annotations

import pytest

bench = pytest.importorskip("attention")


@pytest.mark.parametrize("keys", [9, bench.LONG_ATTENTION + 8])
def test_both_ways_are_timed_and_agree(keys: int) -> None:
    row = bench.measure(keys, repeats=1)
    assert row["times"] > 0 and row["in_float32"] == (keys <= bench.LONG_ATTENTION)
    assert all(0 < error < 0.03 for error in row["error"].values())

"""Tables of results: written, read again, and those of earlier versions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from result_rows import row

from lexitome.errors import InputError
from lexitome.evaluation.rows import read_csv, to_csv

BINS = "812:3.5:2 0 155:153.25:150"


def test_rows_survive_a_table(tmp_path: Path) -> None:
    rows = [row(0.5, bins=BINS, seconds=0.1, taught=False, note='a "quoted", note'), row(presence=0.25)]
    (tmp_path / "rows.csv").write_text(to_csv(rows), encoding="utf-8")
    again = read_csv(tmp_path / "rows.csv")
    assert again[0] == rows[0] and again[1].bins == "" and again[1].presence == 0.25


def test_a_table_of_an_earlier_version_has_no_bins(tmp_path: Path) -> None:
    lines = list(csv.reader(to_csv([row(0.5, bins=BINS)]).splitlines()))
    gone = lines[0].index("bins")
    old = "\n".join(",".join(cell for i, cell in enumerate(line) if i != gone) for line in lines)
    (tmp_path / "rows.csv").write_text(old, encoding="utf-8")
    assert read_csv(tmp_path / "rows.csv") == [row(0.5)]


def test_damaged_bins_are_refused_when_the_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(to_csv([row(0.5, bins="812:3.5")]), encoding="utf-8")
    with pytest.raises(InputError, match=r"not a table of results \(bins '812:3\.5'\)"):
        read_csv(tmp_path / "rows.csv")


@pytest.mark.parametrize("cut", ["dataset", "status"])
def test_a_table_without_a_column_is_refused(tmp_path: Path, cut: str) -> None:
    (tmp_path / "rows.csv").write_text(to_csv([row(0.5)]).replace(cut, "other", 1), encoding="utf-8")
    with pytest.raises(InputError, match=f"not a table of results .*{cut}"):
        read_csv(tmp_path / "rows.csv")

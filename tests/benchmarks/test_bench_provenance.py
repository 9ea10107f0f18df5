"""A work folder belongs to one set of settings; what may grow is not forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

provenance = pytest.importorskip("provenance")

from lexitome.errors import InputError  # noqa: E402


def test_a_work_folder_keeps_its_settings(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    wanted = {"minutes": 5.0, "sides": (160, 320), "limit": None}
    provenance.claim(work, wanted)
    provenance.claim(work, wanted, growing={"first": "abc"})
    provenance.claim(work, wanted, growing={"second": "def"})
    for settings, growing in (({**wanted, "minutes": 6.0}, {}), ({**wanted, "seed": 0}, {}), (wanted, {"first": "x"})):
        before = (work / "settings.json").read_text()
        with pytest.raises(InputError, match="begun with other settings"):
            provenance.claim(work, settings, growing=growing)
        assert (work / "settings.json").read_text() == before

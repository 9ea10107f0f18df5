"""The generated parts of the documentation are what the code says now."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from lexitome.cli.console import EXIT_CODES

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["docs/cli.md", "README.md"])
def test_page_is_up_to_date(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    update = runpy.run_path(str(ROOT / "docs" / "update.py"))["PAGES"][name]
    assert update(page) == page, "run `make docs`"


def test_cli_page_documents_every_command_and_exit_code() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in ("segment", "demo", "models", "info", "doctor", "check"):
        assert f"$ lexitome {command} --help\nUsage: lexitome {command} " in page
    assert all(f"| {code} | {meaning} |" in page for code, meaning in EXIT_CODES.items())


def test_readme_map_has_every_module_that_says_what_it_is() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = [path for path in (ROOT / "src" / "lexitome").rglob("*.py") if path.stat().st_size > 0]
    missing = [
        path for path in modules if f"| `{path.relative_to(ROOT / 'src' / 'lexitome').as_posix()}` |" not in page
    ]
    assert not missing

"""Renew the generated parts of the documentation; `make docs` runs it, and tests compare.

* docs/cli.md: the help of each command, and the table of exit codes.
* README.md: the file map, one line for each module, from the first sentence of its docstring.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
from pathlib import Path
from unittest.mock import patch

from lexitome.cli import main
from lexitome.cli.console import EXIT_CODES

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"```text\n\$ lexitome (?P<arguments>[^\n]*)\n.*?```", re.DOTALL)
_TABLE = re.compile(r"(?<=\| code \| meaning \|\n\|---\|---\|\n)(\| \d+ \|[^\n]*\n)*")
_MAP = re.compile(r"(?<=<!-- file map -->\n).*?(?=<!-- end of file map -->)", re.DOTALL)


def help_text(arguments: str) -> str:
    """What `lexitome ARGUMENTS` prints in a terminal of 80 columns."""
    shown = io.StringIO()
    with patch.dict(os.environ, COLUMNS="80"), contextlib.redirect_stdout(shown):
        main(arguments.split())
    return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())


def update_cli(page: str) -> str:
    """docs/cli.md with its generated parts as they are now."""
    page = _BLOCK.sub(lambda m: f"```text\n$ lexitome {m['arguments']}\n{help_text(m['arguments'])}\n```", page)
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    return _TABLE.sub(lambda _: rows, page, count=1)


def file_map() -> str:
    """A line for each module below src/lexitome, folder by folder; empty `__init__` files are left out."""
    package = ROOT / "src" / "lexitome"
    lines = []
    for path in sorted(package.rglob("*.py"), key=lambda path: (len(path.relative_to(package).parts), path)):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring:
            summary = re.split(r"(?<=[^.])\.(?=\s|$)", " ".join(docstring.split("\n\n")[0].split()))[0]
            lines.append(f"| `{path.relative_to(package).as_posix()}` | {summary.replace('|', '/')} |\n")
    return "\n| src/lexitome/ | what it holds |\n|---|---|\n" + "".join(lines) + "\n"


def update_readme(page: str) -> str:
    return _MAP.sub(lambda _: file_map(), page, count=1)


PAGES = {"docs/cli.md": update_cli, "README.md": update_readme}

if __name__ == "__main__":
    for name, update in PAGES.items():
        path = ROOT / name
        path.write_text(update(path.read_text(encoding="utf-8")), encoding="utf-8")

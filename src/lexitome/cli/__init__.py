"""The command line, `lexitome`: a module for each group of commands; `app` joins them and gives errors exit codes."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lexitome` with `arguments` (by default the process's own) and return the exit code."""
    from lexitome.cli.app import run

    return run(arguments)

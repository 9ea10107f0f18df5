"""The `lexitome` command: all groups of commands in one, errors as one line, exit codes."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from lexitome import __version__
from lexitome.cli import (
    benchmark,
    check_data,
    compare,
    demo,
    describe,
    evaluate,
    export,
    pretrain,
    probe,
    report_run,
    segment,
    train,
)
from lexitome.cli.console import BAD_INPUT, OK, TERMINATED, Console
from lexitome.cli.options import Debug

# Plain help: quick to start, easy to grep, and the same in docs/cli.md.
app = typer.Typer(name="lexitome", no_args_is_help=True, add_completion=False, rich_markup_mode=None)
MEASURING = (evaluate.app, probe.app, compare.app, report_run.app, benchmark.app)
for group in (segment.app, demo.app, describe.app, check_data.app, train.app, pretrain.app, export.app, *MEASURING):
    app.add_typer(group)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lexitome {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Say what to find, get the mask: text-, box- and point-prompted segmentation of medical images."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; see `console.EXIT_CODES`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        with _libraries_silent(unless=debug), _termination_unwinds():
            code = app(given, prog_name="lexitome", standalone_mode=False)
    except typer.TyperException as error:
        if not given:
            print(error.format_message())
            return OK
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        print(f"error: {message} (see lexitome --help)", file=sys.stderr)
        return BAD_INPUT
    except (Exception, KeyboardInterrupt) as error:
        return Console(debug=debug).error(error)
    return int(code or OK)


@contextmanager
def _libraries_silent(*, unless: bool) -> Iterator[None]:
    """Libraries warn and log about what they stumble over, header values included: nothing for a user's screen."""
    if unless:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """A polite kill unwinds the stack as Ctrl-C does, so that half-written results are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)

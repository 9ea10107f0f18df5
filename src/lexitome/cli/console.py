"""What the user reads: results on stdout, everything about the run on stderr."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass

from lexitome.errors import InputError, Interrupted

OK = 0
UNEXPECTED = 1
BAD_INPUT = 2
SOME_FAILED = 3
INTERRUPTED = 130
TERMINATED = 143

EXIT_CODES = {
    OK: "done; an absent target (`not found`) is a result, not a failure",
    UNEXPECTED: "an error in lexitome itself, or the reader of its output went away",
    BAD_INPUT: "the command line or the input cannot be used; nothing was written",
    SOME_FAILED: "several inputs were given and at least one failed; the others are done",
    INTERRUPTED: "stopped with Ctrl-C; the input being worked on left nothing, finished ones are kept; so is training",
    TERMINATED: "stopped by a termination signal; as above",
}


@dataclass(frozen=True)
class Console:
    """How much is said. `debug` adds tracebacks to errors, `as_json` asks for reports instead of sentences."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False
    as_json: bool = False

    def say(self, line: str) -> None:
        """A result, on stdout."""
        if not self.quiet:
            print(line, flush=True)

    def note(self, line: str) -> None:
        """Something that was done to the input or skipped, on stderr."""
        if not self.quiet:
            print(f"note: {line}", file=sys.stderr, flush=True)

    def detail(self, line: str) -> None:
        if self.verbose:
            print(line, file=sys.stderr, flush=True)

    def error(self, error: BaseException, about: str = "") -> int:
        """One line on stderr, also with --quiet; returns the exit code that the error stands for."""
        if self.debug:
            traceback.print_exception(error, file=sys.stderr)
        code, line = explain(error)
        prefix = f"{about}: " if about and not line.startswith(about) else ""
        print(f"error: {prefix}{line}", file=sys.stderr, flush=True)
        return code


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line for an exception that ended a command or a job."""
    if isinstance(error, Interrupted):
        return 128 + error.number, str(error)
    if isinstance(error, InputError):
        return BAD_INPUT, str(error)
    if isinstance(error, MemoryError):
        return BAD_INPUT, "not enough memory. Close other programs, or cut the image into smaller parts."
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; what was not finished left nothing behind"
    words = " ".join(str(error).split())
    return UNEXPECTED, f"unexpected {type(error).__name__}: {words}. Run again with --debug and report what it shows."

"""What the commands that train and export share: the packages of the extra, and where decoded pictures lie in a run."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lexitome.errors import InputError

CACHE = "decoded"
"""Folder of decoded pictures in a run folder."""
NEEDED = ("torch", "accelerate", "safetensors", "onnx")


def need_packages(command: str) -> None:
    """Raises InputError where the extra is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"lexitome {command}", f"needs {', '.join(missing)}", 'Type: pip install "lexitome[train]"')


def say_tested(
    say: Callable[[str], None], scores: Mapping[str, float], what: str, model: Path, data: Sequence[str]
) -> None:
    """The last lines of a run: shares of 1 that the test part gave, of `what`, and how to measure the model in full."""
    test = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())
    say(f"test part    {test or 'has no pictures'}: {what}")
    say(f"next         lexitome evaluate --model {shlex.quote(str(model))} --data {' '.join(map(shlex.quote, data))}")

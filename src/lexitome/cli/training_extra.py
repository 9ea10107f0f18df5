"""What the commands that train and export share: the packages of the extra, and where decoded pictures lie in a run."""

from __future__ import annotations

import importlib.util

from lexitome.errors import InputError

CACHE = "decoded"
"""Folder of decoded pictures in a run folder."""
NEEDED = ("torch", "accelerate", "safetensors", "onnx")


def need_packages(command: str) -> None:
    """Raises InputError where the extra is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"lexitome {command}", f"needs {', '.join(missing)}", 'Type: pip install "lexitome[train]"')

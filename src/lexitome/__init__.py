"""Lexitome: say what to find, get the mask.

    import lexitome
    result = lexitome.segment("fundus.jpg", ["optic disc", "retinal vessel"])
    result["optic disc"].mask        # (Z, Y, X) bool on the image's own grid

Importing the package loads nothing; each public name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lexitome.api import segment
    from lexitome.concepts import Concept
    from lexitome.errors import InputError
    from lexitome.io import from_array, read
    from lexitome.prompts import Box, Point, Text
    from lexitome.segmentation import Segmentation
    from lexitome.volume import Volume

__version__ = "0.1.0"

__all__ = [
    "Box",
    "Concept",
    "InputError",
    "Point",
    "Segmentation",
    "Text",
    "Volume",
    "__version__",
    "from_array",
    "read",
    "segment",
]

_HOME = {
    "Box": "prompts",
    "Concept": "concepts",
    "InputError": "errors",
    "Point": "prompts",
    "Segmentation": "segmentation",
    "Text": "prompts",
    "Volume": "volume",
    "from_array": "io",
    "read": "io",
    "segment": "api",
}
"""Public name to the module that holds it."""


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

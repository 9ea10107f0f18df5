"""Colours of findings: the same in previews, label tables and DICOM objects, to be told apart anywhere."""

from __future__ import annotations

import colorsys

RGB = tuple[int, int, int]

_FIRST: tuple[RGB, ...] = (
    (0, 200, 255),
    (255, 209, 0),
    (255, 78, 160),
    (88, 224, 95),
    (255, 138, 51),
    (152, 120, 255),
    (0, 230, 190),
    (245, 105, 95),
    (190, 235, 60),
    (95, 150, 255),
)
"""Chosen by eye: bright enough on black, distinct from each other and from the red of retina, skin and mucosa."""

_GOLDEN = 0.618033988749895


def colour(index: int) -> RGB:
    """The colour of finding `index` (0-based), 8-bit sRGB; beyond the table, hues at the golden ratio."""
    if index < len(_FIRST):
        return _FIRST[index]
    step = index - len(_FIRST)
    red, green, blue = colorsys.hsv_to_rgb((0.08 + _GOLDEN * step) % 1.0, 0.55 + 0.3 * (step % 2), 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)

"""One picture that shows what was found: the image, the masks on it, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lexitome.inference.legend import MUTED, TEXT, Face, draw_legend, face, legend_height
from lexitome.inference.slices import Slice, planar_slice, three_slices, to_screen, window_of
from lexitome.palette import RGB, colour
from lexitome.segmentation import Segmentation

BACKGROUND = (17, 20, 24)

_FILL = 0.30
"""Opacity of a mask: the tissue below must stay readable."""
_OVERSAMPLING = 2
"""Masks are drawn this much larger and shrunk, which smooths their edges."""
_BAR_LENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Scale bars in mm."""


@dataclass(frozen=True)
class _Panel:
    title: str
    part: Slice
    overlay: bool
    bar: bool = False


def preview(segmentation: Segmentation, *, max_side: int = 1024) -> NDArray[np.uint8]:
    """(H, W, 3) sRGB picture, at most `max_side` pixels wide and high.

    A 2D image is shown beside itself with the masks on it; a volume by an axial, a coronal and a sagittal slice
    through the largest finding, to scale, the way radiologists hang them (patient's right on the viewer's left).
    Below stand the findings with colour, size and presence.
    """
    if max_side < 256:
        raise ValueError(f"max_side must be at least 256 to be readable, got {max_side}")
    margin = max(8, max_side // 64)
    text = face(max(10, max_side // 64))
    legend = legend_height(segmentation, text, max_side - 2 * margin, max_side // 3)
    room = (max_side - 2 * margin, max_side - 3 * margin - legend)
    columns = _arrangement(segmentation, room, margin, text)
    scale = _scale(columns, room, margin, text)
    widths = [max(_pixels(panel, scale)[0] for panel in column) for column in columns]
    heights = [sum(_pixels(panel, scale)[1] + text.height for panel in c) + margin * (len(c) - 1) for c in columns]
    # A narrow picture would squeeze the legend, so the full width is kept.
    canvas = Image.new("RGB", (max_side, max(heights) + legend + 3 * margin), BACKGROUND)
    window = window_of(segmentation)
    x = (max_side - sum(widths) - margin * (len(columns) - 1)) // 2
    for column, width, height in zip(columns, widths, heights, strict=True):
        # Panels of a single row share their middle line; stacked ones start at the top.
        y = margin + ((max(heights) - height) // 2 if all(len(c) == 1 for c in columns) else 0)
        for panel in column:
            picture = _draw_panel(panel, segmentation, window, _pixels(panel, scale), text)
            ImageDraw.Draw(canvas).text((x, y), panel.title, font=text.font, fill=MUTED)
            canvas.paste(picture, (x, y + text.height))
            y += picture.height + text.height + margin
        x += width + margin
    draw_legend(canvas, segmentation, text, (margin, canvas.height - margin - legend, max_side - margin, canvas.height))
    return np.asarray(canvas)


def _arrangement(segmentation: Segmentation, room: tuple[int, int], gap: int, text: Face) -> list[list[_Panel]]:
    """Panels in columns: side by side, unless another way shows them much larger."""
    if segmentation.volume.is_2d:
        part = planar_slice(segmentation.volume)
        first, second = _Panel(f"Image   {part.title}", part, False), _Panel("Findings", part, True, bar=True)
        choices = [[[first], [second]], [[first, second]]]
    else:
        parts = three_slices(segmentation)
        # One scale bar is enough: all three have the same scale.
        axial, coronal, sagittal = (_Panel(p.title, p, True, bar=p is parts[0]) for p in parts)
        choices = [[[axial], [coronal], [sagittal]], [[axial], [coronal, sagittal]], [[axial, coronal, sagittal]]]
    best = max(choices, key=lambda columns: _scale(columns, room, gap, text))
    much_larger = _scale(best, room, gap, text) > 1.25 * _scale(choices[0], room, gap, text)
    return best if much_larger else choices[0]


def _scale(columns: list[list[_Panel]], room: tuple[int, int], gap: int, text: Face) -> float:
    """Screen pixels per mm (or image pixel) at which the columns fill the room; one scale for all panels."""
    width = room[0] - gap * (len(columns) - 1)
    scales = [width / sum(max(panel.part.size[0] for panel in column) for column in columns)]
    for column in columns:
        height = room[1] - gap * (len(column) - 1) - text.height * len(column)
        scales.append(height / sum(panel.part.size[1] for panel in column))
    return min(scales)


def _pixels(panel: _Panel, scale: float) -> tuple[int, int]:
    width, height = panel.part.size
    return max(1, int(width * scale)), max(1, int(height * scale))


def _draw_panel(
    panel: _Panel, segmentation: Segmentation, window: tuple[float, float], size: tuple[int, int], text: Face
) -> Image.Image:
    volume = segmentation.volume
    picture = Image.fromarray(to_screen(volume, panel.part, window)).resize(size, Image.Resampling.BICUBIC)
    if panel.overlay:
        # Large ones first, so that small structures stay visible on top.
        for index in sorted(range(len(segmentation.findings)), key=lambda i: -segmentation.findings[i].mask.sum()):
            mask = panel.part.of(segmentation.findings[index].mask)
            if mask.any():
                _draw_mask(picture, mask, colour(index))
    draw = ImageDraw.Draw(picture)
    width, height = size
    pad = text.height // 3
    places = (
        (pad, height / 2, "lm"),
        (width / 2, pad, "mt"),
        (width - pad, height / 2, "rm"),
        (width / 2, height - pad, "mb"),
    )
    for letter, (x, y, anchor) in zip(panel.part.letters, places, strict=True):
        if letter:
            draw.text((x, y), letter, font=text.font, fill=TEXT, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    if volume.spacing_known and panel.bar:
        _draw_bar(draw, size, panel.part.size[0], text)
    return picture


def _draw_mask(picture: Image.Image, mask: NDArray[np.generic], rgb: RGB) -> None:
    """A see-through fill, an opaque outline inside the mask's edge and a thin dark one outside it."""
    part, place = _window_around(mask, picture.size)
    size = (place[2] - place[0], place[3] - place[1])
    large = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    cover = Image.fromarray(mask.astype(np.uint8) * 255).resize(large, Image.Resampling.BILINEAR, box=part)
    # A shrunk structure covers little of each pixel; a low threshold keeps vessels and specks in the picture.
    level = 127 if picture.width >= mask.shape[1] // 2 else 80
    level = min(level, int(np.asarray(cover).max()) // 2)
    solid = cover.point(lambda value: 255 if value > level else 0)
    edge = ImageChops.subtract(solid, solid.filter(ImageFilter.MinFilter(2 * _OVERSAMPLING + 1)))
    halo = ImageChops.subtract(solid.filter(ImageFilter.MaxFilter(2 * _OVERSAMPLING + 1)), solid)
    fill = ImageChops.lighter(solid.point(lambda value: round(value * _FILL)), edge)
    picture.paste((0, 0, 0), place, halo.point(lambda value: round(value * 0.35)).resize(size, Image.Resampling.BOX))
    picture.paste(rgb, place, fill.resize(size, Image.Resampling.BOX))


def _window_around(
    mask: NDArray[np.generic], shown: tuple[int, int]
) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    """(left, top, right, bottom) around the mask with some background: in its own pixels, and in the picture's."""
    spans = []
    for axis, pixels in ((0, shown[0]), (1, shown[1])):
        inside, scale = np.flatnonzero(mask.any(axis=axis)), pixels / mask.shape[1 - axis]
        first, last = int((inside[0] - 2) * scale) - 4, int((inside[-1] + 3) * scale) + 4
        spans.append((max(0, first), min(pixels, last), scale))
    (left, right, across), (top, bottom, down) = spans
    return (left / across, top / down, right / across, bottom / down), (left, top, right, bottom)


def _draw_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], width_mm: float, text: Face) -> None:
    """A scale bar of a round length, at most a quarter of the panel."""
    fitting = [length for length in _BAR_LENGTHS if length <= width_mm / 4]
    if not fitting:
        return
    length, pad = fitting[-1], text.height // 2
    name = f"{length / 10:g} cm" if length >= 10 else f"{length:g} mm"
    x0, y0 = pad, size[1] - pad
    x1 = x0 + length / width_mm * size[0]
    draw.rectangle((x0 - 1, y0 - 3, x1 + 1, y0 + 1), fill=(0, 0, 0))
    draw.rectangle((x0, y0 - 2, x1, y0), fill=TEXT)
    place = (x0, y0 - 5)
    draw.text(place, name, font=text.font, fill=TEXT, anchor="ls", stroke_width=2, stroke_fill=(0, 0, 0))

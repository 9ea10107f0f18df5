"""The lines below a preview: colour, name, size and presence of each finding, in any script or a readable stand-in."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from lexitome.inference.statistics import size
from lexitome.palette import colour
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import Volume

TEXT = (232, 236, 241)
MUTED = (138, 148, 160)
WARNING = (224, 176, 96)

_SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKkr-Regular.otf", "NotoSansKR-Regular.otf"),
    *("NanumGothic.ttf", "malgun.ttf", "AppleSDGothicNeo.ttc", "PingFang.ttc", "msyh.ttc", "simhei.ttf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "unifont.ttf", "Arial Unicode.ttf"),
)
"""Looked for only when a name has letters that the font inside Pillow lacks."""

_MISSING = "\uffff"
"""Never a character, so every font draws its sign for a missing glyph."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Face:
    """A font at one size; `height` is the pitch of lines in pixels."""

    font: Font
    height: int


@lru_cache(maxsize=16)
def face(points: int) -> Face:
    return Face(ImageFont.load_default(points), round(points * 1.5))


def readable(finding: Finding, index: int, points: int) -> tuple[str, Font]:
    """What to call a finding in the picture, and the font that has all its letters.

    The name as typed where some font has it; else without accents, else the concept's English name, else
    "finding 1". Never a row of boxes.
    """
    name = "".join(char if char.isprintable() else " " for char in finding.name)
    name = " ".join(unicodedata.normalize("NFC", name).split()) or f"finding {index + 1}"
    plain = face(points).font
    for font in (plain, *(() if _has_all(plain, name) else _system_fonts(points))):
        if _has_all(font, name):
            return name, font
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    if sum(map(str.isalnum, ascii_name)) >= sum(map(str.isalnum, name)):
        return ascii_name, plain
    if finding.concept is not None and finding.concept.name.isascii():
        return finding.concept.name, plain
    return f"finding {index + 1}", plain


def legend_height(segmentation: Segmentation, text: Face, width: int, limit: int) -> int:
    """Pixels that the legend of all findings takes, at most `limit` (then some are only counted)."""
    rows = -(-len(segmentation.findings) // _columns(width, text, len(segmentation.findings)))
    return min(rows * text.height, max(text.height, limit // text.height * text.height))


def draw_legend(canvas: Image.Image, segmentation: Segmentation, text: Face, area: tuple[int, int, int, int]) -> None:
    """Draw into `area` (left, top, right, bottom) of the canvas, filling columns from left to right."""
    left, top, right, bottom = area
    findings = segmentation.findings
    columns = _columns(right - left, text, len(findings))
    places = max(1, (bottom - top) // text.height) * columns
    shown = len(findings) if len(findings) <= places else places - 1
    pitch = (right - left + 2 * text.height) // columns
    draw = ImageDraw.Draw(canvas)
    for index in range(shown):
        x, y = left + index % columns * pitch, top + index // columns * text.height
        _draw_entry(draw, findings[index], index, segmentation.volume, (x, y, pitch - 2 * text.height, text))
    if shown < len(findings):
        x, y = left + shown % columns * pitch, top + shown // columns * text.height
        draw.text((x, y), f"+ {len(findings) - shown} more", font=text.font, fill=MUTED)


def measure_text(finding: Finding, volume: Volume) -> str:
    """Size in the unit a reader expects: ml, mm2 or cm2 (the built-in font has no superscripts), voxels or pixels."""
    key, amount = size(finding.mask, volume)
    if key == "area_mm2" and amount >= 10_000:
        return f"{amount / 100:,.0f} cm2"
    unit = {"volume_ml": "ml", "area_mm2": "mm2", "area_px": "px", "volume_voxels": "voxels"}[key]
    if isinstance(amount, int) or amount >= 100:
        return f"{amount:,.0f} {unit}"
    return f"{amount:.3g} {unit}"


def _columns(width: int, text: Face, count: int) -> int:
    return max(1, min(count, width // (text.height * 20)))


def _draw_entry(
    draw: ImageDraw.ImageDraw, finding: Finding, index: int, volume: Volume, place: tuple[int, int, int, Face]
) -> None:
    x, y, width, text = place
    points = round(text.height / 1.5)
    chip = round(points * 0.85)
    top = y + (text.height - chip) // 2
    box = (x, top, x + chip, top + chip)
    if finding.found:
        draw.rounded_rectangle(box, radius=chip // 4, fill=colour(index))
        values = f"{measure_text(finding, volume)}  ·  presence {finding.presence:.0%}"
    else:
        draw.rounded_rectangle(box, radius=chip // 4, outline=MUTED, width=1)
        values = f"not found  ·  presence {finding.presence:.0%}"
    middle = y + text.height // 2
    taken = draw.textlength(values, font=text.font)
    draw.text((x + width, middle), values, font=text.font, fill=MUTED, anchor="rm")
    name, font = readable(finding, index, points)
    room = width - taken - chip - 2 * points
    name = _shorten(draw, name, font, room)
    start = x + chip + points // 2
    draw.text((start, middle), name, font=font, fill=TEXT if finding.found else MUTED, anchor="lm")
    if finding.notes:
        used = draw.textlength(name, font=font) + points
        note = _shorten(draw, " ".join(finding.notes[0].split()), text.font, room - used)
        if len(note) > 12 and _has_all(text.font, note):
            draw.text((start + used, middle), note, font=text.font, fill=WARNING, anchor="lm")


def _shorten(draw: ImageDraw.ImageDraw, name: str, font: Font, width: float) -> str:
    if draw.textlength(name, font=font) <= width:
        return name
    while len(name) > 1 and draw.textlength(name + "...", font=font) > width:
        name = name[:-1]
    return name.rstrip() + "..."


def _has_all(font: Font, text: str) -> bool:
    return all(_has(font, char) for char in set(text) if not char.isspace())


@lru_cache(maxsize=4096)
def _has(font: Font, char: str) -> bool:
    if isinstance(font, ImageFont.ImageFont):
        return char.isascii()
    drawn, missing = font.getmask(char), font.getmask(_MISSING)
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


@lru_cache(maxsize=4)
def _system_fonts(points: int) -> tuple[Font, ...]:
    fonts = []
    for name in _SYSTEM_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, points))
        except OSError:
            continue
    return tuple(fonts)

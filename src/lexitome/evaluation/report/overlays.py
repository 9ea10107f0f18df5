"""Examples to look at: which cases to show, and a case's image with the outlines of reference and prediction.

    RUN/overlays.json      one entry for each example, see `Example`
    RUN/overlays/*.png     the pictures

A runner picks the examples when all rows are known (`choose_examples`), draws each (`render_overlay`) and stores them
(`save_examples`); a report shows what is there (`load_examples`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from lexitome.errors import InputError
from lexitome.evaluation.rows import ResultRow
from lexitome.inference.slices import Slice, planar_slice, three_slices, to_screen, window_of
from lexitome.io.atomic import replacing
from lexitome.palette import RGB, colour
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import Volume

INDEX, FOLDER = "overlays.json", "overlays"
REFERENCE, PREDICTION = colour(0), colour(1)
"""Sky blue and amber: apart in hue on the blue-yellow axis, which red-green blindness leaves intact, and in lightness,
for all others."""
Rank = Literal["worst", "median", "best"]
RANKS: tuple[Rank, ...] = ("worst", "median", "best")

_SHOWN = 320
"""Pixels of the longer side."""
_CLOSE_UP = 0.4
"""A target that spans less of the image than this is shown enlarged."""
_CONTEXT = 2.2
"""Width of a close-up by the width of what is in it."""
_LEAST_CLOSE_UP = 48
"""Pixels of the image that a close-up shows at least."""
_OVERSAMPLING = 2
_WIDE = (4, 2)
"""Pixels of the outlines of reference and prediction: where both coincide, both are seen."""
_REMEDY = "Evaluate again, or delete the file."


@dataclass(frozen=True)
class Example:
    """An entry of RUN/overlays.json.

    Args:
        file: relative to the run, with forward slashes.
        score: of the metric that ranked the case, a share.
        place: which slice is shown, and whether it is enlarged; "" for the whole of a 2D image.
    """

    file: str
    dataset: str
    case: str
    concept: str
    model: str
    protocol: str
    rank: Rank
    score: float
    place: str = ""


def choose_examples(rows: Iterable[ResultRow], metric: str = "dice") -> list[tuple[ResultRow, Rank]]:
    """For each (dataset, model, protocol) its worst, median and best row by `metric`, among targets that are there.

    Ties fall to the first by case and concept, so the choice does not depend on the order of the rows. Fewer than
    three rows give fewer examples; no row is shown twice.
    """
    groups: dict[tuple[str, str, str], list[ResultRow]] = {}
    for row in rows:
        if row.present and not row.derived and row.metrics.get(metric) is not None:
            groups.setdefault((row.dataset, row.model, row.protocol), []).append(row)
    chosen: list[tuple[ResultRow, Rank]] = []
    for group in groups.values():
        ordered = sorted(group, key=lambda row: (row.metrics[metric], row.case, row.concept))
        last = len(ordered) - 1
        few: dict[int, dict[int, Rank]] = {0: {0: "median"}, 1: {0: "worst", 1: "best"}}
        picked = few.get(last, {0: "worst", len(ordered) // 2: "median", last: "best"})
        chosen += [(ordered[index], rank) for index, rank in picked.items()]
    return chosen


def render_overlay(
    volume: Volume, prediction: NDArray[np.bool_], reference: NDArray[np.bool_], *, side: int = _SHOWN
) -> tuple[bytes, str]:
    """A PNG of one slice with both outlines, the reference's the wider one below; and which slice it is, in words.

    Args:
        prediction: (Z, Y, X), as `reference`.
        side: pixels of the longer side.

    A volume is cut where both masks together are fullest, axially and the way radiologists hang it; pixels that are
    not square in mm are shown at their true aspect. Small targets are enlarged.
    """
    union = prediction | reference
    shown = Segmentation(volume, (Finding("either", union, 1.0, 1.0),))
    part = planar_slice(volume) if volume.is_2d else three_slices(shown)[0]
    pixels = to_screen(volume, part, window_of(shown))
    box, enlarged = _view(part.of(union))
    left, top, right, bottom = box
    across, down = part.size[0] / pixels.shape[1], part.size[1] / pixels.shape[0]
    width, height = (right - left) * across, (bottom - top) * down
    size = tuple(max(1, round(side * length / max(width, height))) for length in (width, height))
    picture = Image.fromarray(pixels).crop(box).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    masks = [part.of(mask)[top:bottom, left:right] for mask in (reference, prediction)]
    edges = [_edge(mask, picture.size, wide) for mask, wide in zip(masks, _WIDE, strict=True)]
    for edge in edges:
        _paint(picture, (0, 0, 0), _halo(edge).point(lambda value: value // 3))
    for edge, rgb in zip(edges, (REFERENCE, PREDICTION), strict=True):
        _paint(picture, rgb, edge)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue(), _words(part, volume, enlarged=enlarged)


def _view(union: NDArray[np.generic]) -> tuple[tuple[int, int, int, int], bool]:
    """(left, top, right, bottom) of what is shown of a (H, W) plane, and whether it is a part only."""
    height, width = union.shape
    whole = (0, 0, width, height)
    rows, columns = (np.flatnonzero(union.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return whole, False
    tall, broad = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    if max(tall / height, broad / width) >= _CLOSE_UP:
        return whole, False
    length = int(max(_CONTEXT * max(tall, broad), _LEAST_CLOSE_UP))
    spans = []
    for inside, available in ((columns, width), (rows, height)):
        shown = min(length, available)
        first = int(np.clip((inside[0] + inside[-1] + 1 - shown) // 2, 0, available - shown))
        spans.append((first, first + shown))
    (left, right), (top, bottom) = spans
    return (left, top, right, bottom), (right - left, bottom - top) != (width, height)


def _edge(mask: NDArray[np.generic], size: tuple[int, int], wide: int) -> Image.Image:
    """Of a (H, W) mask, the outermost `wide` pixels inside it; `_OVERSAMPLING` times as large as the picture."""
    large = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    cover = Image.fromarray(mask.astype(np.uint8) * 255).resize(large, Image.Resampling.BILINEAR)
    solid = cover.point(lambda value: 255 if value > 127 else 0)
    return ImageChops.subtract(solid, solid.filter(ImageFilter.MinFilter(2 * wide * _OVERSAMPLING + 1)))


def _halo(edge: Image.Image) -> Image.Image:
    """A thin line around an edge that, when dark, lets it show on bright tissue."""
    return ImageChops.subtract(edge.filter(ImageFilter.MaxFilter(2 * _OVERSAMPLING + 1)), edge)


def _paint(picture: Image.Image, rgb: RGB, cover: Image.Image) -> None:
    picture.paste(rgb, (0, 0), cover.resize(picture.size, Image.Resampling.BOX))


def _words(part: Slice, volume: Volume, *, enlarged: bool) -> str:
    words = "" if volume.is_2d else part.title[0].lower() + part.title[1:]
    return ", ".join(word for word in (words, "enlarged" if enlarged else "") if word)


def save_examples(run: Path, drawn: Sequence[tuple[ResultRow, Rank, bytes, str]], metric: str = "dice") -> None:
    """Write pictures and index; `drawn` holds what `choose_examples` and `render_overlay` gave.

    Raises:
        InputError: the disk refuses.
    """
    entries = []
    for number, (row, rank, png, place) in enumerate(drawn):
        file = f"{FOLDER}/{number:04d}.png"
        with replacing(run / file) as path:
            path.write_bytes(png)
        about = (row.dataset, row.case, row.concept, row.model, row.protocol)
        entries.append(Example(file, *about, rank, row.metrics.get(metric) or 0.0, place))
    with replacing(run / INDEX) as path:
        path.write_text(json.dumps([asdict(e) for e in entries], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_examples(run: Path) -> list[Example]:
    """What RUN/overlays.json lists; nothing where there is no such file.

    Raises:
        InputError: the index is no such list, or a picture is missing or lies outside the run.
    """
    index = run / INDEX
    if not index.exists():
        return []
    try:
        examples = [Example(**entry) for entry in json.loads(index.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise InputError(index, f"is not a list of examples ({error})", _REMEDY) from error
    for example in examples:
        path = run / example.file
        if not path.resolve().is_relative_to(run.resolve()) or not path.is_file():
            raise InputError(index, f"names {example.file}, which is not there", _REMEDY)
    return examples


SHRUNK = ((320, 80), (280, 75), (240, 72), (200, 68), (180, 62), (160, 55), (140, 50), (120, 45), (104, 40), (88, 36))
"""Longer side in pixels and JPEG quality, best first."""


def shrink(png: bytes, most: int) -> tuple[bytes, str]:
    """The picture within about `most` bytes, and its type ("png" or "jpeg"): as it is where it fits, else the best JPEG
    that does, with colour at full resolution so that outlines stay crisp."""
    if len(png) <= most:
        return png, "png"
    data = b""
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    for side, quality in SHRUNK:
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, subsampling=0)
        data = file.getvalue()
        if len(data) <= most:
            break
    return data, "jpeg"

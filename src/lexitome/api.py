"""The whole of Lexitome in one call: `segment(image, "polyp")`, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexitome import io
from lexitome.errors import InputError
from lexitome.inference.loading import AnySegmenter, load_segmenter
from lexitome.models.foundation import identity
from lexitome.prompts import Box, MaskPrompt, Point, Query, Spatial, Text
from lexitome.segmentation import Segmentation
from lexitome.volume import Volume

Image = str | Path | NDArray[np.generic] | Volume


def segment(
    image: Image,
    text: str | Sequence[str] | None = None,
    *,
    boxes: Sequence[Box | Sequence[float]] = (),
    points: Sequence[Point | Sequence[float]] = (),
    mask: NDArray[np.generic] | None = None,
    model: str | Path = "compact",
    threads: int | None = None,
    flips: bool | None = None,
) -> Segmentation:
    """Find things in an image.

    Args:
        image: a file (or DICOM folder or zip), an array as `lexitome.from_array` takes it, or a `Volume`; to choose a
            series or frame, or to give an array its spacing, make the `Volume` with `lexitome.read` or `from_array`.
        text: one or several concepts in words.
        boxes: `Box` or (x0, y0, x1, y1[, z0, z1]), voxel coordinates of the image as read, corners included.
        points: `Point` or (x, y[, z]), voxel coordinates; a plain tuple means "inside".
        mask: a rough mask (z, y, x), of a 2D image also (y, x), to be refined; not 0 is inside.
        model: a name of ``lexitome models``, a folder or file of weights, or ``hf:OWNER/NAME`` on Hugging Face.
        threads: CPU threads; by default as many as there are cores.
        flips: average with the answers about the mirrored image, where the text names no side; takes twice as long. By
            default for pictures of concepts that validation found better so.

    Returns:
        One finding for each text, on the image's own grid. Boxes, points and the mask together describe one thing:
        with words they say where to look for each, without words they are the prompt.

    Raises:
        InputError: the image cannot be used, a prompt does not fit it, or there is no such model.
    """
    volume = as_volume(image)
    queries = make_queries(
        volume,
        [text] if isinstance(text, str) else list(text or ()),
        [to_box(volume, box) for box in boxes],
        [to_point(volume, point) for point in points],
        None if mask is None else to_mask(volume, mask),
    )
    segmenter = _segmenter(str(model), identity(model), threads)
    return segmenter.decode(segmenter.encode(volume, queries), queries, flips=flips)


@lru_cache(maxsize=1)
def _segmenter(model: str, known_by: str, threads: int | None) -> AnySegmenter:
    """Loaded once, and again when another model, told by its identity, takes its place in a folder: a segmenter holds
    no state of any image."""
    return load_segmenter(model, threads=threads)


def as_volume(image: Image) -> Volume:
    if isinstance(image, Volume):
        return image
    return io.read(image) if isinstance(image, str | Path) else io.from_array(image)


def make_queries(
    volume: Volume, texts: Sequence[str], boxes: Sequence[Box], points: Sequence[Point], mask: MaskPrompt | None = None
) -> tuple[Query, ...]:
    """One query for each text, each with all the places; without texts one query of the places.

    Raises:
        InputError: no prompt at all, an empty text, or a place outside the image.
    """
    last = volume.grid[0] - 1.0
    for box in boxes:
        first_z, last_z = (0.0 if box.z0 is None else box.z0), (last if box.z1 is None else box.z1)
        _check_inside(volume, "box corner", (box.x0, box.y0, first_z), (box.x1, box.y1, last_z))
    for point in points:
        _check_inside(volume, "point", (point.x, point.y, point.z))
    places: tuple[Spatial, ...] = (*boxes, *points, *([] if mask is None else [mask]))
    words = [" ".join(text.split()) for text in texts]
    if not all(words):
        raise InputError(_name(volume), "a text prompt is empty", "Name what to find, for example 'polyp'.")
    if not words and not places:
        raise InputError(_name(volume), "there is no prompt", "Name what to find, or give a box or a point.")
    # A prompt typed twice is one question.
    return tuple(Query(Text(word), places) for word in dict.fromkeys(words)) or (Query(None, places),)


def to_box(volume: Volume, box: Box | Sequence[float]) -> Box:
    """(x0, y0, x1, y1[, z0, z1]) to a `Box`, corners put in order."""
    if isinstance(box, Box):
        return box
    if len(box) not in (4, 6) or not np.isfinite(box).all():
        raise InputError(_name(volume), f"a box of {len(box)} values", "Give x0, y0, x1, y1 and, on a volume, z0, z1.")
    x0, y0, x1, y1 = map(float, box[:4])
    depth = sorted(map(float, box[4:]))
    return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1), *depth)


def to_point(volume: Volume, point: Point | Sequence[float], inside: bool = True) -> Point:
    """(x, y[, z]) to a `Point`; on a volume the slice must be named, since any guess would be wrong."""
    if isinstance(point, Point):
        return point
    if len(point) not in (2, 3) or not np.isfinite(point).all():
        raise InputError(_name(volume), f"a point of {len(point)} values", "Give x, y and, on a volume, z.")
    if len(point) == 2 and not volume.is_2d:
        remedy = f"Give x,y,z with z from 0 to {volume.grid[0] - 1}."
        raise InputError(
            _name(volume), f"has {volume.grid[0]} slices and the point {point[0]:g},{point[1]:g} names none", remedy
        )
    x, y, z = (*point, 0.0)[:3]
    return Point(float(x), float(y), float(z), inside)


def to_mask(volume: Volume, mask: NDArray[np.generic]) -> MaskPrompt:
    """(z, y, x) or, of a 2D image, (y, x) to a `MaskPrompt`."""
    inside = np.asarray(mask) != 0
    inside = inside[None] if inside.ndim == 2 else inside
    if inside.shape != volume.grid:
        remedy = f"Give one of {' x '.join(map(str, volume.grid))} voxels (z, y, x)."
        raise InputError(_name(volume), f"the rough mask has the shape {np.shape(mask)}", remedy)
    if not inside.any():
        raise InputError(_name(volume), "the rough mask is empty", "Leave it out, or mark some of the target.")
    return MaskPrompt(inside)


def _check_inside(volume: Volume, what: str, *corners: tuple[float, float, float]) -> None:
    """Refuse voxel coordinates (x, y, z) beyond the outer faces of the image."""
    width, height, depth = volume.grid[::-1]
    for corner in corners:
        if not all(-0.5 <= value <= size - 0.5 for value, size in zip(corner, (width, height, depth), strict=True)):
            where = ",".join(f"{value:g}" for value in corner)
            remedy = f"Stay within x 0 to {width - 1}, y 0 to {height - 1}, z 0 to {depth - 1}."
            raise InputError(_name(volume), f"the {what} {where} lies outside the image", remedy)


def _name(volume: Volume) -> str:
    return volume.source.path or "image"

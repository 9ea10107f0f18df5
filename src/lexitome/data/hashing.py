"""Fingerprints of images, to find the same picture twice: exactly, and nearly (resized, recompressed, brightened).

Near-duplicates are found in two steps: few differing bits between the signs of horizontal differences of a 9 x 8
thumbnail (dHash, N. Krawetz, "Kind of Like That", 2013), then a high correlation of 16 x 16 thumbnails, since plain
pictures (a dark film, an empty slice) share many signs by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexitome.volume import Volume

NEAR_BITS = 4
NEAR_CORRELATION = 0.996
"""Fundus photographs of different eyes reach 0.994 by their round frame; the same breast scanned twice 0.998."""
_BANDS = NEAR_BITS + 1
_THUMBNAIL = 16


def stamp(path: Path) -> tuple[str, int, int] | None:
    """Name, size and time of a file, which change when it does; None where there is none."""
    if not path.exists():
        return None
    found = path.stat()
    return path.name, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Args:
    exact: SHA-256 of shape, type and pixels.
    bits: dHash of the middle slice.
    thumbnail: (256,) of the middle slice, mean 0 and length 1; all 0 for a constant picture.
    """

    exact: str
    bits: int
    thumbnail: NDArray[np.float32]


def fingerprint(volume: Volume) -> Fingerprint:
    array = np.ascontiguousarray(volume.array)
    digest = hashlib.sha256(f"{array.shape} {array.dtype.str}".encode())
    digest.update(array.data)
    plane = array[:3, array.shape[1] // 2].astype(np.float32).mean(axis=0)
    small = _shrink(plane, _THUMBNAIL, _THUMBNAIL).ravel()
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    return Fingerprint(digest.hexdigest(), dhash(plane), small / length if length > 1e-6 else np.zeros_like(small))


def dhash(plane: NDArray[np.generic]) -> int:
    """64 bits of a (Y, X) picture: whether each of 8 x 8 cells is darker than its right neighbour."""
    small = _shrink(plane, 9, 8)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def _shrink(plane: NDArray[np.generic], width: int, height: int) -> NDArray[np.float32]:
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32)


def exact_duplicates(prints: Sequence[Fingerprint]) -> list[tuple[int, ...]]:
    """Groups of two or more images with the same pixels, as indices."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(prints):
        groups.setdefault(item.exact, []).append(index)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_duplicates(prints: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of different images that show nearly the same."""
    if len(prints) < 2:
        return []
    thumbnails = np.stack([item.thumbnail for item in prints])
    found = []
    for i, j in _close_pairs(np.array([item.bits for item in prints], dtype=np.uint64)):
        if prints[i].exact != prints[j].exact and thumbnails[i] @ thumbnails[j] >= NEAR_CORRELATION:
            found.append((i, j))
    return sorted(found)


def _close_pairs(bits: NDArray[np.uint64]) -> set[tuple[int, int]]:
    """Pairs that differ in at most `NEAR_BITS` bits: these agree in one of `_BANDS` bands at least."""
    edges = np.linspace(0, 64, _BANDS + 1).astype(np.uint64)
    pairs: set[tuple[int, int]] = set()
    for low, high in pairwise(edges):
        band = (bits >> low) & ((np.uint64(1) << (high - low)) - np.uint64(1))
        for members in _groups(band):
            for position, i in enumerate(members[:-1]):
                others = members[position + 1 :]
                near = others[_count_bits(bits[others] ^ bits[i]) <= NEAR_BITS]
                pairs.update((int(i), int(j)) for j in near)
    return pairs


def _groups(values: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """Ascending indices of equal values, for values that occur more than once."""
    order = np.argsort(values, kind="stable")
    breaks = np.flatnonzero(np.diff(values[order])) + 1
    yield from (group for group in np.split(order, breaks) if len(group) > 1)


def _count_bits(words: NDArray[np.uint64]) -> NDArray[np.intp]:
    return np.unpackbits(words.view(np.uint8).reshape(len(words), 8), axis=1).sum(axis=1, dtype=np.intp)

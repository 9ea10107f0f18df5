"""Which pictures a model was taught, small enough to be shipped with it: 32 bytes for each, no names but the sets'.

The hash is made of the signs of the lowest 16 x 16 frequencies (DCT, without the mean) of the picture at 64 x 64: a
larger variant of pHash (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section
3.2.1). Local contrast is evened out and cut before, so that neither the window nor a strong outline that all pictures
of a kind share (the round frame of a fundus photograph) decides it. It hardly changes when a picture is resized,
squeezed or compressed again, little in another window; mirrored, turned or cropped pictures are not found. Measured on
training and validation images by benchmarks/leakage.py.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from lexitome.data.dataset import Case, Dataset
from lexitome.data.intensity import Window, to_pictures
from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.volume import Volume

FILE = "trained_on.npz"
"""In the folder of a model."""
FORMAT = 1
BITS = 256
WORDS = BITS // 64
KEPT_SLICES, ASKED_SLICES = 24, 96
"""Slices of a volume, evenly spread, that are remembered of training and looked up when tested. More are looked up, so
that a volume that was cropped along its axis is found, too."""
THREADS = 2
_SIDE, _LOW = 64, 16
_NEIGHBOURHOOD, _FAINT, _CUT = 4.0, 6.0, 0.6
"""Deviation of the Gaussian in pixels of the small picture, grey levels that count as no contrast, and the contrast
above which all is the same."""
_FLAT = 2.0
"""Deviation of the grey levels below which a picture shows nothing."""

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """Args:
    datasets: names of the sets.
    origin: (N,) index of the set that each picture is from.
    hashes: (N, `WORDS`).
    """

    datasets: tuple[str, ...]
    origin: NDArray[np.uint16]
    hashes: Hashes

    def merged(self, other: TrainedOn) -> TrainedOn:
        """Of a model that was taught on: what it was taught, and what the one that it began with was."""
        names = tuple(dict.fromkeys((*self.datasets, *other.datasets)))
        place = np.array([names.index(name) for name in other.datasets], dtype=np.uint16)
        origin = np.concatenate([self.origin, place[other.origin] if len(place) else other.origin])
        both = np.column_stack([np.concatenate([self.hashes, other.hashes]), origin.astype(np.uint64)])
        unique = np.unique(both, axis=0) if len(both) else both
        return TrainedOn(names, unique[:, WORDS].astype(np.uint16), np.ascontiguousarray(unique[:, :WORDS]))

    def save(self, folder: Path) -> None:
        """Write `FILE`; atomic."""
        with replacing(folder / FILE) as temporary:
            temporary.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of `FILE`."""
        buffer = io.BytesIO()
        names = np.array(self.datasets, dtype=np.str_)
        np.savez(buffer, format=np.array(FORMAT), datasets=names, origin=self.origin, hashes=self.hashes)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(content: bytes, path: str) -> TrainedOn:
        """
        Raises:
            InputError: damaged or of another version.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                version = int(stored["format"])
                parts = tuple(map(str, stored["datasets"])), stored["origin"], stored["hashes"]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(path, f"is damaged ({error})", "Export the model again.") from error
        fits = parts[2].shape == (len(parts[1]), WORDS) and parts[2].dtype == np.uint64
        if version != FORMAT or not fits or (len(parts[1]) and parts[1].max() >= len(parts[0])):
            raise InputError(path, "is of another version", "Export the model again.")
        return TrainedOn(*parts)

    @staticmethod
    def of_model(folder: Traversable) -> TrainedOn | None:
        """What the folder of a model says; None where it does not."""
        place = folder.joinpath(FILE)
        return TrainedOn.from_bytes(place.read_bytes(), str(place)) if place.is_file() else None


def fingerprints(
    datasets: Sequence[Dataset],
    splits: Sequence[str] = ("train", "val"),
    progress: Callable[[int], None] | None = None,
) -> TrainedOn:
    """Of all pictures of the parts `splits`. Validation counts as training: thresholds were chosen on it.

    Args:
        progress: told how many cases are done.

    Raises:
        InputError: an image cannot be read.
    """
    origin: list[int] = []
    hashes: list[Hashes] = []
    done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for number, dataset in enumerate(datasets):
            cases = [case for case in dataset.cases if case.split in splits]
            for found in pool.map(lambda case, d=dataset: hashes_of_case(case, d.window, KEPT_SLICES), cases):
                hashes.append(found)
                origin += [number] * len(found)
                done += 1
                if progress:
                    progress(done)
    together = np.concatenate(hashes) if hashes else np.zeros((0, WORDS), dtype=np.uint64)
    return TrainedOn(tuple(d.name for d in datasets), np.array(origin, dtype=np.uint16), together)


def hashes_of_case(case: Case, window: Window | None, slices: int) -> Hashes:
    """(K, `WORDS`), see `hashes_of`; of the image alone, its annotation is not read."""
    return hashes_of(case.content.volume(), window, slices)


def hashes_of(volume: Volume, window: Window | None, slices: int) -> Hashes:
    """(K, `WORDS`) of up to `slices` pictures of a volume, as a model sees them; without those that show nothing."""
    pictures = to_pictures(volume, window)
    return hashes_of_pictures(pictures[i] for i in evenly(len(pictures), slices))


def hashes_of_pictures(pictures: Iterable[NDArray[np.uint8]]) -> Hashes:
    """(K, `WORDS`) of (H, W, 3) pictures, without those that show nothing."""
    found = [bits for picture in pictures if (bits := picture_hash(picture)) is not None]
    return np.stack(found) if found else np.zeros((0, WORDS), dtype=np.uint64)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0 to count - 1, at equal distances."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(most, count)).round())]


def picture_hash(picture: NDArray[np.uint8]) -> Hashes | None:
    """(`WORDS`,) of a (H, W, 3) picture; None if it shows nothing."""
    grey = Image.fromarray(picture.astype(np.float32).mean(axis=-1))
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    if small.std() < _FLAT:
        return None
    around = small - ndimage.gaussian_filter(small, _NEIGHBOURHOOD)
    even = around / (np.sqrt(ndimage.gaussian_filter(around**2, _NEIGHBOURHOOD)) + _FAINT)
    low = np.asarray(fft.dctn(even.clip(-_CUT, _CUT), norm="ortho"))[:_LOW, :_LOW].ravel()
    low[0] = 0.0  # the mean; its bit is always 0
    return np.packbits(low > 0).view(np.uint64)


def near(one: Hashes, other: Hashes, most: int) -> Iterator[tuple[int, int, int]]:
    """(i, j, bits that differ) of all pairs of rows that differ in at most `most` bits, in order. Compares everything
    with everything, in blocks: 10,000 x 10,000 take a few seconds."""
    block = max(1, 4_000_000 // max(1, len(other)))
    for start in range(0, len(one), block):
        part = one[start : start + block]
        bits = np.zeros((len(part), len(other)), dtype=np.uint16)
        for word in range(WORDS):
            bits += count_bits(part[:, None, word] ^ other[None, :, word])
        for i, j in zip(*np.nonzero(bits <= most), strict=True):
            yield start + int(i), int(j), int(bits[i, j])


def count_bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Ones of each word; NumPy 1 has no instruction for it."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(words), dtype=np.uint8)
    return count_bits_in_steps(words)


def count_bits_in_steps(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """By adding fields of 1, 2 and 4 bits, then bytes (H. S. Warren, "Hacker's Delight", section 5-1)."""
    pairs, nibbles, octets = (np.uint64(v) for v in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    one, two, four = np.uint64(1), np.uint64(2), np.uint64(4)
    x = words - ((words >> one) & pairs)
    x = (x & nibbles) + ((x >> two) & nibbles)
    x = (x + (x >> four)) & octets
    return np.asarray((x * np.uint64(0x0101010101010101)) >> np.uint64(56), dtype=np.uint8)

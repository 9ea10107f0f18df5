"""What a frozen encoder says of pictures, on disk: computed once, opened as memory maps, continued after a stop.

A folder for each (dataset, encoder, size): `vectors.f32` (R, K, D), K kinds of vector for each picture ("cls", "mean"
of the patches); `patches.f16` (R, h, w, D) where maps are kept; `journal.jsonl`, one line for each finished case; and
`features.json`, which says what all this is: the encoder and the hash of its weights, how intensities were treated,
the side of the pictures, the layout. Nothing is appended to features of another kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lexitome.errors import InputError
from lexitome.io.atomic import replacing
from lexitome.io.locks import holding

FORMAT = 1
VECTORS, PATCHES, JOURNAL, ABOUT = "vectors.f32", "patches.f16", "journal.jsonl", "features.json"
AHEAD = 2
"""Batches that are read and cut while the encoder works."""
_HALF = float(np.finfo(np.float16).max)

T = TypeVar("T")


class Encoded(NamedTuple):
    """Of N pictures: vectors (N, K, D), and maps (N, h, w, D)."""

    vectors: NDArray[np.float32]
    patches: NDArray[np.float32]


Encode = Callable[[NDArray[np.float32]], Encoded]
"""(N, 3, S, S) pictures, their intensities as the encoder wants them, to what it says."""


@dataclass(frozen=True)
class Item:
    """A case: its stem, what tells its files from others, and its pictures (1 or 3, S, S), cut when they are needed."""

    stem: str
    state: str
    pictures: Callable[[], Iterator[NDArray[np.float32]]]


@dataclass(frozen=True)
class FeatureKey:
    """Everything that features depend on besides the files.

    Args:
        encoder: its name, for people.
        sha256: of its weights.
        intensity: the policy by which values became the encoder's input (`data.intensity`).
        precision: that it computed in.
        side: of the square pictures, in pixels.
        kinds: of vectors, in their order.
        dim: D.
        grid: (h, w) of the maps.
        dense: whether maps are kept.
    """

    dataset: str
    encoder: str
    sha256: str
    intensity: str
    precision: str
    side: int
    kinds: tuple[str, ...]
    dim: int
    grid: tuple[int, int]
    dense: bool = False

    @property
    def folder(self) -> str:
        """A name that differs wherever one of these does."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.dataset}-{re.sub(r'[^A-Za-z0-9.]+', '-', self.encoder).strip('-')}-{self.side}-{digest[:10]}"


@dataclass(frozen=True, eq=False)
class Features:
    """
    Args:
        vectors: (R, K, D), memory-mapped.
        patches: (R, h, w, D), memory-mapped; None where maps were not kept.
        stems: (R,) the case of each row; rows of a case are its slices in their order.
    """

    key: FeatureKey
    vectors: NDArray[np.float32]
    patches: NDArray[np.float16] | None
    stems: tuple[str, ...]

    def vector(self, kind: str) -> NDArray[np.float32]:
        """(R, D) of one kind; "cls+mean" joins both to (R, 2D)."""
        parts = [self.vectors[:, self.key.kinds.index(part)] for part in kind.split("+")]
        return np.concatenate(parts, axis=1)

    def rows_of(self) -> dict[str, slice]:
        """Stem to its rows."""
        found: dict[str, slice] = {}
        for row, stem in enumerate(self.stems):
            found[stem] = slice(found[stem].start if stem in found else row, row + 1)
        return found


def extract(
    items: Sequence[Item], encode: Encode, key: FeatureKey, folder: Path, *, batch: int = 16,
    advance: Callable[[str], None] = lambda stem: None,
) -> Features:  # fmt: skip
    """The features of all items, in their order: opened if they are there, else computed from where a stopped run was.

    Pictures are cut in a thread of their own while the encoder works on earlier ones. Of several processes that want
    the same features, one computes and the others wait.

    Args:
        folder: the cache; each key has a folder of its own in it.
        advance: told the stem of each case that is done, those of earlier runs first.

    Raises:
        InputError: an image cannot be read, or the cache cannot be written.
    """
    place = folder / key.folder
    with holding(folder / f".{key.folder}.lock", wait=True):
        try:
            place.mkdir(parents=True, exist_ok=True)
            journal = _settle(place, key, [(item.stem, item.state) for item in items])
            for item in items[: len(journal)]:
                advance(item.stem)
            if len(journal) < len(items):
                _append(place, key, items[len(journal) :], encode, batch, advance)
        except OSError as error:
            remedy = "Free some space, or name another place with --cache."
            raise InputError(place, f"cannot be written ({error.strerror or error})", remedy) from error
    return open_features(place)


def open_features(place: Path) -> Features:
    """
    Raises:
        InputError: the folder does not hold features, or not all of them.
    """
    remedy = "Delete the folder, and compute them again."
    try:
        stored = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        entry = stored["key"]
        key = FeatureKey(**{**entry, "kinds": tuple(entry["kinds"]), "grid": tuple(entry["grid"])})
        lines = _journal(place)
        rows = sum(line["rows"] for line in lines)
        shapes = _shapes(key)
        for name, shape in shapes.items():
            if (place / name).stat().st_size < rows * _row_bytes(name, shape):
                raise InputError(place / name, "is shorter than its journal says", remedy)
        vectors = np.memmap(place / VECTORS, np.float32, "r", shape=(rows, *shapes[VECTORS]))
        patches = np.memmap(place / PATCHES, np.float16, "r", shape=(rows, *shapes[PATCHES])) if key.dense else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(place, f"holds no features ({error})", remedy) from error
    stems = tuple(chain.from_iterable([line["stem"]] * line["rows"] for line in lines))
    return Features(key, vectors, patches, stems)


def ahead(found: Iterator[T], depth: int = AHEAD) -> Iterator[T]:
    """The same values, `depth` of them computed before they are asked for, in one thread."""
    from lexitome.data.beside import beside

    with beside() as pool:
        waiting = deque(pool.submit(lambda: list(islice(found, 1))) for _ in range(depth))
        while first := waiting.popleft().result():
            waiting.append(pool.submit(lambda: list(islice(found, 1))))
            yield first[0]


def _shapes(key: FeatureKey) -> dict[str, tuple[int, ...]]:
    """File to the shape of one row of it."""
    shapes: dict[str, tuple[int, ...]] = {VECTORS: (len(key.kinds), key.dim)}
    return {**shapes, PATCHES: (*key.grid, key.dim)} if key.dense else shapes


def _row_bytes(name: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * (4 if name == VECTORS else 2)


def _settle(place: Path, key: FeatureKey, wanted: list[tuple[str, str]]) -> list[dict]:
    """The lines of the journal that still hold: what follows the first that does not is cut off, in all files."""
    about = {"format": FORMAT, "key": asdict(key), "layout": {name: ["row", *shape] for name, shape in
             _shapes(key).items()}, "kinds": list(key.kinds)}  # fmt: skip
    if not (place / ABOUT).exists():
        with replacing(place / ABOUT) as temporary:
            temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    lines = _journal(place)
    pairs = takewhile(lambda pair: _fits(*pair), zip(lines, wanted, strict=False))
    kept = [line for line, _ in pairs]
    while kept and not _all_there(place, key, kept):
        kept.pop()
    if len(kept) == len(lines) == len(wanted):
        return kept
    rows = sum(line["rows"] for line in kept)
    for name, shape in _shapes(key).items():
        with (place / name).open("ab") as file:
            file.truncate(rows * _row_bytes(name, shape))
    with replacing(place / JOURNAL) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept


def _fits(line: Mapping, wanted: tuple[str, str]) -> bool:
    return (line["stem"], line["state"]) == wanted


def _all_there(place: Path, key: FeatureKey, lines: list[dict]) -> bool:
    rows = sum(line["rows"] for line in lines)
    sizes = {name: (place / name).stat().st_size if (place / name).exists() else 0 for name in _shapes(key)}
    return all(sizes[name] >= rows * _row_bytes(name, shape) for name, shape in _shapes(key).items())


def _journal(place: Path) -> list[dict]:
    """Whole lines; the last one may have been cut short by a stop."""
    lines = []
    if (place / JOURNAL).exists():
        for text in (place / JOURNAL).read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                lines.append({"stem": line["stem"], "state": line["state"], "rows": int(line["rows"])})
            except (ValueError, KeyError, TypeError):
                break
    return lines


Batch = tuple[list[int], NDArray[np.float32]]


def _batches(items: Sequence[Item], size: int) -> Iterator[Batch]:
    """Which item each picture is of, and (n, 3, S, S); a grey picture fills all three channels."""
    pictures = ((index, picture) for index, item in enumerate(items) for picture in item.pictures())
    while part := list(islice(pictures, size)):
        planes = [np.broadcast_to(picture, (3, *picture.shape[-2:])) for _, picture in part]
        yield [index for index, _ in part], np.stack(planes)


def _append(
    place: Path, key: FeatureKey, items: Sequence[Item], encode: Encode, batch: int, advance: Callable[[str], None]
) -> None:
    """Rows first, then the line that says that a case is complete: what a stop leaves without its line is cut off."""
    counts = [0] * len(items)
    done = 0
    names = list(_shapes(key))
    files = [(place / name).open("ab") for name in names]
    journal = (place / JOURNAL).open("a", encoding="utf-8")

    def complete(until: int) -> None:
        nonlocal done
        if until > done:
            for file in files:
                file.flush()
        while done < until:
            line = {"stem": items[done].stem, "state": items[done].state, "rows": counts[done]}
            journal.write(json.dumps(line) + "\n")
            advance(items[done].stem)
            done += 1
        journal.flush()

    try:
        for owners, pictures in ahead(_batches(items, batch)):
            encoded = encode(pictures)
            files[0].write(np.ascontiguousarray(encoded.vectors, np.float32).tobytes())
            if key.dense:
                files[1].write(np.clip(encoded.patches, -_HALF, _HALF).astype(np.float16).tobytes())
            for owner in owners:
                counts[owner] += 1
            complete(owners[-1])  # a later picture of the last case may be in the next batch
        complete(len(items))
        for file in files:
            os.fsync(file.fileno())
    finally:
        for each in (*files, journal):
            each.close()

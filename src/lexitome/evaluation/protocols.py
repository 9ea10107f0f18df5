"""Prompt protocols: what an answerer is given beside the image, and how places are drawn from the reference.

=====================  ==========================================  ===============================================
typed                  in tables                                   given
=====================  ==========================================  ===============================================
text                   text                                        the name of the concept
box                    oracle-box                                  the tight box around all of it
jittered-box           oracle-jittered-box                         ... each side moved by N(0, 5 %) of that length
boxes:N                oracle-boxes:N                              tight boxes around its N largest parts
points:N               oracle-points:N (3 if no number is typed)   random places in it
center-point[:N]       oracle-center-point[:N]                     the middle of its N largest parts (1)
iterative-clicks:N     oracle-clicks:N                             N clicks, each where the last answer is most wrong
exemplar               oracle-exemplar                             the box of one object, to find all like it
text+box               text+oracle-jittered-box                    the name and a jittered box
text+PLACE             text+oracle-PLACE                           the name and any other of the places above
=====================  ==========================================  ===============================================

Whatever is not text alone comes from the reference: an *oracle*, and called so. It is asked only about what is there.

In volumes boxes are 3D; points lie in the slice of the largest cross-section of what they stand for, clicks in the
middle of the largest 3D error. Parts are the objects that the reference tells apart, else connected parts (8 or 26
neighbours). The middle is the voxel farthest from the outside, in mm where spacing is known. Draws depend on the seed
and on what is drawn for, never on the order of evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lexitome.errors import InputError
from lexitome.evaluation.answering import Kind
from lexitome.prompts import Box, Exemplar, Point, Query, Spatial, Text

Place = Literal["", "box", "jittered-box", "boxes", "points", "center-point", "clicks", "exemplar"]

_PLACES: dict[str, tuple[Place, int | None]] = {
    "box": ("box", None), "jittered-box": ("jittered-box", None), "exemplar": ("exemplar", None), "boxes": ("boxes", 3),
    "points": ("points", 3), "center-point": ("center-point", 1), "iterative-clicks": ("clicks", 3),
}  # fmt: skip
"""Typed word to place, and the number that holds where none is typed; None for places that take no number."""
_NEEDS: dict[Place, Kind] = {
    "box": "box", "jittered-box": "box", "boxes": "box", "points": "point", "center-point": "point", "clicks": "point",
    "exemplar": "exemplar",
}  # fmt: skip
PROTOCOLS = ("text", *_PLACES, "text+box")
MOST = 100
BOX_NOISE, MOST_NOISE = 0.05, 0.15


@dataclass(frozen=True)
class ProtocolSpec:
    """Args:
    words: whether the name of the concept is given.
    place: what kind of place is given, "" for none.
    count: how many parts, points or clicks.
    """

    words: bool
    place: Place = ""
    count: int = 1

    @property
    def name(self) -> str:
        """As in `ResultRow.protocol`."""
        if not self.place:
            return "text"
        default = self.place in ("box", "jittered-box", "exemplar") or (
            self.place == "center-point" and self.count == 1
        )
        number = "" if default else f":{self.count}"
        return f"{'text+' if self.words else ''}oracle-{self.place}{number}"

    @property
    def oracle(self) -> bool:
        return bool(self.place)

    @property
    def needs(self) -> frozenset[Kind]:
        """Kinds that an answerer must take; of words, "text" or "label" will do."""
        return frozenset({_NEEDS[self.place]} if self.place else ())

    def query(self, concept: str, places: Sequence[Spatial]) -> Query:
        return Query(Text(concept) if self.words else None, tuple(places))


TEXT = ProtocolSpec(words=True)


def parse(typed: str) -> ProtocolSpec:
    """A protocol as typed after ``--prompts``; the name in tables is understood, too.

    Raises:
        InputError: there is no such protocol, or its number makes no sense.
    """
    word = typed.strip().lower()
    if word == "text":
        return TEXT
    words = word.startswith("text+")
    name, colon, number = word.removeprefix("text+").removeprefix("oracle-").partition(":")
    name = {"clicks": "iterative-clicks"}.get(name, name)
    if words and name == "box" and "oracle-" not in word:
        name = "jittered-box"
    place, count = _PLACES.get(name, ("", None))
    if not place:
        raise InputError(f"--prompts {typed}", "there is no such protocol", f"Choose from {', '.join(PROTOCOLS)}.")
    if not colon:
        return ProtocolSpec(words, place, count or 1)
    if count is None or not number.isdecimal() or not 1 <= int(number) <= MOST:
        remedy = f"Type {name}." if count is None else f"Type e.g. {name}:{count}; up to {MOST}."
        raise InputError(f"--prompts {typed}", f"{number!r} is no number that {name} takes", remedy)
    return ProtocolSpec(words, place, int(number))


def parse_all(typed: Sequence[str]) -> tuple[ProtocolSpec, ...]:
    """Of several options, each of which may hold several with commas; what is said twice counts once."""
    words = [word for entry in typed for word in entry.split(",") if word.strip()]
    if not words:
        raise InputError("--prompts", "names no protocol", f"Choose from {', '.join(PROTOCOLS)}.")
    return tuple(dict.fromkeys(parse(word) for word in words))


def check_taken(spec: ProtocolSpec, name: str, takes: frozenset[Kind]) -> None:
    """
    Raises:
        InputError: the answerer `name` cannot be asked like this.
    """
    missing = spec.needs - takes
    if spec.words and not takes & {"text", "label"}:
        missing |= {"text"}
    if missing:
        possible = [p for p in PROTOCOLS if not parse(p).needs - takes and (not parse(p).words or "text" in takes)]
        what = {"exemplar": "exemplars", "box": "boxes", "point": "points"}.get(min(missing), "words")
        cause = f"{name} does not take {what}, which {spec.name} gives"
        raise InputError("--prompts", cause, f"Choose from {', '.join(possible) or 'what it takes'}.")


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a place is drawn for.

    Args:
        mask: (Z, Y, X), not empty.
        ids: (Z, Y, X) of its objects; None where the reference does not tell them apart.
        spacing: voxel size along (z, y, x).
    """

    mask: NDArray[np.bool_]
    ids: NDArray[np.integer] | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


def seeded(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends only on what is drawn for: seed, dataset, case, concept, protocol."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def draw(spec: ProtocolSpec, wanted: Wanted, rng: np.random.Generator) -> tuple[Spatial, ...]:
    """The places that the protocol gives at first: of iterative clicks, the first one."""
    mask, spacing = wanted.mask, wanted.spacing
    if spec.place == "box":
        return (box_around(mask),)
    if spec.place == "jittered-box":
        return (jittered_box(mask, rng),)
    if spec.place == "boxes":
        return tuple(box_around(part) for part in largest_parts(wanted, spec.count))
    if spec.place == "points":
        return random_points(mask, spec.count, rng)
    if spec.place == "center-point":
        return tuple(centre(largest_section(part), spacing) for part in largest_parts(wanted, spec.count))
    if spec.place == "clicks":
        first = next_click(np.zeros_like(mask), mask, None, spacing)
        return () if first is None else (first,)
    if spec.place == "exemplar":
        return (Exemplar(box_around(typical_part(wanted))),)
    return ()


def next_click(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    judged: NDArray[np.bool_] | None,
    spacing: tuple[float, float, float],
) -> Point | None:
    """The middle of the largest connected error: a click on what is missing, or one beside what is too much. None if
    there is no error. Unjudged voxels are none."""
    best, size, inside = None, 0, True
    for wrong, adds in ((reference & ~prediction, True), (prediction & ~reference, False)):
        parts = _parts(wrong if judged is None else wrong & judged)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        if sizes.max() > size:
            best, size, inside = parts == sizes.argmax(), int(sizes.max()), adds
    return None if best is None else replace(centre(best, spacing), inside=inside)


def box_around(mask: NDArray[np.bool_]) -> Box:
    """The tight box of a (Z, Y, X) mask that is not empty; of a 2D image without z."""
    return _to_box(*_corners(mask))


def jittered_box(mask: NDArray[np.bool_], rng: np.random.Generator) -> Box:
    """As a hand would draw it: each side off by N(0, 5 %) of the box's length along that axis, by 15 % at most, and
    within the image."""
    first, last = _corners(mask)
    edges = np.stack([first, last + 1])  # the last voxel is inside
    noise = np.clip(rng.normal(0, BOX_NOISE, edges.shape), -MOST_NOISE, MOST_NOISE)
    edges += noise * (edges[1] - edges[0])
    border = np.array(mask.shape[::-1][: edges.shape[1]], dtype=np.float64) - 1
    first = np.clip(edges[0], 0, border)
    return _to_box(first, np.clip(edges[1] - 1, first, border))


def _corners(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last voxel along (x, y), in a volume (x, y, z)."""
    axes = (2, 1, 0) if len(mask) > 1 else (2, 1)
    lines = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in axes]
    return np.array([line[0] for line in lines], np.float64), np.array([line[-1] for line in lines], np.float64)


def _to_box(first: NDArray[np.float64], last: NDArray[np.float64]) -> Box:
    (x0, y0, *z0), (x1, y1, *z1) = first.tolist(), last.tolist()
    return Box(x0, y0, x1, y1, *z0, *z1)


def random_points(mask: NDArray[np.bool_], count: int, rng: np.random.Generator) -> tuple[Point, ...]:
    """Different voxels of the slice that shows most of the mask; fewer where it has fewer."""
    z, rows, columns = np.nonzero(largest_section(mask))
    chosen = rng.permutation(len(rows))[:count]
    return tuple(Point(float(columns[i]), float(rows[i]), float(z[i])) for i in chosen)


def largest_section(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask in the z slice that shows most of it, nothing elsewhere."""
    section = np.zeros_like(mask)
    best = int(mask.sum(axis=(1, 2)).argmax())
    section[best] = mask[best]
    return section


def centre(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> Point:
    """The voxel of a (Z, Y, X) mask, not empty, that is farthest from the outside; the first of several. The border of
    the image is outside, except along z in a 2D image or if the mask lies in one slice."""
    cut = ndimage.find_objects(mask.astype(np.uint8))[0]
    part = mask[cut]
    flat = len(part) == 1
    padded = np.pad(part, ((0, 0) if flat else (1, 1), (1, 1), (1, 1)))
    if flat:
        depth = ndimage.distance_transform_edt(padded[0], sampling=spacing[1:])[None]
    else:
        depth = ndimage.distance_transform_edt(padded, sampling=spacing)
    z, y, x = (int(v) for v in np.unravel_index(int(depth.argmax()), padded.shape))
    z, y, x = z - (not flat) + cut[0].start, y - 1 + cut[1].start, x - 1 + cut[2].start
    return Point(float(x), float(y), float(z))


def largest_parts(wanted: Wanted, count: int) -> list[NDArray[np.bool_]]:
    """The `count` largest parts, largest first; of equal ones the first by number."""
    parts, sizes = _numbered(wanted)
    order = np.argsort(-sizes, kind="stable")[:count]
    return [parts == number for number in order if sizes[number] > 0]


def typical_part(wanted: Wanted) -> NDArray[np.bool_]:
    """The part of median size (of an even number, the larger of the two in the middle)."""
    parts, sizes = _numbered(wanted)
    order = [int(number) for number in np.argsort(sizes, kind="stable") if sizes[number] > 0]
    found: NDArray[np.bool_] = parts == order[len(order) // 2]
    return found


def _numbered(wanted: Wanted) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """(map of part numbers, voxels of each number, none of number 0)."""
    told = None if wanted.ids is None else np.where(wanted.mask, wanted.ids, 0)
    parts = told if told is not None and told.any() else _parts(wanted.mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts, sizes


def _parts(mask: NDArray[np.bool_]) -> NDArray[np.integer]:
    return np.asarray(ndimage.label(mask, structure=np.ones((3, 3, 3)))[0])

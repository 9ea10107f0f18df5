"""Measures of a mask and of the objects in it, and the box that a person could have drawn around a target."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from lexitome.prompts import Box

BOX_NOISE, MOST_NOISE = 0.05, 0.15
"""Each side of a drawn box is off by N(0, 5 %) of the box's length along that axis, by 15 % at most."""
SAME_OBJECT = 0.5
"""Two objects match if their IoU is above this: then each has at most one partner."""


def dice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|) in voxels; 1 where both are empty, so 0 for anything found where nothing is."""
    total = int(prediction.sum()) + int(reference.sum())
    return 2.0 * int((prediction & reference).sum()) / total if total else 1.0


def matched_objects(prediction: NDArray[np.integer], reference: NDArray[np.integer]) -> tuple[int, int, int]:
    """(objects found, objects in the reference, pairs of them with an IoU above `SAME_OBJECT`) of two maps of ids of
    one shape, 0 for none."""
    found, wanted = (np.unique(ids, return_inverse=True) for ids in (prediction, reference))
    rows, columns = found[1].reshape(-1), wanted[1].reshape(-1)
    shape = (len(found[0]), len(wanted[0]))
    overlap = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    union = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    real = np.outer(found[0] > 0, wanted[0] > 0)
    counts = int((found[0] > 0).sum()), int((wanted[0] > 0).sum())
    return (*counts, int(((overlap > SAME_OBJECT * union) & real).sum()))


def drawn_box(reference: NDArray[np.bool_], rng: np.random.Generator) -> Box:
    """The bounding box of a target (H, W), not empty, as a hand would draw it; within the picture."""
    rows, columns = np.nonzero(reference)
    edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)
    lengths = np.tile(edges[2:] - edges[:2], 2)
    edges += np.clip(rng.normal(0, BOX_NOISE, 4), -MOST_NOISE, MOST_NOISE) * lengths
    height, width = reference.shape
    last = np.array([width - 1, height - 1], dtype=np.float64)
    first_corner = np.clip(edges[:2], 0, last)
    last_corner = np.clip(edges[2:] - 1, first_corner, last)  # the last pixel, inclusive
    return Box(*map(float, first_corner), *map(float, last_corner))


def seeded(seed: int, *names: str) -> np.random.Generator:
    """A generator that only depends on what is drawn for, not on the order in which cases are evaluated."""
    digest = hashlib.sha256(":".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))

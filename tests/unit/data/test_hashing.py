"""Fingerprints: the same picture again, nearly the same, and not."""

from __future__ import annotations

import io as memory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from lexitome.data.hashing import NEAR_BITS, _close_pairs, dhash, exact_duplicates, fingerprint, near_duplicates
from lexitome.io import from_array


def scene(seed: int) -> np.ndarray:
    """(120, 160) uint8 with structure of many sizes."""
    rng = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(rng.normal(size=(120, 160)), sigma) * sigma for sigma in (2, 6, 15)]
    total = sum(layers)
    return (255 * (total - total.min()) / np.ptp(total)).astype(np.uint8)


def recompressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = memory.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream))


def test_variants_of_a_picture_are_near_and_others_are_not() -> None:
    original = scene(0)
    variants = [
        original,
        recompressed(original, 40),
        np.array(Image.fromarray(original).resize((320, 240))),
        (original * 0.6 + 20).astype(np.uint8),
    ]
    others = [scene(seed) for seed in range(1, 40)]
    prints = [fingerprint(from_array(picture)) for picture in (*variants, *others)]
    pairs = set(near_duplicates(prints))
    assert {(0, k) for k in range(1, len(variants))} <= pairs
    assert all(j < len(variants) for _, j in pairs)


def test_exact_duplicates_are_told_by_pixels() -> None:
    prints = [fingerprint(from_array(scene(seed))) for seed in (0, 1, 0, 2, 1, 0)]
    assert exact_duplicates(prints) == [(0, 2, 5), (1, 4)]
    assert near_duplicates(prints) == []  # exact ones are not listed twice
    changed = scene(0)
    changed[0, 0] ^= 1
    assert fingerprint(from_array(changed)).exact != prints[0].exact


def test_a_volume_is_judged_by_its_middle_slice_and_a_constant_picture_is_near_nothing() -> None:
    volume = np.stack([scene(1), scene(2), scene(3)])
    assert fingerprint(from_array(volume)).bits == dhash(scene(2))
    flat = [fingerprint(from_array(np.full((20, 20), value, np.uint8))) for value in (3, 7)]
    assert near_duplicates(flat) == []
    assert near_duplicates([]) == [] == exact_duplicates([])


def test_bits_are_the_signs_of_differences() -> None:
    rising = np.tile(np.arange(9, dtype=np.uint8), (8, 1))
    assert dhash(rising) == 2**64 - 1 and dhash(rising[:, ::-1]) == 0


@given(st.lists(st.integers(0, 63), max_size=12), st.integers(0, 2**64 - 1))
def test_no_close_pair_is_missed(flips: list[int], word: int) -> None:
    """By brute force: each word against a copy with some bits flipped."""
    other = word
    for bit in flips:
        other ^= 1 << bit
    close = (word ^ other).bit_count() <= NEAR_BITS
    assert _close_pairs(np.array([word, other], dtype=np.uint64)) == ({(0, 1)} if close else set())

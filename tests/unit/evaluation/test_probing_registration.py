"""Pictures are laid over each other by their features: rightly if these tell places, not at all where they do not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.features import FeatureKey, Features
from lexitome.data.sources.folder import load_dataset
from lexitome.evaluation.probing.registration import (
    RegistrationConfig,
    affine_between,
    drawn_pairs,
    mutual_matches,
    probe,
    warped,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

CELLS, SIDE = 14, 56
CONFIG = RegistrationConfig(pairs=2)


def told(places: np.ndarray) -> np.ndarray:
    """Features (..., 6) of places (..., 2) in a body: near places alike."""
    x, y = np.moveaxis(places, -1, 0) * np.pi / 2
    return np.stack([np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(2 * x), np.sin(2 * y)], -1)


def grid() -> np.ndarray:
    """(h, w, 2) as (x, y), middles of cells."""
    y, x = (np.indices((CELLS, CELLS)) + 0.5) / CELLS
    return np.stack([x, y], -1)


def of(affine: np.ndarray, places: np.ndarray) -> np.ndarray:
    return places @ affine[:2, :2].T + affine[:2, 2]


numbers = st.floats(-0.12, 0.12)


@settings(max_examples=25, deadline=None)
@given(st.lists(numbers, min_size=6, max_size=6))
def test_an_affine_map_is_found_from_features(numbers: list[float]) -> None:
    """To a patch, within the picture."""
    affine = np.eye(3)
    affine[:2] += np.array(numbers).reshape(2, 3)
    found = affine_between(told(of(affine, grid())), told(grid()), CONFIG)
    assert found is not None
    middle = grid()[3:-3, 3:-3]
    assert np.abs(of(found, middle) - of(affine, middle)).max() < 1 / CELLS


def test_matches_are_mutual_and_a_picture_matches_itself() -> None:
    maps = told(grid())
    one, other = mutual_matches(maps, maps)
    assert len(one) == CELLS**2 and np.array_equal(one, other)
    flat = np.zeros_like(maps)
    assert len(mutual_matches(maps, flat)[0]) <= 1
    assert affine_between(maps, flat, CONFIG) is None
    noise = np.random.default_rng(0).normal(size=(2, *maps.shape))
    assert affine_between(noise[0], noise[1], replace(CONFIG, fewest=12)) is None


def test_a_mirrored_body_is_no_match() -> None:
    assert affine_between(told(grid()[:, ::-1]), told(grid()), replace(CONFIG, fewest=40)) is None


def test_outlines_are_carried_by_the_nearest_and_nothing_is_invented() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (SIDE, SIDE)).astype(np.uint8)
    assert np.array_equal(warped(codes, np.eye(3)), codes)
    shift = np.eye(3)
    shift[0, 2] = 5 / SIDE  # the place 5 pixels to the right in the moving picture
    assert np.array_equal(warped(codes, shift)[:, :-5], codes[:, 5:]) and not warped(codes, shift)[:, -5:].any()
    assert warped(codes, shift).dtype == codes.dtype


@pytest.fixture(scope="module")
def centres() -> np.ndarray:
    """(12, 2) as (x, y), pixels."""
    return np.random.default_rng(0).uniform(16, 40, (12, 2))


@pytest.fixture(scope="module")
def cached(centres: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> CachedDataset:
    masks = [disc(SIDE, y, x, 9).astype(np.uint8) for x, y in centres]
    cases = {f"p{i:02}": (painted(mask, i), mask) for i, mask in enumerate(masks)}
    root = save_set(tmp_path_factory.mktemp("sets") / "discs", cases, {1: "polyp"})
    return open_cache(load_dataset(root), tmp_path_factory.mktemp("cache"), side=SIDE)


def features_of(cached: CachedDataset, maps: np.ndarray) -> Features:
    key = FeatureKey("discs", "e", "0", "imagenet", "float32", SIDE, ("mean",), 6, (CELLS, CELLS), True)
    stems = tuple(row.stem for row in cached.rows)
    return Features(key, maps.mean((1, 2))[:, None].astype(np.float32), maps.astype(np.float16), stems)


def test_features_of_anatomy_carry_outlines_and_noise_does_not(cached: CachedDataset, centres: np.ndarray) -> None:
    shifts = [centres[int(row.stem[1:])] / SIDE for row in cached.rows]
    good = np.stack([told(grid() - shift + 0.5) for shift in shifts])
    steps: list[int] = []
    pairs, noisy = drawn_pairs(cached, CONFIG), np.random.default_rng(0).normal(size=good.shape)
    found = probe(features_of(cached, good), cached, pairs, CONFIG, draws=50, advance=lambda: steps.append(1))
    noise = probe(features_of(cached, noisy), cached, pairs, CONFIG, draws=50)
    assert found["dice"]["mean"] > 0.9 > 0.7 > found["before"]["mean"] == noise["before"]["mean"]
    assert found["dice"]["mean"] > noise["dice"]["mean"] and found["matched"] == 1
    tests = sum(row.split == "test" for row in cached.rows)
    assert len(steps) == found["pairs"] == 2 * tests and found["cases"] == tests


def test_pairs_are_of_a_test_and_a_training_picture_and_do_not_depend_on_the_encoder(cached: CachedDataset) -> None:
    pairs = drawn_pairs(cached, CONFIG, seed=3)
    assert pairs == drawn_pairs(cached, CONFIG, seed=3) != drawn_pairs(cached, CONFIG, seed=4)
    assert {(cached.rows[a].split, cached.rows[b].split) for a, b in pairs} == {("test", "train")}
    assert len(set(pairs)) == len(pairs)


def test_a_picture_that_shows_the_same_is_preferred(cached: CachedDataset) -> None:
    first = next(i for i, row in enumerate(cached.rows) if row.split == "train")
    rows = tuple(
        replace(row, present=(1,) if row.split == "test" or i == first else (1, 2, 3))
        for i, row in enumerate(cached.rows)
    )
    pairs = drawn_pairs(replace(cached, rows=rows), replace(CONFIG, pairs=1))
    assert {moving for _, moving in pairs} == {first}
    other_axis = tuple(replace(row, axis=1) if row.split == "test" else row for row in rows)
    assert drawn_pairs(replace(cached, rows=other_axis), CONFIG) == []

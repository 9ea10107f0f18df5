"""Baselines against answers known beforehand, and whom they learn from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.data.cases import read_case
from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.evaluation.answering import About
from lexitome.evaluation.baselines import BASELINES, choose_sides, mean_shapes, otsu_level, side_of, stretched
from lexitome.io import from_array
from lexitome.prompts import Box, Query, Text

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

SIDE = 40


@pytest.fixture
def discs(tmp_path: Path) -> Dataset:
    """A dark disc in the middle half of bright pictures; every third shows none."""
    cases = {}
    for i in range(15):
        mask = disc(SIDE, 20, 20, 9).astype(np.uint8) * (i % 3 > 0)
        cases[f"p{i:02d}"] = (255 - painted(mask, i), mask)
    return load_dataset(save_set(tmp_path / "discs", cases, {1: "spot"}))


def about(dataset: Dataset) -> About:
    return About(dataset.name, "x", labels={target.name: target.labels for target in dataset.targets})


def test_empty_and_full_say_so_for_any_words() -> None:
    volume = from_array(np.zeros((6, 8), np.uint8))
    for name, share in (("empty", 0.0), ("full", 1.0)):
        (answer,) = BASELINES[name]([]).begin(volume, About("d", "c")).answer([Query(Text("whatever"))])
        assert answer.mask.shape == (1, 6, 8) and answer.mask.mean() == share == answer.presence
        assert answer.probability is not None and (answer.probability == share).all()


def test_a_box_is_filled_by_full_and_only_cuts_the_others() -> None:
    volume = from_array(np.zeros((6, 8), np.uint8))
    box = Box(2.0, 1.0, 4.0, 3.0)
    full, empty = (BASELINES[n]([]).begin(volume, About("d", "c")) for n in ("full", "empty"))
    mask = full.answer([Query(None, (box,))])[0].mask[0]
    wanted = np.zeros((6, 8), bool)
    wanted[1:4, 2:5] = True
    assert (mask == wanted).all()
    assert not empty.answer([Query(None, (box,))])[0].mask.any()
    stack = from_array(np.zeros((4, 6, 8), np.uint8), spacing=(1, 1, 1))
    inside = BASELINES["full"]([]).begin(stack, About("d", "c")).answer([Query(None, (Box(0, 0, 7, 5, 1, 2),))])[0].mask
    assert inside.any(axis=(1, 2)).tolist() == [False, True, True, False]


def test_otsu_learns_the_side_from_training_images_alone(discs: Dataset) -> None:
    side = choose_sides(discs)["spot"]
    assert not side.bright and side.dice > 0.98
    case = next(case for case in discs.cases if case.split == "test")
    volume, codes = read_case(case)
    answer = BASELINES["otsu"]([discs]).begin(volume, about(discs)).answer([Query(Text("spot"))])[0]
    if codes.any():
        assert ((answer.mask & (codes > 0)).sum() * 2) / (answer.mask.sum() + (codes > 0).sum()) > 0.98
    assert answer.presence is None and "darker" in answer.notes[0]
    swapped = replace(
        discs, cases=tuple(replace(c, split="test" if c.split == "train" else "val") for c in discs.cases)
    )
    assert choose_sides(swapped) == {}


def test_a_set_without_a_training_part_is_missing(discs: Dataset) -> None:
    external = replace(discs, cases=tuple(replace(case, split="test") for case in discs.cases))
    volume = read_case(external.cases[0])[0]
    for name in ("otsu", "mean-shape"):
        answer = BASELINES[name]([external]).begin(volume, about(external)).answer([Query(Text("spot"))])[0]
        assert answer.status == "missing" and not answer.mask.any() and "no training image" in answer.notes[0]


def test_mean_shape_is_the_mean_of_those_that_show_it(discs: Dataset) -> None:
    shape = mean_shapes(discs)["spot"]
    train = [case for case in discs.cases if case.split == "train"]
    shown = sum(read_case(case)[1].any() for case in train)
    assert shape.presence == shown / len(train)
    volume = from_array(np.zeros((80, 20), np.uint8))  # another shape: stretched
    answer = BASELINES["mean-shape"]([discs]).begin(volume, about(discs)).answer([Query(Text("spot"))])[0]
    assert answer.presence == shape.presence
    rows, columns = np.nonzero(answer.mask[0])
    assert abs(rows.mean() - 40) < 1 and abs(columns.mean() - 10) < 0.6
    assert answer.mask.mean() == pytest.approx(disc(SIDE, 20, 20, 9).mean(), rel=0.06)


def test_mean_shape_of_volumes_follows_the_orientation(tmp_path: Path) -> None:
    """A block at the patient's upper end: training and test volumes are stored upside down to each other."""
    mask = np.zeros((6, 16, 16), np.uint8)
    mask[4:, 4:12, 4:12] = 1
    up = np.diag([1.0, 1.0, 2.0, 1.0])
    cases = {f"v{i}": (mask.astype(np.int16) * 100, mask) for i in range(6)}
    dataset = load_dataset(save_set(tmp_path / "blocks", cases, {1: "block"}, "MR", affine=up, dims=3))
    down = up @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1.0]])
    volume = from_array(np.zeros((6, 16, 16), np.int16), affine=down)
    answer = BASELINES["mean-shape"]([dataset]).begin(volume, about(dataset)).answer([Query(Text("block"))])[0]
    assert (answer.mask == mask[::-1].astype(bool)).mean() > 0.99 and answer.mask.any()


def test_what_nobody_judged_counts_in_neither_direction(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 1
    hidden = mask.copy()
    hidden[:16] = 9
    cases = {f"p{i}": (painted(mask, i), hidden if i % 2 else mask) for i in range(12)}
    dataset = load_dataset(save_set(tmp_path / "halves", cases, {1: "left"}, ignore_label=9))
    mean = mean_shapes(dataset)["left"].mean[0]
    assert mean[40, 40] == pytest.approx(1) and mean[200, 40] == pytest.approx(1) and mean[40, 200] < 0.01


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrays(np.uint8, (9, 7)))
def test_otsu_is_the_split_of_largest_variance_between(grey: np.ndarray) -> None:
    def between(level: int) -> float:
        low, high = grey[grey <= level].astype(float), grey[grey > level].astype(float)
        return 0.0 if not (len(low) and len(high)) else len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(level) for level in range(256))
    assert between(otsu_level(grey)) == pytest.approx(best, rel=1e-9, abs=1e-6)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrays(np.uint8, (2, 9, 7)), st.booleans())
def test_sides_share_the_image_and_the_largest_part_is_in_its_side(grey: np.ndarray, bright: bool) -> None:
    assert (side_of(grey, True, False) ^ side_of(grey, False, False)).all()
    whole, part = side_of(grey, bright, False), side_of(grey, bright, True)
    assert not (part & ~whole).any() and part.any() == whole.any()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrays(np.float32, (2, 5, 6), elements=st.floats(0, 1, width=32)), st.tuples(*[st.integers(1, 12)] * 3))
def test_stretching_stays_within_the_values(array: np.ndarray, grid: tuple[int, int, int]) -> None:
    found = stretched(array, grid)
    assert found.shape == grid
    assert array.min() - 1e-5 <= found.min() and found.max() <= array.max() + 1e-5

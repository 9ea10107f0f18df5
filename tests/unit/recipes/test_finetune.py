"""A recipe from a look at the data: what is seen in drawn sets, and what follows from it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import TRAITS
from lexitome.errors import InputError
from lexitome.models.compact import CompactConfig
from lexitome.recipes.finetune import (
    FEWEST_STEPS,
    MOST_STEPS,
    Look,
    look_at,
    plan_finetune,
    shape_of,
    steps_for,
    traits_for,
    with_steps,
)
from lexitome.recipes.overrides import override
from lexitome.training.compact import Share

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set, write_sets

SIDE = 256


def drawn(root: Path, name: str, mask: np.ndarray, label: str, modality: str) -> Dataset:
    cases = {f"p{i}": (painted(mask, i), mask) for i in range(4)}
    return load_dataset(save_set(root / name, cases, {1: label}, modality))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[20:240:40, 10:250] = mask[10:250, 60:220:50] = 1
    return drawn(tmp_path_factory.mktemp("sets"), "lines", mask, "retinal vessel", "fundus photograph")


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    mask = sum(disc(SIDE, y, x, 20).astype(np.uint8) for y in (50, 130, 210) for x in (60, 180))
    return drawn(tmp_path_factory.mktemp("sets"), "discs", np.asarray(mask, np.uint8), "mole", "dermoscopy")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    mask = np.zeros((20, 64, 80), np.uint8)
    mask[8:12, 20:40, 30:50] = 1
    cases = {f"v{i}": (painted(mask, i), mask) for i in range(4)}
    folder = tmp_path_factory.mktemp("sets") / "volumes"
    return load_dataset(save_set(folder, cases, {1: "left hippocampus"}, "MRI", affine=np.eye(4), dims=3))


@pytest.mark.parametrize(("width", "length"), [(3, 90), (6, 60), (12, 120)])
def test_the_width_of_a_band(width: int, length: int) -> None:
    mask = np.zeros((128, 128), bool)
    mask[4 : 4 + width, 4 : 4 + length] = True
    found = shape_of(mask)
    assert found.width * 128 == pytest.approx(width, rel=0.2) and found.parts == 1
    assert found.compactness < 0.7


def test_discs_are_compact_and_counted() -> None:
    found = shape_of(disc(128, 30, 30, 12) | disc(128, 90, 90, 20))
    assert found.parts == 2 and found.compactness > 0.9
    branches = np.zeros((128, 128), bool)
    branches[10:120:20, 4:124] = True
    assert shape_of(branches).parts == 6 and shape_of(branches).compactness < 0.3
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    assert shape_of(dot).parts == 1 and np.isfinite(shape_of(dot).compactness)


def test_thin_lines_want_high_resolution_and_are_no_objects(lines: Dataset) -> None:
    traits = traits_for(lines, look_at(lines))
    assert traits.size == "fine" and not traits.countable
    plan = plan_finetune([lines], "imagenet", "lines")
    assert plan.recipe.sampling.share == Share(small=0.0, medium=0.6, fine=0.4)
    assert any("512 pixels" in reason and "only 0." in reason for reason in plan.reasons)


def test_discs_are_told_apart_and_turned(discs: Dataset) -> None:
    look = look_at(discs)
    assert look.parts == 6 and look.cases == 4 and look.slices == 1 and look.across == SIDE
    plan = plan_finetune([discs], "imagenet", "discs")
    traits = plan.traits["discs"]
    assert traits.countable and traits.size == "medium" and traits.rotate and traits.mirror
    assert plan.recipe.sampling.share == Share(small=0.0, medium=1.0, fine=0.0)
    assert any("told apart: about 6" in reason for reason in plan.reasons)
    assert any("shown any way up" in reason for reason in plan.reasons)


def test_few_parts_are_not_counted(discs: Dataset) -> None:
    look = look_at(discs)
    assert not traits_for(discs, replace(look, parts=2.0)).countable
    assert not traits_for(discs, replace(look, compactness=0.3)).countable


def test_small_volumes_are_seen_small_with_neighbours_and_not_mirrored(volumes: Dataset) -> None:
    plan = plan_finetune([volumes], "imagenet", "volumes")
    traits = plan.traits["volumes"]
    assert traits.size == "small" and not traits.mirror and traits.slice_step == 1
    assert plan.recipe.sampling.share == Share(small=0.5, medium=0.0, fine=0.0)
    assert any("80 voxels across" in reason and "neighbours" in reason for reason in plan.reasons)
    assert any("shown upright" in reason and ", mirrored" not in reason for reason in plan.reasons)
    assert any("4 volumes (2 to train, 1 to validate, 1 to test" in reason for reason in plan.reasons)


def test_of_many_slices_every_nth_is_decoded(volumes: Dataset) -> None:
    look = Look(cases=20, slices=100, across=512, width=0.1, parts=1, compactness=1)
    assert traits_for(volumes, look).slice_step == 2 and traits_for(volumes, look).size == "medium"
    assert traits_for(volumes, replace(look, cases=1000)).slice_step == 4
    assert traits_for(volumes, replace(look, cases=4)).slice_step == 1
    assert traits_for(replace(volumes, dims=2), replace(look, cases=1000)).slice_step == 1


def test_a_label_with_a_side_forbids_the_mirror(discs: Dataset) -> None:
    sided = replace(discs, targets=(replace(discs.targets[0], name="left eye"),))
    plan = plan_finetune([sided], "imagenet", "x")
    assert not plan.traits["discs"].mirror and not plan.traits["discs"].rotate


def test_listed_sets_keep_their_traits(tmp_path: Path) -> None:
    root = write_sets(tmp_path, 3)
    datasets = [load_dataset(d) for d in sorted(root.iterdir())]
    plan = plan_finetune(datasets, "imagenet", "both")
    assert plan.traits == {name: TRAITS[name] for name in ("btcv_abdomen_ct2d", "kvasir_seg")}


def test_mixed_sizes_share_the_steps(lines: Dataset, discs: Dataset, volumes: Dataset) -> None:
    share = plan_finetune([lines, discs, volumes], "imagenet", "all").recipe.sampling.share
    assert share.small + share.medium + share.fine == pytest.approx(1)
    assert min(share.small, share.medium, share.fine) > 0.05


def test_a_set_without_a_single_target_pixel(tmp_path: Path) -> None:
    empty = drawn(tmp_path, "empty", np.zeros((64, 64), np.uint8), "polyp", "endoscopy")
    look = look_at(empty)
    assert (look.width, look.parts) == (1.0, 0)
    assert plan_finetune([empty], "imagenet", "x").traits["empty"].size == "medium"


def test_the_plan_is_a_recipe_that_can_be_overridden(discs: Dataset) -> None:
    recipe = plan_finetune([discs], "imagenet", "discs").recipe
    assert recipe.name == "discs" and recipe.start == "imagenet" and recipe.model == CompactConfig()
    assert recipe.sampling.high_from == 0.0  # the weights have learned at low resolution already
    changed = override(recipe, ["model.path=8,16,24", "sampling.high.medium.side=64", "optim.lr=1e-3", "run.ema=none"])
    assert changed.model.path == (8, 16, 24) and changed.sampling.high.medium.side == 64 and changed.run.ema is None
    with pytest.raises(InputError, match="multiple of 32"):
        override(recipe, ["sampling.high.medium.side=100"])


def test_an_unknown_start_is_refused(discs: Dataset) -> None:
    with pytest.raises(InputError, match="no such model"):
        plan_finetune([discs], "nonsense", "x")


def test_steps_for_a_time() -> None:
    assert steps_for(30, 1.0) == 1620
    assert steps_for(0.5, 60) == FEWEST_STEPS and steps_for(1e6, 0.1) == MOST_STEPS


@pytest.mark.parametrize("steps", [1, 6, 60, 1000, 6000])
def test_intervals_and_averaging_suit_the_steps(discs: Dataset, steps: int) -> None:
    recipe = with_steps(plan_finetune([discs], "imagenet", "discs").recipe, steps)
    run = recipe.run
    assert run.steps == steps and recipe.optim.warmup <= max(steps / 5, 0)
    assert run.ema is not None and 0.9 <= run.ema <= 0.998
    assert min(run.validate_every, run.checkpoint_every, run.log_every) >= 1 and run.checkpoint_every <= 200
    if steps >= 1000:
        assert recipe.optim.warmup == 30 and steps / run.validate_every == pytest.approx(8, abs=1)

"""A recipe from a look at the data: what is seen in drawn sets, and what follows from it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.cache import open_cache
from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import TRAITS
from lexitome.errors import InputError
from lexitome.models.compact import CompactConfig
from lexitome.recipes import finetune
from lexitome.recipes.compact import CompactRecipe, compact_optim
from lexitome.recipes.finetune import (
    FEWEST_STEPS,
    MEMORY_SHARE,
    MOST_STEPS,
    Plan,
    fit_memory,
    precision_for,
    steps_for,
    traits_for,
    with_steps,
)
from lexitome.recipes.look import Look, Spacing, look_at
from lexitome.recipes.machine import Machine
from lexitome.training.compact import Share
from lexitome.training.memory import RECOMPUTED, StepMemory

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


PLENTY = Machine("cpu", memory=64 * 10**9, cores=4)


def plan_finetune(
    datasets: list[Dataset], start: str, name: str, machine: Machine = PLENTY, settings: tuple[str, ...] = ()
) -> Plan:
    return finetune.plan_finetune(datasets, start, name, machine, settings)


def line(plan: Plan, topic: str) -> str:
    """The one reason about a topic."""
    (found,) = [reason for reason in plan.reasons if reason.startswith(f"{topic} ")]
    return found


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    mask = np.zeros((20, 64, 80), np.uint8)
    mask[8:12, 20:40, 30:50] = 1
    cases = {f"v{i}": (painted(mask, i), mask) for i in range(4)}
    folder = tmp_path_factory.mktemp("sets") / "volumes"
    return load_dataset(save_set(folder, cases, {1: "left hippocampus"}, "MRI", affine=np.eye(4), dims=3))


def test_thin_lines_want_high_resolution_and_are_no_objects(lines: Dataset) -> None:
    traits = traits_for(lines, look_at(lines))
    assert traits.size == "fine" and not traits.countable
    plan = plan_finetune([lines], "imagenet", "lines")
    assert plan.recipe.sampling.share == Share(small=0.0, medium=0.6, fine=0.4)
    assert "512 pixels and 320" in line(plan, "resolution") and "fewer than 4.5" in line(plan, "resolution")


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
    assert traits.size == "small" and not traits.mirror and traits.slice_step == 1 and traits.neighbours
    assert plan.recipe.sampling.share == Share(small=0.5, medium=0.0, fine=0.0)
    assert "80 voxels across" in line(plan, "resolution") and "between its neighbours" in line(plan, "neighbours")
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
    settings = ("model.path=8,16,24", "sampling.high.medium.side=64", "optim.lr=1e-3", "run.ema=none")
    changed = plan_finetune([discs], "imagenet", "discs", settings=settings)
    assert changed.recipe.model.path == (8, 16, 24) and changed.recipe.sampling.high.medium.side == 64
    assert changed.recipe.run.ema is None
    assert "0.001" in line(changed, "optimiser") and "half of what" not in line(changed, "optimiser")
    assert "half of what" in line(plan_finetune([discs], "imagenet", "discs"), "optimiser")
    with pytest.raises(InputError, match="multiple of 32"):
        plan_finetune([discs], "imagenet", "discs", settings=("sampling.high.medium.side=100",))


def test_an_unknown_start_is_refused(discs: Dataset) -> None:
    with pytest.raises(InputError, match="no such model"):
        plan_finetune([discs], "nonsense", "x")


def test_steps_for_a_time() -> None:
    assert steps_for(30, 1.0) == 1620
    assert steps_for(0.5, 60) == FEWEST_STEPS and steps_for(1e6, 0.1) == MOST_STEPS


@pytest.mark.parametrize("steps", [1, 6, 60, 1000, 6000])
def test_intervals_and_averaging_suit_the_steps(steps: int) -> None:
    recipe = with_steps(CompactRecipe("x", optim=compact_optim(4e-4, warmup=30)), steps)
    run = recipe.run
    assert run.steps == steps and recipe.optim.warmup <= max(steps / 5, 0)
    assert run.ema is not None and 0.9 <= run.ema <= 0.998
    assert min(run.validate_every, run.checkpoint_every, run.log_every) >= 1 and run.checkpoint_every <= 200
    if steps >= 1000:
        assert recipe.optim.warmup == 30 and steps / run.validate_every == pytest.approx(8, abs=1)


def volume_set(root: Path, spacing: tuple[float, float, float], width: int = 20) -> Dataset:
    """Two volumes of (z, y, x) = (24, 64, 64) voxels; spacing along x, y, z."""
    mask = np.zeros((24, 64, 64), np.uint8)
    mask[6:18, 20 : 20 + width, 20 : 20 + width] = 1
    cases = {f"v{i}": (painted(mask, i), mask) for i in range(2)}
    return load_dataset(save_set(root, cases, {1: "tumour"}, "MRI", affine=np.diag([*spacing, 1.0]), dims=3))


@pytest.mark.parametrize(("through", "directions"), [(1.0, 3), (1.9, 3), (2.1, 1), (5.0, 1)])
def test_spacing_decides_along_which_axes_volumes_are_cut(tmp_path: Path, through: float, directions: int) -> None:
    """The plan says what the cache does."""
    dataset = volume_set(tmp_path / "set", (1.0, 1.0, through))
    plan = plan_finetune([dataset], "imagenet", "x")
    said = line(plan, "spacing")
    assert f"slices {through:.2g} mm apart" in said
    assert ("along all three axes" in said) == (directions == 3) and ("along one axis" in said) == (directions == 1)
    cached = open_cache(dataset, tmp_path / "cache", traits=plan.traits[dataset.name])
    assert len({row.axis for row in cached.rows}) == directions
    assert look_at(dataset).slices == (24 if directions == 1 else 24 + 64 + 64)


@pytest.mark.parametrize(("through", "shown"), [(8.0, True), (20.0, True), (30.0, False)])
def test_neighbours_are_shown_where_they_can_tell_something(tmp_path: Path, through: float, shown: bool) -> None:
    """A square of 20 x 20 mm has the area of a disc of 22.6 mm."""
    dataset = volume_set(tmp_path / "set", (1.0, 1.0, through))
    plan = plan_finetune([dataset], "imagenet", "x")
    said = line(plan, "neighbours")
    assert "23 mm across" in said and f"{through:.2g} mm away" in said and ("shown alone" in said) != shown
    assert plan.traits[dataset.name].neighbours == shown
    cached = open_cache(dataset, tmp_path / "cache", traits=plan.traits[dataset.name])
    assert {row.stacked for row in cached.rows} == {shown}
    assert any((image[..., 0] != image[..., 2]).any() for image in cached.images) == shown


def test_slices_that_are_far_apart_are_all_decoded(volumes: Dataset) -> None:
    """Of a hundred volumes only one in four slices would be, but the smallest target has to be met in two."""
    near = Spacing(pixel=1.0, gap=1.0, smallest=9.0, largest=40.0)
    look = Look(cases=100, slices=100, across=512, width=0.1, parts=1, compactness=1, spacing=near)
    assert traits_for(volumes, look).slice_step == 4
    assert traits_for(volumes, replace(look, spacing=replace(near, gap=2.0))).slice_step == 2
    assert traits_for(volumes, replace(look, spacing=replace(near, gap=5.0))).slice_step == 1
    assert traits_for(volumes, replace(look, cases=4, spacing=near)).slice_step == 1


def test_what_slices_are_left_out_is_said(volumes: Dataset) -> None:
    spacing = Spacing(pixel=1.0, gap=2.0, smallest=9.0, largest=40.0)
    look = Look(cases=100, slices=100, across=512, width=0.1, parts=1, compactness=1, spacing=spacing)
    recipe = plan_finetune([volumes], "imagenet", "x").recipe
    said = finetune.data_reasons(volumes, look, traits_for(volumes, look), recipe)
    assert any(reason.startswith("slices       one in 2, 4 mm apart: about 10000 slices") for reason in said)
    far = replace(look, spacing=replace(spacing, gap=5.0))
    said = finetune.data_reasons(volumes, far, traits_for(volumes, far), recipe)
    assert any("slices       all, 5 mm apart: about 10000" in reason and "9 mm across" in reason for reason in said)


def test_unknown_spacing_is_said(volumes: Dataset) -> None:
    look = replace(look_at(volumes), spacing=None)
    assert traits_for(volumes, look).neighbours
    recipe = plan_finetune([volumes], "imagenet", "x").recipe
    said = finetune.data_reasons(volumes, look, traits_for(volumes, look), recipe)
    assert any(reason.startswith("spacing      not known") for reason in said)


def flat_set(root: Path, spacing: tuple[float, float]) -> Dataset:
    """Single pictures of 100 rows and 400 columns with a band of 4 rows; spacing along x, y."""
    mask = np.zeros((1, 100, 400), np.uint8)
    mask[0, 40:44, 20:380] = 1
    cases = {f"p{i}": (painted(mask, i), mask) for i in range(3)}
    return load_dataset(save_set(root, cases, {1: "layer"}, "OCT", affine=np.diag([*spacing, 1, 1])))


def test_the_side_follows_the_width_in_square_pixels(tmp_path: Path) -> None:
    """4 rows of 400 columns are 1 % of the side: too few pixels of 320. Rows that are four times as far apart as
    columns make the picture square and the band 4 % of it."""
    thin, thick = flat_set(tmp_path / "a" / "thin", (0.01, 0.01)), flat_set(tmp_path / "b" / "thick", (0.01, 0.04))
    plan = plan_finetune([thin], "imagenet", "x")
    assert plan.traits["thin"].size == "fine" and look_at(thin).width == pytest.approx(0.01, rel=0.1)
    assert "(0.04 mm)" in line(plan, "resolution") and "3.2 pixels of 320" in line(plan, "resolution")
    plan = plan_finetune([thick], "imagenet", "x")
    assert plan.traits["thick"].size == "medium" and look_at(thick).width == pytest.approx(0.04, rel=0.1)
    assert "(0.15 mm)" in line(plan, "resolution") and "at least 4.5" in line(plan, "resolution")


def test_what_is_lost_even_at_the_highest_resolution_is_said(lines: Dataset) -> None:
    look = replace(look_at(lines), width=0.002)
    recipe = plan_finetune([lines], "imagenet", "x").recipe
    said = finetune.data_reasons(lines, look, traits_for(lines, look), recipe)
    assert any(reason.startswith("thin ") and "tiles" in reason for reason in said)


BIG = StepMemory(fixed=10**8, computed=2000.0, drawn=20.0)
"""Eight pictures of 320 pixels at once: 2.0 GB computed, 0.07 drawn ahead."""
WAYS = {(): BIG, RECOMPUTED: replace(BIG, computed=800.0)}


@pytest.mark.parametrize(("free", "parts", "way", "words"), [
    (64.0, 1, (), ("8 pictures of 320 pixels make a step, 8 at once", "64.0 GB are free")),
    (3.15, 1, (), ("8 at once", "2.1 GB at most;")),
    (3.0, 2, (), ("4 at once", "1.1 GB at most instead of 2.1", "3.0 GB are free")),
    (1.2, 4, (), ("2 at once",)),
    (0.6, 8, (), ("1 at once",)),
    (0.5, 8, RECOMPUTED, ("1 at once", "computed twice (recompute)")),
    (0.2, 8, RECOMPUTED, ("too few: close other programs",)),
    (None, 1, (), ("8 at once", "how much is free is not known")),
])  # fmt: skip
def test_free_memory_decides_how_much_is_computed_at_once(
    discs: Dataset, free: float | None, parts: int, way: tuple[str, ...], words: tuple[str, ...]
) -> None:
    recipe = plan_finetune([discs], "imagenet", "x").recipe
    found = fit_memory(recipe, replace(PLENTY, memory=None if free is None else int(free * 1e9)), WAYS.__getitem__, ())
    assert (found.recipe.run.accumulate, found.recipe.run.recompute) == (parts, way)
    assert all(word in found.reason for word in words), found.reason
    if free and "too few" not in found.reason:
        shown = recipe.sampling.high.medium
        assert WAYS[way].needed(shown, 1, parts, recipe.run.prefetch) <= MEMORY_SHARE * free * 1e9


def test_the_memory_of_the_network_itself_is_counted(discs: Dataset) -> None:
    """From the command's side: with less memory the plan has more parts; a smaller network needs less."""
    small = ("model.width=32", "model.heads=2", "model.path=8,16,24")
    plenty, little = (plan_finetune([discs], "imagenet", "x", replace(PLENTY, memory=m)) for m in (64 * 10**9, 10**9))
    tiny = plan_finetune([discs], "imagenet", "x", replace(PLENTY, memory=10**9), small)
    assert plenty.recipe.run.accumulate == 1 < little.recipe.run.accumulate
    assert tiny.recipe.run.accumulate < little.recipe.run.accumulate
    assert "1.0 GB are free" in line(little, "memory")


def test_processes_share_the_pictures(discs: Dataset) -> None:
    recipe = plan_finetune([discs], "imagenet", "x").recipe
    found = fit_memory(recipe, replace(PLENTY, memory=3 * 10**9, ranks=2), WAYS.__getitem__, ())
    assert found.recipe.run.accumulate == 1 and "4 at once in each process" in found.reason


def test_the_parts_that_were_asked_for_stay(discs: Dataset) -> None:
    settings = ("run.accumulate=2",)
    recipe = plan_finetune([discs], "imagenet", "x", settings=settings).recipe
    assert recipe.run.accumulate == 2
    found = fit_memory(recipe, replace(PLENTY, memory=10**9), WAYS.__getitem__, settings)
    assert found.recipe.run.accumulate == 2 and "4 at once" in found.reason


@pytest.mark.parametrize(("machine", "threads", "words"), [
    (PLENTY, 4, "cpu, 4 threads: no GPU was found; 4 cores may be used"),
    (replace(PLENTY, cores=2), 2, "2 cores may be used"),
    (replace(PLENTY, ranks=2), 2, "cpu, 2 threads: no GPU was found; 4 cores may be used for 2 processes"),
    (replace(PLENTY, cores=1, ranks=2), 1, "one thread: no GPU was found; 1 cores"),
    (replace(PLENTY, threads=3), 3, "as OMP_NUM_THREADS says"),
    (replace(PLENTY, device="cuda", precision="bf16"), None, "cuda: a GPU was found"),
])  # fmt: skip
def test_threads_follow_from_cores_and_processes(
    discs: Dataset, machine: Machine, threads: int | None, words: str
) -> None:
    plan = plan_finetune([discs], "imagenet", "x", machine)
    assert plan.recipe.run.threads == threads and words in line(plan, "device")


def test_threads_that_were_asked_for_stay(discs: Dataset) -> None:
    plan = plan_finetune([discs], "imagenet", "x", settings=("run.threads=1",))
    assert plan.recipe.run.threads == 1 and "cpu, one thread: no GPU was found; as you set" in line(plan, "device")


def test_a_gpu_says_its_precision(discs: Dataset) -> None:
    for precision, words in (("bf16", "the GPU computes bf16"), ("fp32", "is not known to compute bf16")):
        plan = plan_finetune([discs], "imagenet", "x", replace(PLENTY, device="cuda", precision=precision))
        assert plan.recipe.run.precision == precision and words in line(plan, "precision")
        assert "are free on the GPU" in line(plan, "memory")
    assert not any(reason.startswith("precision") for reason in plan_finetune([discs], "imagenet", "x").reasons)


@pytest.mark.parametrize(("half", "full", "chosen"), [
    (1.0, 2.0, "bf16"), (1.0, 1.11, "bf16"), (1.0, 1.09, "fp32"), (3.0, 1.0, "fp32"),
])  # fmt: skip
def test_the_clock_decides_the_precision_of_a_cpu(half: float, full: float, chosen: str) -> None:
    precision, reason = precision_for({"bf16": half, "fp32": full})
    assert precision == chosen and reason.startswith(f"precision    {chosen}: ")
    assert f"{half:.2g} s" in reason and f"{full:.2g} s" in reason

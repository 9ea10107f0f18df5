"""What a run is made of: jobs that can be stored, data that can be found, weights that fit."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lexitome.data.batches import BatchSource
from lexitome.data.cache import open_cache
from lexitome.data.dataset import Dataset
from lexitome.data.licences import JUDGED
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import SetTraits
from lexitome.errors import InputError
from lexitome.losses.set_prediction import SetPredictionConfig
from lexitome.models.catalog import CATALOG, TrainingSet, find_model
from lexitome.models.compact import CompactConfig
from lexitome.recipes import run
from lexitome.recipes.compact import RECIPES, CompactRecipe
from lexitome.recipes.run import (
    LOCK,
    RECIPE,
    Job,
    Start,
    build_model,
    changed_start,
    claimed,
    empty_model,
    find_datasets,
    open_source,
    prepare_splits,
    remembered,
    start_of,
    time_steps,
)
from lexitome.training import checkpoint
from lexitome.training.compact import CompactObjective, Resolution, Sampling, Stage
from lexitome.training.engine import RunConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set, write_sets

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24))
MASK = disc(32, 16, 16, 8).astype(np.uint8)


def silent(line: str) -> None:
    pass


def one_set(folder: Path, count: int = 5, **meta: object) -> Path:
    return save_set(folder, {f"p{i}": (painted(MASK, i), MASK) for i in range(count)}, {1: "polyp"}, **meta)


def job(*data: Path, **changes: object) -> Job:
    return Job(replace(CompactRecipe("mine", model=TINY), **changes), tuple(map(str, data)))  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", [
    *(make() for make in RECIPES.values()),
    CompactRecipe("x", model=TINY, objective=CompactObjective(objects=SetPredictionConfig()), negatives=False, seed=7),
])  # fmt: skip
def test_a_job_is_stored_and_read_again(recipe: CompactRecipe, tmp_path: Path) -> None:
    traits = {"a": SetTraits(size="fine", countable=True, turns=2.0, neighbours=False)}
    start = Start("12ab", (("left kidney", ("ct", "mr")),), (TrainingSet("a", "A", "CT", "CC0", "somewhere"),))
    stored = Job(recipe, ("/a", "/b"), "polyp", r"^\w+", traits, start)
    stored.save(tmp_path / "run")
    assert Job.load(tmp_path / "run") == stored
    assert [p.name for p in (tmp_path / "run").iterdir()] == [RECIPE]


def test_a_folder_without_a_run_or_with_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run to continue"):
        Job.load(tmp_path)
    Job(CompactRecipe("x"), ("/a",)).save(tmp_path)
    entry = json.loads((tmp_path / RECIPE).read_text())
    for damaged in ("{", json.dumps([]), json.dumps({**entry, "recipe": {**entry["recipe"], "run": {"steps": -1}}}),
                    json.dumps({**entry, "recipe": {**entry["recipe"], "queries": "many"}})):  # fmt: skip
        (tmp_path / RECIPE).write_text(damaged)
        with pytest.raises(InputError):
            Job.load(tmp_path)


def test_sets_are_found_in_folders_of_sets_and_alone(tmp_path: Path) -> None:
    root = write_sets(tmp_path / "sets", 3)
    mine = one_set(tmp_path / "mine")
    assert [d.name for d in find_datasets(job(root, mine))] == ["btcv_abdomen_ct2d", "kvasir_seg", "mine"]


def test_who_is_tested_does_not_depend_on_the_seed_of_a_recipe(tmp_path: Path) -> None:
    """A model that goes on from another with another seed would learn what the other is tested on."""
    one = job(write_sets(tmp_path / "sets", 12))
    other = replace(one, recipe=replace(one.recipe, seed=7))
    parts = [[[case.split for case in dataset.cases] for dataset in find_datasets(each)] for each in (one, other)]
    assert parts[0] == parts[1]


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = one_set(tmp_path / "a" / "polyps"), one_set(tmp_path / "b" / "polyps")
    with pytest.raises(InputError, match="two datasets are called 'polyps'"):
        find_datasets(job(first, second))


def test_folders_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_datasets(job(tmp_path / "missing"))
    with pytest.raises(InputError, match="in no form that can be read"):
        find_datasets(job(tmp_path))


def test_open_sets_only(tmp_path: Path) -> None:
    root = write_sets(tmp_path / "sets", 3)  # two sets whose terms forbid it, whatever their files say
    assert {JUDGED[d.name].verdict for d in root.iterdir()} == {"restricted"}
    with pytest.raises(InputError, match="no set here has a licence that permits commercial use"):
        find_datasets(job(root, open_only=True))
    mine = one_set(tmp_path / "mine")
    assert [d.name for d in find_datasets(job(root, mine, open_only=True))] == ["mine"]


def test_splits_are_stored_and_a_resumed_run_takes_them(tmp_path: Path) -> None:
    folder = one_set(tmp_path / "mine", 8)
    (dataset,) = prepare_splits([load_dataset(folder)], tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "splits" / "mine.json").exists()
    (again,) = prepare_splits([load_dataset(folder, seed=5)], tmp_path / "run", resume=True)
    assert [c.split for c in again.cases] == [c.split for c in dataset.cases]
    image = dataset.cases[0].image
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(InputError, match="has changed"):
        prepare_splits([load_dataset(folder)], tmp_path / "run", resume=True)


def opened(folder: Path, cache: Path) -> BatchSource:
    return BatchSource([open_cache(load_dataset(folder), cache, side=32)], seed=0)


def test_a_source_says_what_it_decodes_and_keeps_to_the_traits_of_the_job(tmp_path: Path) -> None:
    folder, said = one_set(tmp_path / "mine"), list[str]()
    asked = replace(job(folder, queries=2, negatives=False), traits={"mine": SetTraits(size="small", turns=3.0)})
    source = open_source(asked, [load_dataset(folder)], tmp_path / "cache", said.append)
    assert said == ["decoding     mine (1 of 1)"] and source.traits[0].turns == 3.0 and source.queries == 2
    assert source.sets[0].images.shape[1] == 224 and not source.negatives


def test_without_a_training_picture_nothing_begins(tmp_path: Path) -> None:
    folder = one_set(tmp_path / "mine", labels_not_annotated={f"p{i}": ["1" if i else 1] for i in range(5)})
    with pytest.raises(InputError, match="no annotated picture is in the training part"):
        open_source(job(folder), [load_dataset(folder)], tmp_path / "cache", silent)


def test_the_network_of_a_recipe(tmp_path: Path) -> None:
    source = opened(one_set(tmp_path / "mine"), tmp_path / "cache")
    model = build_model(CompactRecipe("x", model=TINY), source)
    assert model.config == TINY
    empty = empty_model(CompactRecipe("x", model=TINY))
    checkpoint.copy_into(checkpoint.model_tensors(empty), checkpoint.model_tensors(model), tmp_path)
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in model.parameters()]
    with pytest.raises(InputError, match="no such model"):
        build_model(CompactRecipe("x", start="nonsense"), source)
    with pytest.raises(InputError, match="object queries cannot be exported"):  # before hours of training, not after
        build_model(CompactRecipe("x", model=replace(TINY, object_queries=4)), source)


def test_timing_a_step_leaves_the_model_alone(tmp_path: Path) -> None:
    source = opened(one_set(tmp_path / "mine"), tmp_path / "cache")
    model = build_model(CompactRecipe("x", model=TINY), source)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stage = Stage(*(Resolution(32, 1) for _ in range(3)))
    run_config = RunConfig(steps=10, threads=1, accumulate=2, recompute=("decoder.up*",))
    recipe = CompactRecipe("x", model=TINY, sampling=Sampling(stage, stage), run=run_config)
    seconds = time_steps(recipe, source, model, ("bf16", "fp32"))
    assert seconds.keys() == {"bf16", "fp32"} and all(0 < spent < 60 for spent in seconds.values())
    assert time_steps(recipe, source, model, ("fp32",)).keys() == {"fp32"}
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_recipes_of_the_shipped_models() -> None:
    assert RECIPES.keys() == {"compact", "compact-open"}
    for name, make in RECIPES.items():
        assert make().name == name
    assert RECIPES["compact-open"]().open_only and RECIPES["compact-open"]().start == "imagenet"
    assert not RECIPES["compact"]().open_only


def test_datasets_keep_what_was_asked_for(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        for i in range(3):
            (tmp_path / "plain" / part).mkdir(parents=True, exist_ok=True)
            save_set(tmp_path / "scratch", {f"s{i}": (painted(MASK, i), MASK)}, {1: "x"})
            source = tmp_path / "scratch" / part / f"s{i}.png"
            source.rename(tmp_path / "plain" / part / f"s{i}.png")
    asked = replace(job(tmp_path / "plain"), concept="polyp", unit_pattern=r"^s")
    (found,) = find_datasets(asked)
    assert isinstance(found, Dataset) and [t.name for t in found.targets] == ["polyp"]
    assert {case.unit for case in found.cases} == {"s"}


def test_a_run_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text() == f"{os.getpid()}\n"
        told = f"is being trained by process {os.getpid()}. Wait for it"
        with pytest.raises(InputError, match=told), claimed(tmp_path / "run"):
            pytest.fail("two runs in one folder")
    assert list((tmp_path / "run").iterdir()) == []


needs_compact = pytest.mark.skipif("compact" not in CATALOG, reason="this installation has no built-in model")


@needs_compact
def test_what_is_remembered_of_a_start(tmp_path: Path) -> None:
    card = find_model("compact")
    start = start_of(CompactRecipe("x", start="compact"))
    assert start.sha256 == card.sha256 and start.sets == card.sets
    assert start.concepts == tuple((c.words, c.families) for c in card.trained_concepts) and start.concepts
    assert start_of(CompactRecipe("x")) == Start()
    Job(CompactRecipe("x", start="compact"), ("/a",), start=start).save(tmp_path)
    assert Job.load(tmp_path).start == start


@needs_compact
def test_runs_of_before_take_the_start_as_it_is(tmp_path: Path) -> None:
    """Their recipe.json has no entry for it."""
    Job(CompactRecipe("x", start="compact"), ("/a",)).save(tmp_path)
    entry = json.loads((tmp_path / RECIPE).read_text())
    del entry["start"]
    (tmp_path / RECIPE).write_text(json.dumps(entry))
    old = Job.load(tmp_path)
    assert old.start is None and remembered(old) == replace(start_of(old.recipe), sha256="")
    assert remembered(old).concepts and changed_start(old) is None


@needs_compact
def test_a_start_that_is_another_one_by_now_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = start_of(CompactRecipe("x", start="compact"))
    kept = Job(CompactRecipe("x", start="compact"), ("/a",), start=now)
    assert changed_start(kept) is None
    other = replace(kept, start=replace(now, sha256="0" * 64, concepts=(), sets=()))
    said = changed_start(other)
    assert said is not None and "has other weights now" in said and now.sha256[:12] in said and "0" * 12 in said
    gone = replace(kept, recipe=replace(kept.recipe, start="no such model"))
    assert changed_start(gone) == "is not there any more"


def test_a_source_knows_strangers_from_the_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are those of before, whatever has become of the model that the run began with."""
    folder = one_set(tmp_path / "mine", modality="colonoscopy")
    asked = replace(job(folder, start="gone"), start=Start("ab", (("left kidney", ("ct",)), ("polyp", ("endoscopy",)))))
    monkeypatch.setattr(run, "find_model", None)
    source = open_source(asked, [load_dataset(folder)], tmp_path / "cache", silent)
    assert [[target.name for target in pool] for pool in source.far] == [["left kidney"]]

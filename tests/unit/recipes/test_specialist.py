"""Specialists learn, are stored, and answer about the images of their own set."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("monai")

from lexitome.data.cache import open_cache
from lexitome.data.cases import read_case
from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import SetTraits
from lexitome.errors import InputError
from lexitome.evaluation.answering import About
from lexitome.evaluation.leakage import check
from lexitome.io import from_array
from lexitome.prompts import Query, Text
from lexitome.recipes import specialist
from lexitome.recipes.specialist import (
    CARD,
    WEIGHTS,
    NetworkName,
    SpecialistRecipe,
    SpecialistTask,
    choose,
    read_card,
    task_of,
    train_specialist,
    train_specialists,
    within,
)
from lexitome.recipes.specialist_answers import specialist_answerer
from lexitome.training.engine import RunConfig
from lexitome.training.optim import OptimConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

SHORT = SpecialistRecipe(
    network="BasicUNet", side=32, images=4, optim=OptimConfig(3e-3),
    run=RunConfig(steps=40, precision="fp32", ema=0.9, threads=1, validate_every=20, checkpoint_every=40),
)  # fmt: skip


def discs(folder: Path, count: int = 16, **meta: object) -> Dataset:
    rng, cases = np.random.default_rng(0), {}
    for i in range(count):
        mask = disc(32, *rng.integers(9, 23, 2), 6).astype(np.uint8) * (1 + i % 2)
        cases[f"p{i:02d}"] = (painted(mask, i), mask)
    return load_dataset(save_set(folder, cases, {1: "dim disc", 2: "bright disc"}, **meta))


def task(dataset: Dataset, cache: Path, recipe: SpecialistRecipe = SHORT) -> SpecialistTask:
    return task_of(open_cache(dataset, cache, traits=SetTraits(), side=32), recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    root = tmp_path_factory.mktemp("specialist")
    dataset = discs(root / "discs")
    train_specialist(task(dataset, root / "cache"), root / "run" / "discs")
    return dataset, root / "run"


def test_it_learns_and_answers(trained: tuple[Dataset, Path]) -> None:
    dataset, run = trained
    answerer = specialist_answerer(run)
    labels = {target.name: target.labels for target in dataset.targets}
    scores = []
    for case in dataset.cases:
        if case.split != "train":
            volume, codes = read_case(case)
            session = answerer.begin(volume, About(dataset.name, case.stem, labels=labels))
            for target in dataset.targets:
                truth = np.isin(codes, target.codes)
                answer = session.answer([Query(Text(target.name))])[0]
                assert answer.mask.shape == volume.grid and answer.taught and answer.presence is None
                if truth.any():
                    scores.append(2 * (answer.mask & truth).sum() / (answer.mask.sum() + truth.sum()))
    assert np.mean(scores) > 0.6
    said = answerer.provenance()
    assert said["trained_on"] == ["discs"] and said["licence"] == "CC0" and len(said["weights_sha256"]) == 64
    json.dumps(said)
    assert check(answerer.training(), [dataset]).sets[0].taught
    again = replace(dataset, cases=tuple(replace(case, split="test") for case in dataset.cases))
    taught = {case.stem for case in dataset.cases if case.split != "test"}
    assert taught <= {pair.case for pair in check(answerer.training(), [again]).pairs}


def test_words_of_other_sets_and_other_names_for_its_own(trained: tuple[Dataset, Path]) -> None:
    dataset, run = trained
    answerer = specialist_answerer(run / "discs")
    volume = read_case(dataset.cases[0])[0]
    about = About("discs", "x", labels={"blob": (1,), "liver": (), "both": (1, 2)})
    blob, liver, both, dim, bright = answerer.begin(volume, about).answer(
        [Query(Text(word)) for word in ("blob", "liver", "both", "dim disc", "bright disc")]
    )
    assert (blob.mask == dim.mask).all() and liver.status == "missing" and "not taught" in liver.notes[0]
    assert (both.mask == (dim.mask | bright.mask)).all()
    with pytest.raises(InputError, match="no specialist for other"):
        answerer.begin(volume, About("other", "x"))


def test_volumes_are_answered_on_their_grid(trained: tuple[Dataset, Path]) -> None:
    _, run = trained
    volume = from_array(np.random.default_rng(0).normal(size=(5, 20, 24)).astype(np.float32), spacing=(1, 1, 3))
    about = About("discs", "x", labels={"dim disc": (1,)})
    answer = specialist_answerer(run).begin(volume, about).answer([Query(Text("dim disc"))])[0]
    assert answer.mask.shape == volume.grid
    assert answer.probability is not None and answer.probability.shape == volume.grid


def test_batches_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    one = task(discs(tmp_path / "discs"), tmp_path / "cache")
    whole, parts = one.batch(3, range(4)), [one.batch(3, range(i, i + 1)) for i in range(4)]
    assert torch.equal(whole.pictures, torch.cat([part.pictures for part in parts]))
    assert torch.equal(whole.masks, torch.cat([part.masks for part in parts]))
    assert not torch.equal(whole.pictures, one.batch(4, range(4)).pictures)
    other = replace(one, recipe=replace(one.recipe, seed=1))
    assert not torch.equal(whole.pictures, other.batch(3, range(4)).pictures)
    seen = torch.cat([one.batch(step, range(4)).masks.flatten(1).sum(1) for step in range(len(one.train) // 4 + 1)])
    assert len(seen) >= len(one.train)


def test_what_nobody_looked_for_or_judged_has_no_gradient(tmp_path: Path) -> None:
    dataset = discs(tmp_path / "discs", labels_not_annotated={f"p{i:02d}": [2] for i in range(16)}, ignore_label=9)
    one = task(dataset, tmp_path / "cache")
    batch = one.batch(0, range(4))
    assert (batch.known[:, 1] == 0).all() and (batch.known[:, 0] == 1).all() and one.counts(batch).item() == 4
    hidden = batch._replace(judged=torch.zeros_like(batch.judged))
    logits = torch.zeros(4, 2, 32, 32, requires_grad=True)
    for given, expected in ((batch, [True, False]), (hidden, [False, False])):
        terms = one.loss(lambda pictures: logits, given, one.counts(given))  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), logits)
        assert [bool(gradient[:, channel].any()) for channel in range(2)] == expected


def test_finished_ones_are_kept_and_the_time_is_shared(tmp_path: Path, trained: tuple[Dataset, Path]) -> None:
    dataset, run = trained
    before = (run / "discs" / WEIGHTS).read_bytes()
    said: list[str] = []
    (card,) = train_specialists([dataset], run, tmp_path / "cache", SHORT, minutes=0.01, say=said.append)
    assert (run / "discs" / WEIGHTS).read_bytes() == before and card == read_card(run / "discs")
    assert said == [f"discs: validation Dice {100 * (card.dice or 0):.1f}"]
    short = replace(SHORT, run=replace(SHORT.run, steps=2))
    (other,) = train_specialists([dataset], tmp_path / "new", tmp_path / "c", short, minutes=None, say=said.append)
    assert other.recipe == short and said[1] == "discs: 2 steps"
    planned = within(task(dataset, tmp_path / "other"), 1.0)
    assert planned.run.steps >= 60 and planned.run.validate_every >= 20 and planned.network == "BasicUNet"


def test_candidates_are_tried_the_best_comes_first_and_trials_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specialist, "FEWEST_TRIED", 20)  # the clock alone would let a slow machine learn nothing
    one = task(discs(tmp_path / "discs"), tmp_path / "cache")
    candidates: list[tuple[NetworkName, float]] = [("BasicUNet", 1e-9), ("BasicUNet", 3e-3)]
    (tmp_path / "trials" / "BasicUNet-1e-09" / "checkpoints").mkdir(parents=True)  # was interrupted
    best, other = choose(one, candidates, 0.001, tmp_path / "trials")
    assert best.recipe.optim.lr == 3e-3 and best.dice > other.dice and best.seconds_per_step > 0
    assert best.recipe.run.steps == 20 and best.recipe.side == one.recipe.side
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").glob(f"*/{WEIGHTS}")}
    assert choose(one, candidates, 0.001, tmp_path / "trials") == [best, other] and len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_nothing_to_train_on_and_damage_are_told(tmp_path: Path, trained: tuple[Dataset, Path]) -> None:
    dataset, run = trained
    tested = replace(dataset, cases=tuple(replace(case, split="test") for case in dataset.cases))
    with pytest.raises(InputError, match="no training part"):
        task(tested, tmp_path / "cache")
    with pytest.raises(InputError, match="holds no specialist"):
        specialist_answerer(tmp_path)
    with pytest.raises(InputError, match="not a multiple"):
        SpecialistRecipe(side=40)
    (tmp_path / CARD).write_bytes((run / "discs" / CARD).read_bytes())
    (tmp_path / WEIGHTS).write_bytes(b"none")
    with pytest.raises(InputError, match="cannot be used"):
        specialist_answerer(tmp_path)
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(InputError, match="not of this version"):
        specialist_answerer(tmp_path)

"""Batches: reproducible however they are divided, true to their masks, and never asking what nobody annotated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sets import disc, painted, save_set, write_sets

from lexitome.data.batches import LONE_SLICE, TEMPLATES, Batch, BatchSource, Draw
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import SetTraits, Size

SIDE = 64
DRAW = Draw("medium", SIDE, 6)
ORGANS = {1: "right kidney", 2: "left kidney", 3: "spleen"}
GREY = 40


def cached(folder: Path, place: Path, **traits: object) -> CachedDataset:
    opened = open_cache(load_dataset(folder), place, side=SIDE)
    return replace(opened, traits=replace(opened.traits, **traits))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    root = write_sets(tmp_path_factory.mktemp("sets"))
    return [cached(d, tmp_path_factory.mktemp("cache")) for d in sorted(root.iterdir())]


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> CachedDataset:
    """CT with three organs, of which the third is in every other picture. The id of each object tells its label:
    100 x label + 1."""
    cases, ids = {}, {}
    for i in range(12):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[disc(SIDE, 30, 16, 9)], mask[disc(SIDE, 32, 48, 9)] = 1, 2
        if i % 2:
            mask[disc(SIDE, 50, 32, 6)] = 3
        cases[f"p{i:02d}_a"] = painted(mask, i), mask
        ids[f"p{i:02d}_a"] = np.where(mask > 0, 100 * mask.astype(np.uint16) + 1, 0).astype(np.uint16)
    folder = save_set(tmp_path_factory.mktemp("sets") / "organs", cases, ORGANS, "CT", instances=ids)
    return cached(folder, tmp_path_factory.mktemp("cache"))


class Reader:
    """What a query asks, read from its text vector."""

    def __init__(self, source: BatchSource) -> None:
        datasets = [s.dataset for s in source.sets]
        asked = {
            template.format(word, asking.modality): target.name
            for d in datasets for target in d.targets for word in (target.name, *target.synonyms)
            for template in TEMPLATES for asking in datasets
        }  # fmt: skip
        vectors = source.text.embed(list(asked))
        self.names = {vector.tobytes(): asked[text] for text, vector in zip(asked, vectors, strict=True)}

    def read(self, batch: Batch) -> list[str]:
        """The name of the target of every query, "" without words."""
        return ["" if not vector.any() else self.names[vector.numpy().tobytes()] for vector in batch.text]


def some(source: BatchSource, count: int = 20, draw: Draw = DRAW) -> Iterator[Batch]:
    for step in range(count):
        yield source.batch(step, draw, range(draw.images))


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch))


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**31), st.integers(0, 10**6), st.lists(st.integers(1, 5), unique=True))
def test_any_division_of_a_step_gives_the_same_pictures(
    sets: list[CachedDataset], seed: int, step: int, cuts: list[int]
) -> None:
    source = BatchSource(sets, seed=seed)
    whole = source.batch(step, DRAW, range(DRAW.images))
    edges = [0, *sorted(cuts), DRAW.images]
    parts = [BatchSource(sets, seed=seed).batch(step, DRAW, range(a, b)) for a, b in pairwise(edges)]
    for field in fields(Batch):
        assert torch.equal(getattr(whole, field.name), torch.cat([getattr(part, field.name) for part in parts]))


def test_other_steps_and_seeds_give_other_pictures(sets: list[CachedDataset]) -> None:
    source = BatchSource(sets, seed=3)
    first = source.batch(7, DRAW, range(2))
    assert not torch.equal(first.pictures, source.batch(8, DRAW, range(2)).pictures)
    assert not torch.equal(first.pictures, BatchSource(sets, seed=4).batch(7, DRAW, range(2)).pictures)
    assert not torch.equal(first.pictures[0], first.pictures[1])


def test_shapes_and_balance(sets: list[CachedDataset]) -> None:
    source = BatchSource(sets, seed=0)
    batches = list(some(source))
    first = batches[0]
    assert first.pictures.shape == (6, 3, SIDE, SIDE) and first.masks.shape == (18, SIDE, SIDE)
    assert first.text.shape == (18, source.text.dim) and first.spatial.shape == (18, 4, SIDE // 4, SIDE // 4)
    assert first.instances.shape == (18, SIDE // 2, SIDE // 2) and first.unjudged.shape == (6, SIDE, SIDE)
    assert first.pictures.is_contiguous(memory_format=torch.channels_last)
    assert first.pictures.min() >= 0 and 100 < first.pictures.max() <= 255
    present = torch.cat([b.present for b in batches])
    places = torch.cat([b.spatial.flatten(1).any(1) for b in batches])
    assert 0.4 < present.mean() < 0.8 and 0.05 < places.float().mean() < 0.35
    assert not (places & ~present.bool()).any()  # only what is there can be pointed at
    silent = torch.cat([~b.text.any(1) for b in batches])
    assert silent.any() and not (silent & ~places).any()
    for batch in batches:
        assert torch.equal(batch.present.bool(), batch.masks.flatten(1).any(1))


def test_masks_are_those_of_what_is_asked(organs: CachedDataset) -> None:
    """Object ids tell the label under every pixel: those in the mask are of the asked target and no other."""
    source = BatchSource([organs], seed=1)
    reader, labels = Reader(source), {"right kidney": {1}, "left kidney": {2}, "spleen": {3}, "kidney": {1, 2}}
    asked: Counter[str] = Counter()
    for batch in some(source):
        assert batch.countable.all()
        for query, name in enumerate(reader.read(batch)):
            ids, mask = batch.instances[query], batch.masks[query, ::2, ::2] > 0
            assert torch.equal(ids > 0, mask)  # warped as the mask, and cut to it
            assert set((ids[ids > 0] % 100).tolist()) <= {1}
            if batch.present[query] and name:
                found = set((ids[ids > 0] // 100).tolist())
                assert found <= labels[name] and (
                    found == labels[name] or batch.spatial[query].any() or name == "kidney"
                )
                asked[name] += 1
    assert asked.keys() == labels.keys()


def test_objects_that_are_not_drawn_are_the_connected_parts_or_unknown(sets: list[CachedDataset]) -> None:
    discs = next(s for s in sets if s.dataset.name == "kvasir_seg")
    for countable in (True, False):
        source = BatchSource([replace(discs, traits=SetTraits(countable=countable))], seed=0)
        for batch in some(source, 3):
            assert (batch.countable == countable).all()
            if countable:
                assert torch.equal(batch.instances > 0, batch.masks[:, ::2, ::2] > 0)
            else:
                assert not batch.instances.any()


def test_what_is_asked_as_absent_is_not_shown(organs: CachedDataset, sets: list[CachedDataset]) -> None:
    """Of many queries about a picture, none is found that others of the same picture call absent."""
    source = BatchSource([organs, *sets], seed=2, queries=10)
    reader, absent_names = Reader(source), Counter()  # type: ignore[var-annotated]
    parts = {"kidney": {"right kidney", "left kidney"}}
    for batch in some(source):
        names = reader.read(batch)
        for picture in range(DRAW.images):
            own = range(10 * picture, 10 * picture + 10)
            shown = {names[q] for q in own if batch.present[q]}
            shown |= {part for name in shown for part in parts.get(name, ())} - {"right kidney", "left kidney"}
            absent = {names[q] for q in own if not batch.present[q]}
            assert not shown & absent
            absent_names.update(absent)
    assert absent_names["spleen"] and absent_names["polyp"]


def test_a_target_of_few_pixels_is_never_called_absent(tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[32, 31:33] = 1  # less than `SMALLEST_TARGET`
    folder = save_set(tmp_path / "dots", {f"d{i}": (painted(mask, i), mask) for i in range(4)}, {1: "dot"})
    source = BatchSource([cached(folder, tmp_path / "cache", rotate=False, mirror=False)], seed=0)
    for batch in some(source, 10):
        assert torch.equal(batch.present.bool(), batch.masks.flatten(1).any(1))
        assert batch.present.mean() > 0.5  # the rest has lost its dot between two sampled pixels


def test_targets_that_were_not_annotated_are_never_asked(organs: CachedDataset) -> None:
    unknown = replace(organs, rows=tuple(replace(row, unknown=(2,)) for row in organs.rows))
    source = BatchSource([unknown], seed=0)
    reader = Reader(source)
    asked = {name for batch in some(source) for name in reader.read(batch)}
    assert asked - {""} == {"right kidney", "spleen"}  # nor the union "kidney"


def test_pictures_that_nobody_annotated_are_not_drawn(tmp_path: Path) -> None:
    """Without a mask nothing is known; such a picture is not one without targets."""
    mask = disc(SIDE, 32, 32, 12).astype(np.uint8)
    drawn = {f"d{i}": (painted(mask, i), mask) for i in range(4)}
    bare = {f"x{i}": (np.full((SIDE, SIDE), 255, np.uint8), np.zeros(0, np.uint8)) for i in range(8)}
    opened = cached(save_set(tmp_path / "partly", drawn | bare, {1: "disc"}), tmp_path / "cache")
    opened = replace(opened, rows=tuple(replace(row, split="train") for row in opened.rows))
    source = BatchSource([opened], seed=0)
    assert len(source.rows[0]) == 4
    assert {opened.rows[i].stem[0] for i in source.rows[0]} == {"d"}
    for batch in some(source, 5):
        assert batch.present.any()


def test_empty_pictures_are_learned_from_unless_absence_is_not_asked(tmp_path: Path) -> None:
    mask = disc(SIDE, 32, 32, 12).astype(np.uint8)
    cases = {f"d{i}": (painted(mask * (i % 2), i), mask * np.uint8(i % 2)) for i in range(24)}
    opened = cached(save_set(tmp_path / "half", cases, {1: "disc"}), tmp_path / "cache")
    with_empty = [batch.present.view(-1, 3) for batch in some(BatchSource([opened], seed=0))]
    share = (torch.cat(with_empty).sum(1) == 0).float().mean()
    assert 0.02 < share < 0.3  # EMPTY_TURNS: seldom
    for batch in some(BatchSource([opened], seed=0, negatives=False)):
        assert batch.present.all() and batch.masks.flatten(1).any(1).all()


def test_no_absence_is_asked_though_the_target_may_leave_the_picture(tmp_path: Path) -> None:
    mask = disc(SIDE, 3, 3, 4).astype(np.uint8)  # in a corner, which is often out of sight
    folder = save_set(tmp_path / "corner", {f"d{i}": (painted(mask, i), mask) for i in range(6)}, {1: "disc"})
    opened = cached(folder, tmp_path / "cache")
    assert not all(batch.present.all() for batch in some(BatchSource([opened], seed=0), 10))
    assert all(batch.present.all() for batch in some(BatchSource([opened], seed=0, negatives=False), 10))


def test_right_stays_left_of_left(organs: CachedDataset) -> None:
    source = BatchSource([organs], seed=5, queries=8)
    reader, compared = Reader(source), 0
    columns = torch.arange(SIDE, dtype=torch.float32)
    for batch in some(source):
        names = reader.read(batch)
        for picture in range(DRAW.images):
            where = {names[q]: (batch.masks[q].sum(0) * columns).sum() / batch.masks[q].sum()
                     for q in range(8 * picture, 8 * picture + 8) if batch.present[q]}  # fmt: skip
            if {"right kidney", "left kidney"} <= where.keys():
                assert where["right kidney"] < where["left kidney"]
                compared += 1
    assert compared > 30


def test_pixels_that_nobody_judged_are_told_and_are_no_target(tmp_path: Path) -> None:
    mask = disc(SIDE, 32, 32, 14).astype(np.uint8)
    mask[:, 40:] = 9
    picture = painted(np.where(mask == 9, 4, mask))
    folder = save_set(tmp_path / "ignore", {f"d{i}": (picture, mask) for i in range(4)}, {1: "disc"}, ignore_label=9)
    for batch in some(BatchSource([cached(folder, tmp_path / "cache")], seed=0), 5):
        unjudged = batch.unjudged.repeat_interleave(3, 0)
        assert 0.05 < unjudged.float().mean() < 0.8
        assert not (batch.masks.bool() & unjudged).any() and batch.masks.any()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> CachedDataset:
    """A square that walks along x from slice to slice, with thick slices: one way of cutting."""
    cases = {}
    for i in range(4):
        mask = np.zeros((10, SIDE, SIDE), np.uint8)
        for z in range(10):
            mask[z, 24:40, 8 + 4 * z : 20 + 4 * z] = 1
        cases[f"v{i}"] = np.where(mask > 0, 200, GREY).astype(np.uint8), mask
    folder = tmp_path_factory.mktemp("sets") / "walk"
    save_set(folder, cases, {1: "square"}, "MRI", affine=np.diag([1.0, 1, 5, 1]), dims=3)
    return cached(folder, tmp_path_factory.mktemp("cache"))


def centre(picture: torch.Tensor) -> float:
    """Column of the bright square."""
    bright = (picture > picture.max() / 2).float().sum(0)
    return float((bright * torch.arange(len(bright))).sum() / bright.sum())


def test_the_middle_channel_of_a_stack_is_the_annotated_slice(volumes: CachedDataset) -> None:
    assert all(row.stacked for row in volumes.rows)
    lone, ways = [], Counter()  # type: ignore[var-annotated]
    for batch in some(BatchSource([volumes], seed=0, queries=1), 25):
        for picture, mask in zip(batch.pictures, batch.masks, strict=True):
            inside, outside = picture[1][mask > 0], picture[1][(mask == 0) & (picture[1] > 0)]
            assert mask.any() and inside.mean() > outside.mean() + 25
            lone.append(torch.equal(picture[0], picture[1]) and torch.equal(picture[1], picture[2]))
            before, after = centre(picture[0]), centre(picture[2])
            if not lone[-1] and abs(before - after) > 3:
                assert min(before, after) - 0.5 < centre(picture[1]) < max(before, after) + 0.5  # ends are repeated
                ways["up" if before < after else "down"] += 1
    assert LONE_SLICE - 0.12 < np.mean(lone) < LONE_SLICE + 0.12
    assert min(ways["up"], ways["down"]) > 20


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CachedDataset]:
    """Sets of one target that is always in sight, told apart by its name."""
    mask = disc(SIDE, 32, 32, 20).astype(np.uint8)
    root, place = tmp_path_factory.mktemp("sets"), tmp_path_factory.mktemp("cache")
    cases = {f"d{i}": (painted(mask, i), mask) for i in range(4)}
    words = ("liver", "polyp", "tooth", "nucleus")
    return {word: cached(save_set(root / word, cases, {1: word}), place) for word in words}


def sized(opened: CachedDataset, size: Size, turns: float = 1.0) -> CachedDataset:
    return replace(opened, traits=replace(opened.traits, size=size, turns=turns))


def asked_first(source: BatchSource, draw: Draw, steps: range) -> Counter[str]:
    """How often the first picture of a step is of which set."""
    reader = Reader(source)
    return Counter(name for step in steps for name in reader.read(source.batch(step, draw, range(1)))[:1] if name)


def test_size_classes_have_their_share(named: dict[str, CachedDataset]) -> None:
    share = {"small": 0.2, "medium": 0.5, "fine": 0.3}
    liver, polyp, tooth, _ = named.values()
    source = BatchSource([sized(liver, "small"), sized(polyp, "medium"), sized(tooth, "fine")], seed=0)
    drawn = Counter(source.size_of(step, share) for step in range(2000))
    for size, wanted in share.items():
        assert drawn[size] / 2000 == pytest.approx(wanted, abs=0.04)  # type: ignore[index]
    without = BatchSource([sized(liver, "small"), sized(polyp, "medium")], seed=0)
    drawn = Counter(without.size_of(step, share) for step in range(2000))
    assert drawn["small"] / 2000 == pytest.approx(0.2 / 0.7, abs=0.04) and not drawn["fine"]


def test_a_step_shows_sets_of_its_class_and_fine_ones_also_at_medium(named: dict[str, CachedDataset]) -> None:
    liver, polyp, tooth, _ = named.values()
    source = BatchSource([sized(liver, "small"), sized(polyp, "medium", 3.0), sized(tooth, "fine")], seed=0)
    steps = range(60)
    assert asked_first(source, Draw("small", SIDE, 1), steps).keys() == {"liver"}
    assert asked_first(source, Draw("fine", SIDE, 1), steps).keys() == {"tooth"}
    medium = asked_first(source, Draw("medium", SIDE, 1), steps)
    assert medium.keys() == {"polyp", "tooth"} and medium["polyp"] > 1.5 * medium["tooth"]


def test_the_class_of_a_step_says_nothing_about_the_set_of_its_first_picture(named: dict[str, CachedDataset]) -> None:
    """Both are drawn from generators that must not be the same one."""
    small, *others = named.values()
    source = BatchSource([sized(small, "small"), *(sized(other, "medium") for other in others)], seed=0)
    share = {"small": 0.5, "medium": 0.5, "fine": 0.0}
    steps = [step for step in range(160) if source.size_of(step, share) == "medium"]
    reader = Reader(source)
    first = Counter(reader.read(source.batch(step, Draw("medium", SIDE, 1), range(1)))[0] for step in steps)
    del first[""]
    assert len(first) == 3 and min(first.values()) > 0.15 * len(steps)


def test_only_training_rows_are_drawn(sets: list[CachedDataset]) -> None:
    source = BatchSource(sets, seed=0)
    for opened, rows in zip(sets, source.rows, strict=True):
        assert {opened.rows[i].split for i in rows} == {"train"} and len(rows) > 3


def test_rare_targets_come_more_often(organs: CachedDataset) -> None:
    """The spleen is in half of the pictures; they are drawn more often than the others."""
    source = BatchSource([organs], seed=0)
    chance = dict(zip(source.rows[0], source.row_chance[0], strict=True))
    with_spleen = [p for i, p in chance.items() if 3 in organs.rows[i].present]
    without = [p for i, p in chance.items() if 3 not in organs.rows[i].present]
    assert min(with_spleen) > 1.1 * max(without) and sum(chance.values()) == pytest.approx(1)


def test_phrases(sets: list[CachedDataset]) -> None:
    source = BatchSource(sets, seed=0)
    words = {word for s in sets for t in s.dataset.targets for word in (t.name, *t.synonyms)}
    assert source.phrase_vectors().shape == (len(words), source.text.dim)

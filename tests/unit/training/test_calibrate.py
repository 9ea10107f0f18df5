"""What is chosen on validation data: thresholds, sides, and which pictures are asked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.training.answers import Answer, Question, annotated, answers, shows, validation_rows
from lexitome.training.calibrate import Scores, best_threshold, presence_thresholds
from lexitome.training.sides import SIDES, best_sides, better_mirrored, choose_side, picture_dice
from lexitome.training.validation import spread

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    """Every case in the validation part: twenty pictures each."""
    root = write_sets(tmp_path_factory.mktemp("sets"), 20)
    cached = [open_cache(load_dataset(d), tmp_path_factory.mktemp("cache"), side=64) for d in sorted(root.iterdir())]
    return [replace(c, rows=tuple(replace(row, split="val") for row in c.rows)) for c in cached]


def drawn(question: Question, presence: np.ndarray) -> Answer:
    """The reference at the asked side as a perfect answer's logits."""
    codes = question.cached.codes[question.index]
    at = (np.arange(question.side) + 0.5) * len(codes) / question.side
    small = codes[np.ix_(at.astype(int), at.astype(int))]
    logits = np.stack([np.where(np.isin(small, t.codes), 9.0, -9.0) for t in question.targets]).astype(np.float32)
    return Answer(logits, presence)


def fair(question: Question) -> Answer:
    """Certain of what is there, from 0.6, and of what is not, up to 0.3."""
    cached, own = question.cached, question.cached.dataset.targets
    present = np.array([t in own and shows(cached, question.index, t) for t in question.targets])
    return drawn(question, np.where(present, 0.6, 0.3))


def test_thresholds_separate_present_from_absent(sets: list[CachedDataset]) -> None:
    sides = {t.name: 160 for s in sets for t in s.dataset.targets}
    thresholds, default = presence_thresholds(fair, sets, sides)
    assert set(thresholds) == set(sides) and default == 0.5
    # Own pictures without a spleen, and none without a polyp but other sets': the gap is found in both cases.
    assert 0.3 < thresholds["spleen"] <= 0.6 and 0.3 < thresholds["polyp"] <= 0.5


def test_targets_are_asked_at_their_own_side(sets: list[CachedDataset]) -> None:
    sides = {t.name: 160 + 32 * i for s in sets for i, t in enumerate(s.dataset.targets)}
    asked: set[tuple[str, int]] = set()

    def ask(question: Question) -> Answer:
        asked.update((target.name, question.side) for target in question.targets)
        return fair(question)

    presence_thresholds(ask, sets, sides)
    assert asked == set(sides.items())


def test_the_side_at_which_a_target_is_seen_best_is_found(sets: list[CachedDataset]) -> None:
    """An answerer that sees kidneys at 256 only and all else everywhere."""

    def ask(question: Question) -> Answer:
        answer = fair(question)
        blind = [("kidney" in target.name and question.side != 256) for target in question.targets]
        answer.logits[np.array(blind)] = -9
        return answer

    sides, dice = best_sides(ask, sets, threads=2)
    assert sides["left kidney"] == sides["right kidney"] == 256 and dice["left kidney"] > 0.9
    assert sides["polyp"] == sides["spleen"] == 320  # as good as any, and the usual one


def test_what_is_seen_better_with_its_mirror_image_is_found(sets: list[CachedDataset]) -> None:
    """An answerer that sees half of a polyp unless its mirror image helps, and all else as well without. (Volumes are
    not asked.)"""
    asked: set[str] = set()

    def ask(question: Question) -> Answer:
        answer = fair(question)
        asked.update(target.name for target in question.targets)
        for row, target in enumerate(question.targets):
            if target.name == "polyp" and not question.mirrored:
                answer.logits[row, : question.side // 2] = -9
        return answer

    sides = {t.name: 160 for s in sets for t in s.dataset.targets}
    assert better_mirrored(ask, sets, sides, threads=2) == {"polyp"}
    assert asked == {t.name for s in sets if s.dataset.dims == 2 for t in s.dataset.targets}


def test_a_target_that_is_never_found_has_the_usual_side(sets: list[CachedDataset]) -> None:
    def ask(question: Question) -> Answer:
        answer = fair(question)
        return Answer(np.full_like(answer.logits, -9), answer.presence)

    sides, dice = best_sides(ask, sets, threads=1)
    assert set(dice.values()) == {0.0} and set(sides.values()) == {320}


def test_ties_go_to_the_smaller_side() -> None:
    assert choose_side({160: [0.70, 0.80], 256: [0.70, 0.809], 320: [0.7, 0.71]}, 320) == (160, pytest.approx(0.75))
    assert choose_side({160: [0.70, 0.80], 256: [0.74, 0.80], 320: [0.7, 0.76]}, 320) == (256, pytest.approx(0.77))


def test_sides_that_some_pictures_were_not_shown_at_do_not_take_part() -> None:
    """A target of a small set and of a fine one."""
    assert choose_side({128: [0.9], 160: [0.4, 0.2], 320: [0.5, 0.4], 512: [0.99]}, 160)[0] == 320


def test_size_classes_ask_no_more_than_the_cache_holds(sets: list[CachedDataset]) -> None:
    assert max(SIDES["small"]) == 256 and max(SIDES["medium"]) == 448 and max(SIDES["fine"]) == 512
    assert all(side % 32 == 0 for sides in SIDES.values() for side in sides)


def test_dice_of_a_perfect_and_of_an_empty_answer(sets: list[CachedDataset]) -> None:
    cached = sets[0]
    index = next(i for i in validation_rows(cached) if shows(cached, i, cached.dataset.targets[0]))
    question = Question(cached, index, cached.dataset.targets[:1], 64)
    assert picture_dice(question, fair(question)) == [1.0]
    assert picture_dice(question, Answer(np.full((1, 64, 64), -9, np.float32), np.zeros(1))) == [0.0]


def test_targets_that_were_not_looked_for_are_not_asked(sets: list[CachedDataset]) -> None:
    cached = sets[0]
    hidden = replace(cached, rows=tuple(replace(row, unknown=(1,)) for row in cached.rows))
    assert "right kidney" in {t.name for t in annotated(cached, 0)}
    assert "right kidney" not in {t.name for t in annotated(hidden, 0)}
    sides, dice = best_sides(fair, [hidden], threads=1)
    assert "right kidney" not in dice and sides["right kidney"] == 320


def test_answers_come_in_the_order_of_the_questions(sets: list[CachedDataset]) -> None:
    questions = [Question(sets[0], i % 12, sets[0].dataset.targets, 64) for i in range(150)]
    assert [q for q, _ in answers(fair, questions, threads=3)] == questions


def test_spread_is_always_the_same_and_in_order() -> None:
    few = spread(range(100, 200), 12)
    assert few == sorted(few) == spread(range(100, 200), 12) and len(set(few)) == 12
    assert set(few) <= set(range(100, 200)) and spread([4, 5], 3) == [4, 5] and spread([1, 2], 0) == []


def test_spread_meets_every_subject_whatever_their_turn() -> None:
    """Thirty of 240 rows in which eight subjects take turns: every eighth row would show one of them alone."""
    assert {row % 8 for row in spread(range(240), 30)} == set(range(8))


def test_best_threshold_weighs_misses_leans_low_and_stays_in_bounds() -> None:
    clear = best_threshold(np.array([0.1, 0.2]), np.array([0.8, 0.9]), 0.5)
    assert 0.2 < clear < 0.22
    overlapping = best_threshold(np.array([0.1, 0.3, 0.9, 0.95]), np.array([0.4, 0.92, 0.97, 0.99]), 0.9)
    assert 0.3 < overlapping <= 0.4  # missing one costs more than two false ones of four
    assert best_threshold(np.array([0.7, 0.8]), np.array([0.9, 0.95]), 0.5) <= 0.5


def test_hard_absent_pairs_come_first() -> None:
    assert Scores(near=[0.5] * 8, far=[0.1] * 50).absent == [0.5] * 8
    assert len(Scores(near=[0.5] * 3, far=[0.1] * 50).absent) == 53
    assert Scores(own=[0.5] * 8).highest > Scores(near=[0.5] * 8).highest == 0.5

"""Which of SAM3's answers is the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lexitome.inference.sam3_asking import Places
from lexitome.inference.sam3_policies import Said, enlarge, settle, shifted
from lexitome.models.sam3.settings import POLICIES, Settings

CELLS = 8


def said(scores: list[float], presence: float = 0.9) -> Said:
    """Objects are the left half, the right half, the left half but for a row, and the lowest row; the semantic head
    sees the upper half."""
    masks = torch.full((4, CELLS, CELLS), -5.0)
    masks[0, :, :4] = 5
    masks[1, :, 4:] = 4
    masks[2, :7, :4] = 3
    masks[3, 7] = 2
    semantic = torch.full((CELLS, CELLS), -5.0)
    semantic[:4] = 5
    boxes = [[0.25, 0.5, 0.5, 1], [0.75, 0.5, 0.5, 1], [0.25, 0.4, 0.5, 0.8], [0.5, 0.95, 1, 0.1]]
    return Said(np.array(scores, np.float32), np.array(boxes, np.float32), presence, masks, semantic)


def area(settings: Settings, answers: Said, places: Places | None = None) -> set[str]:
    plane = settle(answers, settings, places or Places())
    if not plane.found:
        return set()
    inside = plane.logits >= 0
    parts = {"left": (2, 1), "right": (2, 6), "low left": (7, 1), "low right": (7, 6)}
    return {name for name, at in parts.items() if inside[at]}


LEFT, RIGHT = {"left", "low left"}, {"right", "low right"}
EVERYTHING = LEFT | RIGHT


def test_policies() -> None:
    answers = said([0.8, 0.6, 0.1, 0.1])
    assert area(Settings(policy="best"), answers) == LEFT
    assert area(Settings(policy="union"), answers) == EVERYTHING
    assert area(Settings(policy="semantic"), answers) == {"left", "right"}
    assert area(Settings(policy="semantic-presence"), answers) == {"left", "right"}


def test_presence() -> None:
    """Only the plain semantic head does not care."""
    answers = said([0.2, 0.1, 0.0, 0.0], presence=0.3)
    found = {policy: bool(area(Settings(policy=policy, keep=0.3), answers)) for policy in POLICIES}  # type: ignore[arg-type]
    assert found == {"best": False, "union": False, "semantic": True, "semantic-presence": False}
    assert area(Settings(policy="semantic-presence", present=0.2), answers)
    assert area(Settings(policy="union", keep=0.15), answers) == LEFT


@pytest.mark.parametrize("policy", POLICIES)
def test_presence_is_a_half_at_the_threshold(policy: str) -> None:
    settings = Settings(policy=policy, keep=0.2, present=0.7)  # type: ignore[arg-type]
    for score in (0.199, 0.201):
        plane = settle(said([score, 0.1, 0, 0], presence=score / 0.2 * 0.7), settings)
        if policy != "semantic":
            assert plane.found is (score > 0.2) and abs(plane.presence - 0.5) < 0.01


def test_shifted() -> None:
    assert shifted(0.3, 0.3) == pytest.approx(0.5) and shifted(0.5, 0.5) == pytest.approx(0.5)
    assert 0 < shifted(0.0, 0.3) < shifted(0.1, 0.3) < shifted(1.0, 0.3) < 1


def test_objects_are_told_apart_and_duplicates_are_not() -> None:
    """The third object lies in the first, the fourth mostly in both; what they leave over is the nearest's."""
    owners = settle(said([0.8, 0.6, 0.7, 0.5]), Settings(policy="union")).owners
    assert owners is not None and owners.dtype == np.uint16
    assert (owners[:, :4] == 1).all() and (owners[:, 4:] == 2).all()
    single = settle(said([0.8, 0.6, 0.7, 0.5]), Settings(policy="best")).owners
    assert single is not None and (single == 1).all()
    assert settle(said([0.1, 0.1, 0.1, 0.1]), Settings(policy="semantic")).owners is None


def test_a_point_chooses_an_object() -> None:
    answers = said([0.8, 0.6, 0.1, 0.1])
    right = Places(points=np.array([[0.9, 0.2]], np.float32), inside=np.array([True]))
    not_left = Places(points=np.array([[0.1, 0.1]], np.float32), inside=np.array([False]))
    for policy in POLICIES:
        for places in (right, not_left):
            assert area(Settings(policy=policy), answers, places) == RIGHT, policy  # type: ignore[arg-type]


def test_what_is_pointed_at_is_there() -> None:
    doubtful = said([0.02, 0.05, 0.01, 0.01], presence=0.06)
    left = Places(points=np.array([[0.1, 0.1]], np.float32), inside=np.array([True]))
    assert area(Settings(policy="best"), doubtful, left) == LEFT
    bound = np.array([[0, 0, 0.5, 1]], np.float32)
    assert area(Settings(policy="union"), doubtful, Places(bound, np.array([True]), bound)) == LEFT
    unsure = Places(bound, np.array([True]), bound, certain=False)
    assert area(Settings(policy="union"), doubtful, unsure) == set()


def test_a_point_outside_alone_does_not_make_things_up() -> None:
    nowhere = Places(points=np.array([[0.1, 0.1], [0.9, 0.1]], np.float32), inside=np.array([False, False]))
    assert area(Settings(policy="union"), said([0.8, 0.6, 0.1, 0.1]), nowhere) == set()


def test_enlarge() -> None:
    """Bilinear between centres, then the sigmoid."""
    large = enlarge(torch.tensor([[-4.0, 4.0]]), 3, 8)
    assert large.shape == (3, 8) and large.dtype == torch.float32
    expected = torch.sigmoid(torch.tensor([-4.0, -4, -3, -1, 1, 3, 4, 4]))
    torch.testing.assert_close(large, expected.expand(3, -1))

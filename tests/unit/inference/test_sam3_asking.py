"""From queries to what SAM3 is asked."""

from __future__ import annotations

import numpy as np
import pytest
from bright_sam3 import TOKENS

from lexitome.data.intensity import View
from lexitome.inference.prompting import GUESS
from lexitome.inference.sam3_asking import VISUAL, Told, as_boxes, places_of, understand
from lexitome.models.sam3.settings import Settings
from lexitome.prompts import Box, Exemplar, MaskPrompt, Point, Query, Text
from lexitome.volume import PIXEL_AFFINE, Volume

PICTURE = Volume(np.zeros((1, 1, 20, 40), np.uint8), PIXEL_AFFINE, spacing_known=False)
SCAN = Volume(np.zeros((1, 4, 20, 40), np.int16), np.diag([-1.0, -1, 3, 1]), modality="MR")


def told(text: str, **changes: object) -> Told:
    return understand(Query(Text(text)), Settings(**changes), "", TOKENS.cut)  # type: ignore[arg-type]


def test_any_words_are_asked_as_typed() -> None:
    """A model for any words guesses nothing; what the vocabulary knows is coded."""
    for text in ("polyp", "Polyps", "a thing nobody knows"):
        assert told(text).wordings == (text,) and told(text).taught is None and not told(text).notes
    assert told("polyps").concept is not None and told("a thing nobody knows").concept is None


def test_taught_words() -> None:
    """Other words for a concept become those it was taught with; others are marked as a guess."""
    trained = {"polyp": "Polyp", "my own": "qqzx streak"}
    for text, words in {"colonic polyps": "Polyp", "polyp": "Polyp", "QQZX  streak": "qqzx streak"}.items():
        assert told(text, trained=trained).wordings == (words,), text
        assert told(text, trained=trained).taught
    other = told("liver", trained=trained)
    assert other.wordings == ("liver",) and other.taught is False and GUESS in other.notes


def test_wordings() -> None:
    assert told("polyp | flat lesion ||").wordings == ("polyp", "flat lesion")
    more = told("liver", synonyms=2).wordings
    assert more[0] == "liver" and 1 < len(more) <= 3 and len(set(more)) == len(more)
    assert told("a thing nobody knows", synonyms=2).wordings == ("a thing nobody knows",)


def test_windows_by_words() -> None:
    windows = {"lungs": (-1000.0, 400.0)}
    assert told("lungs", windows=windows).window == (-1000, 400)
    assert told("liver", windows=windows).window == Settings().window
    assert told("left lung", windows=windows, trained={"left lung": "lungs"}).window == (-1000, 400)


def test_long_text_is_cut_and_said() -> None:
    (note,) = told("polyp " * 40 + "in the cecum").notes
    assert "32 tokens" in note and "in the cecum" in note


def test_places_alone() -> None:
    alone = understand(Query(None, (Point(1, 1),)), Settings(), "", TOKENS.cut)
    assert alone.wordings == (VISUAL,) and alone.clicked and not alone.worded
    assert not understand(Query(None, (Exemplar(Box(0, 0, 1, 1)),)), Settings(), "", TOKENS.cut).clicked
    assert not understand(Query(Text("polyp"), (Point(1, 1),)), Settings(), "", TOKENS.cut).clicked


def test_shares_of_the_picture() -> None:
    mask = np.zeros((1, 20, 40), np.bool_)
    mask[0, 10:, 20:30] = True
    spatial = (
        Exemplar(Box(4, 2, 7, 3), positive=False), Box(0, 0, 39, 19), Point(0, 19), Point(39, 0, inside=False),
        Exemplar(Box(10, 0, 19, 9)), MaskPrompt(mask),
    )  # fmt: skip
    (places,) = places_of(Query(None, spatial), View(), PICTURE).values()
    np.testing.assert_allclose(places.boxes, [[0, 0, 1, 1], [0.25, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]])
    assert places.wanted.tolist() == [True, True, False] and places.bounds.tolist() == [[0, 0, 1, 1]]
    np.testing.assert_allclose(places.points, [[0.0125, 0.975], [0.9875, 0.025]])
    assert places.inside.tolist() == [True, False]
    assert places.mask is not None and places.mask.sum() == 100
    boxed = as_boxes(places, worded=False)
    np.testing.assert_allclose(boxed.boxes[-1], [0.5, 0.5, 0.75, 1])
    assert len(boxed.boxes) == 6 and boxed.wanted.tolist() == [True, True, False, True, False, True]
    assert boxed.mask is None and len(boxed.bounds) == 2
    assert len(as_boxes(places, worded=True).boxes) == 4


def test_slices_and_turned_views() -> None:
    """Points follow the turn of the picture; a box lies on all its slices."""
    view = View((0, 1, 2), (0, 2))
    found = places_of(Query(None, (Point(0, 0, 0), Box(0, 0, 9, 9, 2, 3))), view, SCAN)
    assert sorted(found) == [0, 1, 3]
    np.testing.assert_allclose(found[3].points, [[0.9875, 0.025]])
    np.testing.assert_allclose(found[0].bounds, [[0.75, 0, 1, 0.5]])
    assert sorted(places_of(Query(None, (Box(0, 0, 1, 1),)), view, SCAN)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("places", "sure"),
    [
        ((Point(1, 1),), True),
        ((Point(1, 1, inside=False),), False),
        ((Exemplar(Box(0, 0, 1, 1), positive=False),), False),
        ((Box(0, 0, 1, 1),), True),
    ],
)
def test_who_points_at_it(places: tuple[Point, ...], sure: bool) -> None:
    (found,) = places_of(Query(Text("polyp"), places), View(), PICTURE).values()
    assert found.points_at_it is sure


@pytest.mark.parametrize("place", [Point(40, 0), Box(0, 0, 40, 3), MaskPrompt(np.ones((1, 2, 2), np.bool_))])
def test_outside(place: Point) -> None:
    with pytest.raises(ValueError):
        places_of(Query(None, (place,)), View(), PICTURE)

"""From queries to words and maps: coordinates survive any view."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import concept

from lexitome.data.dataset import UNKNOWN_FAMILY
from lexitome.data.intensity import View, to_pictures
from lexitome.data.prompt_maps import BOX, INSIDE, MASK, OUTSIDE
from lexitome.inference.prompting import GUESS, inside_boxes, spatial_maps, to_picture_axes, understand
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import ModelCard, find_model
from lexitome.prompts import Box, MaskPrompt, Point, Query, Text
from lexitome.volume import Volume

SIDE = 64


def volume(depth: int = 6, height: int = 20, width: int = 30) -> Volume:
    return Volume(np.zeros((1, depth, height, width), np.uint8), np.eye(4))


views = st.builds(View, st.permutations([0, 1, 2]).map(tuple), st.sets(st.integers(0, 2)).map(tuple))


@given(views, st.integers(0, 5), st.integers(0, 19), st.integers(0, 29))
def test_a_voxel_and_its_coordinates_take_the_same_way(view: View, z: int, y: int, x: int) -> None:
    array = np.zeros((6, 20, 30), bool)
    array[z, y, x] = True
    assert tuple(np.argwhere(view.apply(array))[0]) == to_picture_axes(view, volume(), (x, y, z))


@settings(max_examples=30)
@given(views, st.integers(0, 5), st.integers(0, 19), st.integers(0, 29))
def test_a_click_lands_where_the_voxel_is_seen(view: View, z: int, y: int, x: int) -> None:
    array = np.zeros((6, 20, 30), bool)
    array[z, y, x] = True
    (index, row, column), shape = np.argwhere(view.apply(array))[0], view.apply(array).shape
    maps = spatial_maps(Query(spatial=(Point(x, y, z),)), view, volume(), SIDE)
    assert list(maps) == [index]
    peak = np.unravel_index(maps[index][1].argmax(), (16, 16))
    expected = ((row + 0.5) * 16 / shape[1] - 0.5, (column + 0.5) * 16 / shape[2] - 0.5)
    assert np.abs(np.array(peak) - expected).max() <= 0.51


def test_box_covers_its_slices_and_nothing_else() -> None:
    maps = spatial_maps(Query(spatial=(Box(0, 10, 14, 19, 2, 3),)), View(), volume(), SIDE)
    assert sorted(maps) == [2, 3]
    assert maps[2][0, 8:, :8].all() and maps[2][0].sum() == 64
    everywhere = spatial_maps(Query(spatial=(Box(0, 10, 14, 19),)), View(), volume(), SIDE)
    assert sorted(everywhere) == list(range(6))


def test_boxes_bound_with_a_margin_and_end_at_the_border() -> None:
    inside = inside_boxes(Query(spatial=(Box(0, 0, 19, 9, 2, 3), Box(25, 15, 25, 15))), volume())
    expected = np.zeros((6, 20, 30), bool)
    expected[1:5, 0:11, 0:21] = True  # a twentieth of 20, of 10 and of 2, in whole voxels
    expected[:, 14:17, 24:27] = True
    assert (inside == expected).all()
    with pytest.raises(ValueError, match="outside the image"):
        inside_boxes(Query(spatial=(Box(0, 0, 30, 9),)), volume())


def test_a_box_that_holds_most_of_a_picture_is_not_shown(tiny: Segmenter) -> None:
    picture, card = volume(depth=1), tiny.card  # 20 rows of 30 columns
    half, more = Box(0, 0, 13, 19), Box(0, 0, 15, 19)
    for box, drawn in ((half, True), (more, False)):
        assert understand(Query(Text("liver"), (box,)), card).is_drawn(picture) is drawn
        assert understand(Query(Text("liver"), (box, Point(3, 3, 0))), card).is_drawn(picture), "a click says more"
        assert understand(Query(Text("zeppelin"), (box,)), card).is_drawn(picture), "words that are not known"
        assert understand(Query(None, (box,)), card).is_drawn(picture), "no words at all"


def test_a_point_on_the_outer_face_is_on_the_outer_slice() -> None:
    for z, index in ((-0.5, 0), (5.5, 5)):
        assert list(spatial_maps(Query(spatial=(Point(3, 3, z),)), View(), volume(), SIDE)) == [index]


def test_negative_points_have_their_own_channel() -> None:
    maps = spatial_maps(Query(spatial=(Point(3, 3, 0), Point(25, 15, 0, inside=False))), View(), volume(), SIDE)
    assert maps[0][1].max() > 0.8 and maps[0][2].max() > 0.8 and maps[0][0].max() == 0


def test_a_rough_mask_is_the_mean_over_the_pixels_of_the_picture() -> None:
    mask = np.zeros((6, 20, 30), bool)
    mask[4, 10:, 15:] = True
    maps = spatial_maps(Query(spatial=(MaskPrompt(mask),)), View(), volume(), SIDE)
    assert list(maps) == [4] and maps[4].shape == (4, 16, 16) and not maps[4][:MASK].any()
    assert maps[4][MASK, 9:, 9:].min() > 0.99 and maps[4][MASK, :7].max() == maps[4][MASK, :, :7].max() == 0
    assert abs(maps[4][MASK].mean() - mask[4].mean()) < 0.01
    square = np.random.default_rng(0).random((1, SIDE, SIDE)) < 0.5
    image = Volume(np.zeros((1, 1, SIDE, SIDE), np.uint8), np.eye(4))
    drawn = spatial_maps(Query(spatial=(MaskPrompt(square),)), View(), image, SIDE)[0][MASK]
    assert np.allclose(drawn, square[0].reshape(16, 4, 16, 4).mean((1, 3)))


def test_places_add_up() -> None:
    mask = np.zeros((6, 20, 30), bool)
    mask[2, :10] = True
    query = Query(spatial=(MaskPrompt(mask), Point(3, 3, 2), Point(25, 15, 2, inside=False), Box(0, 0, 5, 5, 2, 2)))
    (drawn,) = spatial_maps(query, View(), volume(), SIDE).values()
    assert all(drawn[channel].max() > 0.8 for channel in (BOX, INSIDE, OUTSIDE, MASK))


@pytest.mark.parametrize(
    ("typed", "sided"),
    [("polyp", False), ("left kidney", True), ("the kidney on the right", True), ("left zeppelin", True),
     ("left atrium", True), ("both kidneys", False), ("LA", True), ("", False)],
)  # fmt: skip
def test_sides_are_seen_in_words_and_in_what_they_mean(typed: str, sided: bool, tiny: Segmenter) -> None:
    query = Query(Text(typed)) if typed else Query(spatial=(Point(1, 1),))
    assert understand(query, tiny.card).sided is sided


def test_at_home_is_what_was_trained_in_this_kind_of_picture(tiny: Segmenter) -> None:
    at_home = {m: understand(Query(Text("liver")), tiny.card, m).at_home for m in ("CT", "MR", "", "US")}
    assert at_home == {"CT": True, "MR": True, "": True, "US": False}
    assert not understand(Query(Text("zeppelin")), tiny.card).at_home


@pytest.mark.parametrize("place", [Point(30.6, 3, 0), Point(3, 3, 9), Box(-4, 0, 3, 3), Box(0, 0, 31, 3)])
def test_places_outside_the_image_are_refused(place: Point | Box) -> None:
    with pytest.raises(ValueError, match="outside"):
        spatial_maps(Query(spatial=(place,)), View(), volume(), SIDE)


def test_a_mask_on_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="grid of the image"):
        spatial_maps(Query(spatial=(MaskPrompt(np.ones((6, 20, 29), bool)),)), View(), volume(), SIDE)


def test_trained_words_are_coded_and_given_as_trained(tiny: Segmenter) -> None:
    understood = understand(Query(Text("bowel polyp")), tiny.card)
    assert understood.concept is not None and understood.trained is not None
    assert understood.words == understood.trained.words == "polyp" and GUESS not in understood.notes


def test_a_side_the_model_was_not_taught_is_answered_without_it(tiny: Segmenter) -> None:
    understood = understand(Query(Text("left breast mass")), tiny.card)
    assert understood.trained is not None and understood.words == "breast lesion"
    assert any("sides" in note for note in understood.notes) and GUESS not in understood.notes


def test_a_concept_of_the_users_own_is_known_by_its_words(tiny: Segmenter) -> None:
    understood = understand(Query(Text("QQZX  streak")), tiny.card)
    assert understood.trained is not None and understood.words == "qqzx streak"
    assert not any("guess" in note for note in understood.notes)
    assert understand(Query(Text("qqzx")), tiny.card).trained is None


def own_card(tiny_folder: Path, tmp_path: Path, *concepts: dict[str, object]) -> ModelCard:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"trained_concepts": list(concepts)}))
    return find_model(folder)


def test_the_very_words_that_were_taught_are_not_taken_to_mean_others(tiny_folder: Path, tmp_path: Path) -> None:
    card = own_card(tiny_folder, tmp_path, concept("polyp", "endoscopy"), concept("large polyp", "endoscopy"))
    large = understand(Query(Text("Large  polyp")), card)
    assert large.words == "large polyp" and large.concept is None
    assert any("uncoded" in note for note in large.notes)
    assert not any("taken to mean" in note or "did you mean" in note for note in large.notes)
    assert understand(Query(Text("polyp")), card).words == "polyp"


def test_a_model_that_was_taught_without_a_modality_is_at_home_in_all(tiny_folder: Path, tmp_path: Path) -> None:
    card = own_card(tiny_folder, tmp_path, concept("liver", UNKNOWN_FAMILY))
    for modality in ("CT", "US", ""):
        understood = understand(Query(Text("liver")), card, modality)
        assert understood.at_home and not understood.notes


def test_untrained_and_uncoded_words_say_so(tiny: Segmenter) -> None:
    known = understand(Query(Text("urinary bladder")), tiny.card)
    assert known.concept is not None and known.trained is None and GUESS in known.notes
    unknown = understand(Query(Text("zeppelin")), tiny.card)
    assert unknown.concept is None and unknown.words == "zeppelin" and GUESS in unknown.notes
    assert any("uncoded" in note for note in unknown.notes)


def test_modality_the_concept_was_never_seen_in_is_a_guess(tiny: Segmenter) -> None:
    assert any("guess" in note for note in understand(Query(Text("polyp")), tiny.card, "CT").notes)
    assert not any("guess" in note for note in understand(Query(Text("liver")), tiny.card, "CT").notes)


def test_picture_axes_agree_with_pictures() -> None:
    image = np.zeros((1, 6, 20, 30), np.uint8)
    image[0, 5, 2, 7] = 200
    stored = Volume(image, np.diag([1.0, 1.0, 1.0, 1.0]))  # RAS: rows and columns are flipped for display
    from lexitome.data.intensity import choose_view

    s, r, c = to_picture_axes(choose_view(stored), stored, (7, 2, 5))
    assert to_pictures(stored)[int(s), int(r), int(c), 0] == 200

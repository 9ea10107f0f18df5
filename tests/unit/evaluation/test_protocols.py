"""What is typed after --prompts, and the places that are drawn from a reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.errors import InputError
from lexitome.evaluation.protocols import (
    ProtocolSpec,
    Wanted,
    box_around,
    centre,
    check_taken,
    draw,
    jittered_box,
    largest_parts,
    next_click,
    parse,
    parse_all,
    seeded,
    typical_part,
)
from lexitome.prompts import Box, Exemplar, Point

EVEN = (1.0, 1.0, 1.0)
masks = arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))).filter(lambda mask: mask.any())


def blank(*shape: int) -> np.ndarray:
    return np.zeros(shape, bool)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("text", "text"), ("box", "oracle-box"), ("jittered-box", "oracle-jittered-box"), ("boxes:4", "oracle-boxes:4"),
        ("points", "oracle-points:3"), ("points:1", "oracle-points:1"), ("center-point", "oracle-center-point"),
        ("center-point:3", "oracle-center-point:3"), ("iterative-clicks:5", "oracle-clicks:5"),
        ("exemplar", "oracle-exemplar"), ("text+box", "text+oracle-jittered-box"),
        ("text+jittered-box", "text+oracle-jittered-box"), ("Text+Points:2", "text+oracle-points:2"),
    ],
)  # fmt: skip
def test_what_comes_from_the_reference_is_called_oracle(typed: str, name: str) -> None:
    spec = parse(typed)
    assert spec.name == name and spec.oracle == ("oracle" in name) and spec.words == ("text" in name)
    assert parse(name) == spec  # the name in tables can be typed, too


@pytest.mark.parametrize("typed", ["", "words", "box:3", "points:0", "points:x", "iterative-clicks:101", "text:2"])
def test_what_is_no_protocol_is_refused(typed: str) -> None:
    with pytest.raises(InputError, match="--prompts"):
        parse(typed)


def test_several_protocols_may_be_typed_at_once() -> None:
    assert [spec.name for spec in parse_all(["text, box", "box,points:2"])] == ["text", "oracle-box", "oracle-points:2"]
    with pytest.raises(InputError, match="names no protocol"):
        parse_all([" , "])


def test_who_does_not_take_a_place_is_not_asked() -> None:
    check_taken(parse("text+box"), "ours", frozenset({"text", "box"}))
    check_taken(parse("text"), "a folder", frozenset({"label"}))
    with pytest.raises(InputError, match=r"ours does not take exemplars.*Choose from text, box"):
        check_taken(parse("exemplar"), "ours", frozenset({"text", "label", "box", "point"}))
    with pytest.raises(InputError, match="does not take words"):
        check_taken(parse("text"), "sam", frozenset({"box"}))


@settings(deadline=None)
@given(masks)
def test_a_box_is_tight(mask: np.ndarray) -> None:
    box = box_around(mask)
    z = (0, 0) if box.z0 is None or box.z1 is None else (int(box.z0), int(box.z1))
    assert (box.z0 is None) == (len(mask) == 1)
    inside = blank(*mask.shape)
    inside[z[0] : z[1] + 1, int(box.y0) : int(box.y1) + 1, int(box.x0) : int(box.x1) + 1] = True
    assert not (mask & ~inside).any()
    for axis in range(3):  # every face of the box touches the mask
        lines = mask.any(axis=tuple({0, 1, 2} - {axis})) if axis or len(mask) > 1 else np.array([True])
        wanted = inside.any(axis=tuple({0, 1, 2} - {axis}))
        assert np.flatnonzero(lines)[[0, -1]].tolist() == np.flatnonzero(wanted)[[0, -1]].tolist()


@settings(deadline=None)
@given(masks, st.integers(0, 5))
def test_a_jittered_box_is_near_and_in_the_image(mask: np.ndarray, seed: int) -> None:
    exact, box = box_around(mask), jittered_box(mask, seeded(seed, "a"))
    depth, height, width = mask.shape
    pairs = [(exact.x0, exact.x1, box.x0, box.x1, width), (exact.y0, exact.y1, box.y0, box.y1, height)]
    if exact.z0 is not None:
        assert box.z0 is not None
        pairs.append((exact.z0, exact.z1, box.z0, box.z1, depth))  # type: ignore[arg-type]
    for low, high, near_low, near_high, size in pairs:
        length = high - low + 1
        assert 0 <= near_low <= near_high <= size - 1
        assert abs(near_low - low) <= 0.3 * length and abs(near_high - high) <= 0.3 * length
    assert box == jittered_box(mask, seeded(seed, "a"))


def test_jitter_spreads_as_stated() -> None:
    mask = blank(1, 300, 300)
    mask[0, 100:200, 100:200] = True
    boxes = [jittered_box(mask, seeded(seed, "x")) for seed in range(400)]
    shifts = np.array([box.x0 - 100 for box in boxes])
    assert abs(shifts.mean()) < 1 and 4 < shifts.std() < 6 and abs(shifts).max() <= 15


@settings(deadline=None)
@given(masks)
def test_the_centre_is_farthest_from_the_outside(mask: np.ndarray) -> None:
    """Against all distances from every voxel inside to every one outside, the border of the image included."""
    point = centre(mask, (2.0, 1.0, 1.0))
    spacing = np.array([2.0, 1.0, 1.0])
    at = np.array([point.z, point.y, point.x])
    assert mask[tuple(at.astype(int))]
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    flat = slices[0] == slices[-1]
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded) - 1
    if flat:
        outside = outside[outside[:, 0] == slices[0]]

    def depth(voxel: np.ndarray) -> float:
        return float((((outside - voxel) * spacing) ** 2).sum(axis=1).min())

    assert depth(at) == pytest.approx(max(depth(voxel) for voxel in np.argwhere(mask)))


@settings(deadline=None)
@given(masks, st.integers(1, 4), st.integers(0, 3))
def test_random_points_are_different_and_inside_the_largest_section(mask: np.ndarray, count: int, seed: int) -> None:
    points = draw(parse(f"points:{count}"), Wanted(mask), seeded(seed))
    best = mask.sum(axis=(1, 2)).max()
    assert len(set(points)) == len(points) == min(count, best)
    for point in points:
        assert isinstance(point, Point) and point.inside
        assert mask[int(point.z), int(point.y), int(point.x)] and mask[int(point.z)].sum() == best


def two_discs() -> np.ndarray:
    """A large and a small square in one slice of three."""
    mask = blank(3, 20, 30)
    mask[1, 2:9, 2:9] = True
    mask[1, 12:15, 20:23] = True
    return mask


def test_parts_come_by_size() -> None:
    large, small = largest_parts(Wanted(two_discs()), 5)
    assert large.sum() == 49 and small.sum() == 9
    boxes = draw(parse("boxes:1"), Wanted(two_discs()), seeded(0))
    assert boxes == (Box(2, 2, 8, 8, 1, 1),)
    assert draw(parse("center-point:2"), Wanted(two_discs()), seeded(0)) == (Point(5, 5, 1), Point(21, 13, 1))
    assert draw(parse("box"), Wanted(two_discs()), seeded(0)) == (Box(2, 2, 22, 14, 1, 1),)


def test_objects_of_the_reference_are_its_parts() -> None:
    """Two touching cells, which connected parts would join, and a third: the exemplar is the one of median size."""
    ids = np.zeros((1, 8, 12), np.uint16)
    ids[0, 1:5, 0:3], ids[0, 1:5, 3:5], ids[0, 6:8, 9:11] = 7, 3, 5
    wanted = Wanted(ids > 0, ids)
    assert [int(part.sum()) for part in largest_parts(wanted, 9)] == [12, 8, 4]
    assert typical_part(wanted).sum() == 8
    assert draw(parse("exemplar"), wanted, seeded(0)) == (Exemplar(Box(3, 1, 4, 4)),)
    assert [int(part.sum()) for part in largest_parts(Wanted(ids > 0), 9)] == [20, 4]


def test_clicks_go_where_the_answer_is_most_wrong() -> None:
    reference = two_discs()
    (first,) = draw(parse("iterative-clicks:3"), Wanted(reference), seeded(0))
    assert first == Point(5, 5, 1)
    missed = reference.copy()
    missed[1, 12:15, 20:23] = False
    assert next_click(missed, reference, None, EVEN) == Point(21, 13, 1)
    too_much = reference.copy()
    too_much[0, 10:19, 1:10] = True
    assert next_click(too_much, reference, None, EVEN) == Point(5, 14, 0, inside=False)
    judged = np.ones_like(reference)
    judged[0] = False
    assert next_click(too_much, reference, judged, EVEN) is None
    assert next_click(reference, reference, None, EVEN) is None


def test_a_click_may_lie_in_the_depth_of_a_volume() -> None:
    ball = sum((axis - 8) ** 2 for axis in np.ogrid[:17, :17, :17]) <= 36
    assert next_click(np.zeros_like(ball), ball, None, EVEN) == Point(8, 8, 8)


def test_draws_depend_on_what_they_are_for_alone() -> None:
    mask = two_discs()
    spec = parse("points:3")
    one = draw(spec, Wanted(mask), seeded(0, "set", "case", "liver", spec.name))
    assert one == draw(spec, Wanted(mask), seeded(0, "set", "case", "liver", spec.name))
    others = [("set", "case", "spleen"), ("set", "case2", "liver"), ("set2", "case", "liver"), ("se", "tcase", "liver")]
    assert all(draw(spec, Wanted(mask), seeded(0, *names, spec.name)) != one for names in others)
    assert draw(spec, Wanted(mask), seeded(1, "set", "case", "liver", spec.name)) != one


def test_words_are_given_only_where_the_protocol_says_so() -> None:
    assert ProtocolSpec(words=False, place="box").query("liver", [Box(0, 0, 1, 1)]).text is None
    query = parse("text+box").query("liver", [Box(0, 0, 1, 1)])
    assert query.text is not None and query.text.text == "liver" and query.spatial == (Box(0, 0, 1, 1),)

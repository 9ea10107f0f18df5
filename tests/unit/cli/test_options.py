"""Boxes and points as typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexitome.cli.options import Click, Corners, parse_box, parse_point

numbers = st.floats(-1e6, 1e6)


@given(st.one_of(st.tuples(*[numbers] * 4), st.tuples(*[numbers] * 6)))
def test_box_reads_back_what_was_written(values: tuple[float, ...]) -> None:
    assert parse_box(",".join(map(repr, values))) == Corners(values)


@given(st.one_of(st.tuples(numbers, numbers), st.tuples(numbers, numbers, numbers)), st.sampled_from(["", ",+", ",-"]))
def test_point_reads_back_what_was_written(values: tuple[float, ...], sign: str) -> None:
    assert parse_point(",".join(map(repr, values)) + sign) == Click(values, inside=sign != ",-")


def test_spaces_and_negative_numbers() -> None:
    assert parse_point("-1.5, 2 , -") == Click((-1.5, 2.0), inside=False)


@pytest.mark.parametrize("typed", ["", "1", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,nan", "1,2,3,inf", "1 2 3 4"])
def test_bad_boxes(typed: str) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_box(typed)


@pytest.mark.parametrize("typed", ["", "1", "+", "1,+", "1,2,3,4", "1,x", "1,2,*", "nan,1", "1,2,++"])
def test_bad_points(typed: str) -> None:
    with pytest.raises(ValueError, match="not"):
        parse_point(typed)

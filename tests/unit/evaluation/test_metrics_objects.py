"""Objects: by hand, relations between the measures, agreement with a look at every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lexitome.evaluation.metrics import measure_objects
from lexitome.evaluation.metrics.instances import match

SYMMETRIC = ("pq", "sq", "rq", "ap50", "ap", "f1_50", "count_error", "objects_matched")
maps = arrays(np.uint16, (3, 7), elements=st.integers(0, 4))


def test_by_hand() -> None:
    reference = np.array([[1] * 10 + [0, 2, 2, 2, 2, 0, 3, 3]])
    prediction = np.array([[7] * 8 + [0, 0, 0, 9, 9, 9, 0, 0, 0, 0]])
    found = measure_objects(prediction, reference)  # IoU 0.8 and 0.75, the third missed
    assert found["sq"] == pytest.approx((0.8 + 0.75) / 2)
    assert found["rq"] == found["f1_50"] == pytest.approx(2 * 2 / (2 + 3))
    assert found["pq"] == pytest.approx((0.8 + 0.75) / (2 + 1 / 2))
    assert found["ap50"] == pytest.approx(2 / 3)
    # Above 0.50 to 0.70 both match, above 0.75 one (0.75 is not above it), from 0.80 on none.
    assert found["ap"] == pytest.approx((5 * 2 / 3 + 1 * 1 / 4) / 10)
    assert [found[f"objects_{name}"] for name in ("found", "wanted", "matched")] == [2, 3, 2]
    assert found["count_error"] == 1


def test_exactly_half_is_no_match() -> None:
    assert measure_objects(np.array([[1, 1, 0, 0]]), np.array([[1, 1, 1, 1]]))["rq"] == 0


def test_nothing_to_find_and_nothing_found() -> None:
    some, none = np.array([[1, 0, 2]]), np.zeros((1, 3), int)
    missed = measure_objects(none, some)
    assert missed["pq"] == missed["rq"] == missed["ap"] == 0 and missed["sq"] is None and missed["count_error"] == 2
    invented = measure_objects(some, none)
    assert invented["pq"] is None and invented["ap50"] is None and invented["count_error"] == 2
    assert measure_objects(none, none)["count_error"] == 0


def test_bad_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        measure_objects(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="negative"):
        measure_objects(np.array([[-1]]), np.array([[1]]))


@given(maps, maps)
def test_relations(a: np.ndarray, b: np.ndarray) -> None:
    matches = match(a, b)
    found, wanted = ([ids == i for i in set(ids.ravel().tolist()) - {0}] for ids in (a, b))
    alike = sum(2 * (p & r).sum() > (p | r).sum() for p in found for r in wanted)
    assert (matches.found, matches.wanted, matches.above()) == (len(found), len(wanted), alike)
    there, back = measure_objects(a, b), measure_objects(b, a)
    if b.any() and a.any():
        assert [there[name] or 0 for name in SYMMETRIC] == pytest.approx([back[name] or 0 for name in SYMMETRIC])
        assert 0 <= (there["ap"] or 0) <= (there["ap50"] or 0) <= (there["rq"] or 0) <= 1
        assert there["pq"] == pytest.approx((there["sq"] or 0) * (there["rq"] or 0))


@given(maps, st.permutations(range(1, 5)))
def test_numbers_of_objects_do_not_matter(a: np.ndarray, order: list[int]) -> None:
    renamed = np.array([0, *order])[a] * 1000
    found = measure_objects(renamed, a)
    if a.any():
        assert found["pq"] == found["ap"] == 1 and found["count_error"] == 0

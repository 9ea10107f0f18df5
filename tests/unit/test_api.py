"""`lexitome.segment`: the same as the command line, in one call; and how prompts meet an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lexitome
from lexitome.api import make_queries, to_box, to_mask, to_point
from lexitome.cli import main
from lexitome.errors import InputError
from lexitome.prompts import Box, Point, Text

DEMO = Path(lexitome.__file__).parent / "assets" / "demo"
PICTURE = lexitome.from_array(np.zeros((30, 40), np.uint8))
VOLUME = lexitome.from_array(np.zeros((5, 30, 40), np.uint8), spacing=(1, 1, 2))


@pytest.fixture
def fundus(tmp_path: Path) -> Path:
    path = tmp_path / "fundus.png"
    Image.open(DEMO / "fundus.jpg").resize((256, 192)).save(path)
    return path


def test_path_array_and_volume_agree_with_the_command_line(fundus: Path, tmp_path: Path) -> None:
    from_path = lexitome.segment(fundus, "optic disc")
    from_array = lexitome.segment(np.asarray(Image.open(fundus)), ["optic disc"])
    from_volume = lexitome.segment(lexitome.read(fundus), "optic disc", threads=1)
    assert main(["segment", "-q", "-i", str(fundus), "-o", str(tmp_path / "out"), "-t", "optic disc"]) == 0
    mask = from_path["optic disc"].mask
    assert mask.shape == (1, 192, 256)
    for other in (from_array, from_volume):
        assert np.array_equal(other["optic disc"].mask, mask)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "optic_disc.png")) > 0, mask[0])


def test_public_names_are_all_there() -> None:
    assert set(lexitome.__all__) <= set(dir(lexitome))
    assert all(getattr(lexitome, name) is not None for name in lexitome.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lexitome.nonsense  # type: ignore[attr-defined]


def test_each_text_gets_all_places() -> None:
    box, click = Box(1, 2, 3, 4), Point(5, 6, inside=False)
    first, second = make_queries(PICTURE, ["optic disc", "optic  cup "], [box], [click])
    assert (first.text, second.text) == (Text("optic disc"), Text("optic cup"))
    assert first.spatial == second.spatial == (box, click)


def test_a_rough_mask_is_a_place() -> None:
    flat = np.zeros((30, 40), np.uint8)
    flat[3:9, 4:20] = 255
    rough = to_mask(PICTURE, flat)
    assert rough.mask.shape == (1, 30, 40) and rough.mask.sum() == 6 * 16
    (query,) = make_queries(PICTURE, [], [], [], rough)
    assert query.spatial == (rough,) and query.name == "mask"
    result = lexitome.segment(PICTURE, mask=flat)
    assert [finding.name for finding in result.findings] == ["mask"] and result["mask"].presence == 1.0
    with pytest.raises(InputError, match=r"5 x 30 x 40 voxels"):
        to_mask(VOLUME, flat)
    with pytest.raises(InputError, match="empty"):
        to_mask(PICTURE, flat * 0)


def test_places_without_words_are_one_query() -> None:
    (query,) = make_queries(PICTURE, [], [Box(1, 2, 3, 4), Box(5, 6, 7, 8)], [])
    assert query.text is None and len(query.spatial) == 2


def test_a_text_typed_twice_is_one_question() -> None:
    assert len(make_queries(PICTURE, ["polyp", " polyp"], [], [])) == 1


@pytest.mark.parametrize("texts", [[], [""], ["polyp", "  "]])
def test_no_words(texts: list[str]) -> None:
    with pytest.raises(InputError, match="prompt"):
        make_queries(PICTURE, texts, [], [])


@given(st.tuples(*[st.floats(-1e4, 1e4)] * 4))
def test_box_corners_come_in_any_order(corners: tuple[float, float, float, float]) -> None:
    x0, y0, x1, y1 = corners
    box = to_box(PICTURE, corners)
    assert box == to_box(PICTURE, (x1, y1, x0, y0))
    assert box.x0 <= box.x1 and box.y0 <= box.y1 and box.z0 is None


@pytest.mark.parametrize("values", [(1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, float("nan"))])
def test_bad_box(values: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="box"):
        to_box(PICTURE, values)


def test_point_on_a_volume_needs_its_slice() -> None:
    assert to_point(PICTURE, (3, 4)) == Point(3, 4, 0)
    assert to_point(VOLUME, (3, 4, 2), inside=False) == Point(3, 4, 2, inside=False)
    with pytest.raises(InputError, match="5 slices"):
        to_point(VOLUME, (3, 4))
    with pytest.raises(InputError, match="a point of 1"):
        to_point(VOLUME, (3,))


@given(st.integers(-3, 42), st.integers(-3, 32), st.integers(-2, 6))
def test_exactly_the_points_on_voxels_are_taken(x: int, y: int, z: int) -> None:
    fits = 0 <= x < 40 and 0 <= y < 30 and 0 <= z < 5
    if fits:
        make_queries(VOLUME, [], [], [Point(x, y, z)])
        return
    with pytest.raises(InputError, match="x 0 to 39, y 0 to 29, z 0 to 4"):
        make_queries(VOLUME, [], [], [Point(x, y, z)])


@pytest.mark.parametrize("box", [Box(0, 0, 40, 10), Box(-1, 0, 5, 5), Box(0, 0, 5, 5, 3, 5)])
def test_boxes_must_lie_in_the_image(box: Box) -> None:
    with pytest.raises(InputError, match="outside the image"):
        make_queries(VOLUME, ["liver"], [box], [])

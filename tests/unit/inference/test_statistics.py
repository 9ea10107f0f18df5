import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexitome.concepts import Code, Concept
from lexitome.inference.statistics import size, statistics
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import PIXEL_AFFINE, Volume


def volume_of(array: np.ndarray, affine: np.ndarray, *, spacing_known: bool = True) -> Volume:
    return Volume(array, affine, "CT", spacing_known)


def one(volume: Volume, mask: np.ndarray) -> dict:
    return statistics(Segmentation(volume, (Finding("x", mask, 0.9, 0.8),)))["findings"][0]


def test_numbers_of_a_box_by_hand() -> None:
    array = np.zeros((1, 6, 8, 10), dtype=np.int16)
    mask = np.zeros((6, 8, 10), dtype=bool)
    mask[1:3, 2:5, 4:8] = True
    array[0][mask] = np.arange(24)
    affine = np.diag([0.5, 2.0, 5.0, 1.0])
    affine[:3, 3] = [10.0, 20.0, 30.0]
    entry = one(volume_of(array, affine), mask)
    assert entry["voxels"] == 24
    assert entry["volume_ml"] == pytest.approx(24 * 5.0 / 1000)
    assert entry["centroid_voxel"] == [5.5, 3.0, 1.5]
    assert entry["centroid_world"] == [10 + 2.75, 20 + 6.0, 30 + 7.5]
    assert entry["bounding_box"] == {"x": [4, 7], "y": [2, 4], "z": [1, 2]}
    assert entry["touches_border"] == {"in_plane": False, "z_ends": False}
    assert entry["components"] == 1
    assert entry["intensity"] == {
        "mean": 11.5,
        "std": pytest.approx(np.arange(24).std()),
        "min": 0.0,
        "max": 23.0,
        "median": 11.5,
    }


@given(st.tuples(*[st.floats(0.1, 9)] * 3), st.tuples(*[st.floats(-3.1, 3.1)] * 2), st.floats(-2, 2), st.booleans())
def test_volume_of_oblique_mirrored_and_sheared_grids(
    spacing: tuple[float, float, float], angles: tuple[float, float], shear: float, mirror: bool
) -> None:
    a, b = angles
    rz = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    skew = np.array([[1, 0, shear], [0, 1, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rz @ rx @ skew @ np.diag(spacing) @ np.diag([-1 if mirror else 1, 1, 1])
    mask = np.zeros((3, 4, 5), dtype=bool)
    mask[1:, 1:3, 2:] = True
    key, amount = size(mask, volume_of(np.zeros((1, 3, 4, 5)), affine))
    # Shear moves slices along themselves: Cavalieri leaves the volume alone.
    assert key == "volume_ml"
    assert amount == pytest.approx(mask.sum() * math.prod(spacing) / 1000, rel=1e-9)


def test_the_size_a_reader_can_trust() -> None:
    flat, deep = np.ones((1, 4, 5), dtype=bool), np.ones((2, 4, 5), dtype=bool)
    affine = np.diag([0.5, 0.25, 7.0, 1.0])
    sizes = {
        (2, True): size(flat, volume_of(np.zeros((1, 1, 4, 5)), affine)),
        (2, False): size(flat, volume_of(np.zeros((1, 1, 4, 5)), PIXEL_AFFINE, spacing_known=False)),
        (3, True): size(deep, volume_of(np.zeros((1, 2, 4, 5)), affine)),
        (3, False): size(deep, volume_of(np.zeros((1, 2, 4, 5)), PIXEL_AFFINE, spacing_known=False)),
    }
    assert sizes == {
        (2, True): ("area_mm2", 2.5),
        (2, False): ("area_px", 20),
        (3, True): ("volume_ml", pytest.approx(0.035)),
        (3, False): ("volume_voxels", 40),
    }


def test_unknown_spacing_has_no_world() -> None:
    mask = np.zeros((1, 5, 5), dtype=bool)
    mask[0, 1, 3] = True
    entry = one(volume_of(np.zeros((1, 1, 5, 5)), PIXEL_AFFINE, spacing_known=False), mask)
    assert entry["centroid_world"] is None
    assert entry["centroid_voxel"] == [3.0, 1.0, 0.0]
    assert "volume_ml" not in entry
    assert "area_mm2" not in entry


@pytest.mark.parametrize(
    ("voxel", "in_plane", "z_ends"),
    [((2, 2, 2), False, False), ((0, 2, 2), False, True), ((4, 2, 2), False, True), ((2, 0, 2), True, False)],
)
def test_touching_the_border(voxel: tuple[int, int, int], in_plane: bool, z_ends: bool) -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[voxel] = True
    entry = one(volume_of(np.zeros((1, 5, 5, 5)), np.eye(4)), mask)
    assert entry["touches_border"] == {"in_plane": in_plane, "z_ends": z_ends}


def test_a_2d_image_does_not_end_in_z() -> None:
    mask = np.zeros((1, 5, 5), dtype=bool)
    mask[0, 2, 2] = True
    entry = one(volume_of(np.zeros((1, 1, 5, 5)), np.eye(4)), mask)
    assert entry["touches_border"] == {"in_plane": False, "z_ends": False}


def test_components_touch_at_corners() -> None:
    mask = np.zeros((3, 5, 5), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 4, 4] = True
    assert one(volume_of(np.zeros((1, 3, 5, 5)), np.eye(4)), mask)["components"] == 2


def test_colour_is_measured_as_luminance() -> None:
    array = np.zeros((3, 1, 4, 4), dtype=np.uint8)
    array[0], array[1], array[2] = 200, 100, 50
    mask = np.ones((1, 4, 4), dtype=bool)
    segmentation = Segmentation(volume_of(array, np.eye(4)), (Finding("x", mask, 1, 1),))
    table = statistics(segmentation)
    assert table["intensity_of"] == "luminance"
    assert table["findings"][0]["intensity"]["mean"] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def test_absent_targets_and_codes_are_json() -> None:
    liver = Concept("liver", code=Code("10200004", "SCT", "Liver"))
    empty = Finding("Liver", np.zeros((2, 3, 4), dtype=bool), np.float32(0.125), np.float64(0.0), liver)
    array = np.full((1, 2, 3, 4), np.nan, dtype=np.float32)
    nan = Finding("nan", np.ones((2, 3, 4), dtype=bool), 0.5, 0.5)
    table = statistics(Segmentation(volume_of(array, np.eye(4)), (empty, nan)))
    absent, dark = json.loads(json.dumps(table, allow_nan=False))["findings"]
    assert (absent["found"], absent["voxels"], absent["volume_ml"], absent["presence"]) == (False, 0, 0.0, 0.125)
    assert absent["code"]["value"] == "10200004"
    assert absent["centroid_world"] is absent["bounding_box"] is absent["intensity"] is None
    assert dark["intensity"] is None


def test_sixteen_bit_sums_do_not_overflow() -> None:
    array = np.full((1, 40, 64, 64), 60000, dtype=np.uint16)
    entry = one(volume_of(array, np.eye(4)), np.ones((40, 64, 64), dtype=bool))
    assert entry["intensity"]["mean"] == 60000.0
    assert entry["centroid_voxel"] == [31.5, 31.5, 19.5]

"""Objects from centres: maps drawn by hand, where the right answer is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lexitome.inference import objects
from lexitome.inference.objects import OFFSET_UNIT, CentreMaps, connected, separate
from lexitome.losses.instances import centre_targets
from lexitome.models import compact


def discs(shape: tuple[int, int], middles: list[tuple[float, float]], radius: float) -> NDArray[np.int32]:
    """Ids of discs; where they overlap, the nearer middle owns the pixel."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.stack([np.hypot(y - r, x - c) for r, c in middles])
    return np.where(distance.min(0) <= radius, distance.argmin(0) + 1, 0).astype(np.int32)


def perfect(ids: NDArray[np.int32], size: tuple[int, int] | None = None) -> CentreMaps:
    """What a perfect head says of these objects, at half their resolution or at `size`."""
    height, width = size or (ids.shape[0] // 2, ids.shape[1] // 2)
    rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in ((height, ids.shape[0]), (width, ids.shape[1])))
    small = ids[np.ix_(rows.astype(int), columns.astype(int))]
    heat, way, _ = centre_targets(torch.from_numpy(small)[None])
    return CentreMaps(heat[0].numpy(), way[0].numpy() / np.float32(OFFSET_UNIT))


def agreement(found: NDArray[np.uint16], ids: NDArray[np.int32]) -> float:
    """Share of the pixels of true objects that lie in the found object which covers most of theirs, one each."""
    best = [np.bincount(found[ids == i]).argmax() for i in range(1, ids.max() + 1)]
    assert len(set(best)) == len(best) and 0 not in best
    return float(np.mean(np.array(best)[ids[ids > 0] - 1] == found[ids > 0]))


def test_the_unit_is_that_of_the_network() -> None:
    assert OFFSET_UNIT == compact.OFFSET_UNIT


def test_touching_discs_are_told_apart() -> None:
    ids = discs((64, 96), [(30, 30), (30, 49)], 12)  # they overlap by six pixels
    assert connected(ids > 0).max() == 1
    found = separate(ids > 0, perfect(ids))
    assert found.dtype == np.uint16 and set(np.unique(found)) == {0, 1, 2}
    assert np.array_equal(found > 0, ids > 0) and agreement(found, ids) > 0.97


@pytest.mark.parametrize("size", [(128, 128), (64, 200), (400, 90)])
def test_maps_of_another_size_and_shape(size: tuple[int, int]) -> None:
    """The network sees a square, whatever the picture's shape."""
    ids = discs((180, 300), [(60, 60), (60, 118), (120, 200), (60, 240)], 30)
    found = separate(ids > 0, perfect(ids, size))
    assert found.max() == 4 and agreement(found, ids) > 0.93


def test_nothing_is_no_object_and_one_is_one() -> None:
    ids = discs((40, 40), [(20, 20)], 8)
    maps = perfect(ids)
    empty = separate(np.zeros((40, 40), bool), maps)
    assert empty.dtype == np.uint16 and empty.shape == (40, 40) and not empty.any()
    one = separate(ids > 0, maps)
    assert np.array_equal(one, ids)


def test_without_a_peak_the_parts_count() -> None:
    ids = discs((40, 80), [(20, 20), (20, 60)], 8)
    flat = CentreMaps(np.full((20, 40), 0.1, np.float32), np.zeros((2, 20, 40), np.float32))
    assert np.array_equal(separate(ids > 0, flat), ids)


def test_a_part_without_a_peak_is_an_object_and_a_speck_is_not() -> None:
    ids = discs((40, 120), [(20, 20), (20, 60), (20, 100)], 8)
    maps = perfect(np.where(ids == 3, 0, ids))
    mask = ids > 0
    mask[38, 58] = True  # far below a tenth of an object
    found = separate(mask, maps)
    assert found.max() == 3 and np.array_equal(found > 0, mask)
    assert len({found[20, 20], found[20, 60], found[20, 100]}) == 3 and found[38, 58] in (1, 2)


def test_a_plateau_is_one_peak_and_peaks_outside_the_mask_do_not_count() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:20, 5:20] = True
    heat = np.zeros((20, 20), np.float32)
    heat[5:8, 5:8] = 1.0
    heat[16, 16] = 1.0
    found = separate(mask, CentreMaps(heat, np.zeros((2, 20, 20), np.float32)))
    assert np.array_equal(found, mask.astype(np.uint16))


def test_every_pixel_of_noise_has_an_owner_and_ids_have_no_gaps() -> None:
    rng = np.random.default_rng(0)
    for side in (8, 33, 100):
        mask = rng.random((side, side + 5)) < 0.4
        maps = CentreMaps(rng.random((16, 16), np.float32), rng.normal(size=(2, 16, 16)).astype(np.float32) * 3)
        found = separate(mask, maps)
        assert np.array_equal(found > 0, mask) and set(np.unique(found)) == set(range(found.max() + 1))


def test_parts_of_a_volume_touch_at_corners() -> None:
    mask = np.zeros((4, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 4, 4] = True
    found = connected(mask)
    assert found.dtype == np.uint16 and found[0, 0, 0] == found[1, 1, 1] == 1 and found[3, 4, 4] == 2
    assert connected(np.zeros((2, 3, 4), bool)).max() == 0


def test_of_too_many_objects_the_largest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "MOST_OBJECTS", 2)
    mask = np.zeros((1, 3, 20), bool)
    mask[0, 0, [0, 2, 3, 5, 6, 7]] = True
    found = connected(mask)
    assert found[0, 0, [0, 2, 3, 5, 6, 7]].tolist() == [0, 1, 1, 2, 2, 2]


def test_a_hundred_objects_are_quick() -> None:
    middles = [(25.0 + 51 * r, 25.0 + 51 * c) for r in range(10) for c in range(10)]
    ids = discs((512, 512), middles, 25.5)
    maps, mask = perfect(ids), ids > 0
    found = separate(mask, maps)
    assert found.max() == 100 and agreement(found, ids) > 0.98
    times = []
    for _ in range(5):
        began = time.process_time()
        separate(mask, maps)
        times.append(time.process_time() - began)
    assert min(times) < 0.06  # 20 ms on a quiet machine; a loop over objects takes half a second

"""What encoders see: exact numbers of the policies, squares, slices."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.cache import open_cache
from lexitome.data.encoder_input import cached_square, check_intensity, said, squares
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.volume import PIXEL_AFFINE, Volume

sys.path.insert(0, str(Path(__file__).parent))
from tiny_sets import save_set


def flat(value: float, dtype: type = np.uint8, slices: int = 1) -> Volume:
    return Volume(np.full((1, slices, 8, 12), value, dtype), PIXEL_AFFINE, spacing_known=False)


@pytest.mark.parametrize(
    ("intensity", "wanted"),
    [
        ("imagenet", [(100 / 255 - m) / d for m, d in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]),
        ("half", [100 / 127.5 - 1] * 3),
        ("rgb255", [100.0] * 3),
        ("zscore", [0.0] * 3),
        ("hu_meddino", [0.0] * 3),
    ],
)
def test_8_bit_pictures(intensity: str, wanted: list[float]) -> None:
    (found,) = squares(flat(100), intensity, 6)
    assert found.shape == (3, 6, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.broadcast_to(np.array(wanted)[:, None, None], (3, 6, 6)), atol=1e-5)


def test_hounsfield_units_are_used_where_there_are_some() -> None:
    values = np.full((1, 1, 8, 8), 40, np.int16)
    values[..., :4] = -3000
    (found,) = squares(Volume(values, PIXEL_AFFINE, "CT", spacing_known=False), "hu_meddino", 8)
    assert found[0, 0, -1] == pytest.approx((40 - 65.1084) / 178.0166, abs=2e-3)
    assert found[1, 0, 0] == pytest.approx((-1000 - 65.1084) / 178.0166, abs=5e-3)


def test_8_bit_ct_goes_back_through_its_window(tmp_path: Path) -> None:
    grey = np.full((16, 16), 51, np.uint8)
    root = save_set(tmp_path / "ct", {f"c{i}": (grey, grey * 0) for i in range(3)}, {1: "liver"}, "CT")
    cached = open_cache(load_dataset(root), tmp_path / "cache", side=16)
    windowed = replace(cached, dataset=replace(cached.dataset, window=None, applied_window=(-100.0, 400.0)))
    assert cached_square(windowed, 0, "hu_meddino", 8)[2, 3, 3] == pytest.approx((0 - 65.1084) / 178.0166, abs=1e-4)
    unknown = replace(cached, dataset=replace(cached.dataset, window=None, applied_window=None))
    assert not cached_square(unknown, 0, "hu_meddino", 8).any()


def test_slices_are_seen_alone_but_for_the_compact_model() -> None:
    array = np.arange(5, dtype=np.uint8)[None, :, None, None] * np.ones((1, 5, 4, 4), np.uint8)
    volume = Volume(array, PIXEL_AFFINE, spacing_known=False)
    assert [square[:, 0, 0].tolist() for square in squares(volume, "rgb255", 4)][2] == [1, 2, 3]
    alone = np.stack(list(squares(volume, "half", 4)))
    assert alone.shape == (5, 3, 4, 4) and (alone[:, 0] == alone[:, 2]).all()


def test_many_slices_come_in_order() -> None:
    array = np.arange(20, dtype=np.uint8)[None, :, None, None] * np.ones((1, 20, 4, 4), np.uint8)
    found = [square[1, 0, 0] for square in squares(Volume(array, PIXEL_AFFINE, spacing_known=False), "half", 4)]
    assert found == sorted(found) and len(found) == 20


def test_resizing_keeps_places_and_range() -> None:
    array = np.zeros((3, 1, 40, 20), np.uint8)
    array[0, :, 20:] = 255
    (found,) = squares(Volume(array, PIXEL_AFFINE, spacing_known=False), "rgb255", 10)
    assert found[0, -1].min() > 250 and found[0, 0].max() < 5 and not found[1].any()
    assert found.min() >= 0 and found.max() <= 255


def test_what_is_recorded_and_refused() -> None:
    assert said("imagenet") == "imagenet" and "zscore" in said("hu_meddino")
    with pytest.raises(InputError, match="imagenet, hu_meddino"):
        check_intensity("nnunet_ct")

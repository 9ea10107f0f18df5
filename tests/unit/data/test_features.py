"""Features on disk: as computed, whole after a stop, never mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexitome.data.features import ABOUT, JOURNAL, PATCHES, Encoded, FeatureKey, Item, ahead, extract, open_features
from lexitome.errors import InputError

SIDE, DIM = 8, 5
KEY = FeatureKey("set", "an/encoder", "abc", "imagenet", "float32", SIDE, ("cls", "mean"), DIM, (2, 2), True)


class Stop(Exception):
    pass


def items(slices: list[int]) -> list[Item]:
    """Case i has so many pictures; the first pixel tells which it is."""

    def pictures(case: int, count: int) -> Iterator[np.ndarray]:
        for z in range(count):
            yield np.full((3 if case % 2 else 1, SIDE, SIDE), 100 * case + z, np.float32)

    return [Item(f"case{i}", f"state{i}", lambda i=i, n=n: pictures(i, n)) for i, n in enumerate(slices)]


class Counting:
    """An encoder that says the first pixel, and how often it was asked; may stop."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.seen = 0
        self.stop_after = stop_after

    def __call__(self, pictures: np.ndarray) -> Encoded:
        assert pictures.shape[1:] == (3, SIDE, SIDE)
        self.seen += len(pictures)
        if self.seen > self.stop_after:
            raise Stop
        first = pictures[:, 0, 0, 0]
        vectors = np.broadcast_to(first[:, None, None], (len(first), 2, DIM)) + np.array([0, 0.5])[None, :, None]
        return Encoded(vectors.astype(np.float32), np.broadcast_to(first[:, None, None, None], (len(first), 2, 2, DIM)))


def expected(slices: list[int]) -> list[float]:
    return [100.0 * case + z for case, count in enumerate(slices) for z in range(count)]


def test_rows_kinds_and_maps(tmp_path: Path) -> None:
    slices, told = [1, 3, 2], []
    found = extract(items(slices), Counting(), KEY, tmp_path, batch=2, advance=told.append)
    assert found.vectors[:, 0, 0].tolist() == expected(slices)
    assert found.vector("mean")[:, 0].tolist() == [value + 0.5 for value in expected(slices)]
    assert found.vector("cls+mean").shape == (6, 2 * DIM)
    assert found.patches is not None and found.patches.shape == (6, 2, 2, DIM)
    assert found.patches[:, 1, 1, 2].astype(float).tolist() == expected(slices)
    assert found.rows_of() == {"case0": slice(0, 1), "case1": slice(1, 4), "case2": slice(4, 6)}
    assert told == ["case0", "case1", "case2"]


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    extract(items([1, 2]), Counting(), KEY, tmp_path)
    again = Counting(0)
    assert len(extract(items([1, 2]), again, KEY, tmp_path).stems) == 3 and again.seen == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 20), st.integers(1, 5))
def test_a_stopped_run_ends_as_one_that_was_not(slices: list[int], stop_after: int, batch: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            extract(items(slices), Counting(stop_after), KEY, Path(folder), batch=batch)
        except Stop:
            place = Path(folder) / KEY.folder
            with (place / JOURNAL).open("a") as file:
                file.write('{"stem": "cut sh')
        rest = Counting()
        found = extract(items(slices), rest, KEY, Path(folder), batch=batch)
        assert found.vectors[:, 0, 0].tolist() == expected(slices)
        assert rest.seen <= sum(slices)


def test_a_stop_costs_only_what_was_not_complete(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        extract(items([1] * 10), Counting(6), KEY, tmp_path, batch=2)
    rest = Counting()
    extract(items([1] * 10), rest, KEY, tmp_path, batch=2)
    assert rest.seen == 5  # the last case of a batch is complete when the next one has begun


def test_a_changed_file_is_computed_again_and_what_follows_it(tmp_path: Path) -> None:
    extract(items([1, 1, 1]), Counting(), KEY, tmp_path)
    changed = [replace(item, state="new") if item.stem == "case1" else item for item in items([1, 1, 1])]
    rest = Counting()
    assert extract(changed, rest, KEY, tmp_path).vectors[:, 0, 0].tolist() == expected([1, 1, 1])
    assert rest.seen == 2


@pytest.mark.parametrize(
    "change", [{"sha256": "x"}, {"intensity": "zscore"}, {"side": 16}, {"dense": False}, {"precision": "bfloat16"}]
)
def test_other_features_have_another_folder(change: dict) -> None:
    assert replace(KEY, **change).folder != KEY.folder


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    extract(items([1]), Counting(), KEY, tmp_path)
    about = json.loads((tmp_path / KEY.folder / ABOUT).read_text())
    assert about["key"]["intensity"] == "imagenet" and about["key"]["sha256"] == "abc"
    assert about["layout"] == {"vectors.f32": ["row", 2, DIM], "patches.f16": ["row", 2, 2, DIM]}


def test_damage_is_told(tmp_path: Path) -> None:
    extract(items([2]), Counting(), KEY, tmp_path)
    place = tmp_path / KEY.folder
    (place / PATCHES).write_bytes(b"12")
    with pytest.raises(InputError, match="shorter than its journal"):
        open_features(place)
    with pytest.raises(InputError, match="holds no features"):
        open_features(tmp_path)
    assert extract(items([2]), Counting(), KEY, tmp_path).patches is not None  # and mended


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise ZeroDivisionError

    seen = []
    with pytest.raises(ZeroDivisionError):
        for number in ahead(numbers()):
            seen.append(number)
    assert seen == list(range(5))

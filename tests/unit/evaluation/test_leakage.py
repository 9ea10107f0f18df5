"""The leakage check finds copies however they were stored, and what it cannot tell it says."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.data.trained_on import (
    BITS,
    WORDS,
    TrainedOn,
    count_bits,
    count_bits_in_steps,
    fingerprints,
    near,
    picture_hash,
)
from lexitome.errors import InputError
from lexitome.evaluation.leakage import MOST_BITS, check

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import save_set

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
WORD = st.integers(0, 2**64 - 1)


def scenery(seed: int, side: int = 128) -> np.ndarray:
    """A smooth random picture (side, side, 3)."""
    rng = np.random.default_rng(seed)
    grey = ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 16)
    grey = np.clip(128 + 60 * grey / grey.std(), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def changed(picture: np.ndarray, side: int, quality: int, low: float = 0, high: float = 255) -> np.ndarray:
    """Shown in another window, resized, and compressed."""
    shown = np.clip((picture.astype(float) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shown).resize((side, side)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def pictures(folder: Path, shown: dict[str, np.ndarray], split: str) -> Dataset:
    masks = {stem: np.ones(picture.shape[:2], np.uint8) for stem, picture in shown.items()}
    save_set(folder, {stem: (shown[stem], masks[stem]) for stem in shown}, {1: "all"})
    dataset = load_dataset(folder)
    return replace(dataset, cases=tuple(replace(case, split=split) for case in dataset.cases))


@pytest.mark.parametrize(("side", "quality", "window"), [(128, 30, (0, 255)), (64, 60, (0, 255)), (200, 80, (0, 255)),
                                                         (128, 80, (30, 230)), (96, 75, (0, 200))])  # fmt: skip
def test_copies_are_found_and_strangers_are_not(
    side: int, quality: int, window: tuple[int, int], tmp_path: Path
) -> None:
    taught = pictures(tmp_path / "old", {f"t{i}": scenery(i) for i in range(20)}, "train")
    copies = {f"copy{i}": changed(scenery(i), side, quality, *window) for i in (3, 11)}
    tested = pictures(tmp_path / "new", copies | {f"own{i}": scenery(100 + i) for i in range(20)}, "test")
    seen: list[int] = []
    report = check(fingerprints([taught]), [tested], progress=seen.append)
    assert {(pair.case, pair.trained_on) for pair in report.pairs} == {("copy3", "old"), ("copy11", "old")}
    assert report.checked and report.affected == 2 and report.cases == 22 and seen == list(range(1, 23))
    assert "2 of 22 test cases" in report.summary and "new 2" in report.summary
    assert all(pair.bits <= MOST_BITS for pair in report.pairs)


def test_only_the_taught_parts_count(tmp_path: Path) -> None:
    held_out = pictures(tmp_path / "old", {f"t{i}": scenery(i) for i in range(4)}, "test")
    assert len(fingerprints([held_out]).hashes) == 0
    report = check(fingerprints([held_out]), [held_out])
    assert report.affected == 0 and report.sets[0].taught


def test_a_volume_is_known_again_though_cropped_and_in_other_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    block = ndimage.gaussian_filter(rng.normal(size=(30, 48, 48)), (4, 3, 3))
    block = (1000 * (block - block.min())).astype(np.int16)
    other = ndimage.gaussian_filter(rng.normal(size=(30, 48, 48)), (4, 3, 3))
    other = (1000 * (other - other.min())).astype(np.int16)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])

    def stored(name: str, array: np.ndarray, split: str) -> Dataset:
        mask = np.ones(array.shape, np.uint8)
        dataset = load_dataset(save_set(tmp_path / name, {"v": (array, mask)}, {1: "all"}, "MR", affine=affine, dims=3))
        return replace(dataset, cases=tuple(replace(case, split=split) for case in dataset.cases))

    training = fingerprints([stored("taught", block, "train")])
    cropped, stranger = stored("cropped", block[7:] // 2 + 100, "test"), stored("stranger", other, "test")
    report = check(training, [cropped, stranger])
    assert [pair.dataset for pair in report.pairs] == ["cropped"] and report.pairs[0].slices > 5


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    tested = pictures(tmp_path / "new", {"a": scenery(1), "b": scenery(2)}, "test")
    report = check(None, [tested], taught=["new"])
    assert not report.checked and report.sets[0].taught and "cannot be told" in report.summary
    tested.cases[0].image.write_bytes(b"no picture")
    report = check(fingerprints([]), [tested])
    assert report.sets[0].unreadable == ("a",) and report.cases == 1 and "could not be read" in report.summary


def test_a_picture_of_nothing_has_no_hash(tmp_path: Path) -> None:
    assert picture_hash(np.full((40, 50, 3), 7, np.uint8)) is None
    taught = pictures(tmp_path / "old", {"black": np.zeros((64, 64, 3), np.uint8)}, "train")
    tested = pictures(tmp_path / "new", {"black": np.zeros((64, 64, 3), np.uint8)}, "test")
    assert check(fingerprints([taught]), [tested]).affected == 0


def test_the_file_keeps_everything_and_names_no_case(tmp_path: Path) -> None:
    taught = [pictures(tmp_path / n, {"patient_doe": scenery(i)}, "train") for i, n in enumerate(("one", "two"))]
    stored = fingerprints(taught)
    content = stored.to_bytes()
    again = TrainedOn.from_bytes(content, "f")
    assert again.datasets == ("one", "two") and (again.hashes == stored.hashes).all()
    assert (again.origin == stored.origin).all() and b"doe" not in content
    (tmp_path / "model").mkdir()
    assert TrainedOn.of_model(tmp_path / "model") is None
    for broken in (content[:-40], b"", content.replace(b"hashes", b"hushes")):
        (tmp_path / "model" / "trained_on.npz").write_bytes(broken)
        with pytest.raises(InputError, match="Export the model again"):
            TrainedOn.of_model(tmp_path / "model")


def test_what_a_model_began_with_counts_too(tmp_path: Path) -> None:
    one, two, three = (pictures(tmp_path / n, {n: scenery(i)}, "train") for i, n in enumerate(("one", "two", "three")))
    both = fingerprints([two, three]).merged(fingerprints([one, two]))
    assert both.datasets == ("two", "three", "one") and len(both.hashes) == 3
    for dataset in (one, two, three):
        asked = replace(dataset, cases=tuple(replace(case, split="test") for case in dataset.cases))
        assert [pair.trained_on for pair in check(both, [asked]).pairs] == [dataset.name]


@settings(deadline=None)
@given(st.lists(WORD, max_size=6))
def test_bits_are_counted_alike_on_every_numpy(drawn: list[int]) -> None:
    words = np.array(drawn, dtype=np.uint64)
    expected = [int(word).bit_count() for word in words]
    assert count_bits_in_steps(words).tolist() == expected == count_bits(words).tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * WORDS), max_size=5), st.integers(0, 8))
def test_near_finds_all_pairs_and_no_others(drawn: list[tuple[int, ...]], most: int) -> None:
    hashes = np.array(drawn, dtype=np.uint64).reshape(-1, WORDS)
    expected = []
    for i, a in enumerate(hashes):
        for j, b in enumerate(hashes):
            bits = sum(int(x ^ y).bit_count() for x, y in zip(a, b, strict=True))
            expected += [(i, j, bits)] if bits <= most else []
    assert list(near(hashes, hashes, most)) == expected


@pytest.mark.slow
def test_ten_thousand_against_ten_thousand_take_seconds() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 2**63, (10_000, WORDS), dtype=np.uint64) for _ in range(2))
    other[77] = one[123]
    began = time.process_time()
    assert list(near(one, other, MOST_BITS)) == [(123, 77, 0)]
    assert time.process_time() - began < 10
    assert BITS == 64 * WORDS


@pytest.mark.shared
def test_real_fundus_photographs_of_two_hospitals_are_strangers() -> None:
    if not SHARED.is_dir():
        pytest.skip("the research images are not beside the repository")
    drishti, drions = (load_dataset(SHARED / place) for place in ("train/drishti_gs", "external/drions_db"))
    asked = replace(drions, cases=tuple(replace(case, split="test") for case in drions.cases))
    assert check(fingerprints([drishti]), [asked]).affected == 0

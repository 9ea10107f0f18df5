"""What input size buys: tiles cover the picture once, and the table holds what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

resolution = pytest.importorskip("resolution")

from lexitome.data.dataset import Target  # noqa: E402


@pytest.mark.parametrize("shape", [(60, 101), (64, 64), (7, 33)])
def test_tiles_meet_without_a_seam(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    seen = []

    def look(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.shape)
        return tile[None, :, :, 0].astype(np.float32)

    np.testing.assert_allclose(resolution.in_tiles(look, picture)[0], picture[..., 0], rtol=1e-5)
    assert len(seen) == 4 and max(s[0] for s in seen) < shape[0]


def test_overlap() -> None:
    (first, end), (begin, last) = resolution.halves(900)
    assert (first, last, end - first) == (0, 900, 500)
    assert (end - begin) / (end - first) == pytest.approx(resolution.OVERLAP)


def test_score_and_table() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    codes = np.zeros((8, 8), np.uint8)
    codes[:4], codes[7] = 1, 255
    targets = [Target("upper half", (), (1,), (1,)), Target("absent", (), (2,), (2,))]

    def look(tile: np.ndarray) -> np.ndarray:
        logits = np.full((2, *tile.shape[:2]), -1, np.float32)
        logits[0, :2], logits[0, 7:] = 1, 1  # half of it, and pixels that nobody judged
        return logits

    scores, seconds = resolution.score(look, [(picture, codes)], targets, 1)
    assert scores == {"upper half": [pytest.approx(2 / 3)], "absent": []} and seconds >= 0
    rows = [{"set": "s", "target": "t", "side": side, "tiles": 1, "dice": side / 10} for side in (256, 320)]
    assert resolution.table(rows).splitlines()[-1] == "| s | t | whole | 25.6 | 32.0 |"


def test_a_model_is_asked_at_each_side(annotated: Path, tmp_path: Path) -> None:
    """With a network of random weights: sides, tiles and targets are all there."""
    tiny = pytest.importorskip("tiny_model")
    folder = tiny.write_model(tmp_path / "model", tiny.tiny_net())
    sets = ("dsb2018_fluorescence_nuclei",)
    options = resolution.Options(str(folder), annotated, sets, sides=(64, 96), cases=2, threads=1)
    result = resolution.measure(options)
    assert {(row["side"], row["tiles"]) for row in result["rows"]} == {(64, 1), (64, 4), (96, 1), (96, 4)}
    assert all(row["cases"] == 2 and 0 <= row["dice"] <= 100 for row in result["rows"])
    assert result["model"]["from"] == "model" and result["data"].keys() == set(sets)

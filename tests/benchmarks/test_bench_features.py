"""The benchmark of feature extraction: its ways give the same features, its k-NN the same neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

bench = pytest.importorskip("features")
pytest.importorskip("sklearn")

from lexitome.data.sources.classes import load_classified  # noqa: E402


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("speed") / "set", np.random.default_rng(0)
    for name in ("one", "two"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            smooth = np.kron(rng.integers(40, 220, (6, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            Image.fromarray(smooth).save(root / name / f"{name}{number}.png")
    return root


def test_all_ways_are_timed_and_agree(pictures: Path) -> None:
    options = bench.Options(pictures, images=3, repeats=1, presets=("tiny",), sides=(48,), batch=2, threads=1)
    entry = bench.measure_features(options, load_classified(pictures).dataset, "tiny", 48)
    assert entry["images"] == 3 and len(entry["ways"]) == 5
    assert entry["ways"][0]["times_plain"] == 1
    for row in entry["ways"]:
        assert row["images_per_second"] > 0
        assert row["cosine_min"] > 0.98, row["way"]


def test_neighbours_are_those_of_scikit_learn() -> None:
    entry = bench.measure_knn(300, 20, 16, 5, repeats=1)
    assert [row["same_neighbours"] for row in entry["ways"]] == [1.0] * len(entry["ways"])
    assert len(entry["ways"]) == 2 + (not entry["notes"])

"""The benchmark of the metrics, tiny: every kind of volume is what it is called, and every kind is timed."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

metrics = pytest.importorskip("metrics")

SHAPE = (16, 24, 24)


def test_kinds_of_volumes() -> None:
    volumes = {kind: metrics.blob(np.random.default_rng(0), SHAPE, kind) for kind in metrics.KINDS}
    shares = {}
    for kind, (prediction, reference) in volumes.items():
        assert prediction.shape == reference.shape == SHAPE and prediction.any() and reference.any()
        shares[kind] = (prediction ^ reference).sum() / reference.sum()
    assert shares["alike"] < shares["speckled"] < 0.5 < shares["far"]
    alone = volumes["speckled"][0] ^ volumes["alike"][0]
    assert 0.004 < alone.mean() < 0.02


def test_every_part_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)  # as where neither of the other tools is installed
    options = argparse.Namespace(images=30, side=32, peers=3, volumes=1, shape=SHAPE, jobs=2, seed=0)
    found = metrics.measure(options)
    assert found["overlap"]["images"] == 30 and found["overlap"]["beside_others"]["cases"] == 3
    for kind in metrics.KINDS:
        seconds = found[f"surface_{kind}"]["median_seconds"]
        assert list(seconds) == ["lexitome"] and seconds["lexitome"] > 0

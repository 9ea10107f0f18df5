"""A head on frozen maps learns what the maps tell, and scores only what somebody judged."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.data.features import FeatureKey, Features
from lexitome.data.sources.folder import load_dataset
from lexitome.evaluation.probing.dense import DenseConfig, _Head, probe
from lexitome.models.dinov3.decoders import DecoderName, build_decoder

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

CELLS, SIDE = 14, 56


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> CachedDataset:
    rng, cases = np.random.default_rng(0), {}
    for i in range(12):
        mask = disc(SIDE, *rng.uniform(16, 40, 2), 9).astype(np.uint8)
        cases[f"p{i}"] = (painted(mask, i), mask)
    root = save_set(tmp_path_factory.mktemp("sets") / "discs", cases, {1: "polyp"})
    return open_cache(load_dataset(root), tmp_path_factory.mktemp("cache"), side=SIDE)


def features_of(cached: CachedDataset, *, telling: bool) -> Features:
    """Maps whose first channel is the share of the patch that is inside, or noise."""
    rng = np.random.default_rng(1)
    size = SIDE // CELLS
    inside = (cached.codes == 1).reshape(-1, CELLS, size, CELLS, size).mean((2, 4))
    maps = rng.normal(0, 0.1, (*inside.shape, 6))
    if telling:
        maps[..., 0] += inside
    key = FeatureKey("discs", "e", "0", "imagenet", "float32", SIDE, ("mean",), 6, (CELLS, CELLS), True)
    stems = tuple(row.stem for row in cached.rows)
    return Features(key, maps.mean((1, 2))[:, None].astype(np.float32), maps.astype(np.float16), stems)


@pytest.mark.parametrize("name", ["linear", "segdino"])
def test_logits_of_patches_are_brought_to_any_side_at_once(name: DecoderName) -> None:
    torch.manual_seed(0)
    decoder = build_decoder(name, 6, 1, 3).eval()
    maps = torch.randn(2, 4, 4, 6)
    head = _Head(decoder, 64).eval()
    assert torch.equal(head(maps, 64), decoder([maps], (64, 64)))
    assert torch.equal(head(maps, 128), F.interpolate(decoder.coarse([maps]), (128, 128), mode="bilinear"))
    assert _Head(decoder, 60)(maps, 120).shape[-2:] == (120, 120)  # of padded pictures, what lies beyond is cut
    assert torch.equal(_Head(decoder, 60)(maps, 120), head(maps, 128)[..., :120, :120])


CONFIG = DenseConfig(steps=60, batch=4, rate=2e-2)


def test_maps_that_tell_win(cached: CachedDataset) -> None:
    steps: list[int] = []
    told = probe(features_of(cached, telling=True), cached, CONFIG, draws=50, advance=lambda: steps.append(1))
    noise = probe(features_of(cached, telling=False), cached, CONFIG, draws=50)
    assert len(steps) == CONFIG.steps
    assert told["dice"]["mean"] > 0.8 > 0.5 > noise["dice"]["mean"]
    assert set(told["targets"]) == {"polyp"}
    assert told["cases"] == sum(row.split == "test" for row in cached.rows) == told["pictures"]


def test_what_nobody_judged_is_neither_learned_nor_scored(cached: CachedDataset) -> None:
    hidden = cached.codes.copy()
    hidden[:, :, : SIDE // 2] = UNKNOWN_CODE
    half = replace(cached, codes=hidden)
    told = probe(features_of(cached, telling=True), half, CONFIG, draws=50)
    assert told["dice"]["mean"] > 0.7
    nothing = replace(cached, codes=np.full_like(hidden, UNKNOWN_CODE))
    assert probe(features_of(cached, telling=True), nothing, replace(CONFIG, steps=2), draws=50)["dice"] is None


def test_a_label_that_was_not_annotated_is_left_out(cached: CachedDataset) -> None:
    rows = tuple(replace(row, unknown=(1,)) for row in cached.rows)
    found = probe(features_of(cached, telling=True), replace(cached, rows=rows), replace(CONFIG, steps=2), draws=50)
    assert found["targets"] == {} and found["dice"] is None

"""The benchmark of encoders: rows differ in the encoder only, are kept, and differences are those of their pictures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "training"))

bench = pytest.importorskip("backbone")
text = pytest.importorskip("backbone_text")
tiny = pytest.importorskip("tiny_pretrain")

from lexitome.data.cache import CachedDataset, open_cache  # noqa: E402
from lexitome.data.sources.folder import load_dataset  # noqa: E402
from lexitome.errors import InputError  # noqa: E402
from lexitome.models.compact import CompactConfig  # noqa: E402
from lexitome.models.dinov3.presets import build  # noqa: E402
from lexitome.models.dinov3.weights import load_dinov3  # noqa: E402
from lexitome.recipes.pretrain_run import PretrainJob  # noqa: E402
from lexitome.training.compact import Resolution, Sampling, Stage  # noqa: E402

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24))
STAGE = Stage(*(Resolution(64, 2),) * 3)
HEAD = {"command": "python benchmarks/backbone.py RUN", "seed": 0, "data": {},
        "settings": {"minutes": 0.001, "pictures": 3, "sets": ["one", "two"]}}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pretrained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def sets(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    cache = tmp_path_factory.mktemp("cache")
    return [open_cache(load_dataset(root), cache, side=64) for root in sorted(annotated.iterdir())]


def options(run: Path, work: Path) -> bench.Options:
    return bench.Options(run, 0.001, 3, 1, 0, work, TINY, Sampling(STAGE, STAGE))


def test_rows_are_kept_and_compared_by_picture(run: Path, sets: list[CachedDataset], tmp_path: Path) -> None:
    asked, out, document = options(run, tmp_path / "work"), tmp_path / "result.json", tmp_path / "docs" / "result.md"
    first = bench.measure(["imagenet"], sets, asked, HEAD, out, document)
    assert first["differences"] == [] and text.SHOWN["pretrained"] not in document.read_text()
    result = bench.measure(text.ROWS, sets, asked, HEAD, out, document)
    assert result["rows"]["imagenet"] == first["rows"]["imagenet"]  # not run again
    assert {row["metrics"].keys() >= {"dice_2d", "dice_slices", "f1"} for row in result["rows"].values()} == {True}
    assert [(each["later"], each["earlier"]) for each in result["differences"]] == list(bench.PAIRS)
    for each in result["differences"]:
        means = [
            100 * np.mean([np.mean(values) for values in result["rows"][each[who]]["by_concept"].values()])
            for who in ("later", "earlier")
        ]
        assert each["mean"] == pytest.approx(means[0] - means[1], abs=0.02)
        assert each["low"] <= each["mean"] <= each["high"]
    assert any(sentence in document.read_text() for sentence in text.DECISION.values())
    with pytest.raises(InputError, match="other seed"):
        bench.measure(text.ROWS, sets, asked, {**HEAD, "seed": 5}, out, document)
    with pytest.raises(InputError, match="begun with other settings"):
        bench.measure(text.ROWS, sets, asked, {**HEAD, "seed": 5}, tmp_path / "other.json", document)


def test_encoders_begin_with_what_their_row_says(run: Path, tmp_path: Path) -> None:
    asked, phrases = options(run, tmp_path), torch.randn(9, TINY.text_dim)
    models = {row: bench.build(row, asked, phrases) for row in text.ROWS}
    trained, new = load_dinov3(run / "model").net.state_dict(), build("tiny", asked.seed).state_dict()
    for row, stored in (("pretrained", trained), ("random", new)):
        held = models[row].encoder.backbone.trunk.state_dict()
        assert all(torch.equal(held[name], value) for name, value in stored.items())
    beside = [name for name, _ in models["random"].named_parameters() if ".trunk." not in name]
    states = [models[row].state_dict() for row in ("pretrained", "random")]
    assert beside and all(torch.equal(states[0][name], states[1][name]) for name in beside)
    maps = models["random"].encoder.backbone(torch.zeros(2, 3, 64, 96))
    assert [tuple(each.shape) for each in maps] == [
        (2, channels, 64 >> level, 96 >> level) for level, channels in enumerate(bench.TransformerPyramid.channels, 1)
    ]  # fmt: skip
    rates = {row: bench.recipe_of(row, asked, 10).optim for row in text.ROWS}
    assert [bool(rates[row].groups) for row in text.ROWS] == [True, True, False]
    assert {replace(optim, groups=()) for optim in rates.values()} == {replace(rates["random"], groups=())}


def test_weights_of_others_are_refused(run: Path, tmp_path: Path) -> None:
    job = PretrainJob.load(run)
    PretrainJob(replace(job.recipe, start="dinov3-b"), job.data).save(tmp_path)
    with pytest.raises(InputError, match="began with weights of dinov3-b"):
        bench.build("random", options(tmp_path, tmp_path / "work"), torch.zeros(2, TINY.text_dim))


def test_a_verdict_needs_an_interval_beside_zero() -> None:
    def of(low: float, high: float) -> str:
        return text.verdict({"low": low, "high": high})

    assert [of(0.1, 2.0), of(-0.1, 2.0), of(-2.0, -0.1)] == ["better", "a tie", "worse"]

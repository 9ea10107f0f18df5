"""The training loop: it learns, survives interruption with identical results, and exports what it trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lexitome.data.batches import BatchSource
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.folder import load_dataset
from lexitome.models.compact import CompactConfig, CompactNet, Decoded
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training.calibrate import Scores, best_threshold, presence_thresholds
from lexitome.training.compact import Run, TrainConfig, build_optimizer, loss_terms, lr_factor, train
from lexitome.training.export import (
    export_graphs,
    largest_difference,
    load_average,
    run_graphs,
    store_half,
    trained_concepts,
    write_model,
)

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=2)
SHORT = TrainConfig(stages=((64, 6), (96, 2)), images=2, warmup=2, checkpoint_every=4)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
    from tiny_sets import write_sets

    root = write_sets(tmp_path_factory.mktemp("sets"))
    return [open_cache(load_dataset(d), tmp_path_factory.mktemp("cache"), 48) for d in sorted(root.iterdir())]


def fresh(config: TrainConfig = SHORT) -> Run:
    torch.manual_seed(config.seed)
    model = CompactNet(TINY, EfficientNetLite(0, frozen_blocks=TINY.frozen_blocks))
    return Run(model, {k: v.clone() for k, v in model.state_dict().items()}, build_optimizer(model, config))


def finish(run: Run, source: BatchSource, folder: Path, config: TrainConfig = SHORT) -> Run:
    for _ in train(run, source, config, folder):
        pass
    return run


def test_an_interrupted_run_continues_identically(
    sets: list[CachedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = BatchSource(sets, seed=0)
    whole = finish(fresh(), source, tmp_path)
    folder = tmp_path / "interrupted"
    folder.mkdir()
    part = fresh()
    step = part.optimizer.step

    def killed_in_step_5() -> None:
        if part.step == 5:  # after the checkpoint of step 4
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(part.optimizer, "step", killed_in_step_5)
    with pytest.raises(KeyboardInterrupt):
        finish(part, source, folder)
    torch.manual_seed(99)  # the global generator must not matter
    again = fresh()
    again.restore(folder / "last.pt")
    assert again.step == 4
    finish(again, source, folder)
    for (name, one), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name, atol=1e-5, rtol=1e-4)


def test_it_learns(sets: list[CachedDataset], tmp_path: Path) -> None:
    config = TrainConfig(stages=((64, 80),), images=4, warmup=5, lr=3e-3, lr_backbone=1e-3, checkpoint_every=1000)
    rows = list(train(fresh(config), BatchSource(sets, seed=0), config, tmp_path))
    assert rows[-1]["dice"] < 0.75 * rows[0]["dice"] and rows[-1]["bce"] < rows[0]["bce"]


def test_nothing_is_left_when_the_loss_is_not_finite(sets: list[CachedDataset], tmp_path: Path) -> None:
    run = fresh()
    with torch.no_grad():
        run.model.decoder.head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"last\.pt"):
        finish(run, BatchSource(sets, seed=0), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loss_terms_by_hand(sets: list[CachedDataset]) -> None:
    batch = BatchSource(sets, seed=0).batch(0, 2, 64)
    sure = Decoded(torch.where(batch.masks > 0, 20.0, -20.0), torch.where(batch.present > 0, 20.0, -20.0))
    assert all(value.item() < 1e-3 for value in loss_terms(sure, batch, SHORT).values())
    unsure = loss_terms(Decoded(torch.zeros_like(batch.masks), torch.zeros_like(batch.present)), batch, SHORT)
    share = (batch.present + SHORT.absent_weight * (1 - batch.present)).mean().item()
    assert unsure["bce"].item() == pytest.approx(np.log(2) * share, rel=1e-4)
    assert unsure["presence"].item() == pytest.approx(SHORT.presence_weight * np.log(2), rel=1e-4)


def test_schedule() -> None:
    config = TrainConfig(stages=((256, 100), (320, 100)), warmup=10)
    assert [config.side(s) for s in (0, 99, 100, 199, 500)] == [256, 256, 320, 320, 320]
    assert lr_factor(0, config) == pytest.approx(0.1) and lr_factor(9, config) == 1.0
    assert lr_factor(105, config) == pytest.approx(0.51, abs=0.01) and lr_factor(200, config) == pytest.approx(0.02)


def test_frozen_parts_are_not_in_the_optimizer() -> None:
    run = fresh()
    optimised = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in run.model.parameters() if p.requires_grad}
    assert all(
        group["weight_decay"] == 0 for group in run.optimizer.param_groups for p in group["params"] if p.ndim < 2
    )


@pytest.mark.parity
def test_graphs_equal_torch_for_any_number_of_queries() -> None:
    model = fresh().model.eval()
    graphs = export_graphs(model, 64)
    assert largest_difference(model, graphs, 64) < 1e-3
    picture = np.random.default_rng(0).random((1, 3, 64, 64), np.float32) * 255
    for queries in (1, 2, 7):
        text = np.ones((queries, TINY.text_dim), np.float32)
        masks, presence = run_graphs(*graphs, picture, text, np.zeros((queries, 3, 16, 16), np.float32))
        assert masks.shape == (queries, 64, 64) and presence.shape == (queries,)


def test_half_storage_halves_the_file_and_keeps_the_answer() -> None:
    model = fresh().model.eval()
    plain = export_graphs(model, 64)
    half = tuple(store_half(graph) for graph in plain)
    assert sum(map(len, half)) < 0.62 * sum(map(len, plain))
    assert largest_difference(model, half, 64) < 0.05  # type: ignore[arg-type]


def test_export_writes_a_complete_model_or_nothing(
    sets: list[CachedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finish(fresh(), BatchSource(sets, seed=0), tmp_path)
    assert run.step == SHORT.steps
    model = load_average(tmp_path / "last.pt")
    write_model(model, sets, 64, tmp_path / "out", {"steps": run.step})
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert {c["words"] for c in card["trained_concepts"]} >= {"polyp", "left kidney", "right kidney", "spleen"}
    assert card["onnx_difference"] < 1e-3 and card["research_only"] and len(card["sets"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "out"]
    monkeypatch.setattr("lexitome.training.export.MAX_MB", 0.01)
    with pytest.raises(ValueError, match="MB"):
        write_model(model, sets, 64, tmp_path / "other", {})
    assert not (tmp_path / "other").exists()


def test_thresholds_separate_present_from_absent(sets: list[CachedDataset], monkeypatch: pytest.MonkeyPatch) -> None:
    def presence(model: object, cached: CachedDataset, index: int, asked: list, text: object, side: int) -> list[float]:
        present = set(cached.rows[index].present)
        return [0.6 if set(t.codes) & present else 0.3 for t in asked]

    monkeypatch.setattr("lexitome.training.calibrate._presence", presence)
    thresholds, default = presence_thresholds(fresh().model, sets, 64)
    assert set(thresholds) >= {"polyp", "spleen"} and 0 < default < 1


def test_best_threshold_weighs_misses_leans_low_and_stays_in_bounds() -> None:
    clear = best_threshold(np.array([0.1, 0.2]), np.array([0.8, 0.9]), 0.5)
    assert 0.2 < clear < 0.22
    overlapping = best_threshold(np.array([0.1, 0.3, 0.9, 0.95]), np.array([0.4, 0.92, 0.97, 0.99]), 0.9)
    assert 0.3 < overlapping <= 0.4  # missing one costs more than two false ones of four
    assert best_threshold(np.array([0.7, 0.8]), np.array([0.9, 0.95]), 0.5) <= 0.5


def test_hard_absent_pairs_come_first() -> None:
    assert Scores(near=[0.5] * 8, far=[0.1] * 50).absent == [0.5] * 8
    assert len(Scores(near=[0.5] * 3, far=[0.1] * 50).absent) == 53
    assert Scores(own=[0.5] * 8).highest > Scores(near=[0.5] * 8).highest == 0.5


def test_a_target_the_vocabulary_does_not_know_stops_the_export(sets: list[CachedDataset]) -> None:
    from dataclasses import replace

    odd = replace(sets[0].dataset, targets=(replace(sets[0].dataset.targets[0], name="zeppelin"),))
    with pytest.raises(ValueError, match="zeppelin"):
        trained_concepts([odd], {"zeppelin": 0.5})

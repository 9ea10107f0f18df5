"""From weights to the folder of a model: any side, any number of queries, all or nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexitome.concepts import Vocabulary
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.sources.folder import load_dataset
from lexitome.data.trained_on import TrainedOn
from lexitome.errors import InputError
from lexitome.models.catalog import FILES, find_model
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.compact_weights import load_folder
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training import checkpoint
from lexitome.training.calibrate import Calibration, TargetChoice
from lexitome.training.export import Before, load_average, run_state, trained_concepts, write_model
from lexitome.training.graphs import Session, differences, export_graphs, worst_probability

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=2)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    root = write_sets(tmp_path_factory.mktemp("sets"))
    return [open_cache(load_dataset(d), tmp_path_factory.mktemp("cache"), side=64) for d in sorted(root.iterdir())]


@pytest.fixture(scope="module")
def net() -> CompactNet:
    torch.manual_seed(0)
    return CompactNet(TINY, EfficientNetLite(0)).eval()


@pytest.mark.parity
def test_graphs_equal_torch_at_sides_they_were_not_traced_at(net: CompactNet) -> None:
    graphs = export_graphs(net)
    assert not net.training
    for side in (64, 160, 320, 512):
        found = differences(net, graphs, sides=(side,))
        assert worst_probability(found) < 1e-3 and found["offsets"] < 1e-2, side


@pytest.mark.parity
def test_any_number_of_queries(net: CompactNet) -> None:
    session = Session(export_graphs(net))
    picture = np.random.default_rng(0).random((1, 3, 64, 64), np.float32) * 255
    for queries in (1, 2, 7):
        text = np.ones((queries, TINY.text_dim), np.float32)
        found = session(picture, text, np.zeros((queries, 4, 16, 16), np.float32))
        shapes = {"logits": (64, 64), "presence": (), "centres": (32, 32), "offsets": (2, 32, 32)}
        assert {name: value.shape for name, value in found.items()} == {n: (queries, *s) for n, s in shapes.items()}


def test_object_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="object queries"):
        export_graphs(CompactNet(replace(TINY, object_queries=4), EfficientNetLite(0)))


@pytest.fixture(scope="module")
def written(
    net: CompactNet, sets: list[CachedDataset], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("written") / "model"
    metrics = {"validation": {"dice": 0.5}}
    return write_model(net, sets, out, name="tiny", provenance={"steps": 3}, metrics=metrics), out


def test_a_model_is_written_whole_and_can_be_read(written: tuple[dict[str, Any], Path], net: CompactNet) -> None:
    card, out = written
    assert [p.name for p in out.parent.iterdir()] == ["model"]
    assert json.loads((out / "card.json").read_text()) == json.loads(json.dumps(card))
    assert card["onnx_difference"] < 1e-3 and card["format"] == "fp16" and set(card["parity"]) == {"onnx", "fp16"}
    found = find_model(out)
    assert found.name == "tiny" and found.measure_sha256() == found.sha256
    assert found.metrics["validation"]["dice"] == 0.5 and 0 <= found.metrics["calibrated_dice"] <= 1
    assert {t.words for t in found.trained_concepts} >= {"polyp", "left kidney", "right kidney", "spleen"}
    assert {t.words for t in found.trained_concepts if t.countable} == {"polyp"}
    assert not any(t.stacked or t.views for t in found.trained_concepts)
    assert found.research_only and "do not permit commercial use" in found.weights_licence
    back = load_folder(out).state_dict()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(back[name], value, atol=1e-3, rtol=1e-3, msg=name)


def test_a_model_is_replaced_and_what_it_began_with_binds_it(
    written: tuple[dict[str, Any], Path], net: CompactNet, sets: list[CachedDataset], tmp_path: Path
) -> None:
    """Stored as 8 bits, on a set of its own that is free: the sets of the model before still count."""
    for name in FILES:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("of an older model")
    own = [replace(sets[0], dataset=replace(sets[0].dataset, name="mine", licence="CC0"))]
    card = write_model(net, own, tmp_path / "out", name="again", provenance={}, storage="int8",
                       before=Before(find_model(written[1]).sets, TrainedOn.of_model(written[1])))  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"] and find_model(tmp_path / "out").name == "again"
    assert set(card["metrics"]["rounding"]) == {"trained", "stored"} and card["size_mb"] < written[0]["size_mb"]
    assert card["research_only"] and "kvasir_seg" in card["weights_duties"]
    assert {entry["name"] for entry in card["sets"]} == {"mine", "kvasir_seg", "btcv_abdomen_ct2d"}
    assert {entry["words"] for entry in card["trained_concepts"]} == {t.name for t in sets[0].dataset.targets}
    before, now = TrainedOn.of_model(written[1]), TrainedOn.of_model(tmp_path / "out")
    assert before is not None and now is not None and set(now.datasets) == {"mine", *before.datasets}
    assert {row.tobytes() for row in now.hashes} >= {row.tobytes() for row in before.hashes}


def test_nothing_is_written_when_the_graphs_differ(
    net: CompactNet, sets: list[CachedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexitome.training.export.MAX_DIFFERENCE", -1.0)
    with pytest.raises(ValueError, match="differs from torch: logits"):
        write_model(net, sets, tmp_path / "out", name="tiny", provenance={})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_never_replaced(
    net: CompactNet, sets: list[CachedDataset], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something other than a model"):
        write_model(net, sets, tmp_path, name="tiny", provenance={})
    assert (tmp_path / "thesis.txt").exists()


def test_weights_of_a_run_and_of_a_torch_file(net: CompactNet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    weights = checkpoint.whole(checkpoint.model_tensors(net))
    stored = {"step": 7, "metrics": {"dice": 0.1}, "config": {"recipe": {"model": {**TINY.__dict__}}}}
    other = {name: value + 1 for name, value in weights.items()}
    checkpoint.write(run / "checkpoints", "last", [("average", other)], stored)
    checkpoint.write(run / "checkpoints", "best", [("model", other), ("average", weights)], stored)
    torch.save({"average": net.state_dict(), "model_config": {**TINY.__dict__}}, tmp_path / "last.pt")
    for path in (run, run / "checkpoints" / "best", tmp_path / "last.pt"):
        found = load_average(path)
        assert found.config == TINY and not found.training
        assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), weights.values(), strict=True))
    assert run_state(run)["step"] == 7
    with pytest.raises(InputError, match="no checkpoint"):
        load_average(tmp_path)
    with pytest.raises(InputError, match="another model"):
        load_average(tmp_path / "last.pt", replace(TINY, width=64))


def choices(cached: CachedDataset, **traits: object) -> Calibration:
    base = TargetChoice(0.3, 256, stacked=False, views=False, countable=False, mirrored=False, dice=0.5)
    return Calibration({t.name: replace(base, **traits) for t in cached.dataset.targets}, 0.5)  # type: ignore[arg-type]


def test_a_target_the_vocabulary_does_not_know_keeps_its_name(sets: list[CachedDataset]) -> None:
    target = replace(sets[0].dataset.targets[0], name="zeppelin")
    odd = replace(sets[0], dataset=replace(sets[0].dataset, targets=(target,)))
    (entry,) = trained_concepts([odd], choices(odd))
    assert entry["concept"] == entry["words"] == "zeppelin"


def test_concepts_of_several_sets_are_one_entry(sets: list[CachedDataset]) -> None:
    ct = sets[0]
    mr = replace(ct, dataset=replace(ct.dataset, name="other", family="mr", cases=ct.dataset.cases[:2]))
    entries = {e["words"]: e for e in trained_concepts([mr, ct], choices(ct, stacked=True))}
    assert entries["spleen"]["families"] == ["ct", "mr"] and entries["spleen"]["stacked"]
    assert entries["spleen"]["concept"] == Vocabulary.load().resolve("spleen").concept.name  # type: ignore[union-attr]


def test_windows_near_a_standard_one_are_that_one(sets: list[CachedDataset]) -> None:
    def window(given: tuple[float, float]) -> list[float]:
        cached = replace(sets[0], dataset=replace(sets[0].dataset, window=given))
        return trained_concepts([cached], choices(cached))[0]["window"]

    assert window((-160, 240)) == [-125, 275] and window((-1000, 400)) == [-1000, 400]
    assert window((0, 80)) == [0, 80]

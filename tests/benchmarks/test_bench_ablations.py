"""The table of ablations: rows are kept, interrupted ones continue, measures tell what they claim."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

ablations = pytest.importorskip("ablations")
measures = pytest.importorskip("ablation_measures")

from lexitome.data.cache import CachedDataset, open_cache  # noqa: E402
from lexitome.data.sources.folder import load_dataset  # noqa: E402
from lexitome.models.compact import CompactConfig, Objects  # noqa: E402
from lexitome.text import TextEncoder  # noqa: E402
from lexitome.training.compact import Resolution, Sampling, Stage  # noqa: E402
from lexitome.training.engine import TrainingStopped  # noqa: E402

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24))
STAGE = Stage(*(Resolution(64, 2),) * 3)
HEAD = {"command": "python benchmarks/ablations.py", "seed": 0, "data": {},
        "settings": {"steps": 2, "pictures": 3, "sets": ["one"]}}  # fmt: skip


@pytest.fixture(scope="module")
def sets(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> list[CachedDataset]:
    cache = tmp_path_factory.mktemp("cache")
    return [open_cache(load_dataset(root), cache, side=64) for root in sorted(annotated.iterdir())]


@pytest.fixture(scope="module")
def rows() -> dict[str, ablations.Variant]:
    recipe = ablations.base_recipe(2, 0)
    recipe = replace(recipe, model=TINY, sampling=Sampling(STAGE, STAGE), run=replace(recipe.run, checkpoint_every=1))
    return {variant.name: variant for variant in ablations.variants(recipe)}


def options(folder: Path) -> ablations.Options:
    return ablations.Options(folder / "runs", folder / "result.json", pictures=3, threads=1)


def test_every_row_differs_from_the_base(rows: dict[str, ablations.Variant]) -> None:
    plain = [replace(row, name="", group="", change="") for row in rows.values()]
    assert len(rows) == len(plain) == 17
    assert all(plain[0] != other for other in plain[1:])
    assert {row.group for row in rows.values()} >= {"backbone", "text", "objective", "queries", "resolution", "volumes"}


def test_rows_are_kept_and_the_document_written(
    rows: dict[str, ablations.Variant], sets: list[CachedDataset], tmp_path: Path
) -> None:
    place = options(tmp_path)
    chosen = [rows[name] for name in ("base", "one-hot", "both")]
    ablations.run_all(chosen[:2], sets, place, HEAD)
    stamp = json.loads(place.out.read_text())["rows"]
    result = ablations.run_all(chosen, sets, place, HEAD)
    assert {name: result["rows"][name] for name in stamp} == stamp  # not run again
    metrics = result["rows"]["base"]["metrics"]
    wanted = {"dice_2d", "dice_slices", "dice_slices_alone", "dice_box", "box_gain", "presence", "presence_auc", "f1",
              "f1_parts", "dice_new_words", "dice_same_by_name"}  # fmt: skip
    assert wanted <= metrics.keys()
    assert all(0 <= value <= 100 for key, value in metrics.items() if key != "box_gain")
    assert "f1_queries" in result["rows"]["both"]["metrics"] and "f1_queries" not in metrics
    text = ablations.document(result, list(rows))
    assert text.count("| `base` |") == len({row.group for row in chosen})
    assert "`one-hot`" in text and "`lite1`" not in text
    with pytest.raises(SystemExit, match="other seed"):
        ablations.run_all(chosen, sets, place, {**HEAD, "seed": 5})


def test_an_interrupted_row_continues(
    rows: dict[str, ablations.Variant], sets: list[CachedDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, variant = options(tmp_path), rows["slices-alone"]
    ask = ablations.measure
    monkeypatch.setattr(ablations, "measure", _stopped)
    with pytest.raises(TrainingStopped):
        ablations.run(variant, sets, place)
    assert (place.runs / variant.name / "checkpoints").is_dir()
    monkeypatch.setattr(ablations, "measure", ask)
    row = ablations.run(variant, sets, place)
    assert row["steps"] == 2
    assert row["metrics"]["dice_slices"] == row["metrics"]["dice_slices_alone"]
    assert not (place.runs / variant.name / "checkpoints").exists()


def _stopped(*_: object) -> dict[str, float]:
    raise TrainingStopped("run", "stopped", "again")


def test_a_word_is_held_back_and_only_meaning_finds_it(sets: list[CachedDataset]) -> None:
    kept, held = measures.hold_out_words(sets)
    assert held == {
        ("dsb2018_fluorescence_nuclei", "nuclei"): "karyon",
        ("hippocampus_msd_mr3d", "hippocampus"): "seahorse",
    }
    assert "karyon" not in [word for s in kept for t in s.dataset.targets for word in t.synonyms]
    one_hot = measures.OneHot.of(kept, 128)
    vectors = one_hot.embed(["nuclei", "segment the cell nuclei", "hippocampus in MRI", "karyon"])
    assert (vectors[0] == vectors[1]).all() and (vectors[0] != vectors[2]).any() and not vectors[3].any()
    letters = measures.HashedLetters(128).embed(["nuclei", "nucleus", "liver"])
    assert letters[0] @ letters[1] > letters[0] @ letters[2] + 0.2
    assert TextEncoder.load().embed(["karyon"]).any()


def test_objects_are_read_off_the_queries() -> None:
    masks = torch.full((1, 3, 16, 16), -9.0)
    masks[0, 0, 2:6, 2:6] = 9.0
    masks[0, 1, 9:14, 9:14] = 9.0
    masks[0, 2, 0:16, 0:16] = 9.0  # everywhere, but of no score
    objects = Objects(torch.tensor([[[3.0, 2.0, -9.0]]]), torch.zeros(1, 1, 3, 4), masks)
    ids = measures.from_queries(objects, 0, (64, 64), 0.3)
    assert sorted(np.unique(ids)) == [0, 1, 2]
    assert (ids[16, 16], ids[44, 44], ids[32, 4]) == (1, 2, 0)
    assert not measures.from_queries(objects, 0, (64, 64), 0.999).any()


def test_a_box_lies_where_the_target_is() -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:40, 8:24] = True
    maps = measures.boxed(mask, 128, np.random.default_rng(0))
    assert maps.shape == (4, 32, 32) and not maps[1:].any()
    rows, columns = np.nonzero(maps[0])
    assert np.allclose([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], [10, 20, 4, 12], atol=2)

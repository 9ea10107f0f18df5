"""The measurement of training speed: its form, and that "step alone" loads nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

training = pytest.importorskip("training")

from lexitome.data.batches import Batch, BatchSource, Draw  # noqa: E402
from lexitome.models.compact import CompactConfig  # noqa: E402
from lexitome.recipes.compact import compact_open  # noqa: E402
from lexitome.training.compact import Resolution, Sampling, Share, Stage  # noqa: E402

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24))
STAGE = Stage(*(Resolution(64, 2),) * 3)


@pytest.mark.slow
def test_form_of_the_result(annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WARM_UP", 1)
    recipe = replace(compact_open(), model=TINY, sampling=Sampling(STAGE, STAGE, share=Share(0.5, 0.0, 0.5)))
    sets = ("dsb2018_fluorescence_nuclei",)
    options = training.Options(annotated, sets, tmp_path, 2, 2, 2, threads=1, seed=0, recipe=recipe)
    drawn = _count_draws(monkeypatch)
    result = training.measure(options, lambda work, *arguments: work(*arguments))
    medium, *_ = classes = result["classes"]
    assert [entry["size"] for entry in classes] == ["medium"] * 2 + ["fine"] * 2  # fine sets are shown at both
    assert set(medium) == {"size", "side", "images_a_step", "loader", "step", "engine", "peak_mb"}
    assert medium["step"]["fp32"]["steps"] == medium["step"]["bf16"]["steps"] == 4  # two turns each
    speeds = [medium["loader"], medium["step"]["bf16"], medium["step"]["fp32"], medium["engine"], result["mixture"]]
    assert all(entry["images_per_second"] > 0 for entry in speeds)
    assert 0 <= medium["engine"]["waiting"] <= 1 and medium["step"]["bf16"]["waiting"] < 0.5
    assert len(drawn) == 4 * (2 + 3 + 3) + 3  # loader, batches drawn beforehand, engine; the mixture
    assert result["data"].keys() == set(sets) and result["command"].startswith("python benchmarks/")
    assert str(tmp_path) not in str(result)


def _count_draws(monkeypatch: pytest.MonkeyPatch) -> list[Draw]:
    drawn: list[Draw] = []
    batch: Callable[..., Batch] = BatchSource.batch

    def counted(self: BatchSource, step: int, draw: Draw, indices: range) -> Batch:
        drawn.append(draw)
        return batch(self, step, draw, indices)

    monkeypatch.setattr(BatchSource, "batch", counted)
    return drawn

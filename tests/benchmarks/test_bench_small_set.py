"""The small-set comparison: who gets which images, that a known set is refused, and the statistics."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monai")
small_set = pytest.importorskip("small_set")
monai_unet = pytest.importorskip("monai_unet")

from lexitome.data.cache import open_cache  # noqa: E402
from lexitome.data.sources import load_any  # noqa: E402
from lexitome.data.sources.folder import load_dataset  # noqa: E402
from lexitome.errors import InputError  # noqa: E402

NUCLEI = "dsb2018_fluorescence_nuclei"


def test_the_user_gets_no_test_subject(annotated: Path, tmp_path: Path) -> None:
    dataset = load_dataset(annotated / NUCLEI)
    cases = tuple(replace(case, unit=f"pair{i // 2}", split="train" if i < 14 else "test") for i, case in
                  enumerate(dataset.cases))  # fmt: skip
    paired = replace(dataset, cases=cases)
    own, test = small_set.choose_cases(paired, 8, 5, seed=0)
    assert len(own) == 8 and len(test) == 5
    assert not {c.unit for c in own} & {c.unit for c in test}
    assert {c.split for c in own} == {"train"} and {c.split for c in test} == {"test"}
    assert small_set.choose_cases(paired, 8, 5, seed=0) == (own, test) != small_set.choose_cases(paired, 8, 5, seed=1)
    with pytest.raises(InputError, match="Ask for fewer"):
        small_set.choose_cases(paired, 15, 5, seed=0)
    small_set.lay_out(paired, own, tmp_path / small_set.FOLDER)
    found = load_any(tmp_path / small_set.FOLDER)
    assert found.name == small_set.FOLDER and len(found.cases) == 8
    assert len({c.unit for c in found.cases}) == len({c.unit for c in own})
    pictures = {c.image.read_bytes() for c in found.cases}
    assert pictures == {c.image.read_bytes() for c in own}


def test_what_the_model_knows_is_refused(annotated: Path, tmp_path: Path) -> None:
    tiny = pytest.importorskip("tiny_model")
    dataset = load_dataset(annotated / NUCLEI)
    folder = tiny.write_model(tmp_path / "knows", tiny.tiny_net())  # its card lists "nuclei"
    with pytest.raises(InputError, match="nuclei"):
        small_set.refuse_known(dataset, str(folder))
    card = json.loads((folder / "card.json").read_text())
    card["trained_concepts"] = [c for c in card["trained_concepts"] if c["words"] != "nuclei"]
    (folder / "card.json").write_text(json.dumps(card))
    small_set.refuse_known(dataset, str(folder))


def test_difference_is_paired_and_resamples_subjects() -> None:
    names = [f"i{i}" for i in range(40)]
    rng = np.random.default_rng(0)
    one = {name: {"polyp": float(rng.uniform(0.5, 0.9))} for name in names}
    other = {name: {"polyp": one[name]["polyp"] - 0.1 + float(rng.normal(0, 0.05))} for name in names}
    alone = small_set.difference(one, other, {name: name for name in names}, 0)
    assert alone["low"] < alone["points"] < alone["high"] and alone["low"] > 0 and alone["subjects"] == 40
    assert alone["points"] == pytest.approx(small_set.mean(one) - small_set.mean(other))
    few = small_set.difference(one, other, {name: str(i // 10) for i, name in enumerate(names)}, 0)
    assert few["points"] == pytest.approx(alone["points"]) and few["subjects"] == 4


def test_a_missed_image_counts_zero(annotated: Path) -> None:
    dataset = load_dataset(annotated / NUCLEI)
    cases = dataset.cases[:2]
    scores = small_set.score(cases, dataset, lambda volume: [np.zeros(volume.grid[1:], bool)])
    assert scores == {case.stem: {"nuclei": 0.0} for case in cases}


def counted(ticks: int) -> monai_unet.Budget:
    """Time that passes with every look at the clock: the same on a slow machine."""
    ticking = itertools.count()
    return monai_unet.Budget(ticks, 1, 0, clock=lambda: float(next(ticking)))


@pytest.mark.parametrize("network", ["UNet", "BasicUNet"])
def test_the_unet_learns_discs(annotated: Path, tmp_path: Path, network: str) -> None:
    cached = open_cache(load_dataset(annotated / NUCLEI), tmp_path, side=64)
    parts = monai_unet.Parts(cached, list(range(8)), [8, 9], 64)
    trained, record = monai_unet.train_unet(parts, monai_unet.Candidate(network, 3e-3), counted(60))
    assert record["seconds"] >= 60 and record["steps"] > 30 and len(record["history"]) >= 15
    assert record["best_validation"] == max(entry["dice"] for entry in record["history"]) > 70
    assert 100 * monai_unet.validate(trained, parts) == pytest.approx(record["best_validation"], abs=0.5)


@pytest.mark.slow
def test_candidates_are_tried_and_the_best_taken(annotated: Path, tmp_path: Path) -> None:
    cached = open_cache(load_dataset(annotated / NUCLEI), tmp_path, side=64)
    parts = monai_unet.Parts(cached, list(range(8)), [8, 9], 64)
    candidates = [monai_unet.Candidate("BasicUNet", lr) for lr in (1e-9, 3e-3)]
    chosen = monai_unet.choose(parts, candidates, counted(20))
    assert chosen["best"] == {"network": "BasicUNet", "lr": 3e-3} and len(chosen["tried"]) == 2

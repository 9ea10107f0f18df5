"""The benchmark of pretraining: all stages are probed, differences are those of the rows, verdicts say what holds."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "training"))

bench = pytest.importorskip("pretraining")
controls = pytest.importorskip("pretraining_controls")
text = pytest.importorskip("pretraining_text")
tiny = pytest.importorskip("tiny_pretrain")

from lexitome.errors import InputError  # noqa: E402
from lexitome.evaluation.probing.dense import DenseConfig  # noqa: E402
from lexitome.recipes.pretrain_run import PretrainJob  # noqa: E402

SETS = ("dsb2018_fluorescence_nuclei",)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, annotated: Path) -> Path:
    return tiny.pretrained(tmp_path_factory.mktemp("run"), annotated)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright noise, 12 subjects each."""
    root, rng = tmp_path_factory.mktemp("classes") / "noise", np.random.default_rng(0)
    for name, level in (("dark", 80), ("bright", 150)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            grey = np.clip(rng.normal(level, 30, (32, 32)), 0, 255).astype(np.uint8)
            Image.fromarray(grey).save(root / name / f"{name}{number:02d}.png")
    return root.parent


def options(run: Path, classes: Path, annotated: Path, work: Path) -> bench.Options:
    dense = DenseConfig(steps=3, loss_side=32)
    return bench.Options(run, run / "decoded", classes, annotated, SETS, 32, (32, 64), dense, draws=50, work=work)


def test_every_stage_is_probed_and_nothing_twice(run: Path, classes: Path, annotated: Path, tmp_path: Path) -> None:
    asked = options(run, classes, annotated, tmp_path / "work")
    out, document = tmp_path / "result.json", tmp_path / "docs" / "result.md"
    result = bench.measure(asked, out, document, lambda line: None)
    rows = {(row["encoder"], row["task"], row["side"], row.get("features")) for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 4 * 2 * 2 + 6 * 2  # probes x features, and sides
    assert {stage["stage"] for stage in result["pretrained"]} == {*text.STAGES, *controls.STAGE_OF}
    assert len({stage["sha256"] for stage in result["pretrained"]}) == 5
    assert len(result["differences"]) == len(text.PAIRS) * 2 * (2 + 2) + len(text.CONTROLLED) * 2 * 2
    for each in result["differences"]:
        if each["task"] == "segment":
            means = [dice_of(result, each[who], each["side"]) for who in ("later", "earlier")]
            assert each["mean"] == pytest.approx(100 * (means[0] - means[1]), abs=0.02)
        assert each["low"] <= each["mean"] <= each["high"]
    assert "(a)" in document.read_text() and "noise" in document.read_text()
    kept = {path: path.stat().st_mtime_ns for path in asked.work.rglob("*") if path.suffix in (".f32", ".f16")}
    parts = {path: path.stat().st_mtime_ns for path in asked.work.glob("*/parts/*.json")}
    again = bench.measure(asked, out, document, lambda line: None)
    assert again["differences"] == result["differences"] and len(parts) == 4 * 2 + 6 * 2
    assert all(path.stat().st_mtime_ns == then for path, then in {**kept, **parts}.items())


def dice_of(result: dict, who: str, side: int) -> float:
    (row,) = (r for r in result["rows"] if (r["task"], r["encoder"], r["side"]) == ("segment", who, side))
    return row["dice"]["mean"]


def test_runs_that_do_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        bench.finished_job(tmp_path)
    job = PretrainJob.load(run)
    job.save(tmp_path)
    with pytest.raises(InputError, match=r"stage1, stage2, stage3.*--resume"):
        bench.finished_job(tmp_path)
    PretrainJob(replace(job.recipe, start="dinov3-b"), job.data).save(tmp_path)
    with pytest.raises(InputError, match="not with random ones"):
        bench.finished_job(tmp_path)


def test_a_control_differs_in_what_its_stage_is_about(run: Path) -> None:
    recipe = PretrainJob.load(run).recipe
    bare, low = (controls.changed(recipe, name) for name in controls.STAGE_OF)
    assert list(bare.stages) == ["stage1", "stage2"] and list(low.stages) == list(recipe.stages)
    assert recipe.stage2.objective.anchored and not bare.stage2.objective.keeps_gram
    assert replace(bare.stage2, objective=recipe.stage2.objective) == recipe.stage2
    assert replace(low.stage3, crops=recipe.stage3.crops) == recipe.stage3


def test_differences_are_of_the_same_image_and_case() -> None:
    later = {"task": "knn", "right": {"b": [1.0], "a": [1.0, 0.0]}}
    earlier = {"task": "knn", "right": {"a": [0.0, 0.0], "b": [1.0]}}
    assert bench.difference(later, earlier) == {"a": [1.0, 0.0], "b": [0.0]}
    found = [
        {
            "task": "segment",
            "by_case": {
                "x": {"unit": "p", "dice": [dice, None]},
                "y": {"unit": "p", "dice": [0.5, 1]},
                "z": {"unit": "q", "dice": [None, None]},
            },
        }
        for dice in (0.7, 0.4)
    ]
    assert bench.difference(*found) == {"p": pytest.approx([0.3, 0.0])}


@pytest.mark.parametrize(
    ("low", "mean", "high", "better", "kept"),
    [
        (1.0, 2.0, 3.0, "**holds**", "**holds: they improve**"),
        (-0.5, 0.1, 0.6, "**is not shown**", "**holds: they are kept**"),
        (-9.0, -4.0, 1.0, "**is not shown**", "**is not shown**"),
        (-3.0, -2.0, -0.1, "**is not shown**", "**does not hold**"),
    ],
)
def test_verdicts(low: float, mean: float, high: float, better: str, kept: str) -> None:
    probes = [("knn", 224), ("linear", 224), ("segment", 224), ("segment", 448)]
    differences = [
        {"later": a, "earlier": b, "task": task, "side": side, "dataset": None, "low": low, "mean": mean, "high": high}
        for a, b in (*text.PAIRS, *text.CONTROLLED) for task, side in probes
    ]  # fmt: skip
    result = {"settings": {"sides": [224, 448], "class_side": 224}, "differences": differences}
    first, gram, after_first, high_resolution, after_gram = text.claims(result)
    assert better in first.verdict and kept in gram.verdict and kept in after_first.verdict
    assert better in high_resolution.verdict and better in after_gram.verdict
    assert "at 448 pixels" in high_resolution.text
    differences[0] |= {"low": 5.0, "high": 7.0, "mean": 6.0}
    assert "+6.0 [+5.0, +7.0]" in text.claims(result)[0].verdict
    assert low > 0 or "holds in 1 of 4 measures" in text.claims(result)[0].verdict

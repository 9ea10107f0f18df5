"""A run of probes from folders to tables: several encoders, sizes and kinds of data, stopped and continued."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.data.features import ABOUT
from lexitome.errors import InputError
from lexitome.evaluation.probing.dense import DenseConfig
from lexitome.evaluation.probing.volumes import AttentionConfig
from lexitome.recipes.probe import ProbeRecipe, open_data, run

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

RECIPE = ProbeRecipe(
    ("random:tiny",), (32,), precision="fp32", cs=(1e-2, 1.0), ks=(3, 5), draws=50, batch=8,
    attention=AttentionConfig(width=8, hidden=4, epochs=3), dense=DenseConfig(steps=4, batch=2),
)  # fmt: skip


def striped(folder: Path, count: int = 16) -> Path:
    """Classes that any features tell apart: stripes across and stripes along."""
    rng = np.random.default_rng(0)
    for kind in ("across", "along"):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            wave = 90 + 60 * np.sin(np.arange(40) * rng.uniform(0.8, 1.2))[:, None] + rng.normal(0, 6, (40, 40))
            picture = np.clip(wave if kind == "across" else wave.T, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / kind / f"{kind}{i}.png")
    return folder


def cubes(folder: Path, count: int = 14) -> Path:
    rng = np.random.default_rng(1)
    for value, kind in ((60, "dark"), (160, "bright")):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            voxels = np.clip(rng.normal(value, 20, (3, 16, 16)), 0, 255).astype(np.uint8)
            np.savez(folder / kind / f"{kind}{i}.npz", voxel=voxels)
    return folder


def discs(folder: Path) -> Path:
    """Annotated pictures."""
    rng, cases = np.random.default_rng(2), {}
    for i in range(10):
        mask = disc(48, *rng.uniform(14, 34, 2), 8).astype(np.uint8)
        cases[f"case{i}"] = (painted(mask, i), mask)
    return save_set(folder, cases, {1: "polyp"})


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return striped(tmp_path_factory.mktemp("data") / "stripes")


def probed(recipe: ProbeRecipe, data: list[Path], out: Path, cache: Path | None = None) -> tuple[list[dict], list[str]]:
    said: list[str] = []
    return run(recipe, open_data(data, out), out, cache or out / "cache", said.append), said


def test_pictures_with_classes(stripes: Path, tmp_path: Path) -> None:
    entries, said = probed(RECIPE, [stripes], tmp_path)
    assert [(e["task"], e["features"]) for e in entries] == [
        ("knn", "cls"), ("knn", "mean"), ("linear", "cls"), ("linear", "mean"),
    ]  # fmt: skip
    best = max(entries, key=lambda e: e["validation"])
    assert best["scores"]["accuracy"]["mean"] > 0.8
    assert all(e["intensity"] == "imagenet" and len(e["sha256"]) == 64 and e["split_sha256"] for e in entries)
    assert set(entries[0]["by_k"]) == {"3", "5"}
    stored = json.loads((tmp_path / "probe.json").read_text())
    assert stored["results"] == entries and stored["recipe"]["ks"] == [3, 5]
    assert sorted(p.name.split("-")[0] for p in (tmp_path / "explore").iterdir()) == ["neighbours", "patches", "plane"]
    (about,) = (tmp_path / "cache" / "features").glob(f"*/{ABOUT}")
    assert json.loads(about.read_text())["key"]["intensity"] == "imagenet"
    assert any("licence: none: random weights" in line for line in said)


def test_the_same_command_does_nothing_twice(stripes: Path, tmp_path: Path) -> None:
    quick = replace(RECIPE, tasks=("knn",))
    first, _ = probed(quick, [stripes], tmp_path)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    second, _ = probed(quick, [stripes], tmp_path)
    assert second == first and {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").iterdir()} == parts
    third, _ = probed(replace(quick, ks=(3,)), [stripes], tmp_path)
    assert len(list((tmp_path / "parts").iterdir())) == 2 and third[0]["chosen"] == 3
    assert not (tmp_path / "explore").exists()


def test_slices_of_volumes_are_pooled_three_ways(tmp_path: Path) -> None:
    data = cubes(tmp_path / "cubes")
    entries, _ = probed(replace(RECIPE, tasks=("knn", "abmil")), [data], tmp_path / "run")
    assert {(e["task"], e["pooling"]) for e in entries} == {("knn", "mean"), ("knn", "max"), ("abmil", "attention")}
    assert max(e["scores"]["auc"]["mean"] for e in entries if e["task"] == "knn") > 0.9


def test_outlines_and_a_sweep(tmp_path: Path) -> None:
    data = discs(tmp_path / "discs")
    recipe = replace(RECIPE, encoders=("random:tiny", "random:timm/resnet18"), sides=(32, 64), tasks=("segment",))
    entries, said = probed(recipe, [data], tmp_path / "run")
    assert [(e["encoder"], e["side"]) for e in entries] == [
        ("random:tiny", 32), ("random:tiny", 64), ("random:timm/resnet18", 32), ("random:timm/resnet18", 64),
    ]  # fmt: skip
    assert all(e["cases"] == 2 and e["decoder"] == "linear" for e in entries)
    assert (tmp_path / "run" / "sweep-segment-discs.png").is_file()
    assert sum(line.startswith("segment") for line in said) == 4


def test_outlines_are_carried_over_where_it_is_asked(tmp_path: Path) -> None:
    data = discs(tmp_path / "discs")
    recipe = replace(RECIPE, encoders=("random:tiny", "random:s"), sides=(64,), tasks=("register", "segment"))
    entries, said = probed(recipe, [data], tmp_path / "run")
    carried = [entry for entry in entries if entry["task"] == "register"]
    assert [entry["pairs"] for entry in carried] == [10, 10] and carried[0]["before"] == carried[1]["before"]
    assert all(0 <= entry["matched"] <= 1 and entry["cases"] == 2 for entry in carried)
    page = (tmp_path / "run" / "probe.md").read_text()
    assert "2 test cases in 10 pairs with training pictures" in page and "| pairs that matched |" in page
    assert sum(line.startswith("register") and "as they lie" in line for line in said) == 2
    assert "discs,register,random:s,64" in (tmp_path / "run" / "probe.csv").read_text()


def test_changed_files_stop_a_run(stripes: Path, tmp_path: Path) -> None:
    data = striped(tmp_path / "mine", 5)
    open_data([data], tmp_path / "run")
    Image.new("L", (40, 40), 3).save(data / "along" / "along0.png")
    with pytest.raises(InputError, match="has changed"):
        open_data([data], tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoders": ()}, "no encoder"),
        ({"tasks": ("guess",)}, "there is no 'guess'"),
        ({"intensity": "nnunet_ct"}, "cannot be had"),
        ({"ks": (0,)}, "not above 0"),
    ],
)
def test_a_recipe_refuses_what_cannot_be(change: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(RECIPE, **change)


@pytest.mark.parametrize(
    ("task", "words"), [("segment", "images with masks"), ("register", "images with masks"), ("abmil", "needs volumes")]
)
def test_tasks_need_their_data(stripes: Path, tmp_path: Path, task: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        probed(replace(RECIPE, tasks=(task,)), [stripes], tmp_path)

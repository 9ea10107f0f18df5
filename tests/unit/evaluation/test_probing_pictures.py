"""Pictures of features, the published numbers, tables and plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.evaluation.probing import pictures
from lexitome.evaluation.probing.published import preset, published_lines, published_probes
from lexitome.evaluation.probing.sweep import Point, sweep_plot
from lexitome.evaluation.probing.tables import SHEET, TABLE, chosen, write_report


def test_patches_that_differ_have_different_colours() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 0.01, (2, 4, 4, 12))
    maps[:, :, 2:, 0] += 5
    colours = pictures.patch_colours(maps)
    assert colours.shape == (2, 4, 4, 3) and colours.dtype == np.uint8
    red = colours[..., 0].astype(int)
    assert abs(red[:, :, :2].mean() - red[:, :, 2:].mean()) > 200
    assert pictures.patch_colours(maps[..., :2]).shape == (2, 4, 4, 3)  # fewer channels than colours


def test_sheets_have_a_place_for_each_picture(tmp_path: Path) -> None:
    some = [np.full((10, 12, 3), 40 * i, np.uint8) for i in range(3)]
    pictures.save_patch_map(some, np.random.default_rng(1).normal(size=(3, 2, 2, 4)), tmp_path / "a" / "patches.png")
    pictures.save_neighbours(some[:2], [some, some[:1]], [[True, False, True], [False]], tmp_path / "near.png")
    step = pictures.TILE + pictures.GAP
    with Image.open(tmp_path / "a" / "patches.png") as opened:
        assert opened.size == (3 * step + pictures.GAP, 2 * step + pictures.GAP)
    with Image.open(tmp_path / "near.png") as opened:
        assert opened.size == (4 * step + pictures.GAP, 2 * step + pictures.GAP)
        right, wrong = ((pictures.GAP + column * step, pictures.GAP + 50) for column in (1, 2))
        assert opened.getpixel(right) != opened.getpixel(wrong)


def test_groups_stay_together_in_the_plane(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    features = np.concatenate([rng.normal(0, 0.1, (15, 6)) + 3 * np.eye(6)[i] for i in range(2)])
    places, method = pictures.plane(features)
    assert places.shape == (30, 2) and method in ("umap", "t-SNE")
    apart = np.linalg.norm(places[:15].mean(0) - places[15:].mean(0))
    assert apart > np.linalg.norm(places[:15] - places[:15].mean(0), axis=1).mean()
    pictures.save_plane(places, ["a"] * 15 + ["b"] * 15, "title", tmp_path / "plane.png")
    with Image.open(tmp_path / "plane.png") as opened:
        assert opened.width > 300


def test_published_numbers_refer_to_what_is_described() -> None:
    entry = preset()
    assert {table["dataset"] for table in entry["numbers"]} <= set(entry["datasets"])
    assert {table["protocol"] for table in entry["numbers"]} <= set(entry["protocols"])
    assert all(0 < value <= 1 for t in entry["numbers"] if t["unit"] == "share" for value in t["values"].values())
    assert all(1 < value <= 100 for t in entry["numbers"] if t["unit"] == "percent" for value in t["values"].values())
    found = {probe.model: probe.value for probe in published_probes("ChestX-ray14")}
    assert found == {"BiomedCLIP": 0.7771, "DINOv3 S": 0.7788, "DINOv3 B": 0.7833, "DINOv3 L": 0.7865}
    assert [p.higher_is_better for p in published_probes("cremi_a")] == [False] * 4
    assert not published_probes("brain_tumor_mri")


def test_published_numbers_are_marked() -> None:
    mine, others = published_lines(["ct_rate"]), published_lines(["brain_tumor_mri"])
    assert "not measured here" in mine[0] and "no number below was measured" in "".join(mine)
    assert any("CT-CLIP" in line for line in mine) and not any("Camelyon" in line for line in mine)
    assert len(others) == 1 and "None of these was probed here" in others[0] and "NIH-14" in others[0]


def entry(encoder: str, side: int, kind: str, validation: float, auc: float) -> dict:
    interval = {"mean": auc, "low": auc - 0.05, "high": auc + 0.05, "units": 9, "cases": 12}
    return {
        "dataset": "moles", "task": "linear", "encoder": encoder, "side": side, "intensity": "imagenet", "cases": 12,
        "classes": ["a", "b"], "features": kind, "pooling": "", "chosen": 0.1, "validation": validation,
        "scores": dict.fromkeys(("auc", "accuracy", "balanced_accuracy"), interval) | {"f1": None},
    }  # fmt: skip


def test_validation_chooses_what_is_plotted_and_printed_in_bold(tmp_path: Path) -> None:
    entries = [
        entry("x", 224, "cls", 0.7, 0.9), entry("x", 224, "mean", 0.8, 0.6), entry("x", 448, "mean", 0.9, 0.7),
    ]  # fmt: skip
    assert [each["scores"]["auc"]["mean"] for each in chosen(entries, "linear", "moles")] == [0.6, 0.7]
    write_report(entries, tmp_path)
    text = (tmp_path / TABLE).read_text()
    assert text.count("**mean**") == 2 and "**cls**" not in text and "60.0 [55.0, 65.0]" in text
    assert "None of these was probed here" in text and "![sweep-linear-moles.png]" in text and "explore" not in text
    (tmp_path / "explore").mkdir()
    write_report(entries, tmp_path)
    assert "[explore/](explore/)" in (tmp_path / TABLE).read_text()
    assert (tmp_path / SHEET).read_text().count("\n") == 1 + 3 * 3
    assert (tmp_path / "sweep-linear-moles.svg").is_file()


def test_the_plot_names_encoders_and_sides() -> None:
    drawn = sweep_plot([Point("one", 224, 80, 75, 85), Point("two", 448, 70, None, None)], "title", "AUC, %")
    assert all(word in drawn.svg for word in ("one", "two", "224", "448", "title"))
    assert drawn.png[:4] == b"\x89PNG"


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_a_constant_input_can_be_shown(constant: float) -> None:
    assert not pictures.to_shown(np.full((3, 4, 4), constant, np.float32)).any()

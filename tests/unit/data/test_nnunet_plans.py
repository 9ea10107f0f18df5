"""Plans of nnU-Net: what a 2D configuration says, and MedDINOv3's of 896 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lexitome.data.nnunet_plans import find_plans, read_plans, with_high_resolution
from lexitome.errors import InputError

PLANS: dict[str, Any] = {
    "plans_name": "nnUNetPlans",
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 100.0, "std": 75.0, "percentile_00_5": -60.0, "percentile_99_5": 310.0}
    },
    "configurations": {
        "2d": {
            "spacing": [0.78125, 0.78125], "patch_size": [512, 512], "batch_size": 12, "architecture": {},
            "normalization_schemes": ["CTNormalization"],
        },
        "3d_fullres": {"spacing": [1.0, 0.8, 0.8], "patch_size": [128, 128, 128],
                       "normalization_schemes": ["CTNormalization"]},
        "mr": {"inherits_from": "2d", "normalization_schemes": ["ZScoreNormalization"]},
        "odd": {"inherits_from": "2d", "normalization_schemes": ["RescaleTo01Normalization"]},
    },
}  # fmt: skip


def written(folder: Path, plans: object) -> Path:
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps(plans))
    return path


def test_spacing_patch_and_numbers(tmp_path: Path) -> None:
    plan = read_plans(written(tmp_path, PLANS))
    assert plan.spacing == (0.78125, 0.78125) and plan.patch == (512, 512)
    assert plan.normalisation.policy == "nnunet_ct" and plan.normalisation.numbers == (-60.0, 310.0, 100.0, 75.0)
    assert read_plans(tmp_path / "nnUNetPlans.json", "mr").normalisation.policy == "zscore"
    assert find_plans(tmp_path) == tmp_path / "nnUNetPlans.json"


def test_896_pixels_show_what_the_planned_patch_shows(tmp_path: Path) -> None:
    """MedDINOv3's README: 0.4464 mm for KiTS23."""
    path = written(tmp_path, with_high_resolution(PLANS))
    added = read_plans(path, "2d_896")
    assert added == read_plans(path).at(896)
    assert added.spacing == pytest.approx((0.4464, 0.4464), abs=5e-5) and added.patch == (896, 896)
    stored = json.loads(path.read_text())["configurations"]["2d_896"]
    assert stored["inherits_from"] == "2d" and stored["data_identifier"] != "nnUNetPlans_2d"
    assert "2d_896" not in PLANS["configurations"]
    wide = {**PLANS, "configurations": {"2d": {**PLANS["configurations"]["2d"], "patch_size": [256, 512]}}}
    assert read_plans(written(tmp_path, wide)).at(512).spacing == (0.78125 / 2, 0.78125)


@pytest.mark.slow
@pytest.mark.parity
def test_nnunet_reads_what_was_added() -> None:
    handler = pytest.importorskip("nnunetv2.utilities.plans_handling.plans_handler")
    plans = {**with_high_resolution(PLANS), "dataset_name": "Dataset001"}
    found = handler.PlansManager(plans).get_configuration("2d_896")
    assert list(found.patch_size) == [896, 896] and found.batch_size == 12


def test_where_nnunet_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prepared" / "Dataset001").mkdir(parents=True)
    path = written(tmp_path / "prepared" / "Dataset001", PLANS)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "prepared"))
    assert find_plans(tmp_path / "raw" / "Dataset001") == path and find_plans(tmp_path / "other") is None


@pytest.mark.parametrize(
    ("plans", "configuration", "words"),
    [
        (PLANS, "2d_640", r"no complete configuration '2d_640'.*There are: 2d, 3d_fullres"),
        (PLANS, "3d_fullres", "is not 2D"),
        (PLANS, "odd", "RescaleTo01Normalization is not known"),
        ({"configurations": {"2d": {}}}, "2d", "no complete configuration"),
        ([1], "2d", "holds no plans"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, plans: object, configuration: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_plans(written(tmp_path, plans), configuration)


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "nnUNetPlans.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_plans(tmp_path / "nnUNetPlans.json")

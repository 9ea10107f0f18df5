"""Published experiments as data: complete, consistent with the means that were printed, and never without a source."""

from __future__ import annotations

import math

import pytest

from lexitome.errors import InputError
from lexitome.evaluation.metrics import METRICS
from lexitome.evaluation.presets import (
    NOT_CHECKED,
    PRESETS,
    Preset,
    load_preset,
    load_sources,
    plain_name,
    published_for,
)
from lexitome.evaluation.protocols import parse


@pytest.fixture(params=PRESETS)
def preset(request: pytest.FixtureRequest) -> Preset:
    return load_preset(request.param)


def test_numbers_are_shares_of_known_columns_and_metrics(preset: Preset) -> None:
    known = {column.key for column in preset.columns}
    for task in preset.tasks:
        assert set(task.published) <= known and task.published
        for values in task.published.values():
            assert set(values) <= set(preset.metrics) <= set(METRICS)
            assert all(0 <= value <= 1 for value in values.values())


def test_every_number_has_a_source(preset: Preset) -> None:
    assert all(column.source for column in preset.columns) and preset.paper and preset.url.startswith("https://")
    assert all(group.source for group in preset.groups)


def test_prompts_from_the_reference_say_oracle(preset: Preset) -> None:
    for column in preset.columns:
        assert parse(column.protocol).oracle == ("oracle" in column.setting), column.key


def test_printed_means_are_those_of_the_printed_numbers(preset: Preset) -> None:
    """Within half a unit of the last digit that was printed (one more for the rounding of each number): a slip of the
    pen in any number of the table would show."""
    for group in preset.groups:
        tasks = [task for task in preset.tasks if task.group == group.key]
        for key, printed in group.means.items():
            for metric, value in printed.items():
                mean = sum(task.published[key][metric] for task in tasks) / len(tasks)
                assert mean == pytest.approx(value, abs=10 ** -(preset.decimals + 2)), (group.key, key, metric)


def test_dice_and_iou_of_one_column_fit_together(preset: Preset) -> None:
    """Of one mask, IoU = Dice / (2 - Dice). A mean of many has an IoU of at least that of its Dice (Jensen), and never
    more than the Dice itself."""
    for task in preset.tasks:
        for key, values in task.published.items():
            if {"dice", "iou"} <= set(values):
                dice, iou = values["dice"], values["iou"]
                assert dice / (2 - dice) - 0.002 <= iou <= dice, (task.name, key)


def test_best_of_three_masks_is_never_worse_than_the_first() -> None:
    """Up to the fourth digit: the two were run apart."""
    preset = load_preset("sam-zero-shot")
    for task in preset.tasks:
        for mode in range(1, 6):
            first, best = task.published[f"mode{mode}"]["iou"], task.published[f"mode{mode}-best"]["iou"]
            assert best >= first - 1e-4, (task.name, mode)


def test_numbers_as_printed() -> None:
    """A few, looked up once more in the papers' tables."""
    sam3, dino, sam = (load_preset(name) for name in PRESETS)
    by_name = {task.name: task for preset in (sam3, dino, sam) for task in preset.tasks}
    assert by_name["CVC-ClinicDB"].published["medical-sam3"] == pytest.approx({"dice": 0.879, "iou": 0.812})
    assert by_name["CVC-ClinicDB"].published["sam3"] == {"dice": 0, "iou": 0}
    assert by_name["CHASE_DB1"].published["sam3-box"] == pytest.approx({"dice": 0.082})
    assert by_name["AMOS22"].published["meddinov3"] == pytest.approx({"dice": 0.8738, "nsd": 0.7715})
    assert by_name["MRI-Spine: GM"].published["mode1"] == pytest.approx({"iou": 0.1136})
    assert [len(preset.tasks) for preset in (sam3, dino, sam)] == [17, 4, 28]
    groups = [sum(task.group == group.key for task in sam3.tasks) for group in sam3.groups]
    assert groups == [10, 7]
    assert (len(by_name["AMOS22"].concepts), len(by_name["BTCV"].concepts)) == (15, 13)


def test_licences_say_who_says_so_or_that_nobody_checked() -> None:
    for source in load_sources().values():
        assert (source.licence == NOT_CHECKED) == (source.licence_from == NOT_CHECKED), source.key
        assert source.home == NOT_CHECKED or source.home.startswith("http"), source.key
        assert source.get and source.size and source.title


def test_every_source_is_used_and_no_two_have_one_alias() -> None:
    presets = [load_preset(name) for name in PRESETS]
    assert {source.key for preset in presets for source in preset.sources} == set(load_sources())
    aliases = [name for source in load_sources().values() for name in {plain_name(a) for a in source.aliases}]
    assert len(aliases) == len(set(aliases))
    for source in load_sources().values():
        assert set(map(plain_name, source.variants)) <= set(map(plain_name, source.aliases))


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"medical-sam4: is no benchmark .* Type one of medical-sam3, "):
        load_preset("medical-sam4")


def test_names_are_compared_without_punctuation_and_numbers() -> None:
    assert plain_name("CVC-ClinicDB") == plain_name("cvc_clinicdb") == "cvcclinicdb"
    assert plain_name("Dataset017_BTCV") == "btcv" and plain_name("Task09_Spleen") == "task09spleen"
    assert plain_name("dataset_busi") == "datasetbusi" and plain_name("Dataset") == "dataset"


def test_published_numbers_of_a_dataset_by_any_of_its_names() -> None:
    found = published_for("CVC-ClinicDB")
    assert {(score.model, score.protocol, score.metric) for score in found} == {
        ("SAM3", "text", "dice"), ("SAM3", "text", "iou"), ("Medical SAM3", "text", "dice"),
        ("Medical SAM3", "text", "iou"), ("SAM3", "box", "dice"), ("Medical SAM3", "box", "dice"),
    }  # fmt: skip
    assert all(score.source and math.isfinite(score.value) for score in found)
    assert not any(score.differs for score in found) and published_for("kvasir_seg") == []
    slices = published_for("btcv_abdomen_ct2d")
    assert {score.preset for score in slices} == {"meddinov3"} and all("slices" in score.differs for score in slices)

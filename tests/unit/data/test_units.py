"""Subjects told from names."""

from __future__ import annotations

import pytest

from lexitome.data.units import find_units
from lexitome.errors import InputError


def names(pattern: str, subjects: range, parts: range) -> list[str]:
    return [pattern.format(s, p) for s in subjects for p in parts]


@pytest.mark.parametrize(
    ("pattern", "unit"),
    [
        ("BraTS/patient_{:03d}_slice_{:d}", "BraTS/patient_001"),
        ("sabs{:02d}_z{:03d}", "sabs01"),
        ("acdc_p{:03d}_f01_s{}", "acdc_p001"),
        ("video{}_frame_{:05d}", "video1"),
        ("p{}-{}", "p1"),
        ("case {}.img{}", "case 1"),
        ("sub-{:02d}_ses-1_run-{}_T1w", "sub-01"),
        ("p{}/{:04d}", "p1"),
        ("TCGA-{}-01A_{:02d}", "TCGA-1-01A"),
    ],
)
def test_frames_and_slices_belong_to_their_subject(pattern: str, unit: str) -> None:
    stems = names(pattern, range(1, 6), range(4))
    units = find_units(stems)
    assert len(set(units.of.values())) == 5 and units.of[stems[0]] == unit
    assert "5 subjects in 20 images" in units.finding.cause


@pytest.mark.parametrize(
    "stems",
    [
        [f"img_{i:04d}" for i in range(30)],
        [f"{kind}_{i}" for kind in ("benign", "malignant", "normal") for i in range(9)],  # a class is no subject
        [f"site{i % 4}_{i:03d}" for i in range(30)],  # numbers that run through all sites are of images
        [f"{i:016x}" for i in range(10**15, 10**15 + 9)],
        ["a1_1", "a1_2", "a2_1"],  # two subjects are too few to split
        ["scan"],
    ],
)
def test_other_names_are_subjects_of_their_own(stems: list[str]) -> None:
    assert find_units(stems).of == {stem: stem for stem in stems}


def test_both_eyes_are_one_subject() -> None:
    units = find_units([f"Image_{i:02d}{eye}" for i in range(5) for eye in "LR"])
    assert len(set(units.of.values())) == 5


def test_a_pattern_overrules() -> None:
    stems = ["2020_anna_1", "2021_anna_2", "2020_bert_1", "note"]
    units = find_units(stems, r"\d+_([a-z]+)_")
    assert units.of == {"2020_anna_1": "anna", "2021_anna_2": "anna", "2020_bert_1": "bert", "note": "note"}
    assert units.finding.level == "warning" and units.finding.where == ("note",)
    assert find_units(stems[:3], r"[a-z]+").of["2021_anna_2"] == "anna"


@pytest.mark.parametrize("pattern", ["(", "xyz"])
def test_a_useless_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="unit-pattern"):
        find_units(["a1", "a2"], pattern)

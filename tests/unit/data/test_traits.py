"""What may be done to the pictures of a set, above all: no mirror where a label names a side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_sets import save_set

from lexitome.data.dataset import Dataset, Target
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import CACHE_SIDE, SIZES, TRAITS, SetTraits, traits_of

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    plane = np.eye(8, dtype=np.uint8)
    folder = save_set(tmp_path_factory.mktemp("sets") / "mine", {"a": (plane * 90, plane)}, {1: "lesion"})
    return load_dataset(folder)


def named(dataset: Dataset, *names: str, **changes: object) -> Dataset:
    targets = tuple(Target(name, (), (i,), (i,)) for i, name in enumerate(names, start=1))
    return replace(dataset, targets=targets, **changes)  # type: ignore[arg-type]


def test_a_modality_without_a_way_up_is_turned(dataset: Dataset) -> None:
    for family in ("dermoscopy", "histology", "photo", "fluorescence"):
        found = traits_of(replace(dataset, family=family))
        assert found.rotate and found.mirror, family


@pytest.mark.parametrize("family", ["ct", "mr", "xray", "ultrasound", "unknown"])
def test_others_stay_as_they_are(dataset: Dataset, family: str) -> None:
    assert traits_of(replace(dataset, family=family)) == SetTraits()


@pytest.mark.parametrize("name", ["left lung", "Right Lung", "left_kidney", "kidney_RIGHT", "lung (left)"])
def test_a_label_that_names_a_side_forbids_the_mirror(dataset: Dataset, name: str) -> None:
    """However it is written, in the name or in a synonym, and whatever the list says about a set of this name."""
    for odd in (named(dataset, "lesion", name, family="histology"), named(dataset, name, name="isic2017")):
        assert not traits_of(odd).mirror and not traits_of(odd).rotate
    target = Target("lung", (name,), (1,), (1,))
    assert not traits_of(replace(dataset, family="photo", targets=(target,))).mirror


@pytest.mark.parametrize("name", ["bright spot", "cleft", "leftover", "upright"])
def test_words_that_only_contain_a_side_do_not(dataset: Dataset, name: str) -> None:
    assert traits_of(named(dataset, name, family="photo")).mirror


def test_listed_traits_count(dataset: Dataset) -> None:
    assert traits_of(replace(dataset, name="drive", family="fundus")) == TRAITS["drive"]
    assert TRAITS["drive"].size == "fine" and CACHE_SIDE["fine"] > CACHE_SIDE["medium"] > CACHE_SIDE["small"]
    assert {traits.size for traits in TRAITS.values()} == set(SIZES)
    assert all(traits.turns > 0 and traits.slice_step >= 1 for traits in TRAITS.values())


@pytest.mark.shared
def test_no_listed_set_loses_its_traits_to_a_side() -> None:
    if not DATA.is_dir():
        pytest.skip("the research images are not here")
    folders = [DATA / "train" / name for name in TRAITS if (DATA / "train" / name / "dataset.json").exists()]
    assert folders
    for folder in folders:
        assert traits_of(load_dataset(folder)) == TRAITS[folder.name], folder.name

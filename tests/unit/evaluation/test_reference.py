"""Which cases are asked, and for what."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lexitome.data.dataset import Case, Dataset
from lexitome.data.negatives import GENERIC, MAY_SHOW
from lexitome.data.sources.find import find_sets
from lexitome.data.sources.folder import load_dataset
from lexitome.errors import InputError
from lexitome.evaluation.reference import (
    ALL,
    absent_concepts,
    cases_of,
    data_hash,
    is_external,
    is_tubular,
    read_reference,
    test_sets,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets

test_sets.__test__ = False  # type: ignore[attr-defined] - a function under test, not a test


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sets(folder / "train", 10)
    write_sets(folder / "external", 3)
    for path in list((folder / "external").iterdir()):
        path.rename(path.with_name(f"{path.name}_b"))
    return folder


def test_train_and_external_folders_alike(root: Path) -> None:
    found = {dataset.name: dataset for dataset in test_sets([root])}
    assert set(found) == {"btcv_abdomen_ct2d", "btcv_abdomen_ct2d_b", "kvasir_seg", "kvasir_seg_b"}
    assert {case.split for case in found["kvasir_seg_b"].cases} == {"test"}
    assert {case.split for case in found["kvasir_seg"].cases} == {"train", "val", "test"}
    assert [is_external(found[name]) for name in ("kvasir_seg", "kvasir_seg_b")] == [False, True]
    assert [d.name for d in test_sets([root / "train"])] == ["btcv_abdomen_ct2d", "kvasir_seg"]
    (one,) = test_sets([root / "external" / "kvasir_seg_b"])
    assert len(cases_of(one, "test")) == len(cases_of(one, ALL)) == 3


def test_training_does_not_look_below_folders_of_folders(root: Path) -> None:
    with pytest.raises(InputError, match="in no form that can be read"):
        find_sets([root])


def test_two_sets_of_one_name_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "train" / "kvasir_seg", tmp_path / "kvasir_seg")
    with pytest.raises(InputError, match="two datasets are called 'kvasir_seg'"):
        test_sets([root, tmp_path / "kvasir_seg"])


def kvasir(root: Path) -> tuple[Dataset, Case]:
    dataset = load_dataset(root / "train" / "kvasir_seg")
    return replace(dataset, name="isic2018_task1", family="ct"), dataset.cases[0]


def test_absent_concepts_are_of_the_modality_and_surely_absent(root: Path) -> None:
    dataset, case = kvasir(root)
    many = absent_concepts(dataset, case, 999, seed=0)
    assert {"liver", "spleen", "aorta"} <= set(many) and "polyp" not in many and "optic disc" not in many
    assert not set(many) & (MAY_SHOW["isic2018_task1"] | GENERIC)
    btcv = load_dataset(root / "train" / "btcv_abdomen_ct2d")
    assert not set(absent_concepts(btcv, btcv.cases[0], 999, seed=0)) & {"spleen", "the spleen", "heart", "lungs"}
    assert "mandible" in absent_concepts(btcv, btcv.cases[0], 999, seed=0)
    assert not absent_concepts(replace(dataset, name="my_own"), case, 5, seed=0)  # nobody has looked through it


def test_absent_concepts_are_drawn_for_the_case_alone(root: Path) -> None:
    dataset, case = kvasir(root)
    first = absent_concepts(dataset, case, 3, seed=0)
    assert first == absent_concepts(dataset, case, 5, seed=0)[:3] and len(set(first)) == 3
    draws = {tuple(absent_concepts(dataset, other, 3, seed=0)) for other in dataset.cases}
    assert len(draws) > 5
    assert first != absent_concepts(dataset, case, 3, seed=1)


def test_a_limit_keeps_the_same_cases(root: Path) -> None:
    (dataset,) = test_sets([root / "train" / "kvasir_seg"])
    few, more = cases_of(dataset, ALL, 3), cases_of(dataset, ALL, 6)
    assert len(few) == 3 and {c.stem for c in few} < {c.stem for c in more}
    assert [c.stem for c in more] == [c.stem for c in dataset.cases if c in more]
    assert cases_of(dataset, "test", 99) == cases_of(dataset, "test")


def test_the_hash_follows_contents_not_places(root: Path, tmp_path: Path) -> None:
    (dataset,) = test_sets([root / "external" / "kvasir_seg_b"])
    before = data_hash(dataset.cases)
    shutil.copytree(dataset.root, tmp_path / "external" / "elsewhere")
    (copy,) = test_sets([tmp_path])
    assert data_hash(copy.cases) == before
    path = copy.cases[0].files[1]
    path.write_bytes(path.read_bytes() + b" ")
    assert data_hash(copy.cases) != before
    path.unlink()
    assert data_hash(copy.cases) != before


def test_unknown_labels_are_not_asked(root: Path) -> None:
    (dataset,) = test_sets([root / "external" / "btcv_abdomen_ct2d_b"])
    case = replace(dataset.cases[0], unknown_labels=frozenset({1}))
    names = [target.name for target in read_reference(case, dataset.targets).targets]
    assert "right kidney" not in names and "left kidney" in names
    assert "kidney" not in names  # nor what it is a part of


def test_tubes_are_seen_along_their_length(root: Path) -> None:
    dataset, _ = kvasir(root)
    flat, deep = replace(dataset, family="ct", dims=2), replace(dataset, family="ct", dims=3)
    fundus = replace(dataset, family="fundus", dims=2)
    assert is_tubular("hepatic vessel", deep) and is_tubular("Retinal vessel", fundus)
    assert not is_tubular("hepatic vessel", flat) and not is_tubular("liver", deep)

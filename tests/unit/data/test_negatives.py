"""What a picture surely does not show, and what nobody can know."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_sets import write_sets

from lexitome.data.dataset import UNKNOWN_FAMILY, Dataset, Target
from lexitome.data.negatives import GENERIC, MAY_SHOW, Stranger, foreign, surely_absent
from lexitome.data.sources.folder import load_dataset


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = write_sets(tmp_path_factory.mktemp("sets"), 3)
    return {d.name: load_dataset(d) for d in root.iterdir()}


def names(targets: list[Target]) -> list[str]:
    return [target.name for target in targets]


def test_targets_of_other_modalities_are_absent(datasets: dict[str, Dataset]) -> None:
    ct, photos = datasets["btcv_abdomen_ct2d"], datasets["kvasir_seg"]
    every = [ct, photos]
    assert names(surely_absent(ct, every, same_family=False)) == ["polyp"]
    assert set(names(surely_absent(photos, every, same_family=False))) >= {"right kidney", "left kidney", "spleen"}
    assert surely_absent(ct, every, same_family=True) == []


def test_what_a_picture_may_show_is_never_absent(datasets: dict[str, Dataset]) -> None:
    ct = datasets["btcv_abdomen_ct2d"]
    other = replace(ct, name="other", targets=tuple(Target(n, (), (1,), (1,)) for n in ("lungs", "tumor", *GENERIC)))
    assert "lungs" in MAY_SHOW["btcv_abdomen_ct2d"]
    assert names(surely_absent(ct, [other], same_family=True)) == ["tumor"]
    assert set(names(surely_absent(ct, [replace(other, family="photo")], same_family=False))) == {"tumor", *GENERIC}


def test_a_synonym_for_an_own_target_is_not_absent(datasets: dict[str, Dataset]) -> None:
    ct = datasets["btcv_abdomen_ct2d"]
    other = replace(ct, name="other", family="mr", targets=(Target("lien", ("spleen",), (1,), (1,)),))
    assert surely_absent(ct, [other], same_family=False) == []


def test_nothing_is_known_about_a_new_set(datasets: dict[str, Dataset]) -> None:
    stranger = replace(datasets["btcv_abdomen_ct2d"], name="a_new_set")
    assert surely_absent(stranger, list(datasets.values()), same_family=False) == []


def test_only_what_other_modalities_show_is_foreign(datasets: dict[str, Dataset]) -> None:
    mine = replace(datasets["btcv_abdomen_ct2d"], name="a_new_set")
    known = [
        Stranger(Target("polyp", (), (), ()), ("endoscopy",)),
        Stranger(Target("liver", (), (), ()), ("ct", "mr")),
        Stranger(Target("spleen", (), (), ()), ("ultrasound",)),  # its own target, whoever else draws it
        Stranger(Target("the spleen", (), (), ()), ("ultrasound",)),  # its own synonym
    ]
    assert names(foreign(mine, known)) == ["polyp"]
    assert foreign(replace(mine, family=UNKNOWN_FAMILY), known) == []


def test_the_table_names_sets_that_exist_only_once() -> None:
    assert all(name == name.lower() and name.strip() == name for name in MAY_SHOW)
    assert all(word == word.strip() for words in MAY_SHOW.values() for word in words)

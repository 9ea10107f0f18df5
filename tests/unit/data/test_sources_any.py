"""`load_any`: which form a path has, and what is said where it has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.data.sources import load_any
from lexitome.errors import InputError


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "polyps"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((6, 5), 40 * i, np.uint8)).save(root / part / f"p{i}_frame_{i}.png")
    return root


def test_a_plain_folder_needs_a_concept(plain: Path) -> None:
    with pytest.raises(InputError, match="--concept"):
        load_any(plain)
    dataset = load_any(plain, concept="polyp")
    assert dataset.form == "plain folder" and len(dataset.cases) == 6
    assert {c.split for c in dataset.cases} == {"train", "val", "test"}


def test_a_concept_is_refused_where_the_data_name_their_labels(plain: Path) -> None:
    meta = {"labels": {"1": "polyp"}, "modality": "colonoscopy"}
    (plain / "dataset.json").write_text(json.dumps(meta))
    dataset = load_any(plain)
    assert dataset.form == "folder" and dataset.targets[0].name == "polyp" and dataset.family == "endoscopy"
    with pytest.raises(InputError, match="Leave --concept out"):
        load_any(plain, concept="polyp")


def test_what_was_looked_for_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_any(tmp_path)
    for word in ("dataset.json", "imagesTr", "COCO", "parquet", "images/", "smallest layout"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_datasets_is_recognised(plain: Path) -> None:
    (plain / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds 1 datasets.*polyps"):
        load_any(plain.parent)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"labels": {"1": {"synonyms": []}}}', '{"labels": {"900": "x"}}'])
def test_a_bad_description_is_one_clear_line(plain: Path, text: str) -> None:
    (plain / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json"):
        load_any(plain)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_any(tmp_path / "nowhere")


def test_two_images_with_one_stem_are_refused(plain: Path) -> None:
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(plain / "images" / "p0_frame_0.jpg")
    with pytest.raises(InputError, match="same stem"):
        load_any(plain, concept="polyp")

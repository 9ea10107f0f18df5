"""Hugging Face `datasets` folders: saved to disk, Parquet, image folder; label names; subjects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.data.cases import read_case, read_instances
from lexitome.data.sources import load_any
from lexitome.errors import InputError

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

COUNT = 12


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def labels(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(0, 3, (8, 9), dtype=np.uint8)


def make_table(*, named: bool = True, nested: bool = False):
    columns = {
        "image": [Image.fromarray(picture(n)) for n in range(COUNT)],
        "label": [labels(n).tolist() if nested else Image.fromarray(labels(n)) for n in range(COUNT)],
        "patient_id": [n // 2 for n in range(COUNT)],
        "instances": [Image.fromarray(labels(n).astype(np.uint16) * 300) for n in range(COUNT)],
    }
    features = {
        "image": datasets.Image(), "patient_id": datasets.Value("int64"), "instances": datasets.Image(),
        "label": datasets.Array2D((8, 9), "uint8") if nested else datasets.Image(),
    }  # fmt: skip
    if named:
        columns["classes"] = [[0, 1, 2]] * COUNT
        features["classes"] = datasets.Sequence(datasets.ClassLabel(names=["background", "liver", "left_kidney"]))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def check(root: Path) -> None:
    dataset = load_any(root)
    assert dataset.form == "Hugging Face" and len(dataset.cases) == COUNT
    assert [(t.name, t.codes) for t in dataset.targets] == [("liver", (1,)), ("left kidney", (2,))]
    for number, case in enumerate(dataset.cases):
        volume, codes = read_case(case)
        assert np.array_equal(volume.array[:, 0], np.moveaxis(picture(number), -1, 0))
        assert np.array_equal(codes[0], labels(number))


@pytest.mark.parametrize("nested", [False, True])
def test_saved_to_disk(tmp_path: Path, nested: bool) -> None:
    make_table(nested=nested).save_to_disk(str(tmp_path / "set"))
    check(tmp_path / "set")
    dataset = load_any(tmp_path / "set")
    assert len({c.unit for c in dataset.cases}) == COUNT // 2  # by patient_id
    volume, _ = read_case(dataset.cases[3])
    ids = read_instances(dataset.cases[3], volume)
    assert ids is not None and np.array_equal(ids[0], labels(3).astype(np.uint16) * 300)
    assert all(path.is_file() and path.suffix == ".arrow" for path in dataset.cases[0].files)


def test_parts_of_a_saved_dict_are_honoured(tmp_path: Path) -> None:
    table = make_table()
    parts = {"train": table.select(range(8)), "validation": table.select(range(8, 10)), "test": table.select((10, 11))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    check(tmp_path / "set")
    assert [c.split for c in load_any(tmp_path / "set").cases] == ["train"] * 8 + ["val"] * 2 + ["test"] * 2


def test_parquet(tmp_path: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    make_table().to_parquet(str(tmp_path / "set" / "data" / "train-00000-of-00001.parquet"))
    check(tmp_path / "set")


def test_image_folder_with_names_in_a_file(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("pictures", "maps"):
        (root / part).mkdir(parents=True)
    rows = []
    for n in range(COUNT):
        Image.fromarray(picture(n)).save(root / "pictures" / f"p{n:02d}.png")
        Image.fromarray(labels(n)).save(root / "maps" / f"m{n:02d}.png")
        rows.append({"image_file_name": f"pictures/p{n:02d}.png", "mask_file_name": f"maps/m{n:02d}.png"})
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError, match=r"id2label\.json"):
        load_any(root)
    (root / "id2label.json").write_text(json.dumps({"0": "background", "1": "liver", "2": "left_kidney"}))
    check(root)
    case = load_any(root).cases[4]
    assert case.stem == "train/p04" and [path.name for path in case.files] == ["p04.png", "m04.png"]


def test_masks_of_one_thing_need_only_its_name(tmp_path: Path) -> None:
    make_table(named=False).save_to_disk(str(tmp_path / "set"))
    dataset = load_any(tmp_path / "set", concept="polyp")
    _, codes = read_case(dataset.cases[0])
    assert np.array_equal(codes[0], labels(0) > 0) and dataset.targets[0].name == "polyp"


def test_zero_must_be_background(tmp_path: Path) -> None:
    make_table(named=False).save_to_disk(str(tmp_path / "set"))
    (tmp_path / "set" / "id2label.json").write_text(json.dumps({"0": "road", "1": "car"}))
    with pytest.raises(InputError, match="must be background"):
        load_any(tmp_path / "set")


def test_a_table_without_masks_says_which_columns_it_has(tmp_path: Path) -> None:
    make_table().remove_columns(["label", "instances"]).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="no column of masks among image, patient_id"):
        load_any(tmp_path / "set")


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from lexitome.data.sources import load_any\n"
        f"try:\n    load_any({str(tmp_path)!r})\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install datasets" in done.stdout

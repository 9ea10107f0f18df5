"""Classification sets: folders of classes, tables of labels, subjects, published parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome.data.cases import read_case
from lexitome.data.dataset import UNKNOWN_CODE
from lexitome.data.sources.classes import is_classified, load_classified
from lexitome.data.splits import write_splits
from lexitome.errors import InputError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "classify"


def picture(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def by_folder(root: Path, names: dict[str, list[str]]) -> Path:
    for folder, files in names.items():
        for name in files:
            picture(root / folder / name)
    return root


def test_folders_are_classes_and_slices_of_a_patient_stay_together(tmp_path: Path) -> None:
    names = {kind: [f"p{i:02d}_slice_{z}.png" for i in range(10) for z in range(3)] for kind in ("benign", "malignant")}
    found = load_classified(by_folder(tmp_path / "lesions", names))
    assert found.classes == ("benign", "malignant") and found.exclusive and found.dataset.dims == 2
    assert found.labels["malignant/p03_slice_1"] == (1,)
    parts: dict[str, set[str]] = {}
    for case in found.dataset.cases:
        parts.setdefault(case.unit, set()).add(case.split)
    assert len(parts) == 10 and all(len(part) == 1 for part in parts.values())
    assert {case.split for case in found.dataset.cases} == {"train", "val", "test"}
    truth = found.truth(["benign/p00_slice_0", "malignant/p00_slice_0"])
    assert truth.tolist() == [[True, False], [False, True]]


def test_published_parts_are_kept_and_shared_subjects_are_told(tmp_path: Path) -> None:
    names = {"a": [f"train__s{i}.png" for i in range(8)] + ["test__s1.png"], "b": ["train__s9.png", "test__s20.png"]}
    found = load_classified(by_folder(tmp_path / "set", names))
    split_of = {case.stem: case.split for case in found.dataset.cases}
    assert {split_of["a/test__s1"], split_of["b/test__s20"]} == {"test"}
    assert "val" in split_of.values() and all("train__" in s for s, part in split_of.items() if part != "test")
    (told,) = [finding for finding in found.dataset.findings if finding.level == "warning"]
    assert told.where == ("s1",)


def test_a_table_gives_several_labels_patients_and_parts(tmp_path: Path) -> None:
    rows = ["file,patient,split,effusion,nodule"]
    for i in range(6):
        picture(tmp_path / "films" / f"{i}.png")
        rows.append(f"films/{i}.png,p{i // 2},{'test' if i > 3 else 'train' if i else 'val'},{i % 2},{int(i > 2)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    found = load_classified(tmp_path)
    assert found.classes == ("effusion", "nodule") and not found.exclusive
    assert found.labels["films/5"] == (0, 1) and found.labels["films/0"] == ()
    assert {case.stem: (case.unit, case.split) for case in found.dataset.cases}["films/4"] == ("p2", "test")


def test_names_in_one_column(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        picture(tmp_path / f"{name}.PNG")
    (tmp_path / "labels.csv").write_text("file,label\nx.PNG,cyst|stone\ny.PNG,\nz.PNG,cyst\n")
    found = load_classified(tmp_path)
    assert found.classes == ("cyst", "stone")
    assert dict(found.labels) == {"x": (0, 1), "y": (), "z": (0,)}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("label\nx", "no column 'file'"),
        ("file,a\nx.png,2\n", "'2' in column 'a'"),
        ("file,label\nnothing.png,a\n", "not below its folder"),
        ("file,label\n../x.png,a\n", "not below its folder"),
        ("file,split,label\nx.png,hidden,a\n", "split 'hidden'"),
        ("file,label\nx.png,a\nx.png,b\n", "twice"),
    ],
)
def test_bad_tables_are_told_in_a_line(tmp_path: Path, text: str, cause: str) -> None:
    picture(tmp_path / "set" / "x.png")
    picture(tmp_path / "x.png")
    (tmp_path / "set" / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=cause):
        load_classified(tmp_path / "set")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fewer than two classes"):
        load_classified(by_folder(tmp_path / "one", {"a": ["1.png"]}))
    with pytest.raises(InputError, match="same name as another"):
        load_classified(by_folder(tmp_path / "twins", {"a": ["1.png", "1.jpg"], "b": ["1.png"]}))
    with pytest.raises(InputError, match="is no folder"):
        load_classified(tmp_path / "nowhere")


def test_voxels_in_npz_become_volumes_that_nobody_outlined(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        np.savez(tmp_path / kind / "cube.npz", voxel=np.arange(60, dtype=np.uint8).reshape(5, 4, 3))
    found = load_classified(tmp_path)
    assert found.dataset.dims == 3
    volume, codes = read_case(found.dataset.cases[0])
    assert volume.array.shape == (1, 5, 4, 3) and not volume.spacing_known
    assert (codes == UNKNOWN_CODE).all()
    np.savez(tmp_path / "a" / "other.npz", seg=np.zeros(3))
    other = next(case for case in load_classified(tmp_path).dataset.cases if case.stem == "a/other")
    with pytest.raises(InputError, match="holds no array `voxel`"):
        read_case(other)


def test_what_is_annotated_is_not_classified(tmp_path: Path) -> None:
    assert is_classified(by_folder(tmp_path / "set", {"a": ["1.png"], "b": ["1.png"]}))
    assert not is_classified(by_folder(tmp_path / "masks", {"images": ["1.png"], "masks": ["1.png"]}))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the research images are not beside the repository")
@pytest.mark.parametrize("name", ["bccd_wbc_types", "brain_tumor_mri", "lung_nodule_3d"])
def test_the_sets_beside_the_repository(name: str, tmp_path: Path) -> None:
    found = load_classified(SHARED / name)
    meta = json.loads((SHARED / name / "dataset.json").read_text())
    assert set(found.classes) == set(meta["classes"])
    published = [case for case in found.dataset.cases if "/test__" in case.stem]
    assert all(case.split == "test" for case in published)
    units = {split: {c.unit for c in found.dataset.cases if c.split == split} for split in ("train", "val", "test")}
    assert all(units.values()) and not units["train"] & units["test"] and not units["train"] & units["val"]
    if name == "bccd_wbc_types":  # turned copies of one picture
        of = {case.stem: case.unit for case in found.dataset.cases}
        assert of["eosinophil/test__10_2029"] == of["eosinophil/test__10_6428"]
        write_splits(found.dataset, tmp_path / "splits.json")
    assert read_case(found.dataset.cases[0])[0].array.size

"""Which datasets of a preset lie below a folder, which cases and labels count, and what is said to differ."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.dataset import Dataset, Target
from lexitome.errors import InputError
from lexitome.evaluation.found_sets import Selection, TaskData, find_sets, match_targets, prepare
from lexitome.evaluation.presets import Preset, load_preset

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
SIDE = 24


def flat_set(folder: Path, labels: dict[int, str], count: int = 10, side: int = SIDE, **meta: object) -> Path:
    """Pictures of one disc for each label."""
    cases = {}
    for i in range(count):
        mask = np.zeros((side, side), np.uint8)
        for label in labels:
            mask[disc(side, 4 + 5 * label, 6 + i % 8, 3)] = label
        cases[f"p{i:02d}"] = (painted(mask, i), mask)
    return save_set(folder, cases, labels, "colonoscopy", **meta)


@pytest.fixture
def sam3() -> Preset:
    return load_preset("medical-sam3")


def by_task(preset: Preset, root: Path, selection: Selection | None = None) -> dict[str, TaskData]:
    return {entry.task.name: entry for entry in prepare(preset, find_sets(root, preset), selection or Selection())}


@pytest.mark.parametrize(
    ("place", "meta"),
    [
        ("CVC-ClinicDB", {}),
        ("data/endoscopy/CVC_ClinicDB", {}),
        ("external/cvc_clinicdb", {}),
        ("some_polyps", {"name": "CVC-ClinicDB"}),
        ("some_polyps", {"title": "cvc clinicdb"}),
        ("CVC-ClinicDB/prepared", {}),
    ],
)
def test_a_set_is_recognised(sam3: Preset, tmp_path: Path, place: str, meta: dict[str, object]) -> None:
    flat_set(tmp_path / place, {1: "polyp"}, **meta)
    flat_set(tmp_path / "kvasir_seg", {1: "polyp"})
    found = find_sets(tmp_path, sam3)
    assert list(found) == ["cvc_clinicdb"] and found["cvc_clinicdb"].path == tmp_path / place
    dataset = found["cvc_clinicdb"].dataset
    assert dataset is not None and len(dataset.cases) == 10


def test_the_root_may_be_the_set_itself(sam3: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(flat_set(tmp_path / "ph2", {1: "skin lesion"}))
    assert list(find_sets(Path("."), sam3)) == ["ph2"]


def test_what_is_too_deep_hidden_or_part_of_a_set_is_not_looked_at(sam3: Preset, tmp_path: Path) -> None:
    for place in ("a/b/c/d/e/ph2", ".cache/ph2", "other/images/ph2"):
        flat_set(tmp_path / place, {1: "skin lesion"})
    assert find_sets(tmp_path, sam3) == {}


def test_masks_that_do_not_say_what_they_show(sam3: Preset, tmp_path: Path) -> None:
    """The preset knows: such a set needs no --concept."""
    (flat_set(tmp_path / "CVC-ClinicDB", {1: "x"}) / "dataset.json").unlink()
    entry = by_task(sam3, tmp_path)["CVC-ClinicDB"]
    assert entry.concepts == ("polyp",) and entry.dataset.form == "plain folder"


def test_a_set_that_cannot_be_read_is_named_with_the_reason(sam3: Preset, tmp_path: Path) -> None:
    (tmp_path / "STARE" / "ppm").mkdir(parents=True)
    (tmp_path / "PH2").mkdir()
    (tmp_path / "PH2" / "dataset.json").write_text("{")
    found = find_sets(tmp_path, sam3)
    assert {key: entry.dataset for key, entry in found.items()} == {"stare": None, "ph2": None}
    assert "in no form that can be read" in found["stare"].problem and "is not JSON" in found["ph2"].problem
    assert prepare(sam3, found, Selection()) == []


def test_of_two_folders_the_first_that_can_be_read(sam3: Preset, tmp_path: Path) -> None:
    (tmp_path / "PH2").mkdir()
    for place in ("b/ph2", "c/PH2 Dataset"):
        flat_set(tmp_path / place, {1: "lesion"})
    found = find_sets(tmp_path, sam3)["ph2"]
    assert found.path == tmp_path / "b/ph2" and found.dataset is not None
    assert found.others == (tmp_path / "PH2", tmp_path / "c/PH2 Dataset")


def test_no_such_root(sam3: Preset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: there is no such folder\. .* --data-root"):
        find_sets(tmp_path / "nowhere", sam3)


def test_targets_are_called_as_in_the_paper(sam3: Preset, tmp_path: Path) -> None:
    """Unless only the spelling differs: rows of other runs then still are the same questions."""
    flat_set(tmp_path / "chase_db1", {1: "retinal vessel"})
    flat_set(tmp_path / "ph2", {1: "skin lesion"})
    entries = by_task(sam3, tmp_path)
    assert entries["CHASE_DB1"].concepts == ("Retinal Blood Vessel",)
    assert entries["CHASE_DB1"].dataset.targets[0].synonyms == ("retinal vessel",)
    assert entries["PH2"].concepts == ("skin lesion",)
    own = by_task(sam3, tmp_path, Selection(own_words=True))
    assert own["CHASE_DB1"].concepts == ("retinal vessel",) == (own["CHASE_DB1"].dataset.targets[0].name,)


def test_labels_of_an_nnunet_set_by_name_and_by_synonym(tmp_path: Path) -> None:
    """Volumes in nnU-Net's form, named as nnU-Net names them."""
    root = tmp_path / "Dataset017_BTCV"
    labels = {"spleen": 1, "oesophagus": 2, "something else": 3}
    for part in ("imagesTr", "labelsTr"):
        save_set(tmp_path / "x" / part, {"a": (np.zeros((3, 8, 8), np.int16), np.ones((3, 8, 8), np.uint8))}, {1: "x"},
                 affine=np.eye(4))  # fmt: skip
        (root / part).mkdir(parents=True)
    (tmp_path / "x/imagesTr/images/a.nii.gz").rename(root / "imagesTr/a_0000.nii.gz")
    (tmp_path / "x/labelsTr/masks/a.nii.gz").rename(root / "labelsTr/a.nii.gz")
    (root / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "file_ending": ".nii.gz",
    }))  # fmt: skip
    entry = by_task(load_preset("meddinov3"), tmp_path)["BTCV"]
    assert entry.concepts == ("spleen", "esophagus") and len(entry.dataset.targets) == 3
    assert [case.split for case in entry.dataset.cases] == ["test"]
    text = "; ".join(entry.differs)
    assert "1 of the original's 30 images" in text and "without right kidney, left kidney, gallbladder" in text


def test_a_name_comes_before_a_synonym_and_one_label_needs_none() -> None:
    task = next(task for task in load_preset("meddinov3").tasks if task.name == "LiTS")
    targets = (
        Target("organ", ("liver",), (1,), (1,)),
        Target("liver", (), (2,), (2,)),
        Target("tumor", (), (3,), (3,)),
    )
    sam3 = load_preset("medical-sam3")
    dataset = Dataset("x", Path("x"), "x", "CT", "ct", "", 3, "", "", None, None, targets, ())
    assert {p: t.codes for p, t in match_targets(task, dataset).items()} == {"liver": (2,), "liver tumor": (3,)}
    polyp = next(task for task in sam3.tasks if task.name == "CVC-ClinicDB")
    assert match_targets(polyp, dataset) == {}
    only = replace(dataset, targets=targets[:1])
    assert match_targets(polyp, only) == {"Polyp": targets[0]}
    every = next(task for task in sam3.tasks if task.name == "M2CAI")
    assert list(match_targets(every, dataset)) == ["organ", "liver", "tumor"]


def test_which_cases_count(sam3: Preset, tmp_path: Path) -> None:
    """All of an external task; the test part of a set that the model was taught on, and where the paper held out a
    part; all again of such a set in a folder of external ones."""
    flat_set(tmp_path / "ph2", {1: "skin lesion"}, 20)
    flat_set(tmp_path / "glas", {1: "gland"}, 20)
    entries = by_task(sam3, tmp_path)
    own = {case.stem for case in find_sets(tmp_path, sam3)["glas"].dataset.cases if case.split == "test"}  # type: ignore[union-attr]
    assert len(entries["PH2"].dataset.cases) == 20 and {c.stem for c in entries["GlaS"].dataset.cases} == own != set()
    assert all(case.split == "test" for entry in entries.values() for case in entry.dataset.cases)
    taught = by_task(sam3, tmp_path, Selection(frozenset({"ph2"})))["PH2"]
    assert 0 < len(taught.dataset.cases) < 20 and "the model was taught on other images of this set" in taught.differs
    (tmp_path / "external").mkdir()
    (tmp_path / "glas").rename(tmp_path / "external/glas")
    assert len(by_task(sam3, tmp_path)["GlaS"].dataset.cases) == 20


def test_a_limit_takes_the_same_images_whatever_else_is_there(sam3: Preset, tmp_path: Path) -> None:
    flat_set(tmp_path / "ph2", {1: "skin lesion"}, 12)
    few, more = (by_task(sam3, tmp_path, Selection(limit=n))["PH2"] for n in (3, 6))
    stems = [{case.stem for case in entry.dataset.cases} for entry in (few, more)]
    assert len(stems[0]) == 3 and len(stems[1]) == 6 and stems[0] < stems[1]
    assert "scored on 3 of 12" in few.differs


def test_what_differs_is_said(sam3: Preset, tmp_path: Path) -> None:
    flat_set(tmp_path / "chase_db1", {1: "vessel"}, 5, side=32)
    assert by_task(sam3, tmp_path)["CHASE_DB1"].differs == (
        "images of 32 instead of 999 pixels on the longer side",
        "5 of the original's 28 images",
    )
    flat_set(tmp_path / "btcv_abdomen_ct2d", {1: "spleen", 2: "liver"}, 6)
    differs = by_task(load_preset("meddinov3"), tmp_path)["BTCV"].differs
    assert differs[0].startswith("evenly spaced axial slices") and differs[1] == "2D slices instead of volumes"
    assert "another part than the paper's, whose split is not published" in differs


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the research images are not beside the repository")
def test_real_sets() -> None:
    expected = {
        "medical-sam3": {"DRIVE", "GlaS", "HC18", "CVC-ClinicDB", "PH2", "CHASE_DB1"}, "meddinov3": {"BTCV"},
        "sam-zero-shot": {"Xray-Chest", "US-Breast"},
    }  # fmt: skip
    for name, tasks in expected.items():
        entries = by_task(load_preset(name), SHARED)
        assert set(entries) == tasks
        assert all(entry.differs and entry.dataset.cases for entry in entries.values())
    btcv = by_task(load_preset("meddinov3"), SHARED)["BTCV"]
    assert len(btcv.concepts) == 13 and not any("without" in text for text in btcv.differs)

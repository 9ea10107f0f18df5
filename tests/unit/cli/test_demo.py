"""`lexitome demo` with the weights that ship: the right files, and masks where the things are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lexitome.cli import main
from lexitome.cli.demo import EXAMPLES


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "-o", str(folder)]) == 0
    return folder


def test_files(output: Path) -> None:
    for example in EXAMPLES:
        folder = output / Path(example.file).stem
        ending = ".nii.gz" if example.file.endswith(".dcm") else ".png"
        masks = {f"{text.replace(' ', '_')}{ending}" for text in example.texts}
        assert {path.name for path in folder.iterdir()} == masks | {"preview.png", "statistics.json", "report.json"}
        assert (output / "images" / example.file).is_file()


@pytest.mark.parametrize(
    ("folder", "name", "place", "tolerance"),
    [
        ("abdomen-mr", "liver", (105, 155), 60),
        ("abdomen-mr", "right kidney", (150, 220), 60),
        ("abdomen-mr", "left kidney", (317, 225), 60),
    ],
)
def test_things_are_found_where_they_are(
    output: Path, folder: str, name: str, place: tuple[int, int], tolerance: float
) -> None:
    """Places (x, y) read off the pictures; the tolerance is coarse, accuracy is measured elsewhere."""
    findings = json.loads((output / folder / "statistics.json").read_text())["findings"]
    entry = next(finding for finding in findings if finding["name"] == name)
    assert entry["found"]
    x, y, _ = entry["centroid_voxel"]
    assert abs(x - place[0]) <= tolerance and abs(y - place[1]) <= tolerance


@pytest.mark.parametrize(("folder", "name"), [("fundus", "retinal vessel")])
def test_scattered_things_are_found(output: Path, folder: str, name: str) -> None:
    findings = json.loads((output / folder / "statistics.json").read_text())["findings"]
    entry = next(finding for finding in findings if finding["name"] == name)
    assert entry["found"] and entry["components"] > 1


def test_what_is_not_there_is_not_found(output: Path) -> None:
    findings = json.loads((output / "fundus" / "statistics.json").read_text())["findings"]
    polyp = next(finding for finding in findings if finding["name"] == "polyp")
    assert not polyp["found"] and polyp["presence"] < 0.5

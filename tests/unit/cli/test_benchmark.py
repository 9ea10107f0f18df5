"""`lexitome benchmark` as typed: the list without data, a run on tiny sets, resuming, and messages that help."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from lexitome.cli import benchmark
from lexitome.data.sources.folder import load_dataset
from lexitome.data.trained_on import FILE as TRAINED_ON
from lexitome.data.trained_on import fingerprints
from lexitome.errors import InputError
from lexitome.evaluation.rows import read_csv

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))
from tiny_model import Bright, write_model

SIDE = 24


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    app.add_typer(benchmark.app)
    return app


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """PH2 and CVC-ClinicDB, six discs each."""
    for name, label in (("external/ph2", "skin lesion"), ("CVC-ClinicDB", "polyp")):
        masks = {f"p{i}": disc(SIDE, 8 + i, 12, 5).astype(np.uint8) for i in range(6)}
        save_set(tmp_path / "data" / name, {s: (painted(m), m) for s, m in masks.items()}, {1: label}, "dermoscopy")
    return tmp_path / "data"


@pytest.fixture
def predictions(root: Path, tmp_path: Path) -> Path:
    """Right for PH2, half of the disc for the polyps, and one of these missing."""
    folder = tmp_path / "masks"
    shutil.copytree(root / "external/ph2/masks", folder / "ph2")
    (folder / "CVC-ClinicDB").mkdir()
    for path in sorted((root / "CVC-ClinicDB/masks").iterdir())[1:]:
        mask = np.array(Image.open(path))
        mask[:, :12] = 0
        Image.fromarray(mask).save(folder / "CVC-ClinicDB" / path.name)
    return folder


def typed(command: typer.Typer, *words: object) -> str:
    done = CliRunner().invoke(command, ["benchmark", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def line(output: str, start: str) -> list[str]:
    return next(text for text in output.splitlines() if text.strip().startswith(start)).split()


@pytest.mark.parametrize("name", ["medical-sam3", "meddinov3", "sam-zero-shot"])
def test_list_needs_no_data(command: typer.Typer, name: str) -> None:
    output = typed(command, name, "--list")
    assert "published" in output and "Where the data come from" in output and "licence: not checked" in output
    assert "measured" not in output.replace("not measured", "")
    for start in {"medical-sam3": ["TN3K", "PAPILA"], "meddinov3": ["KiTS23"], "sam-zero-shot": ["US-Muscle"]}[name]:
        assert line(output, start)
    entry = json.loads(typed(command, name, "--list", "--json"))
    counts = {"medical-sam3": 17, "meddinov3": 4, "sam-zero-shot": 28}
    assert sum(len(group["tasks"]) for group in entry["groups"]) == counts[name]


def test_list_says_what_is_here(command: typer.Typer, root: Path) -> None:
    output = typed(command, "medical-sam3", "--list", "--data-root", root)
    assert "found" in line(output, "PH2") and "found" not in line(output, "STARE")


def test_run_on_predictions(command: typer.Typer, root: Path, predictions: Path, tmp_path: Path) -> None:
    """Ours beside the published numbers: all right for PH2; the sets that are not here are named."""
    run = tmp_path / "run"
    asked = ("medical-sam3", "--data-root", root, "--predictions", predictions, "--prompts", "text", "-o", run)
    output = typed(command, *asked)
    assert "100.0" in line(output, "PH2") and line(output, "PH2")[-2:] == ["18.4", "92.7"]
    rows = [row for row in read_csv(run / "rows.csv") if row.dataset == "CVC-ClinicDB"]
    assert sum(row.status == "missing" for row in rows) == 1
    mean = 100 * float(np.mean([row.metrics["dice"] for row in rows]))  # the missing one scores 0
    assert f"{mean:.1f}" in line(output, "CVC-ClinicDB") and 40 < mean < 70
    assert f"{(100 + mean) / 2:.1f}" in line(output, "mean of the 2 measured")
    assert line(output, "mean of the 2 measured")[-1] == f"{(87.9 + 92.7) / 2:.1f}"
    assert "Not here: 15 of 17 datasets" in output and "Missing or unusable answers: 1." in output
    entry = json.loads((run / "benchmark.json").read_text())
    assert entry["groups"][1]["means_over_measured_tasks"]["dice"]["ours:text"]["tasks"] == 2
    assert "| PH2 | 6 images | 100.0" in (run / "benchmark.md").read_text()
    before = (run / "rows.csv").read_bytes()
    assert typed(command, *asked) == output and (run / "rows.csv").read_bytes() == before  # nothing is measured again


def test_training_pictures_are_looked_for(command: typer.Typer, root: Path, tmp_path: Path) -> None:
    """The model was taught one of the two sets: its pictures are found and named."""
    model = write_model(tmp_path / "model", Bright())
    taught = fingerprints([load_dataset(root / "CVC-ClinicDB")], ["train", "val", "test"])
    (model / TRAINED_ON).write_bytes(taught.to_bytes())
    asked = ("medical-sam3", "--data-root", root, "--model", model, "--prompts", "text", "--jobs", 1)
    output = typed(command, *asked, "-o", tmp_path / "run")
    assert "Training pictures in the test sets?" in output and "See leakage.json." in output
    found = json.loads((tmp_path / "run" / "leakage.json").read_text())
    about = {entry["dataset"]: entry for entry in found["sets"]}["CVC-ClinicDB"]
    assert about["affected"] == about["cases"] > 0
    notes = json.loads((tmp_path / "run" / "benchmark.json").read_text())["notes"]
    assert any(found["summary"] in note for note in notes)
    assert found["summary"] in (tmp_path / "run" / "benchmark.md").read_text()
    output = typed(command, *asked, "-o", tmp_path / "other", "--no-leakage-check")
    assert "Training pictures" not in output and not (tmp_path / "other" / "leakage.json").exists()


def test_run_of_specialists(command: typer.Typer, root: Path, tmp_path: Path) -> None:
    """What `lexitome train unet` wrote is asked for the paper's targets; not by boxes, which it does not take."""
    pytest.importorskip("monai")
    from lexitome.recipes.specialist import SpecialistRecipe, train_specialists
    from lexitome.training.engine import RunConfig

    recipe = SpecialistRecipe("BasicUNet", side=32, images=2, run=RunConfig(2, threads=1, precision="fp32"))
    dataset = load_dataset(root / "CVC-ClinicDB")
    train_specialists([dataset], tmp_path / "unets", tmp_path / "cache", recipe, minutes=None)
    shutil.rmtree(root / "external")
    asked = ["benchmark", "medical-sam3", "--data-root", str(root), "--model", str(tmp_path / "unets"), "--jobs", "1"]
    done = CliRunner().invoke(command, [*asked, "-o", str(tmp_path / "run")], catch_exceptions=False)
    assert "note: specialist does not take boxes, which oracle-box gives: not asked" in done.stderr
    rows = read_csv(tmp_path / "run" / "rows.csv")
    assert rows and {row.status for row in rows} == {"ok"} and {row.protocol for row in rows} == {"text"}
    assert {row.case for row in rows} == {
        c.stem for c in dataset.cases if c.split == "test"
    }  # it was taught the others
    assert "specialist" in done.stdout and "Training pictures in the test sets?" in done.stdout
    with pytest.raises(InputError, match="does not take boxes"):
        CliRunner().invoke(command, [*asked, "--prompts", "box"], catch_exceptions=False)


def test_run_of_the_built_in_model(command: typer.Typer, root: Path, tmp_path: Path) -> None:
    """Text and oracle box, as the experiment has it; two images of each set."""
    run = tmp_path / "run"
    output = typed(command, "medical-sam3", "--data-root", root, "--limit", 2, "--jobs", 1, "-o", run)
    rows = [row for row in read_csv(run / "rows.csv") if row.present]
    assert {(row.dataset, row.protocol) for row in rows} == {
        (name, protocol) for name in ("ph2", "CVC-ClinicDB") for protocol in ("text", "oracle-box")
    }
    assert len(rows) == 8 and {row.concept for row in rows} == {"skin lesion", "polyp"}
    assert "oracle-box" in output and "scored on 2 of 6" in output and "2 images" in output


def test_what_to_type_next(command: typer.Typer, root: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        with pytest.raises(InputError) as caught:
            CliRunner().invoke(command, ["benchmark", *map(str, words)], catch_exceptions=False)
        return str(caught.value)

    assert "Type one of medical-sam3" in refused("sam4", "--list")
    assert "lexitome benchmark meddinov3 --list" in refused("meddinov3")
    assert "none of the 4 datasets lies below it" in refused("meddinov3", "--data-root", root)
    assert "there is no such protocol" in refused("medical-sam3", "--data-root", root, "--prompts", "guess")
    (tmp_path / "empty" / "STARE").mkdir(parents=True)
    message = refused("medical-sam3", "--data-root", tmp_path / "empty")
    assert "looks like STARE, but is in no form that can be read" in message and "lexitome check-data" in message

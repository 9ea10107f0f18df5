"""The universal model against specialists: the budget, the table, what is kept, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("monai")
specialists = pytest.importorskip("specialists")
tiny_model = pytest.importorskip("tiny_model")

from lexitome.errors import InputError  # noqa: E402
from lexitome.models.catalog import find_model  # noqa: E402
from lexitome.recipes.finetune import FEWEST_STEPS, steps_for  # noqa: E402
from lexitome.recipes.specialist import SpecialistRecipe, read_card  # noqa: E402
from lexitome.training.engine import RunConfig  # noqa: E402
from lexitome.training.optim import OptimConfig  # noqa: E402

NUCLEI, BRAIN = SETS = ("dsb2018_fluorescence_nuclei", "hippocampus_msd_mr3d")
RECIPE = SpecialistRecipe("BasicUNet", side=32, images=2, optim=OptimConfig(3e-3), run=RunConfig(1, threads=1))


def model_of(folder: Path, name: str, **provenance: object) -> str:
    sets = [{"name": s, "title": s, "modality": "", "licence": "CC0", "source": ""} for s in SETS]
    net = tiny_model.Bright()
    return str(tiny_model.write_model(folder / name / "model", net, name=name, sets=sets, provenance=provenance))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    one_run = model_of(root, "one-run", start="imagenet", steps=60)
    return {"one-run": one_run, "went-on": model_of(root, "went-on", start="one-run", steps=9)}


def options(annotated: Path, work: Path, model: str, **changes: object) -> specialists.Options:
    asked = specialists.Options(
        annotated, work / "decoded", work / "work", model, also=(), minutes=0.002, only=(), limit=3, jobs=1, seed=0,
        recipe=RECIPE,
    )  # fmt: skip
    return replace(asked, **changes)


def test_the_budget_is_what_the_steps_took(models: dict[str, str], tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "step": 20, "seconds": 2.0},
        {"kind": "validation", "step": 20},
        {"kind": "train", "step": 50, "seconds": 4.0},
    ]
    assert specialists.trained_seconds(rows) == 20 * 2 + 30 * 4
    log = Path(models["one-run"]).parent / "log.jsonl"
    with pytest.raises(InputError, match="--minutes-total"):
        specialists.budget(find_model(models["one-run"]))
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert specialists.budget(find_model(models["one-run"])) == pytest.approx(160 / 60)
    with pytest.raises(InputError, match="not trained in one run from imagenet"):
        specialists.budget(find_model(models["went-on"]))
    assert specialists.budget(find_model("compact-open")) == pytest.approx(59.0, abs=0.1)  # of 3,000 steps


def test_a_share_is_filled_with_steps() -> None:
    assert steps_for(1 / specialists.TRAINED, 0.1) == pytest.approx(600, abs=1)


def test_sets_are_added_to_one_table(annotated: Path, models: dict[str, str], tmp_path: Path) -> None:
    asked = options(annotated, tmp_path, models["one-run"])
    out, document = tmp_path / "result.json", tmp_path / "docs" / "specialists.md"
    first = specialists.measure(replace(asked, only=(BRAIN,)), out, document)
    assert list(first["specialists"]) == [BRAIN] and "**1 of 2 sets so far.**" in document.read_text()
    weights = asked.work / "specialists" / BRAIN / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    result = specialists.measure(replace(asked, only=(NUCLEI,), also=(models["went-on"],)), out, document)
    assert list(result["specialists"]) == [NUCLEI]  # nobody has asked the second model about the other set
    result = specialists.measure(replace(asked, also=(models["went-on"],)), out, document)
    assert weights.stat().st_mtime_ns == stamp and result == json.loads(out.read_text())
    one, other = result["comparisons"]
    assert [one["run"], other["run"]] == ["one-run", "went-on"] and one["against"] == "specialist"
    assert {entry["dataset"] for entry in one["sets"]} == set(SETS) == set(result["specialists"])
    overall = one["overall"]
    assert overall["wins"] + overall["ties"] + overall["losses"] + overall["undecided"] == 2
    for entry in one["sets"]:
        assert entry["difference"] == pytest.approx(entry["b"]["mean"] - entry["a"]["mean"], abs=2e-4)
        assert 0 < entry["p"] <= entry["p_holm"] <= 1
    for name in SETS:
        card = read_card(asked.work / "specialists" / name)
        assert card.recipe.run.steps == result["specialists"][name]["steps"] >= FEWEST_STEPS
        assert result["specialists"][name]["minutes"] > 0
    assert result["near_training_pictures"]["specialist"]["checked"]
    assert not result["near_training_pictures"]["one-run"]["checked"]
    text = document.read_text()
    assert text.count(f"| {NUCLEI} |") == 3 and "so far" not in text and "At most 3 test cases" in text
    assert text.count("Not for equal time: ") == 1 and "began with weights of `one-run`" in text
    assert "specialists were given 0.0, as typed" in text and "Not for equal time, more than 20% off" in text
    assert "cannot be told" in text and "look like one of its training pictures" in text


def test_other_settings_are_refused(annotated: Path, models: dict[str, str], tmp_path: Path) -> None:
    asked = options(annotated, tmp_path, models["one-run"])
    specialists.note(asked, 2)
    specialists.note(replace(asked, recipe=replace(RECIPE, run=replace(RECIPE.run, threads=7))), 2)
    for change in ({"minutes": 1.0}, {"limit": None}, {"model": "compact"}, {"recipe": replace(RECIPE, side=64)}):
        with pytest.raises(InputError, match="Name another folder with --work"):
            specialists.note(replace(asked, **change), 2)
    with pytest.raises(InputError, match="was not trained on liver"):
        specialists.measure(replace(asked, only=("liver",)), tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="two models have one name"):
        specialists.measure(replace(asked, also=(models["one-run"],)), tmp_path / "a", tmp_path / "b")

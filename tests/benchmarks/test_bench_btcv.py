"""MedDINOv3 in small against U-Nets: who takes part, nnU-Net's length, what is kept, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("monai")
pytest.importorskip("transformers")
btcv = pytest.importorskip("btcv")

from lexitome.data.patches import PLAIN  # noqa: E402
from lexitome.errors import InputError  # noqa: E402
from lexitome.inference.dinov3_card import Card  # noqa: E402
from lexitome.models.dinov3.presets import build  # noqa: E402
from lexitome.models.dinov3.weights import save_folder  # noqa: E402
from lexitome.recipes.meddinov3 import mini  # noqa: E402
from lexitome.recipes.specialist import SpecialistRecipe  # noqa: E402
from lexitome.training.engine import RunConfig  # noqa: E402
from lexitome.training.optim import OptimConfig  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "data"))
from tiny_sets import write_sets  # noqa: E402

NEW, OWN, STAGE = "random-multi-48", "pretrained-multi-48", "stage1-multi-48"


def options(root: Path, **changes: object) -> btcv.Options:
    run = RunConfig(1, threads=1)
    asked = btcv.Options(
        root / "sets" / btcv.SET, root / "decoded", root / "work", 0.002, low=32, high=48, limit=2,
        recipe=replace(mini(), start="random:tiny", patches=2, validated=2, augmentation=PLAIN, run=run),
        unet=SpecialistRecipe("BasicUNet", side=32, images=2, optim=OptimConfig(3e-3), run=run),
    )  # fmt: skip
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of discs under the name of the benchmark's, and two trunks."""
    folder = tmp_path_factory.mktemp("btcv")
    write_sets(folder / "sets", 10)
    for seed, place in enumerate((folder / "pretrained" / "model", folder / "pretrained" / "stage1" / "model")):
        place.parent.mkdir(parents=True, exist_ok=True)
        save_folder(build("tiny", seed), place, intensity="imagenet")
    return folder


def with_trunks(root: Path) -> btcv.Options:
    trunk = root / "pretrained"
    return options(root, trunk=trunk / "model", stages=(trunk / "stage1" / "model",))


def test_who_takes_part(root: Path, tmp_path: Path) -> None:
    asked = with_trunks(root)
    names = [each.name for each in btcv.contestants(asked)]
    own = [f"{start}-{rung}" for start in ("random", "pretrained") for rung in ("last-32", "multi-32", "multi-48")]
    assert names == [*own, STAGE, "unet", "nnunet"] and asked.reference == OWN
    alone = options(root)
    assert alone.reference == NEW and [each.name for each in btcv.contestants(alone)] == [*own[:3], "unet", "nnunet"]
    by_name = {each.name: each for each in btcv.contestants(asked)}
    last, stage = (btcv.recipe_of(by_name[name], asked) for name in ("random-last-32", STAGE))
    assert (last.start, last.taps, last.side, last.optim.groups) == ("random:tiny", (-1,), 32, ())
    assert stage.start == str(asked.stages[0]) and stage.taps == () and stage.optim.groups[0][0] == "trunk.*"
    assert {name for pair in btcv.ladder(asked) for name in pair} == {*own, STAGE}
    with pytest.raises(InputError, match="two trunks have one name"):
        btcv.contestants(replace(asked, stages=(root / "a" / "stage1" / "model", root / "stage1")))
    with pytest.raises(InputError, match=r"there is no swin. Choose from random-last-32"):
        btcv.measure(replace(asked, only=("swin",)), tmp_path / "a", tmp_path / "b")


def test_nnunet_gets_as_many_steps_as_fit(tmp_path: Path) -> None:
    log = tmp_path / "work" / "results" / "Dataset900_x" / "trainer" / "fold_0" / "training_log_2026_1_1_00_00_00.txt"
    log.parent.mkdir(parents=True)
    log.write_text("2026-01-01: Epoch time: 40.0 s\n2026-01-01: Epoch 1\n2026-01-01: Epoch time: 16.0 s\n")
    found = btcv.epoch_seconds(tmp_path)
    assert found == [40, 16] and btcv.step_seconds(found[-1], 5) == pytest.approx(3)
    for minutes, seconds in ((30, 3.0), (30, 0.01), (1, 200.0), (5, 7.0)):
        epochs, iterations = btcv.length_for(minutes, seconds)
        assert epochs * iterations * seconds == pytest.approx(60 * minutes, rel=0.1) or (epochs, iterations) == (1, 1)
        assert epochs <= 2 * btcv.EPOCHS
    whole = 500 * btcv.step_seconds(16.0, 5) * (1 + btcv.VALIDATING)  # of 100 such epochs
    assert whole == pytest.approx(100 * 16.0)


def test_contestants_are_added_to_one_table(root: Path, tmp_path: Path) -> None:
    asked = with_trunks(root)
    out, document = tmp_path / "btcv.json", tmp_path / "docs" / "btcv.md"
    first = btcv.measure(replace(asked, only=(NEW,)), out, document)
    assert list(first["contestants"]) == [NEW] and first["differences"] == {} and first["steps"] == []
    model = asked.work / "runs" / NEW / "model"
    before = Card.load(model)
    shutil.rmtree(model)  # as if it had been interrupted before its end
    result = btcv.measure(replace(asked, only=(NEW, OWN, "unet")), out, document)
    assert Card.load(model).sha256 == before.sha256 and result == json.loads(out.read_text())
    assert list(result["contestants"]) == [NEW, OWN, "unet"] and set(result["differences"]) == {NEW, "unet"}
    done = result["contestants"]
    for name, entry in result["differences"].items():
        assert entry["difference"] == pytest.approx(done[name]["dice"]["mean"] - done[OWN]["dice"]["mean"], abs=2e-4)
    assert [(step["from"], step["to"]) for step in result["steps"]] == [(NEW, OWN)]
    assert all(entry["minutes"] > 0 and entry["near"]["checked"] for entry in done.values())
    assert done[OWN]["organs"].keys() <= {"right kidney", "left kidney", "spleen"}
    assert result["published"]["models"]["MedDINOv3"] == pytest.approx(0.7879)
    text = document.read_text()
    assert "Not yet: random-last-32" in text and "At most 2 test slices" in text and "Not for equal time" in text
    assert f"| 85.51 | {OWN} |" in text and "| not run |" in text and f"| {NEW} | {OWN} |" in text


def test_other_settings_are_refused(root: Path, tmp_path: Path) -> None:
    asked = replace(with_trunks(root), work=tmp_path / "work")
    asked.work.mkdir()
    btcv.note(options(root, work=asked.work))
    btcv.note(asked)  # trunks may be added
    other = replace(asked, trunk=asked.stages[0], stages=())
    changes = ({"minutes": 1.0}, {"limit": None}, {"low": 16}, {"threads": 2}, {"unet": SpecialistRecipe()})
    for wrong in (other, *(replace(asked, **change) for change in changes)):
        with pytest.raises(InputError, match="Name another folder with --work"):
            btcv.note(wrong)
    with pytest.raises(InputError, match="is no encoder"):
        btcv.note(replace(asked, stages=(), trunk=Path("compact")))


@pytest.mark.slow
def test_nnunet_is_trained_for_the_time_and_asked(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2")
    asked = options(root, work=tmp_path / "work", minutes=0.2, only=("nnunet",))
    result = btcv.measure(asked, tmp_path / "a.json", tmp_path / "a.md")
    entry = result["contestants"]["nnunet"]
    length = json.loads((asked.work / "nnunet.json").read_text())
    assert entry["steps"] == length["epochs"] * length["iterations"] and entry["minutes"] > 0
    assert entry["dice"]["cases"] > 0 and entry["near"]["checked"] and not (asked.work / "nnunet-trial").exists()

"""Recipes of pretraining: the published values, and runs of three stages on tiny networks, to their end and resumed."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_pretrain import Drawn, tiny_recipe, tiny_stage

from lexitome.data.trained_on import TrainedOn
from lexitome.errors import InputError
from lexitome.models.dinov3.presets import build
from lexitome.models.dinov3.weights import load_dinov3, save_folder
from lexitome.recipes.overrides import override
from lexitome.recipes.pretrain import RECIPES, PretrainRecipe, trunk_decay
from lexitome.recipes.pretrain_run import PretrainJob, begin, network, run_stages, stored_config
from lexitome.training import checkpoint
from lexitome.training.optim import OptimConfig, param_groups
from lexitome.training.pretrain import Refresh


def silent(_: str) -> None:
    pass


# --- published values ---


def test_rates_of_the_published_runs() -> None:
    """Base rate x 4 x sqrt(batch / 1024)."""
    recipe = RECIPES["dinov3"]()
    assert [stage.lr for stage in recipe.stages.values()] == pytest.approx([4e-4, 2.4e-4, 1.25e-5 * 5.657], rel=1e-3)
    assert RECIPES["dinov3-in1k"]().stage1.lr == pytest.approx(5.657e-3, rel=1e-3)
    med = RECIPES["meddinov3"]()
    assert [stage.lr for stage in med.stages.values()] == [2e-4, 5e-5, 2.5e-5]
    assert [(stage.steps, stage.images) for stage in med.stages.values()] == [
        (100_000, 512),
        (10_000, 512),
        (10_000, 512),
    ]
    assert med.intensity == "hu_meddino" and med.start == "dinov3-b"


def test_schedules_of_the_7b_run() -> None:
    recipe = RECIPES["dinov3"]()
    first, gram, high = recipe.stages.values()
    assert first.applied.warmup == 100_000 and high.applied.warmup == 10_000 and gram.applied.warmup == 0
    assert dict(first.applied.held) == {f"student.{head}.last_layer.*": 5000 for head in ("dino", "ibot")}
    assert [s.objective.gram.at(0, s.steps) for s in (first, gram, high)] == [0, 2, 1.5]
    assert [s.objective.local.at(0, s.steps) for s in (first, gram, high)] == [1, 0.5, 0.5]
    assert first.objective.teacher_temperature.at(50_000, first.steps) == pytest.approx(0.055)
    assert high.crops.gram_sides == (768, 1152, 1152, 1152, 1152) and sum(high.crops.chances) == pytest.approx(1)
    assert recipe.run_of(high).clip == 30 and recipe.run_of(first).ema is None


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json_and_finds_its_parameters(name: str, tmp_path: Path) -> None:
    """Globs and patterns of rates fit the network, here a tiny one of the same names."""
    recipe = RECIPES[name]()
    PretrainJob(recipe, ("data",)).save(tmp_path)
    assert PretrainJob.load(tmp_path) == PretrainJob(recipe, ("data",))
    tiny = replace(recipe, start="random:tiny", dino=tiny_recipe().dino, ibot=tiny_recipe().ibot)
    for stage in recipe.stages.values():
        net = network(tiny, stage, build("tiny", 0).config)
        groups = param_groups(net, stage.applied)
        names = {n for group in groups for n in group["names"]}
        assert names and all(n.startswith("student.") for n in names)
        held = {n for group in groups if group["held"] for n in group["names"]}
        assert held == ({"student.dino.last_layer.weight", "student.ibot.last_layer.weight"} if stage.hold else set())


def test_layer_decay_and_the_rate_of_patches() -> None:
    """Four blocks at 0.9: 0.9 for the last, 0.9 ** 5 below the first; patches a fifth of that; norm and heads 1."""
    stage = replace(tiny_stage(), optim=OptimConfig(1.0, layer_decay=trunk_decay(0.9)), patch_rate=0.2)
    net = network(tiny_recipe(stage), stage, build("tiny", 0).config)
    rate = {n: group["base_lr"] for group in param_groups(net, stage.applied) for n in group["names"]}
    trunk = "student.backbone.model."
    assert rate[f"{trunk}model.layer.3.mlp.up_proj.weight"] == pytest.approx(0.9)
    assert rate[f"{trunk}model.layer.0.mlp.up_proj.weight"] == pytest.approx(0.9**4)
    assert rate[f"{trunk}embeddings.cls_token"] == pytest.approx(0.9**5)
    assert rate[f"{trunk}embeddings.patch_embeddings.weight"] == pytest.approx(0.2 * 0.9**5)
    assert rate[f"{trunk}norm.weight"] == rate["student.dino.mlp.0.weight"] == 1


def test_settings_reach_every_level() -> None:
    recipe = override(RECIPES["mini"](), [
        "stage1.steps=50", "stage1.objective.momentum.first=0.9", "stage2.steps=0",
        "stage3.crops.global_sides=64,96,96", "dino.prototypes=256", "run.precision=fp32", "start=random:tiny",
    ])  # fmt: skip
    assert list(recipe.stages) == ["stage1", "stage3"] and recipe.stage1.applied.warmup == 5
    assert recipe.stage3.crops.global_sides == (64, 96, 96) and recipe.preset == "tiny"


@pytest.mark.parametrize(
    ("setting", "word"),
    [("run.accumulate=2", "Sinkhorn"), ("run.steps=7", "stage1.steps"), ("start=random:huge", "tiny"),
     ("stage2.crops.gram_sides=", "gram_sides"), ("stage1.images=1", "images"), ("stage3.crops.chances=1", "chances")],
)  # fmt: skip
def test_settings_that_cannot_work(setting: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        override(RECIPES["mini"](), [setting]).check()


def test_at_least_one_stage() -> None:
    with pytest.raises(InputError, match="no stage"):
        override(RECIPES["mini"](), ["stage1.steps=0", "stage2.steps=0", "stage3.steps=0"]).check()


# --- runs ---


def three_stages() -> PretrainRecipe:
    stage1, gram = tiny_stage(2, 4), tiny_stage(2, 4, gram=1.0)
    gram = replace(gram, objective=replace(gram.objective, refresh=Refresh(0.5, 1.0, 1)))
    high = replace(gram.crops, global_sides=(48,), gram_sides=(64,))
    stage3 = replace(tiny_stage(2, 4, gram=1.0), crops=high, student_from="teacher")
    return tiny_recipe(stage1, stage2=gram, stage3=stage3)


def run(recipe: PretrainRecipe, folder: Path) -> dict[str, dict[str, float]]:
    job, weights = begin(PretrainJob(recipe, ("data",)), folder, silent)
    job.save(folder)
    return run_stages(job, [Drawn()], folder, silent, weights)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(three_stages(), folder).keys() == {"stage1", "stage2", "stage3"}
    return folder


def states(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / stage / "checkpoints" / "last" / "model.safetensors")


def test_every_stage_leaves_a_teacher_that_loads(done: Path) -> None:
    shown = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    maps = []
    for name in ("stage1", "stage2", "stage3"):
        loaded = load_dinov3(done / name / "model")
        assert loaded.intensity == "imagenet" and not loaded.dropped and loaded.net.dim == 64
        assert loaded.net.config.pos_embed_rescale is None, "positions were augmented for the student alone"
        stored = {
            n.removeprefix("teacher.backbone."): v for n, v in states(done, name).items() if "teacher.backbone" in n
        }
        assert all(torch.equal(value, stored[key]) for key, value in loaded.net.state_dict().items())
        maps.append(loaded.net.features(shown).patches)
        assert TrainedOn.of_model(done / name / "model") is not None
    assert not torch.allclose(maps[0], maps[1]) and not torch.allclose(maps[1], maps[2])
    assert torch.equal(load_dinov3(done / "model").net.features(shown).patches, maps[2])
    about = load_dinov3(done / "model").about
    assert about["stage"] == "stage3" and about["licence"].startswith("commercial use permitted")


def test_stages_begin_where_the_one_before_ended(done: Path, tmp_path: Path) -> None:
    """Stop each stage before its first step: the state at step 0 is that of `hand_over`."""
    for name, student, origin in (("stage2", "student", "teacher"), ("stage3", "teacher", "teacher")):
        before = states(done, {"stage2": "stage1", "stage3": "stage2"}[name])
        folder = tmp_path / name
        shutil.copytree(done, folder)
        shutil.rmtree(folder / name)
        recipe = three_stages()
        net = network(recipe, recipe.stages[name], stored_config(folder))
        from lexitome.recipes.pretrain_run import _take_over

        _take_over(net, recipe.stages[name], folder / {"stage2": "stage1", "stage3": "stage2"}[name])
        state = checkpoint.model_tensors(net)
        key = "backbone.model.embeddings.cls_token"
        assert torch.equal(state[f"student.{key}"], before[f"{student}.{key}"])
        assert torch.equal(state[f"teacher.{key}"], before[f"teacher.{key}"])
        assert torch.equal(state["gram.model.embeddings.cls_token"], before[f"{origin}.{key}"])
        assert torch.equal(state["student.dino.last_layer.weight"], before[f"{student}.dino.last_layer.weight"])


def test_a_run_goes_on_with_the_stage_that_is_not_done(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    shutil.rmtree(folder / "stage3")
    shutil.rmtree(folder / "stage2" / "model")  # killed after the last step of stage 2, before its export
    first = (folder / "stage1" / "model" / "model.safetensors").stat().st_mtime_ns
    job = PretrainJob.load(folder)
    run_stages(job, [Drawn()], folder, silent)
    assert (folder / "stage1" / "model" / "model.safetensors").stat().st_mtime_ns == first
    for name in ("stage2", "stage3"):
        one, other = states(done, name), states(folder, name)
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_resumed_run_refuses_other_pictures(done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    shutil.rmtree(folder / "stage3" / "model")
    with pytest.raises(InputError, match="pictures"):
        run_stages(PretrainJob.load(folder), [Drawn(pictures=32)], folder, silent)


def test_a_run_goes_on_from_given_weights(tmp_path: Path) -> None:
    """Student and teacher begin with them, and so does the Gram teacher of a run that begins with stage 2."""
    start = build("tiny", 5)
    save_folder(start, tmp_path / "weights", intensity="imagenet", about={"licence": "theirs"})
    stage2 = replace(tiny_stage(1, 4, gram=1.0), optim=OptimConfig(1e-12))
    recipe = replace(tiny_recipe(tiny_stage(0), stage2=stage2), start=str(tmp_path / "weights"))
    run(replace(recipe, rescale=None), tmp_path / "run")
    found = states(tmp_path / "run", "stage2")
    for name, value in start.state_dict().items():
        for prefix in ("student.backbone", "teacher.backbone", "gram"):
            torch.testing.assert_close(found[f"{prefix}.{name}"], value, atol=1e-6, rtol=1e-5)
    assert load_dinov3(tmp_path / "run" / "model").licence.startswith("theirs; ")
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["start"]["sha256"]


def test_a_gram_teacher_of_the_way_has_to_be_kept(tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_stage(1, 4), stage2=replace(tiny_stage(1, 4, gram=1.0), gram_from="gram"))
    with pytest.raises(InputError, match=r"refresh"):
        run(recipe, tmp_path)

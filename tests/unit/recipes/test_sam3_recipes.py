"""Recipes of SAM3 hold the published values; a run of one leaves what can be loaded, continued and compared."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Sam3Model

from lexitome.cli.train_sam3 import NAMES
from lexitome.data.sources.find import find_sets
from lexitome.data.trained_on import TrainedOn
from lexitome.errors import InputError
from lexitome.losses.set_prediction import MEDICAL_SAM3, MEDICAL_SAM3_MASKS, SAM3_SEGMENTATION
from lexitome.models.sam3 import lora
from lexitome.models.sam3.lora import Lora
from lexitome.models.sam3.network import Sam3Net
from lexitome.models.sam3.presets import build, config_of
from lexitome.models.sam3.settings import Settings
from lexitome.models.sam3.weights import load_sam3
from lexitome.recipes import sam3_run
from lexitome.recipes.overrides import override
from lexitome.recipes.sam3 import RECIPES, Sam3Recipe, from_scratch, medical_sam3, sam3, small_sam3
from lexitome.recipes.sam3_run import Sam3Job
from lexitome.training.engine import RunConfig
from lexitome.training.optim import apply_freeze, param_groups
from lexitome.training.sam3 import Sam3Sampling

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import write_sets


def silent(line: str) -> None:
    pass


def rates(recipe: Sam3Recipe, model: torch.nn.Module) -> dict[str, float]:
    """Learning rate by parameter."""
    apply_freeze(model, recipe.applied.freeze)
    return {name: group["lr"] for group in param_groups(model, recipe.applied) for name in group["names"]}


@pytest.fixture(scope="module")
def full() -> torch.nn.Module:
    """The released size, without memory."""
    with torch.device("meta"):
        return Sam3Net(Sam3Model(config_of("full")))


def fresh(model: torch.nn.Module) -> torch.nn.Module:
    return model.requires_grad_(True)


def test_the_command_line_knows_every_recipe() -> None:
    assert tuple(RECIPES) == NAMES


def test_rates_of_medical_sam3_are_the_published_ones(full: torch.nn.Module) -> None:
    found = rates(medical_sam3(), fresh(full))
    for part in ("detr_decoder.query_embed", "mask_decoder.semantic_projection", "dot_product_scoring.text_proj"):
        assert found[f"model.{part}.weight"] == 3e-4 == found["model.detr_encoder.layers.0.mlp.fc1.bias"]
    assert found["model.text_projection.weight"] == 5e-5 == found["model.vision_encoder.neck.fpn_layers.0.proj1.weight"]
    assert found["model.geometry_encoder.cls_embed.weight"] == 1e-4
    patch = "model.vision_encoder.backbone.embeddings.patch_embeddings.projection.weight"
    assert found[patch] == pytest.approx(5e-5 * 0.0047, rel=1e-2)
    twelve = override(medical_sam3(), ["optim.layer_decay.depth=12"])
    assert rates(twelve, fresh(full))[patch] == pytest.approx(5e-5 * 0.142, rel=1e-2)


def test_rates_of_sam3_are_metas(full: torch.nn.Module) -> None:
    found = rates(sam3(), fresh(full))
    assert found["model.detr_decoder.query_embed.weight"] == 8e-5 == found["model.geometry_encoder.cls_embed.weight"]
    assert found["model.text_projection.weight"] == 5e-6
    assert found["model.vision_encoder.backbone.layers.31.mlp.fc1.weight"] == pytest.approx(2.5e-5 * 0.9)
    assert sam3().run.clip == 0.1 and sam3().epochs == 20 and sam3().wanted == SAM3_SEGMENTATION


def test_the_loss_of_instance_masks_can_be_left_out() -> None:
    assert medical_sam3().wanted == MEDICAL_SAM3_MASKS
    assert override(medical_sam3(), ["instance_masks=false"]).wanted == MEDICAL_SAM3


def test_what_is_tuned(full: torch.nn.Module) -> None:
    decoder = rates(override(medical_sam3(), ["tune=decoder"]), fresh(full))
    assert decoder and not [
        n for n in decoder if n.split(".")[1] in ("vision_encoder", "text_encoder", "text_projection")
    ]
    words = rates(override(medical_sam3(), ["frozen_text=true"]), fresh(full))
    assert not [n for n in words if n.startswith(("model.text_encoder", "model.text_projection"))]
    assert [n for n in words if "vision_encoder" in n]
    adapters = override(medical_sam3(), ["tune=lora", "optim.lr=1e-4"]).applied
    assert adapters.groups == () and adapters.layer_decay is None and adapters.lr == 1e-4


def test_random_weights_learn_everywhere() -> None:
    model = build(config_of("tiny"), 0)
    assert set(rates(small_sam3(), model).values()) == {small_sam3().optim.lr}
    assert set(rates(from_scratch(medical_sam3()), model)) == {name for name, _ in model.named_parameters()}
    assert small_sam3().wanted == medical_sam3().wanted


def test_steps_follow_from_epochs() -> None:
    recipe = override(medical_sam3(), ["sampling.images=4"]).settled(10)
    assert recipe.run.steps == 25 and recipe.run.validate_every == 3 and recipe.epochs == 0
    assert recipe.settled(1000) == recipe and small_sam3().settled(10) == small_sam3()


@pytest.mark.parametrize("setting", ["queries=0", "epochs=-1", "vocabulary=10", "sampling.images=0", "lora.rank=0"])
def test_impossible_values_are_refused(setting: str) -> None:
    with pytest.raises(InputError):
        override(medical_sam3(), [setting])


@pytest.mark.parametrize("name", NAMES)
def test_a_job_is_stored_and_read_again(name: str, tmp_path: Path) -> None:
    job = Sam3Job(
        RECIPES[name](),
        ("/a",),
        "polyp",
        None,
        sam3_run.Sam3Start(Settings(windows={"liver": (-10.0, 20.0)}), "CC0", "12"),
    )
    job.save(tmp_path)
    assert Sam3Job.load(tmp_path) == job


def test_a_start_that_is_not_there_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEXITOME_WEIGHTS", raising=False)
    with pytest.raises(InputError, match="random:small"):
        sam3_run.check_start(replace(small_sam3(), start="random:huge"))
    with pytest.raises(InputError, match="huggingface"):
        sam3_run.check_start(medical_sam3())


def run_of(recipe: Sam3Recipe, data: Path, folder: Path) -> None:
    """As the command line does it."""
    datasets = find_sets([data])
    job = Sam3Job(recipe, (str(data),))
    source = sam3_run.open_source(job, datasets, data.parent / "cache", silent)
    ready = sam3_run.begin(recipe, source, folder)
    job = replace(job, start=ready.start)
    job.save(folder)
    sam3_run.train(job, source, ready, folder, again=False)
    sam3_run.export(job, source, folder)


TINY = replace(
    small_sam3(), name="tiny", start="random:tiny", vocabulary=700, sampling=Sam3Sampling(side=64, images=2),
    run=RunConfig(steps=2, precision="fp32", ema=None, threads=1), queries=2, validated=1,
)  # fmt: skip


@pytest.mark.slow
def test_a_run_leaves_the_model_before_and_after_and_can_be_built_upon(tmp_path: Path) -> None:
    data = write_sets(tmp_path / "sets", 6)
    run_of(TINY, data, tmp_path / "first")
    before, after = (load_sam3(tmp_path / "first" / name) for name in ("start", "model"))
    assert Settings.read(after.settings).trained["left kidney"] == "left kidney"
    assert Settings.read(after.settings).trained_on == ("btcv_abdomen_ct2d", "kvasir_seg")
    assert TrainedOn.of_model(tmp_path / "first" / "model") is not None
    changed = [n for n, v in before.net.state_dict().items() if not torch.equal(v, after.net.state_dict()[n])]
    assert len(changed) > 100

    upon = replace(TINY, start=str(tmp_path / "first" / "model"), tune="lora", lora=Lora(rank=2), name="upon")
    run_of(upon, data, tmp_path / "second")
    merged = load_sam3(tmp_path / "second" / "model")
    delta = load_file(tmp_path / "second" / "adapter" / lora.WEIGHTS)
    weights = after.net.state_dict()
    moved = {n for n, v in merged.net.state_dict().items() if not torch.allclose(v, weights[n], atol=0, rtol=0)}
    assert moved and moved <= {n.rpartition(".lora_")[0] + ".weight" for n in delta}
    assert not (tmp_path / "second" / "start" / "model.safetensors").exists()

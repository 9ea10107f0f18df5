"""Weights of DINOv3 in every layout they come in: loaded whole, compared with their network, refused if broken."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import DINOv3ViTModel  # noqa: E402
from transformers.initialization import no_init_weights  # noqa: E402

from lexitome.errors import InputError  # noqa: E402
from lexitome.models.dinov3.backbone import Dinov3  # noqa: E402
from lexitome.models.dinov3.conversion import to_layout, to_ours  # noqa: E402
from lexitome.models.dinov3.names import LAYOUTS, Layout  # noqa: E402
from lexitome.models.dinov3.presets import PRESETS, SPECS, Preset, Spec, build, config_of, of_spec  # noqa: E402
from lexitome.models.dinov3.weights import (  # noqa: E402
    Loaded,
    inferred_config,
    load_dinov3,
    save_folder,
    save_teacher,
)
from lexitome.models.foundation import DINO_LICENCE, FOUNDATION, WEIGHTS_FOLDER, kind_of  # noqa: E402

HEADS = {
    f"{head}_head.{layer}.weight": torch.ones(2, 2)
    for head in ("dino", "ibot") for layer in ("mlp.0", "mlp.2", "mlp.4", "last_layer")
}  # fmt: skip


def random_net(spec: Spec, seed: int = 1, *, registers: int = 4, key_bias: bool = False) -> Dinov3:
    """No two tensors alike, none so small that its place would not matter."""
    config = of_spec(spec, registers=registers)
    config.key_bias = key_bias
    made = build(config, 0).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            near = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(near + 0.2 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def net() -> Dinov3:
    return random_net(Spec(64, 3, 2, 96))


def answers(net: Dinov3) -> tuple[Tensor, ...]:
    images = torch.randn(2, 3, 50, 71, generator=torch.Generator().manual_seed(2))
    masks = torch.rand(2, 20, generator=torch.Generator().manual_seed(3)) < 0.4
    with torch.inference_mode():
        return (*net.features(images, masks), *net.taps(images, range(net.depth)))


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def fits(loaded: Loaded, net: Dinov3) -> None:
    same(loaded.net.state_dict(), net.state_dict())
    same(dict(loaded.net.named_buffers()), dict(net.named_buffers()))
    for mine, theirs in zip(answers(loaded.net), answers(net), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert not any(module.training for module in loaded.net.modules())
    assert all(each.requires_grad for each in loaded.net.parameters())


def official(net: Dinov3) -> dict[str, Tensor]:
    return to_layout(net.model.state_dict(), "original", 32)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "swiglu"])
@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each != "timm"])
def test_every_layout_that_holds_all(tmp_path: Path, layout: Layout, gated: bool, ending: str) -> None:
    net = random_net(Spec(64, 2, 2, 96, gated))
    state = to_layout(net.model.state_dict(), layout, 32)
    path = tmp_path / f"weights{ending}"
    (save_file if ending == ".safetensors" else torch.save)({n: v.contiguous() for n, v in state.items()}, path)
    if layout != "original":  # which tells the number of heads itself
        (tmp_path / "config.json").write_text(net.config.to_json_string(use_diff=False))
    loaded = load_dinov3(path)
    fits(loaded, net)
    assert loaded.intensity == "imagenet" and loaded.licence == DINO_LICENCE and loaded.made == ()
    assert kind_of(path) == "dinov3"
    if layout == "original":
        assert loaded.note == "left out: attn.qkv.bias_mask (2), rope_embed.periods"
    else:
        assert loaded.dropped == () and loaded.note == ""


@pytest.mark.parametrize(
    ("name", "biased"), [("vit_small_patch16_dinov3", False), ("vit_small_plus_patch16_dinov3", True)]
)
def test_timm_s_own_weights(tmp_path: Path, name: str, biased: bool) -> None:
    """A network of timm's with its classifier on top."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name + "_qkvb" * biased, embed_dim=128, num_heads=2, depth=2, num_classes=7).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    (tmp_path / "m").mkdir()
    save_file(theirs.state_dict(), tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text('{"architecture": "vit_small_patch16_dinov3"}')  # as timm writes it
    loaded = load_dinov3(tmp_path / "m")
    assert set(loaded.dropped) == {"head.weight", "head.bias"} and loaded.made == ("embeddings.mask_token",)
    assert loaded.note == "left out: head (2); zero, since the file has none: embeddings.mask_token"
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected, found = theirs.forward_features(images), loaded.net(images)
    mine = torch.cat([found.cls[:, None], found.registers, found.patches.flatten(1, 2)], 1)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
    # and back, strictly
    back = to_layout({n: v for n, v in loaded.net.model.state_dict().items()}, "timm", 64)
    same(back, {n: v for n, v in theirs.state_dict().items() if not n.startswith("head.")})


@pytest.mark.parametrize("wrapped", ["teacher key", "teacher prefix", "backbone", "trainer", "module", "compiled"])
def test_official_files_in_every_wrapping(net: Dinov3, tmp_path: Path, wrapped: str) -> None:
    bare = official(net)
    backbone = {f"backbone.{name}": value for name, value in bare.items()}
    other = {f"student.{name}": value + 1 for name, value in backbone.items()}
    state = {
        "teacher key": {"teacher": backbone | HEADS, "optimizer": {"state": {0: {"step": 3}}}},
        "teacher prefix": {f"teacher.{n}": v for n, v in (backbone | HEADS).items()} | other,
        "backbone": backbone | HEADS,
        "trainer": {"model": {f"teacher.{n}": v for n, v in backbone.items()} | other, "iteration": 7},
        "module": {f"module.{name}": value for name, value in backbone.items()},
        "compiled": {"state_dict": {n.replace("blocks.1.", "blocks.1._orig_mod."): v for n, v in bare.items()}},
    }[wrapped]
    torch.save(state, tmp_path / "checkpoint.pth")
    assert kind_of(tmp_path / "checkpoint.pth") == "dinov3"
    loaded = load_dinov3(tmp_path / "checkpoint.pth")
    fits(loaded, net)
    heads = {name for name in loaded.dropped if "_head." in name}
    assert len(heads) == (8 if wrapped in ("teacher key", "teacher prefix", "backbone") else 0)
    if wrapped == "teacher key":
        assert heads == HEADS.keys() and "dino_head (4), ibot_head (4)" in loaded.note
    assert any(name.startswith("student.") for name in loaded.dropped) == (wrapped in ("teacher prefix", "trainer"))


def test_biases_of_keys_that_are_masked_are_left_out(net: Dinov3, tmp_path: Path) -> None:
    """The official layer multiplies them by 0, whatever they are."""
    state = official(net)
    for name in [each for each in state if each.endswith("qkv.bias")]:
        state[name][64:128] = 7.0
    torch.save(state, tmp_path / "a.pth")
    fits(load_dinov3(tmp_path / "a.pth"), net)


def test_biases_of_keys_that_are_used_stay(tmp_path: Path) -> None:
    """Rotated by position, they are not a constant of the softmax."""
    net = random_net(Spec(64, 2, 2, 96), key_bias=True)
    state = official(net)
    assert not any(name.endswith("bias_mask") for name in state)
    torch.save(state, tmp_path / "a.pth")
    loaded = load_dinov3(tmp_path / "a.pth")
    fits(loaded, net)
    without = copy.deepcopy(loaded.net)
    with torch.no_grad():
        for block in without.blocks:
            block.attention.k_proj.bias.zero_()
    assert (answers(without)[2] - answers(net)[2]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no biases of keys"):
        to_layout(net.model.state_dict(), "timm", 32)


def test_an_official_file_of_later_code_without_masks(net: Dinov3, tmp_path: Path) -> None:
    torch.save({n: v for n, v in official(net).items() if not n.endswith("bias_mask")}, tmp_path / "a.pth")
    fits(load_dinov3(tmp_path / "a.pth"), net)


def test_without_registers(tmp_path: Path) -> None:
    net = random_net(Spec(64, 2, 2, 96), registers=0)
    state = official(net)
    assert "storage_tokens" not in state
    torch.save(state, tmp_path / "a.pth")
    fits(load_dinov3(tmp_path / "a.pth"), net)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("layout", ["original", "timm"])
def test_configurations_are_told_from_shapes(name: Preset, layout: Layout) -> None:
    """Of full size, without memory. timm's files of B without biases are not MedDINOv3's, which differs by epsilon."""
    config = config_of(name)
    with torch.device("meta"), no_init_weights():
        model = DINOv3ViTModel(config)
    state = to_layout(dict(model.state_dict()), layout, config.hidden_size // config.num_attention_heads)
    state = {n: torch.ones(v.shape) if n.endswith("bias_mask") else v for n, v in state.items()}
    for mask in (value for n, value in state.items() if n.endswith("bias_mask")):
        mask[len(mask) // 3 : 2 * len(mask) // 3] = 0
    found = inferred_config(to_ours(state)).to_dict()
    different = {key for key, value in config.to_dict().items() if found[key] != value}
    assert different <= {"layerscale_value"} | ({"layer_norm_eps"} if layout == "timm" and "med" in name else set())


@pytest.mark.parametrize("size", ["tiny", pytest.param("full", marks=pytest.mark.slow)])
def test_meddinov3_is_known_by_its_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """Its released file: `teacher`, `backbone.`, heads, no biases, no masks. Full size is 340 MB."""
    if size == "tiny":
        monkeypatch.setitem(SPECS, "meddinov3_b", Spec(128, 2, 2, 256, biased=False, eps=1e-6))
    net = build("meddinov3_b", 0).eval()
    state = to_layout(net.model.state_dict(), "original", 64)
    assert not any("qkv.bias" in name for name in state)
    torch.save({"teacher": {f"backbone.{n}": v for n, v in state.items()} | HEADS}, tmp_path / "meddinov3-b.pth")
    monkeypatch.setenv(WEIGHTS_FOLDER, str(tmp_path))
    loaded = load_dinov3("meddinov3-b")
    assert loaded.intensity == "hu_meddino" and loaded.licence == FOUNDATION["meddinov3-b"].licence == "Apache-2.0"
    assert loaded.net.config.layer_norm_eps == loaded.net.model.norm.eps == 1e-6
    assert {name.split(".")[0] for name in loaded.dropped} == {"dino_head", "ibot_head", "backbone"}
    assert loaded.note == "left out: dino_head (4), ibot_head (4), rope_embed.periods"
    same(loaded.net.state_dict(), net.state_dict())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(LAYOUTS), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 5))
def test_there_and_back(layout: Layout, depth: int, gated: bool, biased: bool, registers: int) -> None:
    net = random_net(Spec(16, depth, 2, 24, gated, biased), registers=registers)
    state = {name: value for name, value in net.model.state_dict().items()}
    converted = to_ours(to_layout(state, layout, 8))
    if layout == "timm":
        state["embeddings.mask_token"] = torch.zeros(1, 1, 16)
    same(converted.tensors, state)
    assert converted.head_dim == (8 if layout == "original" else None)


def test_folders_are_read_by_transformers_and_by_us(net: Dinov3, tmp_path: Path) -> None:
    save_folder(net, tmp_path / "m", intensity="hu_meddino", about={"licence": "CC BY 4.0", "stage": 2})
    theirs, said = DINOv3ViTModel.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    same(theirs.state_dict(), net.model.state_dict())
    theirs.save_pretrained(tmp_path / "again")
    for folder, intensity, licence in (("m", "hu_meddino", "CC BY 4.0"), ("again", "imagenet", DINO_LICENCE)):
        loaded = load_dinov3(tmp_path / folder)
        fits(loaded, net)
        assert (loaded.intensity, loaded.licence) == (intensity, licence)
        assert kind_of(tmp_path / folder) == "dinov3"
    loaded = load_dinov3(tmp_path / "m")
    assert loaded.about == {"licence": "CC BY 4.0", "stage": 2, "intensity": "hu_meddino"}
    content = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert loaded.sha256 == hashlib.sha256(content).hexdigest()
    assert {path.name for path in tmp_path.iterdir()} == {"m", "again"}  # nothing temporary is left


def test_teachers_are_written_as_official_training_does(net: Dinov3, tmp_path: Path) -> None:
    save_teacher(net, tmp_path / "teacher.pth", intensity="zscore", heads=HEADS, about={"licence": "mine"})
    stored = torch.load(tmp_path / "teacher.pth", weights_only=True)["teacher"]
    same({n.removeprefix("backbone."): v for n, v in stored.items() if n not in HEADS}, official(net))
    loaded = load_dinov3(tmp_path / "teacher.pth")
    fits(loaded, net)
    assert (loaded.intensity, loaded.licence) == ("zscore", "mine")
    assert loaded.dropped[-8:] == tuple(HEADS)


def test_nothing_random_is_left_of_a_stored_configuration(net: Dinov3, tmp_path: Path) -> None:
    """Configurations on the Hub have `pos_embed_rescale` 2: positions that are drawn at random in training."""
    save_folder(net, tmp_path / "m", intensity="imagenet")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"pos_embed_rescale": 2.0, "pos_embed_jitter": 1.2, "drop_path_rate": 0.3}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    loaded = load_dinov3(tmp_path / "m").net.train()
    for mine, theirs in zip(answers(loaded), answers(net), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_saving_over_the_file_that_is_mapped(net: Dinov3, tmp_path: Path) -> None:
    save_folder(net, tmp_path / "m", intensity="imagenet")
    loaded = load_dinov3(tmp_path / "m")
    with torch.no_grad():
        loaded.net.model.norm.bias.add_(1)
    save_folder(loaded.net, tmp_path / "m", intensity="zscore")
    again = load_dinov3(tmp_path / "m")
    same(again.net.state_dict(), loaded.net.state_dict())
    assert again.intensity == "zscore"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something other than a model"):
        save_folder(net, tmp_path / "other", intensity="imagenet")


def test_bfloat16_rounds_the_weights_and_not_the_positions(net: Dinov3, tmp_path: Path) -> None:
    save_folder(net, tmp_path / "m", intensity="imagenet")
    half = load_dinov3(tmp_path / "m", dtype=torch.bfloat16).net
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    same(dict(half.named_buffers()), dict(net.named_buffers()))


def test_loaded_weights_can_be_trained_and_the_file_stays(net: Dinov3, tmp_path: Path) -> None:
    torch.save(official(net), tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    mine = load_dinov3(tmp_path / "a.pth").net.train()
    optimizer = torch.optim.SGD(mine.parameters(), 0.1)
    mine.features(torch.randn(2, 3, 32, 32)).cls.square().sum().backward()
    optimizer.step()
    assert not torch.equal(mine.blocks[0].attention.k_proj.weight, net.blocks[0].attention.k_proj.weight)
    assert (tmp_path / "a.pth").read_bytes() == before


def refused(path: Path | str, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        load_dinov3(path)
    said = str(caught.value)
    assert str(path) in said and "\n" not in said
    for word in words:
        assert word in said, said
    return said


def stored(state: Mapping[str, object], folder: Path) -> Path:
    torch.save(dict(state), folder / "bad.pth")
    return folder / "bad.pth"


@pytest.mark.parametrize("name", [name for name, model in FOUNDATION.items() if model.kind == "dinov3"])
def test_missing_weights_say_what_to_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_FOLDER, raising=False)
    try:
        refused(name, "not on this machine", "hf download", FOUNDATION[name].licence)
    except pytest.fail.Exception:
        pytest.skip("these weights are on this machine")


@pytest.mark.parametrize("typed", ["sam3", "no/such", "dinov4"])
def test_what_is_no_dinov3(typed: str) -> None:
    refused(typed, "dinov3-s, dinov3-s-plus", "meddinov3-b")


def test_missing_tensors_are_named(net: Dinov3, tmp_path: Path) -> None:
    state = {name: value for name, value in official(net).items() if ".norm2." not in name}
    said = refused(stored(state, tmp_path), "6 tensors are missing", "model.layer.0.norm2.bias", "huggingface.co")
    assert said.count("norm2.") == 6


def test_a_missing_block_is_missing(net: Dinov3, tmp_path: Path) -> None:
    state = {name: value for name, value in official(net).items() if not name.startswith("blocks.1.")}
    refused(stored(state, tmp_path), "tensors are missing: model.layer.1.")


def test_tensors_without_a_place_are_named(net: Dinov3, tmp_path: Path) -> None:
    """Positions of DINOv2, and of a fine-tuned network what it would compute with."""
    refused(stored(official(net) | {"pos_embed": torch.zeros(1, 17, 64)}, tmp_path), "no place: pos_embed")
    lora = {"blocks.0.attn.qkv.lora_A": torch.zeros(2, 64)}
    refused(stored(official(net) | lora, tmp_path), "1 tensors have no place", "lora_A")


def test_tensors_of_another_size_are_named(net: Dinov3, tmp_path: Path) -> None:
    wrong = {"blocks.2.norm1.bias": torch.zeros(9)}
    refused(stored(official(net) | wrong, tmp_path), "another size", "model.layer.2.norm1.bias (9,) instead of (64,)")
    undivided = {"blocks.2.attn.qkv.weight": torch.zeros(191, 64)}
    refused(stored(official(net) | undivided, tmp_path), "cannot be split in 3")
    flat = {"patch_embed.proj.weight": torch.zeros(64)}
    refused(stored(official(net) | flat, tmp_path), "patch_embeddings.weight has the shape (64,), not 4 axes")


@pytest.mark.parametrize("gone", ["patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "mask_token"])
def test_a_single_missing_tensor(net: Dinov3, tmp_path: Path, gone: str) -> None:
    refused(stored({n: v for n, v in official(net).items() if n != gone}, tmp_path), "missing")


def test_a_mask_that_is_another_one(net: Dinov3, tmp_path: Path) -> None:
    """NaN is what the official code puts there before it makes its masks."""
    for mask in (torch.ones(192), torch.full((192,), float("nan"))):
        state = official(net) | {"blocks.1.attn.qkv.bias_mask": mask}
        refused(stored(state, tmp_path), "blocks.1.attn.qkv.bias_mask is not 1 for queries")


def test_positions_of_another_period(net: Dinov3, tmp_path: Path) -> None:
    state = official(net)
    state["rope_embed.periods"] = 10000.0 ** (torch.arange(8) / 8)
    refused(stored(state, tmp_path), "other periods than those of 1 to 100")
    state["rope_embed.periods"] = official(net)["rope_embed.periods"].bfloat16()  # as the official class keeps them
    fits(load_dinov3(stored(state, tmp_path)), net)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(net: Dinov3, tmp_path: Path, value: float) -> None:
    state = official(net)
    state["blocks.1.ls1.gamma"] = torch.full((64,), value)
    refused(stored(state, tmp_path), "not finite", "model.layer.1.layer_scale1.lambda1", "earlier checkpoint")


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    refused(stored(nn.Linear(2, 2).state_dict(), tmp_path), "another model than DINOv3", "hf download")
    refused(stored({"epoch": 3}, tmp_path), "no tensors by name")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "sam3"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "m" / "model.safetensors")
    refused(tmp_path / "m", "'sam3', not DINOv3")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no weights")


def test_a_configuration_that_does_not_fit(net: Dinov3, tmp_path: Path) -> None:
    save_folder(net, tmp_path / "m", intensity="imagenet")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 4}))
    refused(tmp_path / "m", "tensors are missing", "config.json")
    path.write_text(json.dumps(config | {"hidden_size": "wide"}))
    refused(tmp_path / "m", "configuration that cannot be used")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_truncated_files(net: Dinov3, tmp_path: Path, share: float, ending: str) -> None:
    path = tmp_path / f"cut{ending}"
    (torch.save if ending == ".pth" else save_file)(dict(net.model.state_dict()), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    said = refused(path)
    assert "damaged or incomplete" in said or "cut short" in said
    assert kind_of(path) in ("sam3", "dinov3")


class Sly:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code has been run",))


def test_pickled_code_is_not_run(net: Dinov3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MedDINOv3's own demo loads with `weights_only=False`."""
    path = stored({"teacher": official(net), "extra": Sly()}, tmp_path)
    refused(path, "would run code", "print", "safetensors")
    assert kind_of(path) == "dinov3"
    assert "code has been run" not in capsys.readouterr().out


def test_a_file_in_two_wrappings_at_once(net: Dinov3, tmp_path: Path) -> None:
    state = official(net)
    refused(stored(state | {"module.cls_token": state["cls_token"]}, tmp_path), "some tensors twice")


def test_a_folder_of_several_parts(net: Dinov3, tmp_path: Path) -> None:
    save_folder(net, tmp_path / "m", intensity="imagenet")
    state = load_file(tmp_path / "m" / "model.safetensors")
    parts = {"one.safetensors": sorted(state)[::2], "two.safetensors": sorted(state)[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, tmp_path / "m" / file)
    (tmp_path / "m" / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    fits(load_dinov3(tmp_path / "m"), net)

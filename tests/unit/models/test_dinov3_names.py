"""Names of DINOv3's parameters in every layout, against timm's and transformers' own networks, there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexitome.models.dinov3.names import (
    LAYOUTS,
    Layout,
    may_be_left,
    recognise,
    summary,
    table,
    unwrapped,
)

BLOCK = {
    "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
    "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma",
}  # fmt: skip
OUTSIDE = {
    "cls_token", "storage_tokens", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight",
    "norm.bias",
}  # fmt: skip


@pytest.mark.parametrize(("gated", "layers"), [(False, ("fc1", "fc2")), (True, ("w1", "w2", "w3"))])
def test_the_official_layout_written_out(gated: bool, layers: tuple[str, ...]) -> None:
    """As facebookresearch/dinov3 names its parameters."""
    block = BLOCK | {f"mlp.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    expected = OUTSIDE | {f"blocks.{i}.{name}" for i in range(3) for name in block}
    assert table("original", 3, gated).keys() == expected


def test_where_values_of_the_official_layout_go() -> None:
    gated = table("original", 2, True)
    assert gated["storage_tokens"] == ("embeddings.register_tokens",)
    assert gated["blocks.1.attn.qkv.weight"] == tuple(f"model.layer.1.attention.{n}_proj.weight" for n in "qkv")
    assert gated["blocks.1.ls2.gamma"] == ("model.layer.1.layer_scale2.lambda1",)
    # SwiGLU: silu(w1 x) * w2 x, then w3
    feed = {name: gated[f"blocks.0.mlp.{name}.bias"][0].split(".")[-2] for name in ("w1", "w2", "w3")}
    assert feed == {"w1": "gate_proj", "w2": "up_proj", "w3": "down_proj"}


@pytest.mark.parametrize("gated", [False, True])
def test_ours_are_those_of_transformers(gated: bool) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from lexitome.models.dinov3.presets import Spec, build, of_spec

    config = of_spec(Spec(8, 3, 2, 16, gated))
    config.key_bias = True
    names = build(config, 0).model.state_dict().keys()
    assert table("transformers 5", 3, gated).keys() == names
    assert {name.removeprefix("model.") for name in names} == table("transformers 4", 3, gated).keys()


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"])
@pytest.mark.parametrize("biased", [False, True])
def test_timm_s_names_are_those_of_its_networks(name: str, biased: bool) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name + "_qkvb" * biased, embed_dim=64, num_heads=2, depth=2, num_classes=0)
    names = set(net.state_dict())
    known = table("timm", 2, "plus" in name)
    without = known.keys() if biased else {each for each in known if not each.endswith(("q_bias", "v_bias"))}
    assert names == without
    assert recognise(names).layout == "timm" and recognise(names).gated == ("plus" in name)


@given(st.sampled_from(LAYOUTS), st.integers(1, 40), st.booleans())
def test_there_and_back(layout: Layout, depth: int, gated: bool) -> None:
    """Every name of ours has one place, but for the mask token and the bias of keys, which timm has not."""
    theirs = table(layout, depth, gated)
    ours = [name for names in theirs.values() for name in names]
    assert len(set(ours)) == len(ours)
    lacking = table("transformers 5", depth, gated).keys() - set(ours)
    keys = {f"model.layer.{i}.attention.k_proj.bias" for i in range(depth)}
    assert lacking == ({"embeddings.mask_token"} | keys if layout == "timm" else set())
    found = recognise(theirs)
    assert (found.layout, found.prefix, found.depth, found.gated) == (layout, "", depth, gated)


@pytest.mark.parametrize("prefix", ["", "backbone.", "teacher.backbone.", "encoder.", "model_ema.backbone."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prefixes(layout: Layout, prefix: str) -> None:
    names = [prefix + name for name in table(layout, 2, False)]
    heads = ["dino_head.mlp.0.weight", "ibot_head.last_layer.weight"]
    found = recognise([*names, *heads])
    assert found.prefix == prefix and found.layout == layout


def test_of_student_and_teacher_the_teacher() -> None:
    names = [f"{who}.backbone.{name}" for who in ("student", "gram_teacher", "teacher") for name in OUTSIDE]
    names += [f"{who}.backbone.blocks.0.ls1.gamma" for who in ("student", "gram_teacher", "teacher")]
    assert recognise(names).prefix == "teacher.backbone."
    with pytest.raises(ValueError, match=r"several networks \(gram_teacher.backbone., student.backbone.\)"):
        recognise([name for name in names if not name.startswith("teacher.")])


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["conv1.weight", "layer1.0.bn1.weight"],
        ["cls_token", "pos_embed", "blocks.0.attn.qkv.weight"],  # a plain vision transformer
        ["embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1"],  # DINOv2 of transformers
    ],
)
def test_other_models(names: list[str]) -> None:
    with pytest.raises(ValueError, match="another model than DINOv3"):
        recognise(names)


def test_wrappings_of_training() -> None:
    assert unwrapped("module.backbone.blocks.3._checkpoint_wrapped_module.ls1.gamma") == "backbone.blocks.3.ls1.gamma"
    assert unwrapped("_orig_mod._fsdp_wrapped_module.norm.weight") == "norm.weight"
    assert unwrapped("submodule.norm.weight") == "submodule.norm.weight"


def test_what_may_be_left() -> None:
    for name in ("dino_head.mlp.0.bias", "head.weight", "rope_embed.periods", "blocks.7.attn.qkv.bias_mask"):
        assert may_be_left(name)
    for name in ("pos_embed", "blocks.7.attn.qkv.bias", "norm.weight", "header.weight", "local_cls_normal.x"):
        assert not may_be_left(name)
    assert may_be_left("local_cls_norm.weight")


def test_summary_counts() -> None:
    names = ["dino_head.a", "dino_head.b", "backbone.blocks.0.attn.qkv.bias_mask", "backbone.rope_embed.periods"]
    assert summary(names) == "attn.qkv.bias_mask, dino_head (2), rope_embed.periods"
    assert summary(["teacher.dino_head.a", "student.x", "student.y"]) == "student (2), teacher.dino_head"

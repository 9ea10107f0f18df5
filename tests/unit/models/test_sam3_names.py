"""The official names of SAM3 against those of transformers, in full and with shapes, without any weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import Tensor  # noqa: E402

from lexitome.errors import some  # noqa: E402
from lexitome.models.sam3.conversion import left_out, to_official, to_ours  # noqa: E402
from lexitome.models.sam3.names import layout, prefixed, relations, unwrapped  # noqa: E402

KEYS = Path(__file__).resolve().parents[4] / "shared" / "reference" / "sam3_keys"
needs_keys = pytest.mark.skipif(not KEYS.is_dir(), reason=f"the official names are not at {KEYS}")
Which = Literal["image", "video"]


@cache
def official(which: Which) -> dict[str, Tensor]:
    stored = json.loads((KEYS / f"official_{which}_model.json").read_text())
    kinds = {True: torch.complex64, False: torch.float32}
    return {
        prefixed(name, "official"): torch.empty(shape, dtype=kinds[name.endswith("freqs_cis")], device="meta")
        for name, shape in stored.items()
    }


@cache
def ours(which: Which) -> dict[str, tuple[int, ...]]:
    from transformers import Sam3Config, Sam3Model, Sam3VideoConfig, Sam3VideoModel

    with torch.device("meta"):
        model = Sam3Model(Sam3Config()) if which == "image" else Sam3VideoModel(Sam3VideoConfig())
    return {prefixed(name, "ours"): tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.shared
@needs_keys
@pytest.mark.parametrize("which", ["image", "video"])
def test_all_official_names_lead_to_all_of_transformers_with_their_shapes(which: Which) -> None:
    found, kept = to_ours(official(which))
    assert {name: tuple(value.shape) for name, value in found.items()} == ours(which)
    assert len(kept) == 32 + 6 + 1


@pytest.mark.shared
@needs_keys
@pytest.mark.parametrize("which", ["image", "video"])
def test_and_back_to_the_same_official_names_and_shapes(which: Which) -> None:
    there = official(which)
    back = to_official(*to_ours(there))
    assert {n: (v.shape, v.dtype) for n, v in back.items()} == {n: (v.shape, v.dtype) for n, v in there.items()}


@pytest.mark.shared
@needs_keys
def test_what_is_left_out_can_be_made_anew_in_the_official_shapes() -> None:
    from transformers import Sam3Config, Sam3Model

    with torch.device("meta"):
        made = left_out(Sam3Model(Sam3Config()))
    assert {n: (v.shape, v.dtype) for n, v in made.items()} == {
        n: (official("image")[n].shape, official("image")[n].dtype) for n in made
    }
    assert len(made) == 32 + 6


@pytest.mark.shared
@needs_keys
def test_each_name_belongs_to_one_relation_only() -> None:
    for side, names in (("official", list(official("video"))), ("ours", list(ours("video")))):
        found, strange = relations(names, side)  # type: ignore[arg-type]
        assert not strange
        listed = [name for relation in found for name in getattr(relation, side)]
        assert sorted(listed) == sorted(names)


@pytest.mark.parametrize(
    ("official_name", "our_name"),
    [
        ("transformer.decoder.layers.3.norm1.bias", "detr_decoder.layers.3.vision_cross_attn_layer_norm.bias"),
        ("transformer.decoder.layers.3.norm2.bias", "detr_decoder.layers.3.self_attn_layer_norm.bias"),
        ("transformer.decoder.layers.3.norm3.bias", "detr_decoder.layers.3.mlp_layer_norm.bias"),
        ("transformer.decoder.layers.3.catext_norm.bias", "detr_decoder.layers.3.text_cross_attn_layer_norm.bias"),
        ("geometry_encoder.norm.weight", "geometry_encoder.prompt_layer_norm.weight"),
        ("geometry_encoder.img_pre_norm.weight", "geometry_encoder.vision_layer_norm.weight"),
        ("geometry_encoder.encode_norm.weight", "geometry_encoder.output_layer_norm.weight"),
        ("backbone.vision_backbone.convs.1.dconv_2x2.bias", "vision_encoder.neck.fpn_layers.1.scale_layers.0.bias"),
        ("transformer.decoder.bbox_embed.layers.2.bias", "detr_decoder.box_head.layer3.bias"),
    ],
)
def test_names_that_shapes_cannot_tell_apart(official_name: str, our_name: str) -> None:
    """Several tensors of a layer have one shape: here names alone decide (transformers' own conversion script)."""
    (there,), _ = relations([prefixed(official_name, "official")], "official")
    (back,), _ = relations([prefixed(our_name, "ours")], "ours")
    assert there == back and there.ours == (f"detector_model.{our_name}",)


def test_queries_keys_and_values_in_this_order() -> None:
    fused = torch.arange(12.0).reshape(6, 2)
    found, _ = to_ours({"detector.transformer.encoder.layers.0.self_attn.in_proj_weight": fused})
    assert [name.split(".")[-2] for name in found] == ["q_proj", "k_proj", "v_proj"]
    assert torch.equal(torch.cat(list(found.values())), fused)


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "module.model.", "_orig_mod.module."])
def test_wrappers_of_other_programs_are_taken_off(wrapper: str) -> None:
    assert unwrapped(f"{wrapper}backbone.x") == "backbone.x"
    assert layout([f"{wrapper}transformer.decoder.norm.bias"]) == "official"
    assert layout([f"{wrapper}detr_decoder.output_layer_norm.bias"]) == "ours"
    assert prefixed(f"{wrapper}detector.backbone.x", "official") == prefixed(f"{wrapper}backbone.x", "official")


def test_unknown_names_are_returned() -> None:
    assert relations(["detector.nothing.of.this"], "official") == ([], ["detector.nothing.of.this"])
    with pytest.raises(ValueError, match="without a place"):
        to_ours({"detector.nothing.of.this": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("detector.transformer.encoder.layers.0.self_attn.in_proj_weight", (7, 2)),
        ("detector.backbone.vision_backbone.trunk.pos_embed", (1, 1, 8)),
        ("tracker.sam_prompt_encoder.point_embeddings.1.weight", (1, 8)),
    ],
)
def test_groups_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"split|positions|lacks"):
        to_ours({name: torch.zeros(shape)})


def test_only_ten_names_are_listed() -> None:
    listed = some(f"name{i:02}" for i in range(30))
    assert listed.count("name") == 10 and listed.endswith("and 20 more")

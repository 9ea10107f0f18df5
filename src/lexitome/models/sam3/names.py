"""The parameters of SAM3 under the names of its official code and of transformers. No torch here.

Official: `detector.*` and `tracker.*` of `facebookresearch/sam3`; transformers: `detector_model.*`, `tracker_model.*`
and `tracker_neck.*` of `Sam3VideoModel`. A `Rule` relates names of one side to names of the other, and reads the same
in both directions. In its templates `#` is the number of a layer, `*` is "weight" or "bias".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

How = Literal["same", "split", "table", "transposed", "stacked", "twice", "left out"]
"""What happens to the values on the way to transformers.

split: queries, keys and values of one tensor become three, along the first axis. table: (1, 1 + n, C) positions lose
the first row, which belonged to a class token. transposed: a matrix. stacked: several (1, C) become one (n, C). twice:
one tensor becomes two equal ones. left out: transformers has no place for it; it can be computed, or is never used.
"""
DETECTOR, TRACKER = "detector.", "tracker."
OURS_DETECTOR, OURS_TRACKER, OURS_NECK = "detector_model.", "tracker_model.", "tracker_neck."
ROTATIONS = ("", "_real", "_imag")
"""Endings of the official rotation tables: one of complex numbers; in newer code, that of SAM 3.1, two of real ones."""
POINTS = ("direct", "pool", "pos_enc")
"""The official code can encode points as exemplars; SAM3 was not trained with them, transformers leaves them out."""
_WRAPPERS = ("module.", "_orig_mod.", "model.", "sam3_model.")
"""What data-parallel training, compilation and other programs put in front of a name."""


@dataclass(frozen=True)
class Rule:
    """Templates that belong together, `official` on one side, `ours` on the other."""

    official: tuple[str, ...]
    ours: tuple[str, ...]
    how: How = "same"


@dataclass(frozen=True)
class Relation:
    """A rule with its placeholders filled in: full names that belong together."""

    official: tuple[str, ...]
    ours: tuple[str, ...]
    how: How


def relations(names: Iterable[str], side: Literal["official", "ours"]) -> tuple[list[Relation], list[str]]:
    """Where tensors belong.

    Args:
        names: in full, with `DETECTOR`, `TRACKER` or our prefixes, as `prefixed` gives them.
        side: whose names these are.

    Returns:
        One relation for each group of names that a rule knows, whether or not all of the group are there; and the
        names that no rule knows.
    """
    found: dict[Relation, None] = {}
    strange = []
    for name in names:
        relation = _relate(name, side)
        if relation is None:
            strange.append(name)
        else:
            found[relation] = None
    return list(found), strange


def layout(names: Iterable[str]) -> Literal["official", "ours"]:
    """Whose names these are, by the first one that says it; "ours" if none does."""
    official = ("backbone.", "detector.", "tracker.", "transformer.", "segmentation_head.", "dot_prod_scoring.")
    return "official" if any(unwrapped(name).startswith(official) for name in names) else "ours"


def unwrapped(name: str) -> str:
    """A name without what other programs put in front of it."""
    for wrapper in _WRAPPERS * 2:
        name = name.removeprefix(wrapper)
    return name


def prefixed(name: str, side: Literal["official", "ours"]) -> str:
    """A name in full: a detector may be stored alone, and then without its prefix.

    Medical SAM3's trainer and transformers' `Sam3Model` do that.
    """
    name = unwrapped(name)
    known = (DETECTOR, TRACKER) if side == "official" else (OURS_DETECTOR, OURS_TRACKER, OURS_NECK)
    return name if name.startswith(known) else known[0] + name


def _relate(name: str, side: Literal["official", "ours"]) -> Relation | None:
    for pattern, rule in _patterns(side):
        found = pattern.fullmatch(name)
        if found is not None:
            official, ours = ([_fill(t, found.groups()) for t in templates] for templates in (rule.official, rule.ours))
            return Relation(tuple(official), tuple(ours), rule.how)
    return None


@cache
def _patterns(side: Literal["official", "ours"]) -> list[tuple[re.Pattern[str], Rule]]:
    patterns = []
    for rule in _rules():
        for template in getattr(rule, side):
            text = re.escape(template).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)")
            patterns.append((re.compile(text), rule))
    return patterns


def _fill(template: str, values: tuple[str, ...]) -> str:
    parts = iter(values)
    return re.sub(r"[#*]", lambda _: next(parts), template)


@cache
def _rules() -> list[Rule]:
    detector = [*_vision(), *_text(), *_geometry(), *_transformer(), *_heads()]
    return [
        *(_under(rule, DETECTOR, OURS_DETECTOR) for rule in detector),
        *(_under(rule, DETECTOR + "backbone.vision_backbone.sam2_convs.", OURS_NECK) for rule in _neck()),
        *(_under(rule, TRACKER, OURS_TRACKER) for rule in (*_memory(), *_prompts(), *_masks())),
    ]


def _under(rule: Rule, official: str, ours: str) -> Rule:
    return Rule(tuple(official + name for name in rule.official), tuple(ours + name for name in rule.ours), rule.how)


def _same(*pairs: tuple[str, str], official: str = "", ours: str = "") -> Iterator[Rule]:
    """Modules that differ by name only: (official, ours), below the two prefixes."""
    for theirs, here in pairs:
        yield Rule((f"{official}{theirs}.*",), (f"{ours}{here}.*",))


def _attention(
    official: str, ours: str, out: str = "o_proj", fused: str = "in_proj_", last: str = "out_proj"
) -> list[Rule]:
    """Attention whose queries, keys and values lie in one tensor."""
    return [
        Rule((f"{official}.{fused}*",), tuple(f"{ours}.{part}_proj.*" for part in "qkv"), "split"),
        Rule((f"{official}.{last}.*",), (f"{ours}.{out}.*",)),
    ]


def _vision() -> list[Rule]:
    official, ours = "backbone.vision_backbone.trunk.", "vision_encoder.backbone."
    block, layer = f"{official}blocks.#.", f"{ours}layers.#."
    return [
        Rule((f"{official}pos_embed",), (f"{ours}embeddings.position_embeddings",), "table"),
        *(Rule((f"{block}attn.freqs_cis{part}",), (), "left out") for part in ROTATIONS),
        *_same(("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("ln_pre", "layer_norm"),
               official=official, ours=ours),
        *_same(("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"),
               official=block, ours=layer),
        *_attention(f"{block}attn", f"{layer}attention", fused="qkv.", last="proj"),
        *(_under(rule, "backbone.vision_backbone.convs.", "vision_encoder.neck.") for rule in _neck()),
    ]  # fmt: skip


def _neck() -> list[Rule]:
    """The pyramid. Its first level is enlarged fourfold, by two layers with an activation between; the next twofold."""
    return [
        *_same(("0.dconv_2x2_0", "fpn_layers.0.scale_layers.0"), ("0.dconv_2x2_1", "fpn_layers.0.scale_layers.2"),
               ("1.dconv_2x2", "fpn_layers.1.scale_layers.0"),
               ("#.conv_1x1", "fpn_layers.#.proj1"), ("#.conv_3x3", "fpn_layers.#.proj2")),
    ]  # fmt: skip


def _text() -> list[Rule]:
    official, ours = "backbone.language_backbone.encoder.", "text_encoder.text_model."
    block, layer = f"{official}transformer.resblocks.#.", f"{ours}encoder.layers.#."
    return [
        Rule((f"{official}positional_embedding",), (f"{ours}embeddings.position_embedding.weight",)),
        Rule((f"{official}text_projection",), ("text_encoder.text_projection.weight",), "transposed"),
        *_same(("token_embedding", "embeddings.token_embedding"), ("ln_final", "final_layer_norm"),
               official=official, ours=ours),
        *_same(("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
               official=block, ours=layer),
        *_attention(f"{block}attn", f"{layer}self_attn", out="out_proj"),
        *_same(("backbone.language_backbone.resizer", "text_projection")),
    ]  # fmt: skip


def _geometry() -> list[Rule]:
    block, layer = "geometry_encoder.encode.#.", "geometry_encoder.layers.#."
    names = ("label_embed", "cls_embed", "boxes_direct_project", "boxes_pool_project", "boxes_pos_enc_project",
             "final_proj")  # fmt: skip
    return [
        *(Rule((f"geometry_encoder.points_{kind}_project.*",), (), "left out") for kind in POINTS),
        *_same(*((name, name) for name in names), ("norm", "prompt_layer_norm"), ("img_pre_norm", "vision_layer_norm"),
               ("encode_norm", "output_layer_norm"), official="geometry_encoder.", ours="geometry_encoder."),
        *_fusion_layer(block, layer),
    ]  # fmt: skip


def _fusion_layer(block: str, layer: str) -> list[Rule]:
    return [
        *_attention(f"{block}self_attn", f"{layer}self_attn"),
        *_attention(f"{block}cross_attn_image", f"{layer}cross_attn"),
        *_same(("linear1", "mlp.fc1"), ("linear2", "mlp.fc2"), *((f"norm{i}", f"layer_norm{i}") for i in (1, 2, 3)),
               official=block, ours=layer),
    ]  # fmt: skip


def _transformer() -> list[Rule]:
    official, ours = "transformer.decoder.", "detr_decoder."
    block, layer = f"{official}layers.#.", f"{ours}layers.#."
    heads = (("bbox_embed", "box_head", 3), ("presence_token_head", "presence_head", 3), ("ref_point_head",) * 2 + (2,),
             ("boxRPB_embed_x", "box_rpb_embed_x", 2), ("boxRPB_embed_y", "box_rpb_embed_y", 2))  # fmt: skip
    return [
        *_fusion_layer("transformer.encoder.layers.#.", "detr_encoder.layers.#."),
        *_attention(f"{block}self_attn", f"{layer}self_attn"),
        *_attention(f"{block}cross_attn", f"{layer}vision_cross_attn"),
        *_attention(f"{block}ca_text", f"{layer}text_cross_attn"),
        *_same(("linear1", "mlp.fc1"), ("linear2", "mlp.fc2"), ("norm1", "vision_cross_attn_layer_norm"),
               ("norm2", "self_attn_layer_norm"), ("norm3", "mlp_layer_norm"),
               ("catext_norm", "text_cross_attn_layer_norm"), official=block, ours=layer),
        *_same(("norm", "output_layer_norm"), ("query_embed", "query_embed"), ("reference_points", "reference_points"),
               ("presence_token", "presence_token"), ("presence_token_out_norm", "presence_layer_norm"),
               official=official, ours=ours),
        *(rule for theirs, here, depth in heads for rule in _numbered(f"{official}{theirs}", f"{ours}{here}", depth)),
    ]  # fmt: skip


def _numbered(official: str, ours: str, depth: int) -> Iterator[Rule]:
    """A perceptron whose layers count from 0 there and from 1 here."""
    return _same(*((f"{official}.layers.{i}", f"{ours}.layer{i + 1}") for i in range(depth)))


def _heads() -> list[Rule]:
    official, ours = "segmentation_head.", "mask_decoder."
    return [
        *_attention(f"{official}cross_attend_prompt", f"{ours}prompt_cross_attn"),
        *_same(("pixel_decoder.conv_layers.#",) * 2, ("pixel_decoder.norms.#",) * 2,
               ("mask_predictor.mask_embed.layers.#", "mask_embedder.layers.#"),
               ("cross_attn_norm", "prompt_cross_attn_norm"), ("semantic_seg_head", "semantic_projection"),
               ("instance_seg_head", "instance_projection"), official=official, ours=ours),
        *_numbered("dot_prod_scoring.prompt_mlp", "dot_product_scoring.text_mlp", 2),
        *_same(("prompt_mlp.out_norm", "text_mlp_out_norm"), ("prompt_proj", "text_proj"), ("hs_proj", "query_proj"),
               official="dot_prod_scoring.", ours="dot_product_scoring."),
    ]  # fmt: skip


def _memory() -> list[Rule]:
    """The tracker's memory: what was seen, how it is looked up, and pointers to objects."""
    single = (("maskmem_tpos_enc", "memory_temporal_positional_encoding"), ("no_mem_embed", "no_memory_embedding"),
              ("no_mem_pos_enc", "no_memory_positional_encoding"), ("no_obj_ptr", "no_object_pointer"),
              ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"))  # fmt: skip
    block, layer = "transformer.encoder.layers.#.", "memory_attention.layers.#."
    down, ours_down = "maskmem_backbone.mask_downsampler.encoder.", "memory_encoder.mask_downsampler."
    stages = [
        pair for i in range(4)
        for pair in ((f"{3 * i}", f"layers.{i}.conv"), (f"{3 * i + 1}", f"layers.{i}.layer_norm"))
    ]  # fmt: skip
    fuser = "fuser.layers.#."
    return [
        *(Rule((theirs,), (here,)) for theirs, here in single),
        *_same(("mask_downsample",) * 2, ("transformer.encoder.norm", "memory_attention.layer_norm"),
               ("obj_ptr_tpos_proj", "temporal_positional_encoding_projection_layer")),
        *_same(*_plain_attention("self_attn"), *_plain_attention("cross_attn_image"), ("linear1",) * 2,
               ("linear2",) * 2, *((f"norm{i}", f"layer_norm{i}") for i in (1, 2, 3)), official=block, ours=layer),
        *_same(*stages, ("12", "final_conv"), official=down, ours=ours_down),
        Rule((f"maskmem_backbone.{fuser}gamma",), (f"memory_encoder.memory_{fuser}scale",)),
        *_same(("dwconv", "depthwise_conv"), ("norm", "layer_norm"), ("pwconv1", "pointwise_conv1"),
               ("pwconv2", "pointwise_conv2"),
               official=f"maskmem_backbone.{fuser}", ours=f"memory_encoder.memory_{fuser}"),
        *_same(("pix_feat_proj", "feature_projection"), ("out_proj", "projection"),
               official="maskmem_backbone.", ours="memory_encoder."),
        *_three_layers("obj_ptr_proj", "object_pointer_proj"),
    ]  # fmt: skip


def _plain_attention(official: str, ours: str | None = None) -> list[tuple[str, str]]:
    here = ours or official
    pairs = [(f"{official}.{part}_proj", f"{here}.{part}_proj") for part in "qkv"]
    return [*pairs, (f"{official}.out_proj", f"{here}.o_proj")]


def _three_layers(official: str, ours: str) -> Iterator[Rule]:
    return _same(
        *((f"{official}.layers.{i}", f"{ours}.{here}") for i, here in enumerate(("proj_in", "layers.0", "proj_out")))
    )


def _prompts() -> list[Rule]:
    """The tracker's clicks, boxes and masks."""
    official, ours = "sam_prompt_encoder.", "prompt_encoder."
    positions = ("prompt_encoder.shared_embedding.", "shared_image_embedding.")
    return [
        Rule((f"{official}pe_layer.positional_encoding_gaussian_matrix",),
             tuple(f"{place}positional_embedding" for place in positions), "twice"),
        Rule(tuple(f"{official}point_embeddings.{i}.weight" for i in range(4)), (f"{ours}point_embed.weight",),
             "stacked"),
        *_same(("not_a_point_embed",) * 2, ("no_mask_embed",) * 2, ("mask_downscaling.0", "mask_embed.conv1"),
               ("mask_downscaling.1", "mask_embed.layer_norm1"), ("mask_downscaling.3", "mask_embed.conv2"),
               ("mask_downscaling.4", "mask_embed.layer_norm2"), ("mask_downscaling.6", "mask_embed.conv3"),
               official=official, ours=ours),
    ]  # fmt: skip


def _masks() -> list[Rule]:
    """The tracker's mask decoder."""
    official, ours = "sam_mask_decoder.", "mask_decoder."
    block, layer = f"{official}transformer.layers.#.", f"{ours}transformer.layers.#."
    across = ("cross_attn_token_to_image", "cross_attn_image_to_token")
    return [
        *_same(*_plain_attention("self_attn"), *(pair for name in across for pair in _plain_attention(name)),
               ("mlp.lin1", "mlp.proj_in"), ("mlp.lin2", "mlp.proj_out"),
               *((f"norm{i}", f"layer_norm{i}") for i in (1, 2, 3, 4)), official=block, ours=layer),
        *_same(*_plain_attention("final_attn_token_to_image"), ("norm_final_attn", "layer_norm_final_attn"),
               official=f"{official}transformer.", ours=f"{ours}transformer."),
        *_same(*((name, name) for name in ("iou_token", "mask_tokens", "obj_score_token", "conv_s0", "conv_s1")),
               ("output_upscaling.0", "upscale_conv1"), ("output_upscaling.1", "upscale_layer_norm"),
               ("output_upscaling.3", "upscale_conv2"), official=official, ours=ours),
        *(rule for name in ("output_hypernetworks_mlps.#", "iou_prediction_head", "pred_obj_score_head")
          for rule in _three_layers(f"{official}{name}", f"{ours}{name}")),
    ]  # fmt: skip

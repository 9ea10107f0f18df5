"""Configurations of SAM3: as released, small enough to be trained on a CPU, and tiny for tests. Needs torch.

`Sam3Config` without arguments is the released one; `small` keeps its parts and shortens each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers import Sam3Config, Sam3Model

from lexitome.models.sam3.network import Sam3Net

Preset = Literal["full", "small", "tiny"]
CONTEXT = 32
"""Tokens of text that are read, start and end included."""


def config_of(name: Preset, *, side: int | None = None, vocabulary: int | None = None) -> Sam3Config:
    """
    Args:
        side: of the square picture, by default 1008, 168 and 64 pixels; a multiple of the patch (14, 14 and 8).
        vocabulary: number of tokens; the last two are start and end, as in CLIP.
    """
    config = {"full": Sam3Config, "small": _small, "tiny": _tiny}[name]()
    text: Any = config.text_config
    vision: Any = config.vision_config
    if vocabulary is not None:
        text.vocab_size, text.bos_token_id, text.eos_token_id = vocabulary, vocabulary - 2, vocabulary - 1
    if side is not None:
        _set_side(config, side)
        if name != "full":  # trained from scratch: a position of its own for each patch, instead of tiles of 24 x 24
            vision.backbone_config.pretrain_image_size = side
    return config


def build(config: Sam3Config, seed: int, *, geometry_cls: bool = True) -> Sam3Net:
    """A network with random weights, in float32.

    Vision and text parts are as transformers makes them (truncated and plain normal, 0.02). The detector is as in the
    official code, which matters: with transformers' 0.02 all object queries would start alike and in one place, and the
    first boxes would already be moved at random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam3Model(config)
        parts = (
            model.vision_encoder.neck, model.text_projection, model.geometry_encoder, model.detr_encoder,
            model.detr_decoder, model.mask_decoder, model.dot_product_scoring,
        )  # fmt: skip
        for part in parts:
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
                    module.reset_parameters()
        for matrix in _matrices(model.detr_encoder, model.detr_decoder):
            nn.init.xavier_uniform_(matrix)
        for parameter in model.get_submodule("detr_decoder.box_head.layer3").parameters():
            nn.init.zeros_(parameter)
    return Sam3Net(model, geometry_cls=geometry_cls)


def set_side(net: Sam3Net, side: int) -> None:
    """Let a loaded network see pictures of another size, e.g. 560 instead of 1008: quicker, and coarser.

    No weights change. Positions of the layers with global attention are stretched over the picture as transformers
    does, those of windows stay; absolute positions are tiled.

    Raises:
        ValueError: the side is no multiple of the patch.
    """
    _set_side(net.model.config, side)
    backbone = net.model.vision_encoder.backbone
    _set_side(net.model.vision_encoder.config, side)
    for layer in backbone.layers:
        old = layer.position_ids
        layer.config.image_size = side
        layer.position_ids = layer.precompute_positions(layer.config, layer.window_size).to(old.device, old.dtype)


def _matrices(*parts: nn.Module) -> Iterator[nn.Parameter]:
    """What the official TransformerWrapper sets: all matrices but the object queries and their first boxes."""
    for part in parts:
        for name, parameter in part.named_parameters():
            if parameter.dim() > 1 and "query_embed" not in name and "reference_points" not in name:
                yield parameter


def _set_side(config: Any, side: int) -> None:
    vision = getattr(config, "vision_config", config)
    patch = int(vision.backbone_config.patch_size)
    if side < patch or side % patch:
        below = max(patch, side // patch * patch)
        raise ValueError(f"the side must be a multiple of {patch} pixels: {below} or {below + patch}, not {side}")
    vision.backbone_config.image_size = side
    cells = side // patch
    vision.backbone_feature_sizes = [[n * cells, n * cells] for n in (4, 2, 1)]


def _small() -> Sam3Config:
    """7 million parameters, 28 MB. Patches of 14 pixels as released, so that a picture of 168 pixels is 12 x 12 tokens
    and a mask 48 x 48 cells: coarse, and the way to thousands of steps within an hour on a CPU. No dropout: what is so
    small and trained so shortly does not learn its pictures by heart."""
    detector = {"hidden_size": 96, "num_attention_heads": 8, "intermediate_size": 384, "dropout": 0.0}
    return _config(
        vision={
            "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 3,
            "image_size": 168, "pretrain_image_size": 168, "patch_size": 14, "window_size": 6,
            "global_attn_indexes": [1, 3, 5],
        },
        text={"vocab_size": 2048, "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3,
              "num_attention_heads": 4},
        detector=detector, layers=(1, 2, 3), queries=24,
    )  # fmt: skip


def _tiny() -> Sam3Config:
    """For tests: every kind of layer, nothing large."""
    return _config(
        vision={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "pretrain_image_size": 32, "patch_size": 8, "window_size": 4,
            "global_attn_indexes": [1],
        },
        text={"vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 2},
        detector={"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}, layers=(1, 2, 2), queries=8,
    )  # fmt: skip


def _config(
    *, vision: dict[str, Any], text: dict[str, Any], detector: dict[str, Any], layers: tuple[int, int, int],
    queries: int,
) -> Sam3Config:  # fmt: skip
    """`layers` of the geometry encoder, the fusion encoder and the decoder."""
    words = text["vocab_size"]
    text |= {"model_type": "clip_text_model", "hidden_act": "gelu", "max_position_embeddings": CONTEXT,
             "projection_dim": text["hidden_size"], "bos_token_id": words - 2, "eos_token_id": words - 1}  # fmt: skip
    width, heads = detector["hidden_size"], detector["num_attention_heads"]
    config = Sam3Config(
        vision_config={"backbone_config": {"model_type": "sam3_vit_model", **vision}, "fpn_hidden_size": width},
        text_config=text,
        geometry_encoder_config={**detector, "num_layers": layers[0]},
        detr_encoder_config={**detector, "num_layers": layers[1]},
        detr_decoder_config={**detector, "num_layers": layers[2], "num_queries": queries},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": heads},
    )
    _set_side(config, vision["image_size"])
    return config

"""Configurations of DINOv3: as released, MedDINOv3's, one that a CPU can train, and a tiny one. Needs torch.

Sizes are of facebookresearch/dinov3 (hub/backbones.py), MedDINOv3's of its trainers. All have patches of 16 pixels, 4
registers, rotary positions and no bias of keys. Augmentation of positions is off (`Dinov3.augment` switches it on).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from lexitome.models.dinov3.backbone import Dinov3

Preset = Literal["s", "s_plus", "b", "l", "h_plus", "meddinov3_b", "mini", "tiny"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
HEAD = 64
"""Channels of one attention head, of every released size."""


@dataclass(frozen=True)
class Spec:
    """
    Args:
        dim: channels of a token.
        hidden: channels inside the feed-forward part; of each of its two halves where it is `gated` (SwiGLU).
        biased: queries and values have a bias. MedDINOv3's have none.
        eps: of LayerNorm.
        layer_scale: at the start; 1e-5 as published. 0.1 suits up to 18 blocks (CaiT, 2021, section 2), and shows its
            worth where training ends after thousands of steps instead of a million.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    gated: bool = False
    biased: bool = True
    eps: float = 1e-5
    layer_scale: float = 1e-5


SPECS: dict[Preset, Spec] = {
    "s": Spec(384, 12, 6, 1536),
    "s_plus": Spec(384, 12, 6, 1536, gated=True),
    "b": Spec(768, 12, 12, 3072),
    "l": Spec(1024, 24, 16, 4096),
    "h_plus": Spec(1280, 32, 20, 5120, gated=True),
    "meddinov3_b": Spec(768, 12, 12, 3072, biased=False, eps=1e-6),
    "mini": Spec(192, 12, 3, 768, layer_scale=0.1),  # 5.5 million parameters
    "tiny": Spec(64, 4, 2, 256, layer_scale=0.1),
}


def config_of(name: Preset) -> DINOv3ViTConfig:
    """
    Raises:
        ValueError: there is no such preset; the message says which there are.
    """
    if name not in SPECS:
        raise ValueError(f"there is no preset {name!r}: choose from {', '.join(PRESETS)}")
    return of_spec(SPECS[name])


def of_spec(spec: Spec, *, registers: int = 4, patch: int = 16) -> DINOv3ViTConfig:
    """As transformers writes it down; `patch` in pixels."""
    return DINOv3ViTConfig(
        patch_size=patch, hidden_size=spec.dim, num_hidden_layers=spec.depth, num_attention_heads=spec.heads,
        intermediate_size=spec.hidden, use_gated_mlp=spec.gated, hidden_act="silu" if spec.gated else "gelu",
        query_bias=spec.biased, value_bias=spec.biased, key_bias=False, num_register_tokens=registers,
        layer_norm_eps=spec.eps, layerscale_value=spec.layer_scale, pos_embed_rescale=None,
    )  # fmt: skip


def build(name_or_config: Preset | DINOv3ViTConfig, seed: int) -> Dinov3:
    """A network with random weights, in float32 and training mode: truncated normal, 0.02, no bias (as published)."""
    config = config_of(name_or_config) if isinstance(name_or_config, str) else name_or_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dinov3(DINOv3ViTModel(config)).train()

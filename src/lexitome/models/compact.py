"""The compact model: an image encoder run once, and a prompt decoder run for each query.

    encoder: EfficientNet-Lite -> tokens at stride 16, self-attention with absolute positions (where in the body am I?)
    decoder: text and spatial prompts meet the tokens in two-way attention (Kirillov et al. 2023, SAM, appendix A),
             then a U-Net path modulated by the text (FiLM, Perez et al. 2018) up to full resolution

Many objects in one mask (nuclei, teeth) are told apart by a dense head: where the centres are, and from each pixel the
way to its own (Cheng et al. 2020, Panoptic-DeepLab). Object queries in SAM3's manner can take part instead
(`CompactConfig.object_queries`); decision 7 says why.

Shapes: N images, Q queries, S image side (a multiple of 32), D token width, T text width, K object queries.
A spatial prompt is a map (Q, 4, S / 4, S / 4): inside the box, around positive points, around negative points, and
the mask so far. The three channels of a picture are colours, or a slice between its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.models.efficientnet_lite import EfficientNetLite

SPATIAL_CHANNELS = 4
SPATIAL_STRIDE = 4
OFFSET_UNIT = 16.0


@dataclass(frozen=True)
class CompactConfig:
    backbone: int = 0
    frozen_blocks: int = 3
    width: int = 192
    heads: int = 6
    encoder_layers: int = 3
    decoder_layers: int = 2
    text_dim: int = 128
    path: tuple[int, int, int] = (32, 64, 128)
    """Channels of the decoder's U-Net path, and of the skips that join it, at stride 2, 4, 8."""
    object_queries: int = 0
    """K object queries trained by set prediction; 0 for none."""


class Features(NamedTuple):
    """What the encoder knows of N images."""

    tokens: Tensor  # (N, D, S/16, S/16)
    skip8: Tensor  # (N, path[2], S/8, S/8)
    skip4: Tensor  # (N, path[1], S/4, S/4)
    skip2: Tensor  # (N, path[0], S/2, S/2)


class Objects(NamedTuple):
    """What the object queries say, after each of L decoder layers."""

    logits: Tensor  # (L, Q, K) logit that this is an object of the asked kind
    boxes: Tensor  # (L, Q, K, 4) centre x, y, width, height in 0..1
    masks: Tensor  # (Q, K, S/4, S/4) mask logits after the last layer


class Decoded(NamedTuple):
    logits: Tensor  # (Q, S, S) mask logits
    presence: Tensor  # (Q,) logit that the target is in the image
    centres: Tensor  # (Q, S/2, S/2) logit that an object's centre is here
    offsets: Tensor  # (Q, 2, S/2, S/2) way (y, x) from here to the centre of the object, in units of OFFSET_UNIT pixels
    objects: Objects | None = None


def positions(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """(dim, height, width) sine-cosine code of the relative position (0 to 1), the same at every resolution."""
    quarter = dim // 4
    frequencies = math.pi * 2.0 ** torch.linspace(0, 5, quarter, device=device)
    rows = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    columns = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    y = (rows[None] * frequencies[:, None])[:, :, None].expand(-1, -1, width)
    x = (columns[None] * frequencies[:, None])[:, None, :].expand(-1, height, -1)
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()])


class Attention(nn.Module):
    """Multi-head attention of queries (N, L, D) over keys (N, M, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def mlp(dim: int, ratio: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim * ratio), nn.GELU(), nn.Linear(dim * ratio, dim))


class SelfAttentionBlock(nn.Module):
    """Pre-norm transformer block over image tokens (N, L, D) with their positions (L, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.mlp = Attention(dim, heads), mlp(dim)

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor:
        x = self.norm1(tokens)
        tokens = tokens + self.attention(x + place, x + place, x)
        return tokens + self.mlp(self.norm2(tokens))


class TwoWayBlock(nn.Module):
    """Prompt tokens (Q, P, D) and image tokens (Q, L, D) update each other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(5))
        self.self_attention, self.to_image, self.to_prompt = (Attention(dim, heads) for _ in range(3))
        self.mlp = mlp(dim)
        self.image_mlp = mlp(dim, 2)

    def forward(self, prompt: Tensor, image: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norms[0](prompt)
        prompt = prompt + self.self_attention(x, x, x)
        keys = self.norms[1](image)
        prompt = prompt + self.to_image(self.norms[2](prompt), keys + place, keys)
        prompt = prompt + self.mlp(self.norms[3](prompt))
        image = image + self.to_prompt(keys + place, prompt, prompt)
        return prompt, image + self.image_mlp(self.norms[4](image))


def add_to_queries(x: Tensor, skip: Tensor) -> Tensor:
    """(Q, C, H, W) of the queries plus (N, C, H, W) of the images; Q / N queries in a row belong to one image."""
    return (x.unflatten(0, (skip.shape[0], -1)) + skip[:, None]).flatten(0, 1)


class TextProjection(nn.Module):
    """Text vectors (Q, T) to prompt tokens (Q, D); the zero vector ("no words") stays a constant token.

    The names of a body are close together ("left kidney" and "right kidney" have a cosine of 0.97), so the vectors are
    whitened first: the statistics are those of the phrases the model is trained with, see `fit`.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(text_dim))
        self.register_buffer("whiten", torch.eye(text_dim))
        self.layers = nn.Sequential(nn.Linear(text_dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim), nn.LayerNorm(dim))

    def fit(self, phrases: Tensor, shrinkage: float = 0.3) -> None:
        """Set mean and ZCA matrix from (N, T) vectors; the covariance is shrunk towards its mean eigenvalue. A single
        phrase has none, and nothing that it must be told from: the vectors then stay as they are."""
        if len(phrases) < 2:
            return
        centred = phrases - phrases.mean(0)
        covariance = centred.T @ centred / len(phrases)
        values, vectors = torch.linalg.eigh(covariance)
        values = values + shrinkage * values.mean()
        self.mean.copy_(phrases.mean(0))
        self.whiten.copy_(vectors @ torch.diag(values.rsqrt()) @ vectors.T)

    def forward(self, text: Tensor) -> Tensor:
        spoken = (text.abs().sum(1, keepdim=True) > 0).to(text.dtype)
        white = F.normalize((text - self.mean) @ self.whiten, dim=1) * math.sqrt(text.shape[1])
        return self.layers(white * spoken)


class UpBlock(nn.Module):
    """Upsample twice, add the image's skip, scale and shift by the prompt (FiLM), convolve.

    The skip is added, not joined: it is then computed once for an image, whatever the number of queries.
    """

    def __init__(self, c_in: int, c_out: int, prompt_dim: int, convolutions: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(c_in, c_out, 1)
        self.norm = nn.GroupNorm(8, c_out)
        self.film = nn.Linear(prompt_dim, 2 * c_out)
        self.convolutions = nn.ModuleList(nn.Conv2d(c_out, c_out, 3, padding=1) for _ in range(convolutions))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, skip: Tensor, prompt: Tensor) -> Tensor:
        x = F.interpolate(self.project(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        x = self.norm(add_to_queries(x, skip))
        gain, shift = self.film(prompt)[:, :, None, None].chunk(2, 1)
        x = F.relu(x * (1 + gain) + shift)
        for convolution in self.convolutions:
            x = x + F.relu(convolution(x))
        return x


class ImageEncoder(nn.Module):
    """(N, 3, S, S) pictures in 0..255 to `Features`."""

    def __init__(self, config: CompactConfig, backbone: EfficientNetLite) -> None:
        super().__init__()
        self.backbone = backbone
        c2, c4, c8, c16, c32 = backbone.channels
        self.from16, self.from32 = nn.Conv2d(c16, config.width, 1), nn.Conv2d(c32, config.width, 1)
        self.skips = nn.ModuleList(nn.Conv2d(c, out, 1) for c, out in zip((c2, c4, c8), config.path, strict=True))
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(config.width, config.heads) for _ in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, pictures: Tensor) -> Features:
        f2, f4, f8, f16, f32 = self.backbone(pictures / 127.5 - 1.0)
        deep = F.interpolate(self.from32(f32), scale_factor=2.0, mode="bilinear", align_corners=False)
        grid = self.from16(f16) + deep
        height, width = grid.shape[-2:]
        place = positions(height, width, grid.shape[1], grid.device).flatten(1).T  # (L, D)
        tokens = grid.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, place)
        tokens = self.norm(tokens).transpose(1, 2).unflatten(2, (height, width))
        skip2, skip4, skip8 = (conv(f) for conv, f in zip(self.skips, (f2, f4, f8), strict=True))
        return Features(tokens, skip8, skip4, skip2)


class ObjectHead(nn.Module):
    """Object queries (K, D) that share the prompt tokens' attention, and what they are read out as."""

    def __init__(self, count: int, dim: int, mask_channels: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, dim) * 0.02)
        self.score = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, 1))
        self.box = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, 4))
        self.mask = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, mask_channels))

    def forward(self, layers: Sequence[Tensor], words: Tensor, pixels: Tensor) -> Objects:
        """Object tokens (Q, K, D) after each layer, words (Q, D), pixel features (Q, C, S/4, S/4)."""
        tokens = torch.stack(list(layers))
        asked = words[None, :, None].expand(*tokens.shape[:3], -1)
        logits = self.score(torch.cat([tokens, asked], -1))[..., 0]
        masks = torch.einsum("qkc,qchw->qkhw", self.mask(tokens[-1]), pixels)
        return Objects(logits, self.box(tokens).sigmoid(), masks)


class PromptDecoder(nn.Module):
    """Features of N images, text (Q, T) and spatial maps (Q, 4, S/4, S/4) to `Decoded`.

    Q is a multiple of N: the first Q / N queries ask about image 0, and so on. A zero text vector
    means "no words", a zero map "no place".
    """

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        dim = config.width
        self.text = TextProjection(config.text_dim, dim)
        self.queries = nn.Parameter(torch.randn(2, dim) * 0.02)  # mask token, presence token
        self.place_prompt = nn.Sequential(
            nn.Conv2d(SPATIAL_CHANNELS, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, dim, 3, 2, 1)
        )
        self.blocks = nn.ModuleList(TwoWayBlock(dim, config.heads) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(dim)
        p2, p4, p8 = config.path
        self.objects = ObjectHead(config.object_queries, dim, p4) if config.object_queries else None
        self.up8 = UpBlock(dim, p8, 2 * dim, 2)
        self.up4 = UpBlock(p8, p4, 2 * dim, 2)
        self.fine_place = nn.Conv2d(SPATIAL_CHANNELS, p4, 1, bias=False)
        self.up2 = UpBlock(p4, p2, 2 * dim, 1)
        self.head = nn.Conv2d(p2, 4, 3, padding=1)  # four sub-pixels of each pixel at stride 2
        self.hyper = nn.Linear(dim, p2)
        self.presence = nn.Sequential(nn.Linear(dim + 1, dim), nn.GELU(), nn.Linear(dim, 1))
        self.instances = nn.Sequential(nn.Conv2d(p2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 1))

    def forward(self, features: Features, text: Tensor, spatial: Tensor) -> Decoded:
        tokens, skip8, skip4, skip2 = features
        height, width = tokens.shape[-2:]
        image = add_to_queries(self.place_prompt(spatial), tokens).flatten(2).transpose(1, 2)
        words = self.text(text)
        prompt, image, layers = self._attend(words, image, tokens)
        image = image.transpose(1, 2).unflatten(2, (height, width))
        condition = torch.cat([prompt[:, 0], words], 1)
        x = self.up8(image, skip8, condition)
        pixels = self.up4(x, skip4, condition) + self.fine_place(spatial)
        x = self.up2(pixels, skip2, condition)
        coarse = (x * self.hyper(prompt[:, 0])[:, :, None, None]).sum(1, keepdim=True)
        logits = F.pixel_shuffle(self.head(x) + coarse, 2)[:, 0]
        # The mask's own certainty is evidence: unlike the token, it does not know what the training set looks like.
        evidence = F.avg_pool2d(logits.detach()[:, None], 8).flatten(1).amax(1, keepdim=True).clamp(-20, 20) / 10
        presence = self.presence(torch.cat([prompt[:, 1], evidence.to(prompt.dtype)], 1))[:, 0]
        found = self.instances(x)
        objects = None if self.objects is None else self.objects(layers, words, pixels)
        return Decoded(logits, presence, found[:, 0], found[:, 1:], objects)

    def _attend(self, words: Tensor, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Two-way attention of prompt and image: prompt tokens (Q, 3, D), image tokens (Q, L, D), and the object
        tokens (Q, K, D) after each layer."""
        height, width = tokens.shape[-2:]
        place = positions(height, width, tokens.shape[1], tokens.device).flatten(1).T
        parts = [self.queries.expand(words.shape[0], -1, -1), words[:, None]]
        if self.objects is not None:
            parts.append(self.objects.queries.expand(words.shape[0], -1, -1))
        prompt, layers = torch.cat(parts, 1), []
        for block in self.blocks:
            prompt, image = block(prompt, image, place)
            layers.append(self.norm(prompt)[:, 3:])
        return self.norm(prompt)[:, :3], image, layers


class CompactNet(nn.Module):
    """Encoder and decoder together, for training and as the reference of the exported graphs."""

    def __init__(self, config: CompactConfig, backbone: EfficientNetLite) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config, backbone)
        self.decoder = PromptDecoder(config)

    def forward(self, pictures: Tensor, text: Tensor, spatial: Tensor) -> Decoded:
        """(N, 3, S, S) pictures and Q queries, Q / N in a row for each picture."""
        return self.decoder(self.encoder(pictures), text, spatial)

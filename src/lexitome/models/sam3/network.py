"""SAM3 (Carion et al. 2025) for training and inference: the layers of transformers' `Sam3Model`, wired here.

`Sam3Model` as it is has no outputs of inner decoder layers, no one-to-many twins, needs torchvision for boxes, and
encodes an image again for each of its concepts. Its parameters and their names are left alone; without twins the
answers are the same. Where the official code and transformers differ: docs/decisions/0009-sam3.md.

Shapes: N pictures, S their side, h = w = S / 14 the coarsest grid, Q queries (a concept asked about a picture), T
tokens of text, B boxes, K object queries, L decoder layers, C the width of the detector (256).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3Attention

from lexitome.models.sam3.roi import roi_align

PADDING = -10
"""Label of a box that is none: fills up rows of `Prompts.boxes`."""


class Features(NamedTuple):
    """What the vision encoder knows of N pictures. ``trunk`` is what the tracker's own neck starts from."""

    fpn: tuple[Tensor, ...]  # (N, C, 4h, 4w), (N, C, 2h, 2w), (N, C, h, w)
    position: tuple[Tensor, ...]  # (1, C, h, w) alone: attention looks at the coarsest level only
    trunk: Tensor  # (N, D, h, w)


class Prompts(NamedTuple):
    """What is asked: one row for each query."""

    tokens: Tensor  # (Q, T) long
    token_mask: Tensor  # (Q, T) bool, True for tokens, False for padding
    image: Tensor  # (Q,) long, which picture
    boxes: Tensor  # (Q, B, 4) exemplars: centre x, y, width, height in 0..1; B may be 0
    box_labels: Tensor  # (Q, B) long: 1 "such as this", 0 "not such as this", `PADDING`


class Outputs(NamedTuple):
    logits: Tensor  # (L, Q, K) that this is an object of the asked kind, given that there is one
    boxes: Tensor  # (L, Q, K, 4) centre x, y, width, height in 0..1
    presence: Tensor  # (L, Q) logit that there is one
    masks: Tensor  # (Q, K, 4h, 4w) logits after the last layer
    semantic: Tensor  # (Q, 4h, 4w) logits of everything of the asked kind
    twin_logits: Tensor | None = None  # as above, of the one-to-many twins
    twin_boxes: Tensor | None = None
    twin_masks: Tensor | None = None


class FirstAlone(Sam3Attention):
    """Self-attention among the first rows, presence and one-to-one queries; the rows after them, twins, get nothing (Hu
    et al. 2023, DAC-DETR, section 3.2)."""

    attending: int

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        query_, key_, value_ = (each[:, : self.attending] for each in (query, key, value))
        mixed, weights = super().forward(query_, key_, value_, attention_mask, **options)
        return F.pad(mixed, (0, 0, 0, query.shape[1] - mixed.shape[1])), weights


class Sam3Net(nn.Module):
    """
    Args:
        model: parameter names below `.model` are those of transformers.
        geometry_cls: always add the geometry encoder's CLS token to the prompt, as the official code does; else only
            to queries with boxes, as transformers does.
    """

    def __init__(self, model: Sam3Model, *, geometry_cls: bool = False) -> None:
        super().__init__()
        self.model = model
        self.geometry_cls = geometry_cls
        self.recompute = False
        for layer in model.detr_decoder.layers:  # the very modules, so that names stay and wrappers see them called
            attention: Any = layer.self_attn
            attention.__class__ = FirstAlone
            attention.attending = 1 + model.detr_decoder.config.num_queries

    @property
    def side(self) -> int:
        """S, pixels."""
        vision: Any = self.model.config.vision_config
        return int(vision.backbone_config.image_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed; the weights of words may have another."""
        return _dtype(self.model.detr_encoder)

    @property
    def precision(self) -> str:
        """For reports."""
        return str(self.dtype).removeprefix("torch.")

    def recompute_activations(self, on: bool = True) -> None:
        """Keep only the inputs of each layer for the backward pass: far less memory, a third more time."""
        self.recompute = on
        for layer in (*self.model.vision_encoder.backbone.layers, *self.model.text_encoder.modules()):
            if hasattr(layer, "gradient_checkpointing"):
                layer.gradient_checkpointing = on
                layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)

    def forward(self, pictures: Tensor, prompts: Prompts, twins: bool = False) -> Outputs:
        """Pictures (N, 3, S, S) in -1..1 and what is asked of them; what wrappers (DDP, FSDP2) call."""
        return self.decode(self.encode(pictures), prompts, twins=twins)

    def encode(self, pictures: Tensor) -> Features:
        """(N, 3, S, S) in -1..1. The neck's smallest level, which nothing reads, is not computed."""
        encoder = self.model.vision_encoder
        seen = encoder.backbone(pictures.to(_dtype(encoder))).last_hidden_state
        return self._levels(seen)

    def _levels(self, tokens: Tensor) -> Features:
        """From the trunk's tokens (N, h w, D), row by row."""
        neck = self.model.vision_encoder.neck
        trunk = tokens.unflatten(1, (math.isqrt(tokens.shape[1]), -1)).permute(0, 3, 1, 2)
        fpn = tuple(layer(trunk) for layer in neck.fpn_layers[:-1])
        position = neck.position_encoding((1, *fpn[-1].shape[1:]), trunk.device, torch.float32)
        position = position.clone().to(trunk.dtype)  # transformers keeps the original, maybe from inference mode
        return Features(fpn, (position,), trunk)

    def text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (Q, T) to (Q, T, C): depends on nothing else, and may be cached."""
        words = self.model.text_encoder.text_model(input_ids=tokens, attention_mask=mask).last_hidden_state
        projected: Tensor = self.model.text_projection(words)
        return projected.to(self.dtype)

    def decode(
        self, features: Features, prompts: Prompts, text: Tensor | None = None, *, twins: bool = False
    ) -> Outputs:
        """
        Args:
            text: of `text`, if it is known already.
            twins: also ask a copy of each object query, which skips self-attention and may take an object that another
                has (one-to-many supervision; training only).
        """
        text = self.text(prompts.tokens, prompts.token_mask) if text is None else text
        fpn = [_of_each(level, prompts.image) for level in features.fpn]
        position = features.position[-1].expand_as(fpn[-1])
        prompt, valid = self._prompt(fpn[-1], position, prompts, text)
        hidden, place = fpn[-1].flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)
        blocked = _blocked(valid, hidden.dtype)
        for layer in self.model.detr_encoder.layers:
            hidden = self._run(layer, hidden, prompt, place, blocked)
        queries, boxes, presence = self._decoder(
            hidden, place, prompt, blocked, (fpn[-1].shape[-2], fpn[-1].shape[-1]), twins
        )
        logits = self.model.dot_product_scoring(queries, prompt, valid)[..., 0]
        masks, semantic = self._masks(fpn, hidden, prompt, blocked, queries[-1])
        k = self.model.detr_decoder.config.num_queries
        first = Outputs(logits[..., :k], boxes[..., :k, :], presence, masks[:, :k], semantic)
        if not twins:
            return first
        return first._replace(twin_logits=logits[..., k:], twin_boxes=boxes[..., k:, :], twin_masks=masks[:, k:])

    def _masks(
        self, fpn: list[Tensor], hidden: Tensor, prompt: Tensor, blocked: Tensor, queries: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of the objects (Q, K, 4h, 4w) and of everything (Q, 4h, 4w)."""
        head = self.model.mask_decoder
        told = head.prompt_cross_attn(head.prompt_cross_attn_norm(hidden), prompt, prompt, blocked)[0]
        fused = (hidden + head.prompt_cross_attn_dropout(told)).transpose(1, 2).unflatten(2, fpn[-1].shape[-2:])
        pixels = head.pixel_decoder([*fpn[:-1], fused])
        masks = torch.einsum("qkc,qchw->qkhw", head.mask_embedder(queries), head.instance_projection(pixels))
        return masks, head.semantic_projection(pixels)[:, 0]

    def _run(self, layer: Callable[..., Any], *values: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *values, use_reentrant=False)
        return layer(*values)

    def _prompt(self, level: Tensor, position: Tensor, prompts: Prompts, text: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of words, boxes and CLS (Q, T + B + 1, C), and which of them count (Q, T + B + 1)."""
        words = prompts.token_mask.bool()
        valid = prompts.box_labels != PADDING
        if not self.geometry_cls and not valid.shape[1]:
            return text, words
        geometry = self.model.geometry_encoder
        places = geometry.cls_embed.weight.expand(len(text), 1, -1)
        if valid.shape[1]:
            places = torch.cat([self._boxes(level, prompts), places], 1)
        ones = torch.ones_like(valid[:, :1]) if valid.shape[1] else words.new_ones(len(text), 1)
        hidden = geometry.prompt_layer_norm(geometry.final_proj(places))
        blocked = _blocked(torch.cat([valid, ones], 1), hidden.dtype)
        seen, place = level.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)
        for layer in geometry.layers:
            hidden = self._run(layer, hidden, seen, place, blocked)
        # A query without boxes is answered as if it were asked alone.
        cls = ones if self.geometry_cls else valid.any(1, keepdim=True)
        return torch.cat([text, geometry.output_layer_norm(hidden)], 1), torch.cat([words, valid, cls], 1)

    def _boxes(self, level: Tensor, prompts: Prompts) -> Tensor:
        """Exemplar boxes as tokens (Q, B, C): where they are, what the picture shows there, whether it is wanted."""
        geometry = self.model.geometry_encoder
        boxes, dtype = prompts.boxes.float(), level.dtype
        normed = geometry.vision_layer_norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        height, width = level.shape[-2:]
        corners = _corners(boxes) * boxes.new_tensor([width, height, width, height])
        pooled = geometry.boxes_pool_project(roi_align(normed, corners, geometry.roi_size).flatten(0, 1))
        x, y, w, h = boxes.flatten(0, 1).unbind(-1)
        coded = geometry._encode_box_coordinates(x, y, w, h).unflatten(0, boxes.shape[:2]).to(dtype)
        wanted = geometry.label_embed(prompts.box_labels.clamp(min=0))
        direct = geometry.boxes_direct_project(boxes.to(dtype))
        return wanted + direct + pooled.view_as(direct) + geometry.boxes_pos_enc_project(coded)

    def _decoder(
        self, memory: Tensor, place: Tensor, prompt: Tensor, blocked: Tensor | None, grid: tuple[int, int], twins: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Object queries (L, Q, K, C), boxes (L, Q, K, 4), presence (L, Q); K counts the twins. ``blocked`` may be None
        where no token of the prompt is padding.

        Boxes are in float32 whatever the weights are: sines of positions need it. As in the official code the gradient
        of a layer's box also reaches the layer before ("look forward twice", Zhang et al. 2022, DINO, section 3.5).
        """
        decoder, copies = self.model.detr_decoder, 2 if twins else 1
        rows = len(memory)
        queries = decoder.query_embed.weight.repeat(copies, 1).expand(rows, -1, -1)
        hidden = torch.cat([decoder.presence_token.weight.expand(rows, 1, -1), queries], 1)
        box = decoder.reference_points.weight.float().sigmoid().repeat(copies, 1).expand(rows, -1, -1)
        states: list[Tensor] = []
        boxes: list[Tensor] = []
        presences: list[Tensor] = []
        for layer in decoder.layers:
            start = box.detach() if states else box
            coded = decoder.position_encoding.encode_boxes(start).to(memory.dtype)
            bias = F.pad(self._bias(start, grid), (0, 0, 1, 0))  # the presence token attends to all alike
            hidden = self._run(layer, hidden, decoder.ref_point_head(coded), prompt, memory, place, blocked, bias)
            state = decoder.output_layer_norm(hidden[:, 1:])
            shift = decoder.box_head(state).float()
            states.append(state)
            boxes.append((shift + _logit(box)).sigmoid())
            box = (shift + _logit(start)).sigmoid()
            presences.append(decoder.presence_head(decoder.presence_layer_norm(hidden[:, 0]))[..., 0])
        most = decoder.clamp_presence_logit_max_val
        return torch.stack(states), torch.stack(boxes), torch.stack(presences).clamp(-most, most)

    def _bias(self, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(Q, heads, K, h w): how much each box attends to each cell, by the log distances from its edges."""
        decoder = self.model.detr_decoder
        corners, dtype = _corners(boxes), _dtype(decoder)
        sums = []
        for cells, axis, embed in ((grid[0], 1, decoder.box_rpb_embed_y), (grid[1], 0, decoder.box_rpb_embed_x)):
            at = torch.arange(cells, device=boxes.device) / cells
            far = 8 * (at[:, None] - corners[..., None, axis::2])
            coded = embed((far.sign() * (far.abs() + 1).log2() / 3).to(dtype))  # (Q, K, cells, heads)
            sums.append(coded.permute(0, 3, 1, 2).contiguous())  # small; the sum is made in the order it is read in
        return (sums[0].unsqueeze(4) + sums[1].unsqueeze(3)).flatten(3)


def _of_each(level: Tensor, image: Tensor) -> Tensor:
    """(N, ...) to (Q, ...); of a single picture without a copy."""
    return level.expand(len(image), -1, -1, -1) if len(level) == 1 else level[image]


def _blocked(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """(Q, T) bool to what is added to attention logits (Q, 1, 1, T)."""
    nothing = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return nothing.masked_fill(~valid, -math.inf)[:, None, None]


def _corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, y, width, height to x0, y0, x1, y1."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _logit(share: Tensor, least: float = 1e-3) -> Tensor:
    """Inverse of the sigmoid, bounded as in SAM3."""
    return (share.clamp(least, 1) / (1 - share).clamp(least, 1)).log()


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype

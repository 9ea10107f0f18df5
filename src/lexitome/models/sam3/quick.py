"""SAM3 for inference on a CPU: the answers of `network.Sam3Net` from the same weights, with less work (needs torch).

What is done otherwise, all of it exact but for rounding:

- Tokens keep the order of the windows from the first block to the last, so no window is cut out or put back; blocks
  with global attention get their positions in that order.
- Queries, keys and values come from one product. Their rows are reordered so that positions rotate the two halves of a
  head instead of each pair, in the precision of the weights; dot products do not see the order.
- Products take their bias, GELU or ReLU, and the residual along (oneDNN), where torch has these kernels.
- What the words cannot change is computed once for a picture: the first self-attention of the fusion encoder, and the
  mask decoder's convolutions of the two finer levels. A convolution is linear: that of "enlarged + lateral" is that of
  the one plus that of the other.
- A 3 x 3 convolution of a map enlarged twofold is four 2 x 2 convolutions of the small map: 4 products instead of 9.
- In bfloat16, attention goes head by head (`models.attention`): less than half the time of torch's flash attention on
  a CPU without AMX.
- The projection of pixels for instance masks is applied to the queries instead: hundreds, not tens of thousands.

Not exact: the image trunk's products can be made of 8-bit numbers (`models.sam3.eight`), four fifths of all there is to
compute for a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.models.attention import by_head
from lexitome.models.reading import release
from lexitome.models.sam3.eight import Linear8
from lexitome.models.sam3.network import Features, Outputs, Prompts, Sam3Net, _blocked, _of_each

Then = Literal["none", "gelu", "relu"]
FUSED = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
"""Whether this build of torch has oneDNN's products with something done to their results."""


class Known(NamedTuple):
    """What is known of N pictures before any word; begins as `network.Features`.

    ``fpn``: the two finer levels are those of the mask decoder, after its convolutions; the coarsest is the neck's.
    ``begun``: the coarsest level after the first self-attention of the fusion encoder.
    """

    fpn: tuple[Tensor, ...]  # (N, C, 4h, 4w), (N, C, 2h, 2w), (N, C, h, w)
    position: tuple[Tensor, ...]  # (1, C, h, w)
    trunk: Tensor  # (N, D, h, w)
    begun: Tensor  # (N, h w, C)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, then: Then = "none", add: Tensor | None = None
) -> Tensor:
    """x (..., in) by weight (out, in): ``then(x @ weight.T + bias)``, or ``x @ weight.T + bias + add``."""
    if FUSED and x.dtype == torch.bfloat16:
        if add is not None:
            fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, add, weight, bias, "add")
        else:
            fused = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none" if then == "gelu" else "")
        return fused
    y = F.linear(x, weight, bias)
    if add is not None:
        return y.add_(add)
    return F.gelu(y) if then == "gelu" else y.relu_() if then == "relu" else y


def linear(x: Tensor, layer: nn.Linear, *, then: Then = "none", add: Tensor | None = None) -> Tensor:
    return product(x, layer.weight, layer.bias, then=then, add=add)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention: (B, heads, T, size) each, scaled by the root of `size`, to (B, T, heads size)."""
    seen = by_head(q, k, v) if q.dtype == torch.bfloat16 else F.scaled_dot_product_attention(q, k, v)
    return seen.transpose(1, 2).flatten(2)


Projection = Callable[..., Tensor]
"""`product` with weight and bias, or a `Linear8`."""


@dataclass(frozen=True, eq=False)
class Block:
    """A block of the image trunk. ``qkv`` makes q, k, v, the even numbers of each head of q and k before the odd ones;
    ``cos`` and ``sin`` (tokens of a window, 1, 1, half a head)."""

    norms: tuple[nn.Module, nn.Module]
    heads: int
    qkv: Projection
    out: Projection
    up: Projection
    down: Projection
    cos: Tensor
    sin: Tensor

    @staticmethod
    def of(layer: Any, order: Tensor, dtype: torch.dtype, *, eight_bit: bool = False) -> Block:
        """Takes the weights of `layer` over. `order`: of all tokens, as windows have them; blocks with windows know
        their own."""

        def projection(weight: Tensor, bias: Tensor) -> Projection:
            if eight_bit:
                return Linear8.of(weight, bias)
            return partial(product, weight=weight.to(dtype), bias=bias.to(dtype))

        attention, mlp, size = layer.attention, layer.mlp, layer.attention.head_dim
        halves = torch.cat([torch.arange(0, size, 2), torch.arange(1, size, 2)])
        rows = (torch.arange(attention.num_attention_heads)[:, None] * size + halves).flatten()
        query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
        cos, sin = (table[0, :, ::2] for table in layer.rotary_emb(query.weight, layer.position_ids))
        if not layer.window_size:
            cos, sin = cos[order], sin[order]
        block = Block(
            (layer.layer_norm1.to(dtype), layer.layer_norm2.to(dtype)),
            attention.num_attention_heads,
            projection(torch.cat([query.weight[rows], key.weight[rows], value.weight]),
                       torch.cat([query.bias[rows], key.bias[rows], value.bias])),
            projection(attention.o_proj.weight, attention.o_proj.bias),
            projection(mlp.fc1.weight, mlp.fc1.bias),
            projection(mlp.fc2.weight, mlp.fc2.bias),
            cos[:, None, None].to(dtype).contiguous(),
            sin[:, None, None].to(dtype).contiguous(),
        )  # fmt: skip
        if eight_bit:  # copied all, and may be mapped to a file
            for linear_layer in (query, key, value, attention.o_proj, mlp.fc1, mlp.fc2):
                release(linear_layer.weight)
        layer.attention = layer.mlp = None
        return block

    def __call__(self, x: Tensor) -> Tensor:
        """(N, T, D), window after window."""
        tokens = len(self.cos)
        qkv = self.qkv(self.norms[0](x)).view(-1, tokens, 3, self.heads, x.shape[-1] // self.heads)
        rotate(qkv[:, :, :2], self.cos, self.sin)
        q, k, v = qkv.transpose(1, 3).unbind(2)
        x = self.out(attend(q, k, v).view(x.shape), add=x)
        return self.down(self.up(self.norms[1](x), then="gelu"), add=x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary positions in place: x (..., T, 2, heads, size), halves of each head; tables (T, 1, 1, size / 2)."""
    first, second = x.chunk(2, -1)
    crossed = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(crossed)


def window_order(cells: int, window: int) -> Tensor:
    """(cells²,) where the tokens of a picture, row by row, stand when window comes after window.

    Raises:
        ValueError: windows do not fill the picture.
    """
    if cells % window:
        raise ValueError(f"windows of {window} cells do not fill {cells}")
    grid = torch.arange(cells * cells).view(cells // window, window, cells // window, window)
    return grid.transpose(1, 2).reshape(-1)


@dataclass(frozen=True, eq=False)
class Enlarging:
    """A stage of the mask decoder: a 3 x 3 convolution (zeros around) of a map enlarged twofold plus a lateral one."""

    conv: nn.Conv2d
    norm: nn.GroupNorm
    phases: tuple[tuple[Tensor, ...], ...]  # [a][b]: (C, C, 2, 2) for rows 2 i + a, columns 2 j + b

    @staticmethod
    def of(conv: nn.Conv2d, norm: nn.GroupNorm) -> Enlarging:
        def folded(kernel: Tensor, odd: int, dim: int) -> Tensor:
            one, two, three = kernel.unbind(dim)  # an even row sees small rows i-1, i, i; an odd one i, i, i+1
            return torch.stack([one + two, three] if odd else [one, two + three], dim)

        kernel = conv.weight.float()
        phases = [[folded(folded(kernel, a, 2), b, 3) for b in (0, 1)] for a in (0, 1)]
        dtype = conv.weight.dtype
        return Enlarging(
            conv, norm, tuple(tuple(k.to(dtype, memory_format=torch.channels_last) for k in row) for row in phases)
        )

    def lateral(self, level: Tensor) -> Tensor:
        """The share of the finer level (N, C, 2h, 2w), which no word changes; with the bias."""
        return self.conv(level)

    def __call__(self, small: Tensor, lateral: Tensor) -> Tensor:
        """(Q, C, h, w) and (Q, C, 2h, 2w) to (Q, C, 2h, 2w), channels last."""
        height, width = small.shape[-2:]
        around = F.pad(small, (1, 1, 1, 1))
        large = lateral.clone(memory_format=torch.channels_last)
        for a, row in enumerate(self.phases):
            for b, kernel in enumerate(row):
                part = F.conv2d(around[..., a : a + height + 1, b : b + width + 1], kernel)
                large[..., a::2, b::2] += part
        normed: Tensor = self.norm(large)
        return normed.relu_()


class QuickSam3(Sam3Net):
    """A `Sam3Net` for inference alone, made of one that is not used any more: the blocks of its trunk are taken over,
    so that their weights are in memory once.

    Args:
        eight_bit: the products of the trunk are made of 8-bit numbers; attention and all else keep their precision.

    Raises:
        ValueError: windows do not fill the picture (`Sam3Net` pads them).
    """

    def __init__(self, net: Sam3Net, *, eight_bit: bool = False) -> None:
        super().__init__(net.model, geometry_cls=net.geometry_cls)
        self.eval().requires_grad_(False)
        self.eight_bit = eight_bit
        trunk: Any = net.model.vision_encoder.backbone
        cells = net.side // trunk.config.patch_size
        self.order = window_order(cells, trunk.config.window_size)
        with torch.no_grad():
            self.blocks = [Block.of(layer, self.order, self.dtype, eight_bit=eight_bit) for layer in trunk.layers]
            decoder: Any = net.model.mask_decoder.pixel_decoder
            self.stages = [Enlarging.of(*pair) for pair in zip(decoder.conv_layers, decoder.norms, strict=False)][:2]

    @property
    def precision(self) -> str:
        return f"int8 and {super().precision}" if self.eight_bit else super().precision

    def encode(self, pictures: Tensor) -> Features:
        """(N, 3, S, S) in -1..1 to what `Known` says, which passes for `Features`."""
        backbone: Any = self.model.vision_encoder.backbone
        x = backbone.layer_norm(backbone.embeddings(pictures.to(self.dtype)))[:, self.order]
        for block in self.blocks:
            x = block(x)
        tokens = torch.empty_like(x)
        tokens[:, self.order] = x
        (fine, middle, coarse), (position,), trunk = self._levels(tokens)
        laterals = self.stages[1].lateral(fine), self.stages[0].lateral(middle)
        begun = self._attend(self.model.detr_encoder.layers[0], flat(coarse), flat(position))
        return Known((*laterals, coarse), (position,), trunk, begun)  # type: ignore[return-value] # see `Known`

    def decode(
        self, features: Features, prompts: Prompts, text: Tensor | None = None, *, twins: bool = False
    ) -> Outputs:
        """As `Sam3Net.decode`, of what `encode` returned."""
        assert not twins and isinstance(features, Known)
        text = self.text(prompts.tokens, prompts.token_mask) if text is None else text
        coarse = _of_each(features.fpn[-1], prompts.image)
        position = features.position[-1].expand_as(coarse)
        prompt, valid = self._prompt(coarse, position, prompts, text)
        blocked = None if valid.all() else _blocked(valid, text.dtype)
        place = flat(features.position[-1])
        begun = features.begun
        hidden = begun.expand(len(text), -1, -1) if len(begun) == 1 else begun[prompts.image]
        for number, layer in enumerate(self.model.detr_encoder.layers):
            hidden = hidden if number == 0 else self._attend(layer, hidden, place)
            hidden = hidden + _told(layer.cross_attn, layer.layer_norm2(hidden), prompt, blocked)
            hidden = linear(linear(layer.layer_norm3(hidden), layer.mlp.fc1, then="relu"), layer.mlp.fc2, add=hidden)
        grid = (coarse.shape[-2], coarse.shape[-1])
        queries, boxes, presence = self._decoder(hidden, place.expand_as(hidden), prompt, blocked, grid, False)
        logits = self.model.dot_product_scoring(queries, prompt, valid)[..., 0]
        fpn = [_of_each(level, prompts.image) for level in features.fpn[:2]]
        masks, semantic = self._pixels(fpn, hidden, prompt, blocked, queries[-1], grid)
        return Outputs(logits, boxes, presence, masks, semantic)

    def _attend(self, layer: Any, x: Tensor, place: Tensor) -> Tensor:
        """Self-attention of a layer of the fusion encoder, (N, T, C), with the residual."""
        attention = layer.self_attn
        h = layer.layer_norm1(x)
        placed = h + place
        q, k, v = (
            _heads(linear(source, each), attention)
            for source, each in ((placed, attention.q_proj), (placed, attention.k_proj), (h, attention.v_proj))
        )
        return linear(attend(q, k, v), attention.o_proj, add=x)

    def _pixels(
        self, fpn: list[Tensor], hidden: Tensor, prompt: Tensor, blocked: Tensor | None, queries: Tensor,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `Sam3Net._masks`: (Q, K, 4h, 4w), (Q, 4h, 4w)."""
        head: Any = self.model.mask_decoder
        fused = hidden + _told(head.prompt_cross_attn, head.prompt_cross_attn_norm(hidden), prompt, blocked)
        small = fused.unflatten(1, grid).permute(0, 3, 1, 2)
        pixels = self.stages[1](self.stages[0](small, fpn[1]), fpn[0])
        flat_pixels = flat(pixels)
        embedded = head.mask_embedder(queries)
        instance = head.instance_projection
        asked = embedded @ instance.weight[:, :, 0, 0]
        masks = torch.baddbmm((embedded @ instance.bias)[..., None], asked, flat_pixels.transpose(1, 2))
        semantic = product(flat_pixels, head.semantic_projection.weight[:, :, 0, 0], head.semantic_projection.bias)
        size = pixels.shape[-2:]
        return masks.unflatten(2, size), semantic[..., 0].unflatten(1, size)


def flat(level: Tensor) -> Tensor:
    """(N, C, h, w) to (N, h w, C); without a copy where channels are last."""
    return level.permute(0, 2, 3, 1).flatten(1, 2)


def _heads(x: Tensor, attention: Any) -> Tensor:
    """(N, T, C) to (N, heads, T, C / heads)."""
    return x.unflatten(2, (attention.num_attention_heads, attention.head_dim)).transpose(1, 2)


def _told(attention: Any, x: Tensor, prompt: Tensor, blocked: Tensor | None) -> Tensor:
    """What places (Q, T, C) take from the prompt (Q, P, C)."""
    q, k, v = (
        _heads(linear(source, each), attention)
        for source, each in ((x, attention.q_proj), (prompt, attention.k_proj), (prompt, attention.v_proj))
    )
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=blocked)
    return linear(seen.transpose(1, 2).reshape(x.shape), attention.o_proj)


def quickened(net: Sam3Net, *, eight_bit: bool = False) -> Sam3Net:
    """`QuickSam3` where windows fill the picture (1008, 672 and 336 pixels of the released model), else as it is.

    Raises:
        ValueError: they do not, and `eight_bit` is asked for.
    """
    trunk: Any = net.model.vision_encoder.backbone.config
    fills = net.side // trunk.patch_size % trunk.window_size == 0
    if not fills and not eight_bit:
        return net
    return QuickSam3(net, eight_bit=eight_bit)

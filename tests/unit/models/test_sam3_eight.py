"""Products of 8-bit numbers: how near they come, what of weights they keep, and SAM3 with them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

pytest.importorskip("transformers")
from lexitome.models.sam3.eight import LEVELS, ROWS, Linear8, is_supported
from lexitome.models.sam3.network import Prompts, Sam3Net
from lexitome.models.sam3.presets import build, config_of
from lexitome.models.sam3.quick import QuickSam3, quickened

pytestmark = pytest.mark.skipif(not is_supported(), reason="the processor has no 8-bit products (VNNI)")


def rounded(values: torch.Tensor) -> torch.Tensor:
    """Rows at their 255 levels."""
    scale = values.abs().amax(1, keepdim=True).clamp_min(1e-30) / LEVELS
    return (values / scale).round() * scale


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 2 * ROWS + 3), st.sampled_from([1, 3, 16, 70]), st.integers(1, 40))
def test_the_product_of_rounded_numbers(seed: int, rows: int, inputs: int, outputs: int) -> None:
    """Exactly that of both at their levels; rows of zeros, and rows and channels of any size, are no exception."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) * 10 ** torch.randint(-4, 4, (rows, 1), generator=generator)
    x[0] = 0
    weight = torch.randn(outputs, inputs, generator=generator)
    weight *= 10 ** torch.randint(-3, 3, (outputs, 1), generator=generator)
    bias = torch.randn(outputs, generator=generator)
    before = x.clone()
    found = Linear8.of(weight, bias)(x)
    assert torch.equal(x, before)
    expected = rounded(x) @ rounded(weight).T
    one_level = x.abs().amax(1, keepdim=True) / LEVELS * weight.abs().amax(1)  # ties may fall to either side
    assert ((found - bias - expected).abs() <= 1e-4 * (bias.abs() + expected.abs()) + 1.01 * one_level + 1e-6).all()
    torch.testing.assert_close(found[0], bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_done_with_it(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(64, 48)
    x, residual = torch.randn(2, 5, 64).to(dtype), torch.randn(2, 5, 48).to(dtype)
    eight = Linear8.of(layer.weight.detach(), layer.bias.detach())
    exact = layer(x.float()).detach()
    kept = residual.clone()
    for found, expected in (
        (eight(x), exact), (eight(x, then="gelu"), F.gelu(exact)), (eight(x, add=residual), exact + residual.float()),
    ):  # fmt: skip
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found.float() - expected).abs().mean() < 0.02 * exact.abs().mean()
    assert torch.equal(residual, kept)


def test_weights_are_copied() -> None:
    layer = torch.nn.Linear(8, 8)
    eight = Linear8.of(layer.weight.detach(), layer.bias.detach())
    x = torch.randn(3, 8)
    before = eight(x)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    assert torch.equal(eight(x), before)


@torch.inference_mode()
def test_sam3_with_them() -> None:
    net = build(config_of("tiny"), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    picture = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    asked = Prompts(
        torch.randint(1, 500, (1, 5), generator=generator), torch.ones(1, 5, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long), torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.long),
    )  # fmt: skip
    exact = net(picture, asked)

    def error(network: Sam3Net) -> float:
        said = network.decode(network.encode(picture), asked)
        return float((said.semantic.float() - exact.semantic).abs().mean() / exact.semantic.abs().mean())

    eight = quickened(copy.deepcopy(net), eight_bit=True)
    assert eight.precision == "int8 and float32" and quickened(copy.deepcopy(net)).precision == "float32"
    assert error(QuickSam3(copy.deepcopy(net))) < 1e-4 < error(eight) < 0.05
    held = {id(p) for p in eight.model.vision_encoder.backbone.layers.parameters()}
    assert len(held) == 4 * len(eight.model.vision_encoder.backbone.layers), "two norms of a block are left"

"""`QuickSam3` says what `Sam3Net` says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lexitome.models.sam3.network import PADDING, Outputs, Prompts, Sam3Net
from lexitome.models.sam3.presets import build, config_of, set_side
from lexitome.models.sam3.quick import Enlarging, Known, QuickSam3, product, window_order


def random_net(side: int = 64) -> Sam3Net:
    net = build(config_of("tiny"), seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if side != net.side:
        set_side(net, side)
    return net


def prompts(boxes: int) -> Prompts:
    """Three queries of different lengths about two pictures, the last without words' full length and with boxes."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(7) < torch.tensor([7, 5, 2])[:, None]
    labels = torch.full((3, boxes), PADDING)
    if boxes:
        labels[1, 0], labels[2] = 1, torch.arange(boxes) % 2
    return Prompts(
        torch.randint(1, 500, (3, 7), generator=generator) * mask, mask, torch.tensor([0, 1, 1]),
        torch.rand(3, boxes, 4, generator=generator) * 0.3 + 0.3, labels,
    )  # fmt: skip


def assert_same(one: Outputs, other: Outputs, tolerance: float) -> None:
    for name in ("logits", "boxes", "presence", "masks", "semantic"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("boxes", [0, 2])
@torch.inference_mode()
def test_the_same_answers(side: int, boxes: int) -> None:
    net = random_net(side)
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1
    asked = prompts(boxes)
    expected, features = net(pictures, asked), net.encode(pictures)
    quick = QuickSam3(copy.deepcopy(net))
    known = quick.encode(pictures)
    assert_same(quick.decode(known, asked), expected, 1e-4)
    torch.testing.assert_close(known.trunk, features.trunk, atol=1e-4, rtol=1e-4)  # what the tracker starts from
    torch.testing.assert_close(known.fpn[-1], features.fpn[-1], atol=1e-4, rtol=1e-4)  # what boxes look at


@torch.inference_mode()
def test_one_query_without_padding_and_text_that_is_known() -> None:
    net = random_net()
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    asked = Prompts(*(value[:1] for value in prompts(0)))
    expected = net(picture, asked)
    quick = QuickSam3(net)
    text = quick.text(asked.tokens, asked.token_mask)
    assert_same(quick.decode(quick.encode(picture), asked, text), expected, 1e-4)


@torch.inference_mode()
def test_half_precision_is_no_worse_than_that_of_the_plain_network() -> None:
    """Judged by the float32 answers, which both round off."""
    net = random_net()
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    asked = Prompts(*(value[:1] for value in prompts(0)))
    exact = net(picture, asked).semantic
    half = copy.deepcopy(net).to(torch.bfloat16)
    plain = half(picture, asked).semantic.float()
    quick = QuickSam3(half)
    features = quick.encode(picture)
    assert isinstance(features, Known) and features.begun.dtype == torch.bfloat16
    error = (quick.decode(features, asked).semantic.float() - exact).abs().mean()
    assert error < 1.5 * (plain - exact).abs().mean()


@torch.no_grad()
def test_a_convolution_of_an_enlarged_map() -> None:
    conv, norm = nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(8, 16)
    small, fine = torch.randn(2, 16, 5, 7), torch.randn(2, 16, 10, 14)
    stage = Enlarging.of(conv, norm)
    expected = F.relu(norm(conv(F.interpolate(small, scale_factor=2, mode="nearest") + fine)))
    torch.testing.assert_close(stage(small, stage.lateral(fine)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(dtype: torch.dtype) -> None:
    layer = nn.Linear(24, 40)
    x, residual = torch.randn(3, 5, 24), torch.randn(3, 5, 40)
    w, b = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    expected = {
        "none": layer(x), "gelu": F.gelu(layer(x)), "relu": F.relu(layer(x)),
    }  # fmt: skip
    bound = 1e-5 if dtype == torch.float32 else 0.05
    for then, value in expected.items():
        found = product(x.to(dtype), w, b, then=then)  # type: ignore[arg-type]
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), value.detach(), atol=bound, rtol=bound)
    added = product(x.to(dtype), w, b, add=residual.to(dtype))
    torch.testing.assert_close(added.float(), (layer(x) + residual).detach(), atol=bound, rtol=bound)


def test_windows_that_do_not_fill_the_picture_are_refused() -> None:
    order: Tensor = window_order(4, 2)
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    with pytest.raises(ValueError, match="do not fill"):
        QuickSam3(random_net(72))

"""The compact network: shapes, independence of queries, position, and that it can learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lexitome.models.compact import CompactConfig, CompactNet, positions
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.text import TextEncoder

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24), frozen_blocks=0)


@pytest.fixture
def net() -> CompactNet:
    torch.manual_seed(0)
    return CompactNet(TINY, EfficientNetLite(0)).eval()


def inputs(side: int, images: int, queries: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(images, 3, side, side, generator=generator) * 255
    text = torch.randn(queries, TINY.text_dim, generator=generator)
    spatial = (torch.rand(queries, 3, side // 4, side // 4, generator=generator) > 0.9).float()
    return pictures, text, spatial


@pytest.mark.parametrize("side", [64, 96])
def test_shapes(net: CompactNet, side: int) -> None:
    decoded = net(*inputs(side, 2, 6))
    assert decoded.logits.shape == (6, side, side) and decoded.presence.shape == (6,)


def test_queries_do_not_see_each_other(net: CompactNet) -> None:
    pictures, text, spatial = inputs(64, 2, 4)
    together = net(pictures, text, spatial)
    for image, query in ((0, 0), (0, 1), (1, 2), (1, 3)):
        alone = net(pictures[image : image + 1], text[query : query + 1], spatial[query : query + 1])
        torch.testing.assert_close(together.logits[query], alone.logits[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(together.presence[query], alone.presence[0], atol=1e-4, rtol=1e-3)


def test_words_and_places_change_the_answer(net: CompactNet) -> None:
    pictures, text, spatial = inputs(64, 1, 1)
    plain = net(pictures, text, spatial).logits
    assert not torch.allclose(plain, net(pictures, -text, spatial).logits)
    assert not torch.allclose(plain, net(pictures, text, 1 - spatial).logits)


def test_whitening_separates_left_from_right_and_keeps_silence_silent(net: CompactNet) -> None:
    organs = ("kidney", "lung", "clavicle", "adrenal gland", "parotid gland")
    pairs = [
        torch.from_numpy(TextEncoder.load().embed([f"{side} {organ}" for organ in organs]))
        for side in ("left", "right")
    ]
    others = ["polyp", "liver", "optic disc", "nuclei", "skin lesion", "heart", "teeth", "foot ulcer", "cell membrane"]
    project = net.decoder.text
    before = F.cosine_similarity(*pairs).mean()
    project.fit(torch.cat([*pairs, torch.from_numpy(TextEncoder.load().embed(others))]))
    white = [F.normalize((names - project.mean) @ project.whiten, dim=1) for names in pairs]
    assert F.cosine_similarity(*white).mean() < before - 0.05
    silent = project(torch.zeros(2, TINY.text_dim))
    assert torch.equal(silent[0], silent[1]) and torch.isfinite(silent).all()


def test_positions_tell_left_from_right_at_any_resolution() -> None:
    small, large = positions(4, 4, 32), positions(8, 8, 32)
    assert not torch.allclose(small[:, 0, 0], small[:, 0, 3])
    torch.testing.assert_close(F.avg_pool2d(large[None, ::8], 2)[0], small[::8], atol=0.05, rtol=0)  # lowest frequency


def test_every_trainable_parameter_learns(net: CompactNet) -> None:
    decoded = net(*inputs(64, 2, 4))
    (decoded.logits.mean() + decoded.presence.mean()).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_learns_to_follow_the_words() -> None:
    """One picture, two words, two different halves: a few steps must tell them apart."""
    torch.manual_seed(0)
    net = CompactNet(TINY, EfficientNetLite(0)).train()
    pictures, text, spatial = inputs(64, 1, 2)
    target = torch.zeros(2, 64, 64)
    target[0, :, :32], target[1, :, 32:] = 1, 1
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(net(pictures, text, 0 * spatial).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((net(pictures, text, 0 * spatial).logits > 0) == target.bool()).float().mean() > 0.9

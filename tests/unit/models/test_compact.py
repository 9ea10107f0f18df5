"""The compact network: shapes, independence of queries, position, and that it can learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lexitome.data import prompt_maps
from lexitome.models.compact import SPATIAL_CHANNELS, SPATIAL_STRIDE, CompactConfig, CompactNet, positions
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
    map_side = side // SPATIAL_STRIDE
    spatial = (torch.rand(queries, SPATIAL_CHANNELS, map_side, map_side, generator=generator) > 0.9).float()
    return pictures, text, spatial


@pytest.mark.parametrize("side", [64, 96])
def test_shapes(net: CompactNet, side: int) -> None:
    decoded = net(*inputs(side, 2, 6))
    assert decoded.logits.shape == (6, side, side) and decoded.presence.shape == (6,)
    assert decoded.centres.shape == (6, side // 2, side // 2) and decoded.offsets.shape == (6, 2, side // 2, side // 2)
    assert decoded.objects is None


def test_object_queries() -> None:
    torch.manual_seed(0)
    config = replace(TINY, object_queries=5, decoder_layers=2)
    decoded = CompactNet(config, EfficientNetLite(0)).eval()(*inputs(64, 1, 3))
    objects = decoded.objects
    assert objects is not None and objects.logits.shape == (2, 3, 5) and objects.masks.shape == (3, 5, 16, 16)
    assert objects.boxes.shape == (2, 3, 5, 4) and objects.boxes.min() >= 0 and objects.boxes.max() <= 1
    assert decoded.logits.shape == (3, 64, 64)


def test_spatial_channels_are_those_of_the_prompts() -> None:
    """Declared on both sides, since the data do not import the models."""
    assert (prompt_maps.CHANNELS, prompt_maps.STRIDE) == (SPATIAL_CHANNELS, SPATIAL_STRIDE)


def test_queries_do_not_see_each_other(net: CompactNet) -> None:
    pictures, text, spatial = inputs(64, 2, 4)
    together = net(pictures, text, spatial)
    for image, query in ((0, 0), (0, 1), (1, 2), (1, 3)):
        alone = net(pictures[image : image + 1], text[query : query + 1], spatial[query : query + 1])
        torch.testing.assert_close(together.logits[query], alone.logits[0], atol=1e-4, rtol=1e-3)
        for name in ("presence", "centres", "offsets"):
            torch.testing.assert_close(getattr(together, name)[query], getattr(alone, name)[0], atol=1e-4, rtol=1e-3)


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


@pytest.mark.parametrize("phrases", [["polyp"], ["polyp", "the polyp"], ["polyp", "liver", "spleen"]])
def test_few_words_are_enough(net: CompactNet, phrases: list[str]) -> None:
    """A set of one thing without synonyms is what most users begin with."""
    vectors = torch.from_numpy(TextEncoder.load().embed(phrases))
    net.decoder.text.fit(vectors)
    found = net.decoder.text(torch.cat([vectors, torch.zeros_like(vectors[:1])]))
    assert torch.isfinite(found).all()
    assert all(not torch.allclose(words, found[-1], atol=1e-3) for words in found[:-1])  # words are not silence


def test_every_kind_of_place_changes_the_answer(net: CompactNet) -> None:
    pictures, text, spatial = inputs(64, 1, 1)
    nowhere = torch.zeros_like(spatial)
    plain = net(pictures, text, nowhere).logits
    for channel in range(SPATIAL_CHANNELS):
        there = nowhere.clone()
        there[:, channel, 4:8, 4:8] = 1
        assert not torch.allclose(plain, net(pictures, text, there).logits), channel


def test_positions_tell_left_from_right_at_any_resolution() -> None:
    small, large = positions(4, 4, 32), positions(8, 8, 32)
    assert not torch.allclose(small[:, 0, 0], small[:, 0, 3])
    torch.testing.assert_close(F.avg_pool2d(large[None, ::8], 2)[0], small[::8], atol=0.05, rtol=0)  # lowest frequency


def test_every_trainable_parameter_learns(net: CompactNet) -> None:
    decoded = net(*inputs(64, 2, 4))
    (decoded.logits.mean() + decoded.presence.mean() + decoded.centres.mean() + decoded.offsets.mean()).backward()
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

"""Decoders have the published widths, answer pictures of any size, and reach every part of the network."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from lexitome.models.dinov3.decoders import DECODERS, DecoderName, MultiScale, build_decoder, usual_taps
from lexitome.models.dinov3.presets import build
from lexitome.models.dinov3.segmentation import DinoSegmenter, build_segmenter, empty_segmenter

FLAT = [name for name in DECODERS if name != "stacked3d"]


def test_multi_scale_aggregation_is_the_published_one() -> None:
    """2509.02379: 4 x 768 channels to 1536, 768, 384, 192; 25.1 M parameters."""
    with torch.device("meta"):
        decoder = MultiScale(4 * 768, 14)
    convolutions = [stage[0] for stage in decoder.stages]
    assert [c.out_channels for c in convolutions] == [1536, 768, 384, 192]
    assert all(c.kernel_size == c.stride == (2, 2) for c in convolutions)
    names = ["ConvTranspose2d", "LayerNorm2d", "GELU"]
    assert all([type(part).__name__ for part in stage] == names for stage in decoder.stages)
    assert sum(p.numel() for p in decoder.stages.parameters()) == pytest.approx(25.1e6, rel=0.003)
    assert decoder.head.kernel_size == (1, 1) and decoder.head.in_channels == 192
    assert usual_taps(12) == (2, 5, 8, 11) and usual_taps(24) == (4, 11, 17, 23) and usual_taps(4) == (0, 1, 2, 3)


def test_weights_begin_as_he_says_and_biases_at_zero() -> None:
    """Deviation sqrt(2 / (1 + 0.01^2) / fan-in), the fan-in of a transposed convolution as torch counts it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = build_decoder("multiscale", 256, 4, 5)
    first = decoder.stages[0][0]
    expected = (2 / (1 + 1e-4) / (first.weight.shape[1] * 4)) ** 0.5
    assert float(first.weight.detach().std()) == pytest.approx(expected, rel=0.01)
    assert not any(p.any() for name, p in decoder.named_parameters() if name.endswith("0.bias"))


@pytest.mark.parametrize("name", FLAT)
@pytest.mark.parametrize("size", [(32, 32), (40, 23), (16, 49)])
def test_any_picture_gets_logits_of_its_size_and_what_is_beyond_is_cut(
    name: DecoderName, size: tuple[int, int]
) -> None:
    net = build_segmenter(build("tiny", 0), name, 3).eval()
    picture = torch.randn(2, 3, *size, generator=torch.manual_seed(1))
    logits = net(picture)
    assert logits.shape == (2, 3, *size)
    below, right = (-side % 16 for side in size)
    padded = net(torch.nn.functional.pad(picture, (0, right, 0, below), mode="replicate"))
    assert torch.allclose(logits, padded[..., : size[0], : size[1]], atol=1e-5)


def test_stacks_of_slices_know_of_each_other() -> None:
    net = build_segmenter(build("tiny", 0), "stacked3d", 2).eval()
    stack = torch.randn(1, 3, 5, 32, 40, generator=torch.manual_seed(1))
    before = net(stack)
    assert before.shape == (1, 2, 5, 32, 40)
    changed = stack.clone()
    changed[:, :, 0] = 0
    after = net(changed)
    assert (before[:, :, 0] - after[:, :, 0]).abs().max() > 1e-4 < (before[:, :, 1] - after[:, :, 1]).abs().max()


def test_what_the_decoder_sees_are_normed_maps_of_the_tapped_blocks() -> None:
    trunk = build("tiny", 0).eval()
    net = build_segmenter(trunk, "multiscale", 2, (1, -1)).eval()
    picture = torch.randn(1, 3, 32, 48, generator=torch.manual_seed(1))
    assert net.taps == (1, 3)
    assert torch.equal(net(picture), net.decoder(trunk.taps(picture, (1, 3), norm=True), (32, 48)))
    assert not torch.allclose(net(picture), net.decoder(trunk.taps(picture, (1, 3), norm=False), (32, 48)))
    last = build_segmenter(trunk, "multiscale", 2, (-1,))
    assert last.taps == (3,) and last.decoder.stages[0][0].in_channels == trunk.dim


@pytest.mark.parametrize("name", DECODERS)
def test_gradients_reach_all_that_answers_depend_on_and_nothing_else_learns(name: DecoderName) -> None:
    net = build_segmenter(build("tiny", 0), name, 2, (0, 2)).train()
    shape = (2, 3, 4, 32, 32) if net.is_3d else (2, 3, 32, 32)
    (net(torch.randn(shape, generator=torch.manual_seed(1))) ** 2).mean().backward()
    learning = {n: p for n, p in net.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in learning.values())
    idle = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert idle and all("mask_token" in n or n.startswith("trunk.model.model.layer.3.") for n in idle)


def test_a_stored_configuration_makes_the_same_network() -> None:
    net = build_segmenter(build("tiny", 0), "segdino", 3, (0, 3))
    again = empty_segmenter(net.trunk.config.to_dict(), "segdino", 3, net.taps)
    again.load_state_dict(net.state_dict())
    picture = torch.randn(1, 3, 32, 32, generator=torch.manual_seed(1))
    assert torch.equal(net.eval()(picture), again.eval()(picture))


def test_impossible_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 3"):
        DinoSegmenter(build("tiny", 0), "linear", 2, (4,))
    with pytest.raises(ValueError, match="cannot be halved"):
        MultiScale(40, 2, 16)

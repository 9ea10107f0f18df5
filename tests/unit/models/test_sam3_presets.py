"""Configurations of SAM3 and the networks made from them."""

from __future__ import annotations

import pytest
import torch
from transformers import Sam3Config, Sam3Model

from lexitome.models.sam3.network import Prompts, Sam3Net
from lexitome.models.sam3.presets import build, config_of, set_side


def words(count: int = 1) -> Prompts:
    ones = torch.ones(count, 3)
    return Prompts(ones.long(), ones.bool(), torch.zeros(count).long(), torch.zeros(count, 0, 4), ones[:, :0].long())


def test_full_is_the_released_one() -> None:
    """840.4 million parameters: the official detector's but for points and the first position, which it has unread."""
    assert config_of("full").to_dict() == Sam3Config().to_dict()
    with torch.device("meta"):
        model = Sam3Model(config_of("full"))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 840.4


def test_small_is_small() -> None:
    with torch.device("meta"):
        model = Sam3Model(config_of("small"))
    assert 20 < 4e-6 * sum(p.numel() for p in model.parameters()) < 100  # MB in float32


@pytest.mark.parametrize(("name", "side"), [("full", 560), ("small", 224), ("tiny", 96)])
def test_side_and_vocabulary(name: str, side: int) -> None:
    config = config_of(name, side=side, vocabulary=700)  # type: ignore[arg-type]
    assert config.image_size == side
    assert config.text_config.vocab_size == 700 and config.text_config.eos_token_id == 699
    cells = side // config.vision_config.backbone_config.patch_size
    assert config.vision_config.backbone_feature_sizes[-1] == [cells, cells]


@pytest.mark.parametrize("side", [0, 13, 1000])
def test_side_must_fit_the_patch(side: int) -> None:
    with pytest.raises(ValueError, match="multiple of 14"):
        config_of("full", side=side)


def test_build_is_reproducible_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (build(config_of("tiny"), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_object_queries_start_apart() -> None:
    """Official initialisation: boxes all over the picture, and the first layer moves none of them."""
    net = build(config_of("tiny"), seed=0).eval()
    with torch.no_grad():
        said = net(torch.zeros(1, 3, 64, 64), words())
    assert said.boxes[0, 0].std(0).min() > 0.1
    torch.testing.assert_close(said.boxes[0], said.boxes[-1])


@torch.no_grad()
def test_set_side_equals_a_network_made_for_it() -> None:
    """On any side, that of the windows' multiples or not."""
    made = config_of("tiny")
    net = build(made, seed=0).eval()
    for side in (96, 40, 64):
        set_side(net, side)
        config = config_of("tiny")
        config.vision_config.backbone_config.image_size = side
        fresh = Sam3Net(Sam3Model(config), geometry_cls=True).eval()
        fresh.load_state_dict(net.state_dict())
        picture = torch.rand(1, 3, side, side)
        assert net.side == side
        torch.testing.assert_close(net(picture, words()), fresh(picture, words()))


def test_set_side_refuses() -> None:
    with pytest.raises(ValueError, match="64 or 72"):
        set_side(build(config_of("tiny"), seed=0), 70)


@torch.no_grad()
def test_full_size_shapes() -> None:
    """Without memory: 1008 pixels, 72 x 72 cells, masks of 288 x 288, 200 object queries, 6 layers."""
    with torch.device("meta"):
        net = Sam3Net(Sam3Model(config_of("full")), geometry_cls=True).eval()
        features, text = net.encode(torch.zeros(1, 3, 1008, 1008)), torch.zeros(2, 3, 256)
        said = net.decode(features, words(2), text, twins=True)
    assert [level.shape[-1] for level in features.fpn] == [288, 144, 72]
    assert said.masks.shape == (2, 200, 288, 288) and said.semantic.shape == (2, 288, 288)
    assert said.logits.shape == (6, 2, 200) and said.boxes.shape == (6, 2, 200, 4) and said.presence.shape == (6, 2)
    assert said.twin_masks is not None and said.twin_masks.shape == said.masks.shape

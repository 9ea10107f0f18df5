"""DINOv3's features and maps against transformers' and timm's own networks with the same random weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402
from transformers import DINOv3ViTBackbone, DINOv3ViTModel  # noqa: E402
from transformers.initialization import no_init_weights  # noqa: E402

from lexitome.models.dinov3.backbone import Dinov3  # noqa: E402
from lexitome.models.dinov3.presets import PRESETS, SPECS, Preset, Spec, build, config_of, of_spec  # noqa: E402

SIZES = [(64, 64), (32, 80), (50, 71), (5, 33)]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def shuffled(net: nn.Module, seed: int) -> None:
    """No two tensors alike and none so small that its place would not matter; norms stay norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            near = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(near + 0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "swiglu"])
def net(request: pytest.FixtureRequest) -> Dinov3:
    made = build(of_spec(Spec(64, 4, 2, 96, request.param)), 0).eval()
    shuffled(made, 1)
    return made


def pictures(size: tuple[int, int], count: int = 2) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(2))


def continued(images: Tensor) -> Tensor:
    """To a multiple of 16 by the last row and column, by NumPy."""
    below, right = (-side % 16 for side in images.shape[-2:])
    return torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (0, below), (0, right)), mode="edge"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_features_are_those_of_transformers(net: Dinov3, size: tuple[int, int], masked: bool) -> None:
    h, w = net.grid(*size)
    assert (h, w) == (-(-size[0] // 16), -(-size[1] // 16))
    masks = torch.rand(2, h * w, generator=torch.Generator().manual_seed(3)) < 0.5 if masked else None
    with torch.inference_mode():
        found = net(pictures(size), masks)
        whole = net.model(continued(pictures(size)), bool_masked_pos=masks).last_hidden_state
    assert found.patches.shape == (2, h, w, 64) and found.registers.shape == (2, 4, 64)
    mine = torch.cat([found.cls[:, None], found.registers, found.patches.flatten(1, 2)], 1)
    torch.testing.assert_close(mine, whole, **CLOSE)


def test_masks_matter(net: Dinov3) -> None:
    with torch.inference_mode():
        plain, hidden = (
            net.features(pictures((32, 32)), masks) for masks in (None, torch.ones(2, 4, dtype=torch.bool))
        )
    assert (plain.patches - hidden.patches).abs().max() > 0.1
    # all patches hidden: the pictures are the same
    torch.testing.assert_close(hidden.cls[0], hidden.cls[1], **CLOSE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", [True, False])
def test_taps_are_those_of_transformers(net: Dinov3, size: tuple[int, int], norm: bool) -> None:
    """Its `DINOv3ViTBackbone` counts stages from 1, and always norms the last."""
    config = copy.deepcopy(net.config)
    config.apply_layernorm = norm
    config.out_indices = [1, 2, 3, 4]
    theirs = DINOv3ViTBackbone(config).eval()
    theirs.load_state_dict(net.model.state_dict())
    with torch.inference_mode():
        maps = net.taps(pictures(size), [0, 1, 2, 3], norm)
        expected = [each.movedim(1, -1) for each in theirs(continued(pictures(size))).feature_maps]
    for mine, their in zip(maps[: None if norm else -1], expected, strict=False):
        torch.testing.assert_close(mine, their, **CLOSE)


def test_taps_in_the_order_asked_for(net: Dinov3) -> None:
    with torch.inference_mode():
        forth, last = net.taps(pictures((32, 48)), [2, -1])
        back = net.taps(pictures((32, 48)), [3, 2])
        whole = net.features(pictures((32, 48)))
    assert torch.equal(last, back[0]) and torch.equal(forth, back[1]) and not torch.equal(forth, last)
    torch.testing.assert_close(last, whole.patches)
    for wrong in ([], [4], [-5]):
        with pytest.raises(ValueError, match="counted from 0 to 3"):
            net.taps(pictures((32, 48)), wrong)


def test_blocks_behind_the_last_one_are_not_run(net: Dinov3) -> None:
    run = []
    handles = [block.register_forward_hook(lambda *_, i=i: run.append(i)) for i, block in enumerate(net.blocks)]
    net.taps(pictures((16, 16)), [1])
    for handle in handles:
        handle.remove()
    assert run == [0, 1]


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"])
@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_features_and_taps_are_those_of_timm(name: str, size: tuple[int, int]) -> None:
    timm = pytest.importorskip("timm")
    from lexitome.models.dinov3.conversion import to_ours
    from lexitome.models.dinov3.weights import inferred_config

    theirs = timm.create_model(name, embed_dim=128, num_heads=2, depth=3, num_classes=0).eval()
    shuffled(theirs, 4)
    converted = to_ours(theirs.state_dict())
    mine = build(inferred_config(converted), 0).eval()
    mine.model.load_state_dict(converted.tensors)
    with torch.inference_mode():
        found = mine.features(pictures(size))
        maps = mine.taps(pictures(size), [0, 1, 2])
        expected = theirs.forward_features(continued(pictures(size)))
        middle = theirs.forward_intermediates(
            continued(pictures(size)), indices=[0, 1, 2], norm=True, intermediates_only=True
        )
    tokens = torch.cat([found.cls[:, None], found.registers, found.patches.flatten(1, 2)], 1)
    torch.testing.assert_close(tokens, expected, **CLOSE)
    for one, other in zip(maps, middle, strict=True):
        torch.testing.assert_close(one, other.movedim(1, -1), **CLOSE)


PARAMETERS = {"s": 21.60, "s_plus": 28.70, "b": 85.67, "l": 303.15, "h_plus": 840.6}
"""In millions, of the official code, which counts biases of keys."""


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_of_presets(name: Preset) -> None:
    config = config_of(name)
    with torch.device("meta"), no_init_weights():
        model = DINOv3ViTModel(config)
    spec = SPECS[name]
    keys = spec.depth * spec.dim if spec.biased else 0
    millions = (sum(each.numel() for each in model.parameters()) + keys) / 1e6
    assert millions == pytest.approx(PARAMETERS.get(name, millions), rel=1e-4)
    assert config.num_register_tokens == 4 and config.pos_embed_rescale is None and not config.key_bias
    assert spec.dim // spec.heads == (32 if name == "tiny" else 64)


def test_presets_that_are_trained_here() -> None:
    mini = build("mini", 0)
    assert 5e6 < sum(each.numel() for each in mini.parameters()) < 7e6
    assert (mini.dim, mini.depth, mini.patch, mini.prefix) == (192, 12, 16, 5)
    with pytest.raises(ValueError, match="meddinov3_b, mini"):
        config_of("giant")  # type: ignore[arg-type]


def test_a_seed_gives_one_network_and_leaves_the_others_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two, other = build("tiny", 0), build("tiny", 0), build("tiny", 1)
    assert torch.equal(torch.rand(1), expected)
    assert one.training
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.blocks[0].mlp.up_proj.weight, other.blocks[0].mlp.up_proj.weight)


def differs(module: nn.Module, net: Dinov3) -> bool:
    """Whether two calls differ while the module around it trains."""
    module.train()
    seen = [net.features(pictures((64, 64), count=8)).patches for _ in range(2)]
    return not torch.equal(*seen)


@pytest.mark.parametrize(
    "random", [{}, {"rescale": 2.0}, {"shift": 0.5}, {"jitter": 1.5}], ids=["none", "rescale", "shift", "jitter"]
)
def test_positions_are_augmented_in_training_only(net: Dinov3, random: dict[str, float]) -> None:
    mine = copy.deepcopy(net).augment(**random)
    assert differs(mine, mine) == bool(random)
    mine.eval()
    assert torch.equal(mine(pictures((32, 32))).cls, net(pictures((32, 32))).cls)
    assert not differs(mine.augment(), mine)


def test_drop_path_in_training_only(net: Dinov3) -> None:
    mine = copy.deepcopy(net).regularise(0.5)
    assert differs(mine, mine)
    assert torch.equal(mine.eval()(pictures((32, 32))).cls, net(pictures((32, 32))).cls)
    assert not differs(mine.regularise(0.0), mine)


def test_frozen_is_frozen(net: Dinov3) -> None:
    """Whatever is called on it, on the module around it, or on a part of it."""
    mine = copy.deepcopy(net).augment(rescale=2.0, shift=0.5).regularise(0.5)
    around = nn.Sequential(mine, nn.Linear(64, 2))
    assert differs(around, mine)
    assert mine.freeze() is mine
    expected = net(pictures((64, 64), count=8)).patches
    for train in (around.train, mine.train, mine.model.train, mine.blocks.train, copy.deepcopy(mine).train):
        train()
        assert not differs(around, mine)
        torch.testing.assert_close(mine(pictures((64, 64), count=8)).patches, expected)
    assert not any(each.requires_grad for each in mine.parameters())
    assert not mine(pictures((32, 32))).cls.requires_grad
    assert not any(module.training for module in mine.modules())
    assert around[1].training
    assert copy.deepcopy(mine).train().frozen


def test_gradients_reach_every_parameter_that_is_used() -> None:
    mine = build("tiny", 0)
    found = mine(pictures((48, 32)), torch.rand(2, 6) < 0.5)
    sum(each.square().sum() for each in found).backward()
    assert {name for name, each in mine.named_parameters() if each.grad is None} == set()


def test_half_precision_takes_pictures_in_full(net: Dinov3) -> None:
    half = copy.deepcopy(net).to(torch.bfloat16)
    with torch.inference_mode():
        found, exact = half(pictures((50, 71))), net(pictures((50, 71)))
    assert found.patches.dtype == torch.bfloat16
    cosine = nn.functional.cosine_similarity(found.patches.float(), exact.patches, dim=-1)
    assert cosine.min() > 0.99

"""Which parameter learns how fast, decays, or stays as it is; schedules against hand values; the moving average."""

from __future__ import annotations

import copy
import json
import math
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lexitome.errors import InputError
from lexitome.training.optim import (
    Average,
    LayerDecay,
    OptimConfig,
    apply_freeze,
    build_optimizer,
    checkpoint_activations,
    lr_factor,
    medical_sam3_decay,
    param_groups,
    sam3_decay,
    set_rates,
)
from lexitome.training.parallel import leave


class Vit(nn.Module):
    """A vision transformer with timm's parameter names outside of the blocks and their numbering."""

    def __init__(self, depth: int, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 8, 8)
        layers = [nn.TransformerEncoderLayer(width, 2, 4 * width, 0.5, batch_first=True) for _ in range(depth)]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 16, 16) -> (B, 3)."""
        tokens = self.patch_embed.proj(x).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, 0]))


def official_names(blocks: int) -> list[str]:
    """Parameters of SAM3's image encoder in the official layout, cut to `blocks` blocks."""
    trunk = "backbone.vision_backbone.trunk"
    ends = ["norm1.weight", "attn.qkv.weight", "mlp.fc2.bias"]
    return [
        f"{trunk}.pos_embed",
        f"{trunk}.patch_embed.proj.weight",
        *(f"{trunk}.blocks.{i}.{end}" for i in range(blocks) for end in ends),
        f"{trunk}.ln_pre.weight",
        "backbone.vision_backbone.convs.0.conv_1x1.weight",
        "transformer.decoder.layers.0.linear1.weight",
    ]


# --- layer-wise decay ---


@pytest.mark.parametrize(
    ("blocks", "depth", "stem", "first", "middle", "last"),
    [  # exponents written out by hand from id 0, id 1, id blocks / 2 + 1, id blocks
        (32, None, 33, 32, 16, 1),
        (32, 12, 12, 11, 0, 0),
        (12, None, 13, 12, 6, 1),
        (12, 12, 12, 11, 5, 0),
        (12, 32, 32, 31, 25, 20),
    ],
)
@pytest.mark.parametrize("rate", [0.9, 0.85])
def test_layer_decay_is_the_published_rule(
    blocks: int, depth: int | None, stem: int, first: int, middle: int, last: int, rate: float
) -> None:
    names = [name for name, _ in Vit(blocks).named_parameters()]
    factors = LayerDecay(rate, depth=depth).factors(names)
    assert factors["patch_embed.proj.weight"] == pytest.approx(rate**stem, rel=1e-12)
    assert factors["blocks.0.self_attn.in_proj_weight"] == pytest.approx(rate**first, rel=1e-12)
    assert factors[f"blocks.{blocks // 2}.norm1.bias"] == pytest.approx(rate**middle, rel=1e-12)
    assert factors[f"blocks.{blocks - 1}.linear2.weight"] == pytest.approx(rate**last, rel=1e-12)
    assert {factors[n] for n in ("pos_embed", "cls_token", "norm.weight", "head.weight")} == {1.0}


def test_layer_decay_fits_timm() -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        names = [name for name, _ in timm.create_model("vit_base_patch16_224").named_parameters()]
    factors = LayerDecay(0.9).factors(names)
    assert factors["patch_embed.proj.weight"] == pytest.approx(0.9**13)
    assert factors["blocks.11.mlp.fc2.bias"] == pytest.approx(0.9)
    assert {name.split(".")[0] for name, factor in factors.items() if factor == 1} == {
        "cls_token", "pos_embed", "norm", "head",
    }  # fmt: skip


def test_the_two_readings_of_medical_sam3() -> None:
    """0.85 ** 33 and 0.85 ** 12, the numbers of the reference notes."""
    names, stem = official_names(32), "backbone.vision_backbone.trunk.patch_embed.proj.weight"
    assert medical_sam3_decay("official").factors(names)[stem] == pytest.approx(0.0047, abs=5e-5)
    assert medical_sam3_decay("official", depth=12).factors(names)[stem] == pytest.approx(0.142, abs=5e-4)
    assert sam3_decay("official").factors(names)[stem] == pytest.approx(0.9**33)


def test_both_layouts_of_sam3_get_the_same_factors() -> None:
    transformers = pytest.importorskip("transformers.models.sam3")
    with torch.device("meta"):
        encoder = transformers.modeling_sam3.Sam3VisionModel(transformers.Sam3VisionConfig())
    ours = [f"vision_encoder.{name}" for name, _ in encoder.named_parameters()]
    ours.append("detr_decoder.layers.0.mlp.fc1.weight")
    theirs = official_names(32)
    first, second = sam3_decay("transformers").factors(ours), sam3_decay("official").factors(theirs)
    assert set(first.values()) == set(second.values())
    assert len(set(first.values())) == 34
    assert first["vision_encoder.backbone.layer_norm.weight"] == pytest.approx(0.9**33)
    assert first["vision_encoder.backbone.embeddings.position_embeddings"] == 1.0
    assert first["vision_encoder.neck.fpn_layers.0.proj1.weight"] == 1.0
    assert first["detr_decoder.layers.0.mlp.fc1.weight"] == 1.0


def test_layer_decay_reads_transformers_names_and_stages() -> None:
    beit = [f"model.encoder.layer.{i}.output.weight" for i in (0, 1, 10)] + ["model.embeddings.patch_embed.weight"]
    assert list(LayerDecay(0.5, ("layer.{i}.",)).factors(beit).values()) == [0.5**3, 0.5**2, 0.5, 0.5**4]

    staged = ["stem.weight", "layer1.0.w", "layer2.0.w", "layer2.1.w", "layer3.0.w", "fc.w"]
    coarse = LayerDecay(0.5, ("layer1.", "layer2.", "layer3."), ("stem.*",)).factors(staged)
    assert list(coarse.values()) == [0.5**4, 0.5**3, 0.5**2, 0.5**2, 0.5, 1.0]
    fine = LayerDecay(0.5, ("layer1.{i}.", "layer2.{i}.", "layer3.{i}."), ("stem.*",)).factors(staged)
    assert list(fine.values()) == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]

    nested = [f"stages.{s}.blocks.{b}.w" for s in (0, 1) for b in range(11)] + ["patch_embed.w"]
    both = LayerDecay(0.5, ("stages.{i}.blocks.{i}.",)).factors(nested)
    assert both["stages.1.blocks.10.w"] == 0.5  # numbers, not strings: 10 comes after 9
    assert both["stages.0.blocks.10.w"] == 0.5**12
    assert both["patch_embed.w"] == 0.5**23


@pytest.mark.parametrize(
    ("decay", "cause"),
    [
        (LayerDecay(0.9, ("block.{i}.",)), "no block"),
        (LayerDecay(0.9, ("layers.{i}.",)), "below decoder. and encoder."),
        (LayerDecay(0.9, ("encoder.layers.{i}.",), ("*patch_embedding.*",)), "matches nothing"),
    ],
)
def test_layer_decay_refuses_what_it_cannot_place(decay: LayerDecay, cause: str) -> None:
    names = ["encoder.patch_embed.weight", "encoder.layers.0.w", "decoder.layers.0.w"]
    with pytest.raises(InputError, match=cause):
        decay.factors(names)


# --- groups ---


class Mixed(nn.Module):
    """Every kind of parameter: kernels, biases, norms with one and two axes, a bias table, a scalar, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1))
        self.norm = nn.LayerNorm([4, 6])
        self.attention = nn.MultiheadAttention(4, 2)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.decoder = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.decoder.weight


NAMES = [name for name, _ in Mixed().named_parameters()]
GLOBS = st.sampled_from([*NAMES, "encoder.*", "*.weight", "*bias*", "attention.*", "decoder.*", "*"])


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.tuples(GLOBS, st.sampled_from([1e-5, 1e-4, 1e-3])), max_size=4),
    freeze=st.lists(GLOBS.filter(lambda glob: glob != "*"), max_size=2),
    no_decay=st.lists(GLOBS, max_size=2),
)
def test_every_trainable_parameter_is_in_one_group(
    groups: list[tuple[str, float]], freeze: list[str], no_decay: list[str]
) -> None:
    model = Mixed()
    config = OptimConfig(1e-2, tuple(groups), freeze=tuple(freeze), no_decay=tuple(no_decay))
    apply_freeze(model, config.freeze)
    made = param_groups(model, config)
    grouped = [id(parameter) for group in made for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({(group["base_lr"], group["weight_decay"]) for group in made}) == len(made)
    known = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert [known[name] for group in made for name in group["names"]] == grouped
    torch.optim.AdamW(made)  # which refuses duplicates


def rates(groups: list[dict]) -> dict[str, tuple[float, float]]:
    return {name: (group["base_lr"], group["weight_decay"]) for group in groups for name in group["names"]}


def test_first_glob_wins_and_only_matrices_decay() -> None:
    config = OptimConfig(
        1e-3,
        (("encoder.3.*", 5e-4), ("encoder.*", 1e-4), ("*", 1e-2)),
        weight_decay=0.1,
        no_decay=("tied.*", "decoder.*"),
    )
    made = rates(param_groups(Mixed(), config))
    assert made["encoder.3.weight"] == (5e-4, 0.1)
    assert made["encoder.0.weight"] == (1e-4, 0.1)
    assert made["attention.in_proj_weight"] == (1e-2, 0.1)
    undecayed = {name for name, (_, decay) in made.items() if decay == 0}
    assert {"encoder.0.bias", "encoder.1.weight", "norm.weight", "norm.bias", "attention.in_proj_bias"} <= undecayed
    assert {"relative_position_bias_table", "temperature", "decoder.weight"} <= undecayed
    assert {name for name, (_, decay) in made.items() if decay} == {
        "encoder.0.weight", "encoder.3.weight", "attention.in_proj_weight", "attention.out_proj.weight",
    }  # fmt: skip


def test_layer_decay_multiplies_the_rate_of_the_group() -> None:
    config = OptimConfig(1e-3, (("blocks.*", 2e-4),), layer_decay=LayerDecay(0.5))
    made = rates(param_groups(Vit(3), config))
    assert made["blocks.2.linear1.weight"][0] == pytest.approx(2e-4 * 0.5)
    assert made["blocks.0.linear1.weight"][0] == pytest.approx(2e-4 * 0.5**3)
    assert made["patch_embed.proj.weight"][0] == pytest.approx(1e-3 * 0.5**4)
    assert made["head.weight"][0] == 1e-3


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (OptimConfig(1e-3, (("encodr.*", 1e-4),)), "optim.groups"),
        (OptimConfig(1e-3, no_decay=("encodr.*",)), "optim.no_decay"),
        (OptimConfig(1e-3, freeze=("encodr.*",)), "optim.freeze"),
    ],
)
def test_a_glob_that_matches_nothing_names_near_misses(config: OptimConfig, setting: str) -> None:
    with pytest.raises(InputError) as caught:
        build_optimizer(Mixed(), config)
    assert caught.value.path == setting
    assert "'encodr.*'" in caught.value.cause
    assert "encoder.*" in caught.value.remedy


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(InputError, match="no parameter is left"):
        build_optimizer(Mixed(), OptimConfig(1e-3, freeze=("*",)))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"groups": (("*", -1.0),)}, {"betas": (0.9, 1.0)}, {"schedule": "linear"}, {"floor": 2.0},
     {"timescale": 0}, {"warmup": -1}, {"cooldown": -1}, {"weight_decay": -0.1}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=f"optim.{next(iter(wrong))}"):
        OptimConfig(**({"lr": 1e-3} | wrong))


# --- freezing ---


def test_frozen_parts_do_not_change_in_training() -> None:
    torch.manual_seed(0)
    model = Mixed()
    optimizer = build_optimizer(model, OptimConfig(0.1, freeze=("encoder.*",)))
    before = copy.deepcopy(model.state_dict())
    model.train()
    picture = torch.randn(2, 3, 8, 6)
    first, second = model.encoder(picture), model.encoder(picture)
    assert torch.equal(first, second)  # no dropout
    model.norm(first.mean(3)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("encoder."))  # with running statistics
    assert not torch.equal(before["norm.weight"], after["norm.weight"])
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert model.norm.training and model.training


def test_partly_frozen_modules_still_train_and_copies_freeze_themselves() -> None:
    model = Mixed()
    apply_freeze(model, ["encoder.0.*", "encoder.1.*"])
    twin = copy.deepcopy(model)
    for net in (model, twin, twin.eval()):
        net.train()
        assert net.encoder.training and net.encoder[2].training
        assert not net.encoder[1].training
    assert twin.encoder[1].train.args[0] is twin.encoder[1]  # type: ignore[union-attr]


def test_a_tied_weight_freezes_under_either_name() -> None:
    model = Mixed()
    apply_freeze(model, ["tied.weight"])
    assert not model.decoder.weight.requires_grad
    assert model.decoder.bias.requires_grad


# --- schedules ---


def test_cosine_by_hand() -> None:
    config = OptimConfig(1e-3, warmup=4, floor=0.02)
    made = [lr_factor(step, 12, config) for step in range(13)]
    assert made[:4] == [0.25, 0.5, 0.75, 1.0]
    assert made[4] == 1.0
    assert made[8] == pytest.approx(0.02 + 0.98 * 0.5)
    assert made[6] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.sqrt(0.5)))
    assert made[12] == pytest.approx(0.02)
    assert made[4:] == sorted(made[4:], reverse=True)


@pytest.mark.parametrize(
    ("step", "factor"),
    [  # warm-up, timescale and cool-down of 20 steps in 200: Meta's rule worked out by hand
        (0, 0.0),
        (5, 0.25),
        (20, 1.0),
        (40, 1 / math.sqrt(2)),
        (80, 0.5),
        (180, 1 / 3),
        (190, 0.5 / math.sqrt(9.5)),
        (199, 0.05 / math.sqrt(9.95)),
        (200, 0.0),
    ],
)
def test_inverse_square_root_by_hand(step: int, factor: float) -> None:
    config = OptimConfig(1e-3, schedule="inverse_sqrt", warmup=20, timescale=20, cooldown=20)
    assert lr_factor(step, 200, config) == pytest.approx(factor, abs=1e-12)


def test_inverse_square_root_without_warmup_starts_at_one() -> None:
    config = OptimConfig(1e-3, schedule="inverse_sqrt", timescale=10)
    assert lr_factor(0, 100, config) == 1
    assert lr_factor(30, 100, config) == 0.5


def test_constant_rises_and_falls() -> None:
    config = OptimConfig(1e-3, schedule="constant", warmup=2, cooldown=4)
    assert [lr_factor(s, 10, config) for s in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_rates_scale_every_group_from_its_base() -> None:
    config = OptimConfig(1e-2, (("encoder.*", 1e-3),), schedule="constant", cooldown=10)
    optimizer = build_optimizer(Mixed(), config)
    assert [set_rates(optimizer, step, 20, config) for step in (15, 19)] == [0.5, 0.1]
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2 * 0.1, 1e-3 * 0.1}
    restored = build_optimizer(Mixed(), config)
    restored.load_state_dict(optimizer.state_dict())
    assert [g["base_lr"] for g in restored.param_groups] == [g["base_lr"] for g in optimizer.param_groups]


def test_weight_decay_moves_along_half_a_cosine_where_there_is_any() -> None:
    config = OptimConfig(1e-2, weight_decay=0.0, weight_decay_end=0.4)
    optimizer = build_optimizer(Mixed(), config)
    seen = {}
    for step in (0, 5, 10):
        set_rates(optimizer, step, 11, config)
        seen[step] = {group["decays"]: group["weight_decay"] for group in optimizer.param_groups}
    assert seen[0] == {True: 0.0, False: 0.0}
    assert seen[5] == {True: pytest.approx(0.2), False: 0.0} and seen[10] == {True: pytest.approx(0.4), False: 0.0}


def test_held_parameters_wait() -> None:
    model = Mixed()
    config = OptimConfig(1e-2, held=(("decoder.*", 2),), schedule="constant")
    optimizer = build_optimizer(model, config)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    moved: list[set[str]] = []
    for step in range(3):
        set_rates(optimizer, step, 3, config)
        for value in model.parameters():
            value.grad = torch.ones_like(value)
        optimizer.step()
        moved.append({name for name, value in model.named_parameters() if not torch.equal(value, start[name])})
    assert moved[0] == moved[1] == start.keys() - {"decoder.weight", "decoder.bias"}
    assert moved[2] == start.keys()
    with pytest.raises(InputError, match=r"optim\.held.*decodr"):
        build_optimizer(model, OptimConfig(1e-2, held=(("decodr.*", 2),)))


# --- moving average ---


def shake(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def test_average_is_the_formula_with_warm_up() -> None:
    model = Mixed()
    average = Average(model, 0.3)
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        shake(model, generator)
        average.update(model, step)
        keep = min(0.3, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, then 0.3
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = keep * expected[name] + (1 - keep) * value.double()
    made = average.state_dict()
    assert made.keys() == model.state_dict().keys()
    assert int(made["encoder.1.num_batches_tracked"]) == 5
    for name, value in made.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_average_swaps_and_restores_even_after_an_error() -> None:
    model = Mixed()
    average = Average(model, 0.9)
    shake(model, torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="validation"), average.swapped(model):
        assert all(torch.equal(value, average.state_dict()[name]) for name, value in model.state_dict().items())
        assert not torch.equal(model.norm.weight, before["norm.weight"])
        raise RuntimeError("validation failed")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_average_survives_saving(tmp_path: Path) -> None:
    model, generator = Mixed(), torch.Generator().manual_seed(0)
    average = Average(model, 0.9)
    shake(model, generator)
    average.update(model, 100)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    again = Average(Mixed(), 0.9)
    again.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    shake(model, generator)
    for each in (average, again):
        each.update(model, 101)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in average.state_dict().items())
    with pytest.raises(ValueError, match="names differ"):
        again.load_state_dict({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        again.load_state_dict(again.state_dict() | {"temperature": torch.zeros(2)})


def test_frozen_parameters_take_no_memory_and_half_precision_is_averaged_in_full() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    apply_freeze(model, ["0.*"])
    average = Average(model, 0.999)
    state = average.state_dict()
    assert state["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert state["1.weight"].dtype == torch.float32
    start = state["1.weight"].clone()
    with torch.no_grad():
        model[1].weight.add_(0.125)
    average.update(model, 10**6)
    moved = (average.state_dict()["1.weight"] - start).abs()
    assert (moved > 0).all() and (moved < 1e-3).all()  # bfloat16 would have kept most of them where they were
    own = model[1].weight.clone()
    with average.swapped(model):
        assert not torch.equal(model[1].weight, own)
    assert torch.equal(model[1].weight, own)


class Sharded(nn.Module):
    """Sharded parameters of uneven size beside buffers that every rank holds whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def three_steps(model: nn.Module, average: Average) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        average.update(model, step)


def average_of_shards(rank: int, ranks: int, port: int, result: str) -> None:
    """One process of `test_average_works_on_shards`; rank 0 writes the gathered average and its errors."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    model = Sharded()
    mesh = dist.init_device_mesh("cpu", (ranks,))
    fully_shard(model, mesh=mesh)
    average = Average(model, 0.5)
    three_steps(model, average)
    model.eval()
    with torch.no_grad():
        model(torch.zeros(2, 5))  # leaves the root gathered: the average has to see the shards nevertheless
    before = {name: whole(value).clone() for name, value in model.state_dict().items()}
    with average.swapped(model), torch.no_grad():
        out = model(torch.ones(2, 5))
    after = {name: whole(value) for name, value in model.state_dict().items()}
    values = {name: whole(value) for name, value in average.state_dict().items()}
    sharded = sum(hasattr(value, "full_tensor") for value in average.state_dict().values())
    again = Average(model, 0.5)
    again.load_state_dict(average.state_dict())
    same = all(torch.equal(whole(value), values[name]) for name, value in again.state_dict().items())
    if rank == 0:
        kept = all(torch.equal(before[name], after[name]) for name in before)
        torch.save({"values": values, "out": out, "sharded": sharded, "kept": kept, "same": same}, result)
    leave(0)


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def test_average_works_on_shards(tmp_path: Path) -> None:
    """Two processes with FSDP2 end with the average of one process, buffers and uneven shards included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = str(tmp_path / "average.pt")
    torch.multiprocessing.spawn(average_of_shards, (2, port, result), nprocs=2)
    made = torch.load(result, weights_only=True)
    model = Sharded()
    average = Average(model, 0.5)
    three_steps(model, average)
    assert made["sharded"] == 6 and made["kept"] and made["same"]
    for name, value in average.state_dict().items():
        torch.testing.assert_close(made["values"][name], value)
    with average.swapped(model.eval()), torch.no_grad():
        torch.testing.assert_close(made["out"], model(torch.ones(2, 5)))


# --- activation checkpointing ---


def saved_bytes_and_gradients(model: nn.Module, x: Tensor) -> tuple[int, dict[str, Tensor]]:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    model.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(x).square().sum()
    loss.backward()
    return sum(sizes.values()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_checkpointing_saves_memory_and_keeps_gradients() -> None:
    model = Vit(4, width=32)
    x = torch.randn(2, 3, 16, 16)
    names = list(model.state_dict())
    plain, expected = saved_bytes_and_gradients(model, x)
    wrapped = checkpoint_activations(model, ["blocks.*"])
    assert wrapped == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]  # not their inner layers once more
    less, made = saved_bytes_and_gradients(model, x)
    assert less < 0.5 * plain
    assert list(model.state_dict()) == names
    assert made.keys() == expected.keys()
    for name, gradient in made.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0)
    checkpoint_activations(model, ["blocks.*"])
    assert saved_bytes_and_gradients(model, x)[0] == less  # wrapped once, not twice


def test_checkpointing_names_what_it_cannot_wrap() -> None:
    with pytest.raises(InputError, match=r"'blocks' matches nothing.*blocks\.\*"):
        checkpoint_activations(Vit(1), ["blocks"])  # a list of modules computes nothing


def test_param_groups_can_be_written_to_a_log() -> None:
    made = param_groups(Mixed(), OptimConfig(1e-3))
    text = json.dumps([{key: value for key, value in group.items() if key != "params"} for group in made])
    assert "relative_position_bias_table" in text

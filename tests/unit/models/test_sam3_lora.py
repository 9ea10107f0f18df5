"""Adapters of SAM3: nothing at first, stored alone, merged without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lexitome.errors import InputError
from lexitome.models.sam3 import lora
from lexitome.models.sam3.lora import Lora
from lexitome.models.sam3.network import Prompts, Sam3Net
from lexitome.models.sam3.presets import build, config_of

PICTURE = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
ASKED = Prompts(
    torch.tensor([[598, 5, 599]]), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, dtype=torch.long),
    torch.tensor([[[0.5, 0.5, 0.2, 0.3]]]), torch.ones(1, 1, dtype=torch.long),
)  # fmt: skip


def network() -> Sam3Net:
    return build(config_of("tiny"), 0).eval()


@torch.no_grad()
def answer(net: Sam3Net) -> torch.Tensor:
    return net(PICTURE, ASKED).semantic


def adapted(chosen: Lora) -> Sam3Net:
    """With adapters that do something."""
    net = network()
    lora.add(net.model, chosen)
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def test_new_adapters_change_nothing_and_are_all_that_learns() -> None:
    net, before = network(), answer(network())
    lora.add(net.model, Lora(rank=2))
    assert torch.equal(answer(net), before)
    trainable = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    places = {part: [n for n in trainable if part in n] for part in (
        "vision_encoder", "text_encoder", "geometry_encoder", "detr_encoder", "detr_decoder")}  # fmt: skip
    assert all(places.values())


@pytest.mark.parametrize(("part", "place"), [("vision", "vision_encoder"), ("fusion", "detr_encoder")])
def test_only_the_chosen_parts_are_adapted(part: lora.Part, place: str) -> None:
    net = network()
    lora.add(net.model, Lora(rank=2, parts=(part,)))
    trainable = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert trainable and all(place in name for name in trainable)


def test_what_is_stored_is_the_adapters_alone_and_gives_the_same_answers(tmp_path: Path) -> None:
    net = adapted(Lora(rank=2))
    lora.save(net.model, tmp_path)
    whole = sum(p.numel() for p in net.parameters())
    assert (tmp_path / lora.WEIGHTS).stat().st_size < whole  # bytes; the weights are four times as many
    other = network()
    assert not torch.equal(answer(other), answer(net))
    lora.load(other.model, tmp_path)
    torch.testing.assert_close(answer(other), answer(net))


def test_merged_adapters_leave_a_plain_network() -> None:
    net, names = adapted(Lora(rank=2)), set(network().state_dict())
    before = answer(net)
    lora.merge(net.model)
    assert set(net.state_dict()) == names
    torch.testing.assert_close(answer(net), before, atol=1e-5, rtol=1e-4)


def test_adapters_of_another_network_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no adapter"):
        lora.load(network().model, tmp_path)
    net = adapted(Lora(rank=2, parts=("fusion",)))
    lora.save(net.model, tmp_path)
    (tmp_path / lora.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no adapter"):
        lora.load(network().model, tmp_path)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"parts": ()}, {"parts": ("head",)}])
def test_impossible_adapters_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="lora"):
        Lora(**wrong)

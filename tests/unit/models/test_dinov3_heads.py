"""The projection head: what it is made of, and that lengths of features do not matter to its prototypes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lexitome.errors import InputError
from lexitome.models.dinov3.heads import Head, build_head

HEAD = Head(32, 8, 20)


def test_the_head_by_hand() -> None:
    head = build_head(16, HEAD, 0)
    features = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    first, second, third = (layer for layer in head.mlp if isinstance(layer, torch.nn.Linear))
    inner = third(F.gelu(second(F.gelu(first(features)))))
    wanted = (inner / inner.norm(dim=-1, keepdim=True)) @ head.last_layer.weight.T
    torch.testing.assert_close(head(features), wanted)
    assert head(features).shape == (3, 5, 20) and head(features[0, :0]).shape == (0, 20)
    assert sorted(n for n, _ in head.named_parameters() if "last" in n) == ["last_layer.weight"], "no bias there"


def test_the_seed_decides() -> None:
    one, again, other = (build_head(16, HEAD, seed).last_layer.weight.detach() for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.std().item() == pytest.approx(0.02, rel=0.2)
    unit = build_head(16, Head(32, 8, 400, spread=8**-0.5), 0).last_layer.weight
    assert unit.norm(dim=1).mean().item() == pytest.approx(1, rel=0.1)


def test_impossible_heads() -> None:
    with pytest.raises(InputError, match="prototypes"):
        Head(prototypes=1)
    with pytest.raises(InputError, match="spread"):
        Head(spread=0.0)

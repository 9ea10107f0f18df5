"""Attention of frozen networks: that of torch but for rounding, where nothing is masked and nothing learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lexitome.models.attention import LONG, LongAttentionByHead, by_head


def drawn(keys: int = LONG, queries: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(keys)
    shapes = ((2, 3, queries, 16), (2, 3, keys, 16), (2, 3, keys, 16))
    query, key, value = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    return query, key, value


@pytest.mark.parametrize(("keys", "queries"), [(LONG, 30), (1, 5), (333, 700), (70_000, 40)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_it_is_attention(keys: int, queries: int, scale: float | None) -> None:
    given = drawn(keys, queries)
    exact = F.scaled_dot_product_attention(*(each.float() for each in given), scale=scale)
    found = by_head(*given, scale=scale)
    assert found.dtype == torch.bfloat16 and found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found.float(), exact, atol=4e-2, rtol=4e-2)  # the weights' logarithms are rounded too


def test_it_is_taken_where_it_fits() -> None:
    given = drawn()
    with LongAttentionByHead():
        assert torch.equal(F.scaled_dot_product_attention(*given, attn_mask=None, dropout_p=0.0), by_head(*given))
        assert torch.equal(F.scaled_dot_product_attention(*given, scale=0.3), by_head(*given, scale=0.3))
    assert not torch.equal(F.scaled_dot_product_attention(*given), by_head(*given))


@pytest.mark.parametrize("case", ["few keys", "float32", "masked", "causal", "learning", "grouped"])
def test_all_else_is_left_to_torch(case: str) -> None:
    query, key, value = drawn(LONG - 1 if case == "few keys" else LONG, LONG)
    options: dict = {}
    if case == "float32":
        query, key, value = query.float(), key.float(), value.float()
    elif case == "masked":
        options = {"attn_mask": torch.ones(LONG, LONG, dtype=torch.bool).tril()}
    elif case == "causal":
        options = {"is_causal": True}
    elif case == "learning":
        query = query.requires_grad_()
    elif case == "grouped":
        key, value, options = key[:, :1], value[:, :1], {"enable_gqa": True}
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    with LongAttentionByHead():
        found = F.scaled_dot_product_attention(query, key, value, **options)
    assert torch.equal(found, expected) and found.requires_grad == (case == "learning")

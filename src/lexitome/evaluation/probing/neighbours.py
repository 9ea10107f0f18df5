"""k nearest neighbours by cosine, in chunks: neither side of the comparison has to fit. Needs torch.

The protocol is DINO's (Caron et al., ICCV 2021, appendix; DINOv3's eval/knn.py): features of length 1, of the k most
similar training features each votes with exp(similarity / 0.07). Votes are divided by their sum, so that they are
probabilities; an image with several labels votes for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
QUERIES, BANK = 1024, 16384
"""Rows of each side that are compared at once: 64 MB of similarities."""

Floats = NDArray[np.float32]


def top(
    bank: Floats, queries: Floats, k: int, *, chunks: tuple[int, int] = (QUERIES, BANK)
) -> tuple[Floats, NDArray[np.int64]]:
    """(Q, k) cosines, the highest first, and the rows of the bank they belong to.

    Args:
        bank: (M, D); may be memory-mapped.
        queries: (Q, D).
        k: at most M.

    Raises:
        ValueError: k is not in 1..M.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must lie in 1..{len(bank)}, not {k}")
    cosines, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    with torch.inference_mode():
        for begin in range(0, len(queries), chunks[0]):
            part = slice(begin, begin + chunks[0])
            found = _best(_unit(queries[part]), bank, k, chunks[1])
            cosines[part], rows[part] = found[0].numpy(), found[1].numpy()
    return cosines, rows


def vote(
    cosines: Floats, rows: NDArray[np.int64], labels: NDArray[np.bool_], k: int, temperature: float = TEMPERATURE
) -> NDArray[np.float64]:
    """(Q, C) probabilities from what `top` found, of which the first k count.

    Args:
        labels: (M, C) of the bank.
    """
    near = cosines[:, :k].astype(np.float64) / temperature
    weights = np.exp(near - near.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    votes = np.zeros((len(rows), labels.shape[1]))
    for place in range(weights.shape[1]):  # (Q, k, C) at once would be large
        votes += weights[:, place, None] * labels[rows[:, place]]
    return votes


def knn(
    bank: Floats, labels: NDArray[np.bool_], queries: Floats, *, ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, NDArray[np.float64]]:  # fmt: skip
    """(Q, C) probabilities for each k. A k that the bank is too small for is left out; of a bank smaller than all of
    them, all its rows vote."""
    fitting = [k for k in ks if k <= len(bank)] or [len(bank)]
    cosines, rows = top(bank, queries, max(fitting))
    return {k: vote(cosines, rows, labels, k, temperature) for k in fitting}


def _best(queries: Tensor, bank: Floats, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The k best of each chunk compete with the k best so far."""
    best = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for begin in range(0, len(bank), chunk):
        part = _unit(bank[begin : begin + chunk])
        cosines, rows = (queries @ part.T).topk(min(k, len(part)), dim=1)
        cosines, rows = torch.cat([best[0], cosines], 1), torch.cat([best[1], rows + begin], 1)
        cosines, order = cosines.topk(min(k, cosines.shape[1]), dim=1)
        best = cosines, rows.gather(1, order)
    return best


def _unit(features: Floats) -> Tensor:
    return F.normalize(torch.from_numpy(np.array(features, np.float32)), dim=1)

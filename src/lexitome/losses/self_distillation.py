"""The losses of DINOv3's pretraining: DINO, iBOT, KoLeo and Gram, and the teacher's assignments by Sinkhorn.

After the descriptions in DINOv2 (Oquab et al. 2023, section 4) and DINOv3 (Simeoni et al. 2025, sections 3 and 4).
Every loss is a sum over what this process holds, divided by a number the caller gives, so that the sums over processes,
and of their gradients, are those of one process with the whole batch. `group` is the processes that share a batch; None
= alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

Group = dist.ProcessGroup | None
EPS = 1e-8


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3, group: Group = None) -> Tensor:
    """Assign samples to prototypes so that all prototypes get about as much (SwAV, Caron et al. 2020, section 3.1).

    The published loop divides rows of exp(logits / temperature) by their sums and by the number of prototypes, then
    columns likewise. Constants cancel, so what is left is normalising in turn, done here with logarithms: exp overflows
    float32 at temperature 0.04 for logits of 3.6 already.

    Args:
        logits: (M, K) of the teacher, M samples of this process; M may be 0 and differ between processes.

    Returns:
        (M, K) float32; every row sums to 1, every column, over all processes, to about (all samples) / K.
    """
    values = logits.float() / temperature
    for _ in range(iterations):
        values = values - _log_sum_over_samples(values, group)
        values = values - values.logsumexp(dim=1, keepdim=True)
    return values.exp()


def _log_sum_over_samples(values: Tensor, group: Group) -> Tensor:
    """(1, K): logarithm of the sum of exp over the samples of all processes."""
    lowest = torch.finfo(values.dtype).min
    largest = values.amax(0, keepdim=True) if len(values) else values.new_full((1, values.shape[1]), lowest)
    if group is not None:
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    total = (values - largest).exp().sum(0, keepdim=True)
    if group is not None:
        dist.all_reduce(total, group=group)
    return total.log() + largest


def dino(student: Tensor, teacher: Tensor, temperature: float, pictures: Tensor, *, same: bool = False) -> Tensor:
    """Cross-entropy of the student's views against the teacher's of the same pictures, mean over the pairs of views.

    Args:
        student: (S, N, K) logits of S views of N pictures.
        teacher: (T, N, K) assignments, no gradient.
        pictures: of the whole batch; what the sum over pictures is divided by.
        same: view i of both is the same crop: such pairs do not count ("ignore diagonal").
    """
    said = F.log_softmax(student.float() / temperature, dim=-1)
    pairs = -torch.einsum("snk,tnk->st", said, teacher)
    if same:
        pairs = pairs - torch.diag_embed(pairs.diagonal())
    count = pairs.numel() - (min(pairs.shape) if same else 0)
    return pairs.sum() / (count * pictures.clamp_min(1))


def ibot(student: Tensor, teacher: Tensor, weights: Tensor, temperature: float, crops: Tensor) -> Tensor:
    """Cross-entropy at the patches that were hidden from the student.

    Args:
        student: (M, K) logits at the masked patches.
        teacher: (M, K) assignments there, of the teacher that saw all.
        weights: (M,) 1 / (masked patches of the crop), so that crops count alike.
        crops: of the whole batch, those without masks included; what the sum is divided by.
    """
    said = F.log_softmax(student.float() / temperature, dim=-1)
    return -((teacher * said).sum(1) * weights).sum() / crops.clamp_min(1)


def koleo(features: Tensor, pictures: Tensor, group: Group = None, among: int = 0) -> Tensor:
    """Push features apart: minus the logarithm of the distance to the nearest other (Kozachenko-Leonenko estimator of
    entropy; Sablayrolles et al. 2019).

    Args:
        features: (N, D) class tokens of different pictures before the head.
        pictures: of the whole batch.
        group: neighbours are looked for in all processes, so that the result does not depend on their number.
        among: neighbours are looked for in consecutive runs of so many pictures; 0 = among all.
    """
    with torch.autocast(features.device.type, enabled=False):
        own = F.normalize(features.float(), dim=-1, eps=EPS)
        everyone, first = _gathered(own, group)
        mine = torch.arange(first, first + len(own), device=own.device)
        others = torch.arange(len(everyone), device=own.device)
        barred = mine[:, None] == others
        if among:
            barred |= (mine // among)[:, None] != others // among
        lonely = barred.all(1)  # the only picture of its run has no neighbour
        with torch.no_grad():
            nearest = (own @ everyone.T).masked_fill(barred, -torch.inf).argmax(1)
        distance = F.pairwise_distance(own, everyone[nearest], eps=EPS)
        return -((distance + EPS).log().masked_fill(lonely, 0)).sum() / pictures.clamp_min(1)


def gram(student: Tensor, teacher: Tensor, crops: Tensor) -> Tensor:
    """Squared difference of the similarities between the patches of a crop, mean over pairs of patches: the student
    keeps the structure of the Gram teacher's map while its features may drift (DINOv3, section 4.2).

    Args:
        student: (N, h, w, D).
        teacher: (N, h', w', D) of the same crops, usually from twice the pixels: brought to h x w bicubically,
            without antialiasing, as published.
        crops: of the whole batch.
    """
    with torch.autocast(student.device.type, enabled=False):
        said, wanted = student.float(), _resized(teacher.float(), student.shape[1:3])
        similar = [each @ each.mT for each in (F.normalize(x.flatten(1, 2), dim=-1) for x in (said, wanted))]
        return (similar[0] - similar[1]).square().mean((1, 2)).sum() / crops.clamp_min(1)


def _resized(maps: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(N, h', w', D) to (N, h, w, D)."""
    if maps.shape[1:3] == torch.Size(size):
        return maps
    resized = F.interpolate(maps.permute(0, 3, 1, 2), tuple(size), mode="bicubic", align_corners=False, antialias=False)
    return resized.permute(0, 2, 3, 1)


def _gathered(own: Tensor, group: Group) -> tuple[Tensor, int]:
    """Rows of all processes in order of rank, with gradients to all of them; and the place of the first own one."""
    if group is None:
        return own, 0
    sizes = own.new_zeros(dist.get_world_size(group), dtype=torch.long)
    sizes[dist.get_rank(group)] = len(own)
    dist.all_reduce(sizes, group=group)
    first = int(sizes[: dist.get_rank(group)].sum())
    return _Gather.apply(own, first, int(sizes.sum()), group), first


class _Gather(torch.autograd.Function):
    """Rows of all processes by a sum of what each has in its place: sizes may differ, which `all_gather` bars. The
    gradient of a row is the sum of what all processes ask of it."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor, first: int, count: int, group: Group) -> Tensor:
        ctx.place, ctx.group = (first, first + len(own)), group  # type: ignore[attr-defined]
        everyone = own.new_zeros((count, own.shape[1]))
        everyone[first : first + len(own)] = own
        dist.all_reduce(everyone, group=group)
        return everyone

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total[slice(*ctx.place)], None, None, None

"""DINO, iBOT, KoLeo, Gram and Sinkhorn: against the published formulas written out, and over two processes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn import functional as F

from lexitome.losses.self_distillation import dino, gram, ibot, koleo, sinkhorn


def published_sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """SwAV's loop (Caron et al. 2020, appendix), in float64."""
    q = (logits.double() / temperature).exp().T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True)
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= samples
    return (q * samples).T


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 30), prototypes=st.integers(2, 20), seed=st.integers(0, 99))
def test_sinkhorn_is_the_published_loop(samples: int, prototypes: int, seed: int) -> None:
    logits = torch.randn(samples, prototypes, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sinkhorn(logits, 0.1), published_sinkhorn(logits, 0.1).float(), rtol=1e-4, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 30), prototypes=st.integers(2, 20), scale=st.floats(0.01, 30), seed=st.integers(0, 99))
def test_sinkhorn_sums(samples: int, prototypes: int, scale: float, seed: int) -> None:
    """Samples sum to 1 always, prototypes to their share in the end; also where exp overflows."""
    logits = scale * torch.randn(samples, prototypes, generator=torch.Generator().manual_seed(seed))
    found = sinkhorn(logits, 0.04)
    assert found.isfinite().all() and (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(samples), rtol=1e-4, atol=1e-4)
    if scale <= 0.1:
        balanced = sinkhorn(logits, 0.04, iterations=200)
        torch.testing.assert_close(
            balanced.sum(0), torch.full((prototypes,), samples / prototypes), rtol=1e-2, atol=1e-3
        )


def test_sinkhorn_of_nothing() -> None:
    assert sinkhorn(torch.zeros(0, 5), 0.1).shape == (0, 5)


def test_sinkhorn_prevents_what_softmax_allows() -> None:
    """All samples like the first prototype most: it cannot have them all."""
    logits = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    logits[:, 0] += 2
    assert (logits / 0.1).softmax(1)[:, 0].mean() > 0.99
    assert sinkhorn(logits, 0.1).mean(0).max() < 0.3


def test_dino_pairs_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 5, generator=generator)
    teacher = torch.randn(2, 3, 5, generator=generator).softmax(-1)
    four = torch.tensor(4.0)  # another process holds one more picture

    def one(i: int, j: int) -> Tensor:
        return -(teacher[j] * F.log_softmax(student[i] / 0.1, -1)).sum()

    assert dino(student, teacher, 0.1, four, same=True) == pytest.approx(
        float((one(0, 1) + one(1, 0)) / (2 * 4)), rel=1e-5
    )
    every = sum(float(one(i, j)) for i in range(2) for j in range(2))
    assert dino(student, teacher, 0.1, four) == pytest.approx(every / (4 * 4), rel=1e-5)


def test_dino_of_ignorance_is_the_logarithm_of_the_number_of_prototypes() -> None:
    teacher = torch.full((2, 6, 50), 1 / 50)
    assert dino(torch.zeros(8, 6, 50), teacher, 0.1, torch.tensor(6.0)) == pytest.approx(math.log(50), rel=1e-4)


def test_ibot_counts_crops_alike() -> None:
    """One crop with one hidden patch weighs as much as one with three; crops without masks count in the mean."""
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(4, 7, generator=generator)
    teacher = torch.randn(4, 7, generator=generator).softmax(-1)
    weights = torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3])
    each = -(teacher * F.log_softmax(student / 0.1, -1)).sum(1)
    wanted = (each[0] + each[1:].mean()) / 5
    torch.testing.assert_close(ibot(student, teacher, weights, 0.1, torch.tensor(5.0)), wanted)
    assert ibot(student[:0], teacher[:0], weights[:0], 0.1, torch.tensor(5.0)) == 0


def test_koleo_is_lowest_for_features_that_are_spread() -> None:
    near = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [1.0, 0.03]])
    spread = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    four = torch.tensor(4.0)
    assert koleo(spread, four) == pytest.approx(-0.5 * math.log(2), abs=1e-4)
    assert koleo(near, four) > 4 and koleo(3 * spread, four) == pytest.approx(float(koleo(spread, four)))


def test_koleo_among_neighbours_of_a_run() -> None:
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    wanted = (koleo(features[:4], torch.tensor(4.0)) * 4 + koleo(features[4:], torch.tensor(2.0)) * 2) / 6
    torch.testing.assert_close(koleo(features, torch.tensor(6.0), among=4), wanted)
    assert koleo(features[:1], torch.tensor(1.0)) == 0, "a lonely picture has no neighbour"


def test_koleo_of_equal_features_has_a_finite_gradient() -> None:
    features = torch.ones(4, 8, requires_grad=True)
    koleo(features, torch.tensor(4.0)).backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_gram_by_hand_and_of_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, 3, 4, 8, generator=generator) for _ in range(2))
    two = torch.tensor(2.0)
    assert gram(student, student, two) == pytest.approx(0, abs=1e-10)
    assert gram(5 * student, student, two) == pytest.approx(0, abs=1e-10), "lengths do not matter"
    rotated = student @ torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    assert gram(rotated, student, two) == pytest.approx(0, abs=1e-10), "nor does a rotation of all features"
    grams = [F.normalize(x.flatten(1, 2), dim=-1) for x in (student, teacher)]
    wanted = torch.stack([(a @ a.T - b @ b.T).pow(2).mean() for a, b in zip(*grams, strict=True)]).mean()
    torch.testing.assert_close(gram(student, teacher, two), wanted)


def test_gram_teacher_of_twice_the_side_keeps_its_order() -> None:
    """A smooth map seen at 2x compares as nearly the same; another map does not. Resizing is bicubic without
    antialiasing."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    large = torch.stack([rows, columns, rows * columns, rows**2, torch.ones_like(rows)], -1)[None]
    plain = F.interpolate(large.permute(0, 3, 1, 2), (8, 8), mode="bicubic").permute(0, 2, 3, 1)
    smooth = F.interpolate(large.permute(0, 3, 1, 2), (8, 8), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    one = torch.tensor(1.0)
    assert gram(plain, large, one) == pytest.approx(0, abs=1e-10)
    assert 1e-10 < gram(smooth, large, one) < 1e-2 < gram(plain.flip(1).roll(3, 2), large, one)


SIZES = (5, 3)


def _share(rank: int, port_file: str, folder: str) -> None:
    """One of two processes with gloo: its part of a batch that both share."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=len(SIZES))
    logits, features = whole_batch()
    mine = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
    own = features[mine].clone().requires_grad_()
    total = torch.tensor(float(sum(SIZES)))
    losses = {among: koleo(own, total, dist.group.WORLD, among) for among in (0, 4)}
    torch.stack(list(losses.values())).sum().backward()
    empty = sinkhorn(logits if rank == 0 else logits[:0], 0.07, group=dist.group.WORLD)
    torch.save({
        "sinkhorn": sinkhorn(logits[mine], 0.07, group=dist.group.WORLD), "empty": empty, "gradient": own.grad,
        **{f"koleo {among}": loss.detach() for among, loss in losses.items()},
    }, Path(folder) / f"{rank}.pt")  # fmt: skip
    dist.destroy_process_group()


def whole_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    count = sum(SIZES)
    return torch.randn(count, 6, generator=generator), torch.randn(count, 10, generator=generator)


@pytest.mark.slow
def test_two_processes_with_unequal_parts_equal_one(tmp_path: Path) -> None:
    mp.spawn(_share, (str(tmp_path / "meet"), str(tmp_path)), nprocs=len(SIZES))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(SIZES))]
    logits, features = whole_batch()
    both = torch.cat([part["sinkhorn"] for part in found])
    torch.testing.assert_close(both, sinkhorn(logits, 0.07))
    torch.testing.assert_close(found[0]["empty"], sinkhorn(logits, 0.07))
    assert found[1]["empty"].shape == (0, 6)
    alone = features.clone().requires_grad_()
    total = torch.tensor(float(len(features)))
    for among in (0, 4):
        wanted = koleo(alone, total, None, among)
        wanted.backward()
        torch.testing.assert_close(sum(part[f"koleo {among}"] for part in found), wanted.detach())
    torch.testing.assert_close(torch.cat([part["gradient"] for part in found]), alone.grad)

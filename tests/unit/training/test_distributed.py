"""Two processes with gloo learn exactly what one learns, with copies of the model (DDP) or slices of it (FSDP2)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_training import Job, as_arguments, losses, torchrun, train

pytestmark = pytest.mark.slow


def assert_same(one: Path, other: Path, atol: float = 1e-5) -> None:
    for first, second in zip(losses(one), losses(other), strict=True):
        assert first == pytest.approx(second, abs=atol)
    for part in ("model", "average", "optimizer"):
        a, b = (load_file(folder / "checkpoints" / "last" / f"{part}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys() and a
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of two ranks in one launch, and one of a single process to compare them with."""
    root = tmp_path_factory.mktemp("runs")
    train(Job(str(root / "single")))
    train(Job(str(root / "few"), task={"pictures": 2}))
    train(Job(str(root / "half"), run={"steps": 6, "precision": "bf16"}))
    train(Job(str(root / "norm"), norm=True, run={"steps": 1}))
    jobs = (
        Job(str(root / "ddp"), "ddp"),
        Job(str(root / "ddp_accumulate"), "ddp", run={"accumulate": 2}),
        Job(str(root / "ddp_few"), "ddp", task={"pictures": 2}),
        Job(str(root / "fsdp2"), "fsdp2"),
        Job(str(root / "fsdp2_accumulate"), "fsdp2", run={"accumulate": 2}),
        Job(str(root / "fsdp2_few"), "fsdp2", task={"pictures": 2}),
        Job(str(root / "fsdp2_half"), "fsdp2", run={"steps": 6, "precision": "bf16"}),
        Job(str(root / "ddp_norm"), "ddp", norm=True, run={"steps": 1}),
        Job(str(root / "fsdp2_norm"), "fsdp2", norm=True, run={"steps": 1}),
    )
    done = torchrun(as_arguments(*jobs))
    assert done.returncode == 0, done.stderr[:8000]
    return root


@pytest.mark.parametrize("name", ["ddp", "ddp_accumulate", "fsdp2", "fsdp2_accumulate"])
def test_two_ranks_equal_one_process(runs: Path, name: str) -> None:
    assert len(losses(runs / name)) == 6
    assert_same(runs / "single", runs / name)


@pytest.mark.parametrize("name", ["ddp_few", "fsdp2_few"])
def test_a_rank_without_pictures_takes_part_without_weight(runs: Path, name: str) -> None:
    """Steps of 2 and of 1 picture: in the latter the second rank has none."""
    assert_same(runs / "few", runs / name)


def test_slices_in_half_precision_stay_close(runs: Path) -> None:
    for one, other in zip(losses(runs / "half"), losses(runs / "fsdp2_half"), strict=True):
        assert one == pytest.approx(other, abs=5e-3)


@pytest.mark.parametrize("name", ["ddp_norm", "fsdp2_norm"])
def test_batch_statistics_are_those_of_both_ranks(runs: Path, name: str) -> None:
    """The first norm of the first step: three pictures on each rank, whose mean is that of all six."""
    single, both = (load_file(runs / each / "checkpoints" / "last" / "model.safetensors") for each in ("norm", name))
    torch.testing.assert_close(single["blocks.0.1.running_mean"], both["blocks.0.1.running_mean"])
    assert both["blocks.0.1.num_batches_tracked"] == 1


@pytest.mark.parametrize(("before", "after"), [("fsdp2", "single"), ("single", "fsdp2")])
def test_another_number_of_ranks_may_continue(runs: Path, tmp_path: Path, before: str, after: str) -> None:
    """Stopped by a broken picture in step 4, continued with repaired pictures by the other kind of launch."""

    def run(strategy: str, job: Job) -> None:
        if strategy == "single":
            train(job)
        else:
            done = torchrun(as_arguments(job))
            assert done.returncode == 0, done.stderr[:8000]

    broken = Job(str(tmp_path), None if before == "single" else before, task={"broken_step": 4})
    if before == "single":
        with pytest.raises(ValueError, match="not finite"):
            train(broken)
    else:
        done = torchrun(as_arguments(broken))
        assert done.returncode != 0 and "the loss is not finite in step 4" in done.stderr
    run(after, Job(str(tmp_path), None if after == "single" else after, resume=True))
    assert_same(runs / "single", tmp_path)

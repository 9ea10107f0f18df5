"""Two processes with gloo train SAM3 as one does, with copies of it (DDP) or slices (FSDP2)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sam3 import Job, as_arguments, train
from tiny_sets import write_sets
from tiny_training import losses, torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    data = str(write_sets(root / "sets"))
    jobs = [Job(str(root / name), data, name) for name in ("ddp", "fsdp2")]
    jobs.append(Job(str(root / "fsdp2_recompute"), data, "fsdp2", run={"recompute": ["*detr_encoder.layers.*"]}))
    train(Job(str(root / "single"), data))
    done = torchrun(as_arguments(*jobs))
    assert done.returncode == 0, done.stderr[-8000:]
    return root


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_recompute"])
def test_two_ranks_have_the_losses_of_one_process(runs: Path, name: str) -> None:
    one, other = losses(runs / "single"), losses(runs / name)
    assert len(one) == len(other) == 3
    for first, second in zip(one, other, strict=True):
        assert first == pytest.approx(second, rel=1e-3, abs=1e-4)

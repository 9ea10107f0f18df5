"""Two processes with gloo pretrain as one does, with copies of the networks (DDP) or slices (FSDP2)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_pretrain import Job, as_arguments, train
from tiny_training import losses, torchrun

pytestmark = pytest.mark.slow
STEPS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures a step, so that the parts are unequal."""
    root = tmp_path_factory.mktemp("runs")
    train(Job(str(root / "single"), steps=STEPS, images=7, gram=1.0, rescale=None))
    jobs = [Job(str(root / name), name, steps=STEPS, images=7, gram=1.0, rescale=None) for name in ("ddp", "fsdp2")]
    done = torchrun(as_arguments(*jobs))
    assert done.returncode == 0, done.stderr[-8000:]
    return root


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_ranks_have_the_losses_of_one_process(runs: Path, name: str) -> None:
    one, other = losses(runs / "single"), losses(runs / name)
    assert len(one) == len(other) == STEPS
    for first, second in zip(one, other, strict=True):
        assert first == pytest.approx(second, rel=2e-3, abs=2e-4)

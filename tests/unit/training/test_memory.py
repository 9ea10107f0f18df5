"""What a training step takes is counted; a real one takes as much."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexitome.models.compact import CompactConfig
from lexitome.training.compact import CompactObjective, Resolution, Sampling, Share
from lexitome.training.memory import RECOMPUTED, Held, StepMemory, at_once, memory_of, shown_sizes

TINY = CompactConfig(width=32, heads=2, encoder_layers=1, decoder_layers=1, path=(8, 16, 24))
MB = 2**20


def test_what_is_made_and_let_go_is_counted() -> None:
    with Held() as held:
        kept = torch.zeros(MB)  # 4 MB
        view = kept[::2]
        gone = kept + 1
        assert held.now == 8 * MB
        del gone
        assert held.now == 4 * MB and held.most == 8 * MB
        del kept
        assert held.now == 4 * MB  # the view holds it
        del view
    assert held.now == 0 and held.most == 8 * MB


def test_a_backward_pass_is_counted() -> None:
    weight = torch.zeros(MB, requires_grad=True)
    with Held() as held:
        (weight.exp() * 2).exp().sum().backward()
    assert held.most >= 12 * MB and weight.grad is not None


def test_pictures_at_once() -> None:
    shown = Resolution(320, 8)
    assert [at_once(shown, 1, parts) for parts in (1, 2, 3, 8, 20)] == [8, 4, 3, 1, 1]
    assert at_once(shown, 2, 1) == 4 and at_once(shown, 3, 2) == 2 and at_once(shown, 16, 4) == 1


def test_what_is_needed_grows_with_pixels_and_shrinks_with_parts() -> None:
    memory = StepMemory(fixed=1000, computed=10.0, drawn=1.0)
    assert memory.needed(Resolution(32, 4), 1, 1, 2) == 1000 + 1024 * (12 * 4 + 4 * 4)
    assert memory.needed(Resolution(32, 4), 1, 4, 2) == 1000 + 1024 * (12 * 1 + 4 * 4)
    assert memory.needed(Resolution(32, 4), 2, 1, 0) == 1000 + 1024 * (12 * 2 + 2 * 2)
    assert memory.needed(Resolution(64, 4), 1, 1, 2) - 1000 == 4 * (memory.needed(Resolution(32, 4), 1, 1, 2) - 1000)


def test_sizes_that_a_run_shows() -> None:
    sampling = Sampling(share=Share(small=0.5, medium=0.5, fine=0.0))
    assert {r.side for r in shown_sizes(sampling)} == {160, 192, 256, 320}
    assert {r.side for r in shown_sizes(replace(sampling, high_from=0.0))} == {192, 320}


def test_half_precision_and_recomputing_take_less_and_the_random_state_stays() -> None:
    torch.manual_seed(3)
    full, half, again = (memory_of(TINY, 2, CompactObjective(), half=half, recompute=way)
                         for half, way in ((False, ()), (True, ()), (False, RECOMPUTED)))  # fmt: skip
    assert half.computed < 0.8 * full.computed and again.computed < 0.7 * full.computed
    assert full.fixed == half.fixed == again.fixed and full.drawn == half.drawn > 12
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert memory_of(TINY, 4, CompactObjective(), half=False).computed > 1.4 * full.computed


REAL = """
import sys
import lexitome.training.memory as memory
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.efficientnet_lite import EfficientNetLite
from lexitome.training.compact import CompactObjective, Resolution

def status(key):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(key)]
    return 1024 * int(line.split()[1])

config = CompactConfig()
counted = memory.memory_of(config, 3, CompactObjective(), half=False)
model = CompactNet(config, EfficientNetLite(0, frozen_blocks=3)).train()
memory.TRIED_SIDE = 192
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
memory._most_held(model, memory._drawn(4, 3, config), CompactObjective(), half=False)
print(counted.computed * 4 * 192**2, status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to tell a peak")
def test_a_real_step_takes_what_was_counted() -> None:
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counted, resident = map(float, done.stdout.split())
    assert 0.8 * counted < resident < 1.3 * counted

"""The training loop on a task of real gradients: exact accumulation, learning, interruption of every kind."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from tiny_training import BrightPixels, Job, Net, Pictures, as_arguments, environment, logged, losses, train

from lexitome.errors import InputError
from lexitome.models.attention import SHORT
from lexitome.training import checkpoint
from lexitome.training.engine import RunConfig, TrainingStopped, fit, shares
from lexitome.training.optim import OptimConfig
from lexitome.training.parallel import forward_in_bf16

FILES = ("model", "average", "optimizer")


def same_files(one: Path, other: Path) -> None:
    """Bit for bit."""
    for part in FILES:
        first, second = (load_file(folder / "checkpoints" / "last" / f"{part}.safetensors") for folder in (one, other))
        assert first.keys() == second.keys() and first
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{part}: {name}"


def close_files(one: Path, other: Path, atol: float = 1e-5) -> None:
    for part in FILES:
        first, second = (load_file(folder / "checkpoints" / "last" / f"{part}.safetensors") for folder in (one, other))
        assert first.keys() == second.keys() and first
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_it_learns_and_keeps_the_best(tmp_path: Path) -> None:
    job = Job(str(tmp_path), run={"steps": 60, "validate_every": 10, "ema": 0.9, "precision": "bf16"}, lr=0.02)
    result, net = train(job)
    rows = losses(tmp_path)
    assert rows[-1]["bce"] < 0.5 * rows[0]["bce"] and result.step == 60
    assert result.best_metric is not None and result.best_metric >= result.metrics["dice"] > 0.8
    assert result.metrics["training"] == 0 and net.training
    again = Net()
    assert result.best is not None
    checkpoint.load_weights(again, result.best)
    assert BrightPixels().validate(again.eval())["dice"] == pytest.approx(result.best_metric, abs=0.02)
    assert "forward" not in vars(net), "autocast stays inside fit"


def test_the_first_step_by_hand(tmp_path: Path) -> None:
    """One step is AdamW on the loss of all pictures at once, gradient clipped."""
    _, net = train(Job(str(tmp_path), run={"steps": 1, "clip": 0.1, "accumulate": 3}))
    torch.manual_seed(0)
    expected = Net()
    task = BrightPixels()
    batch = task.batch(0, range(6))
    loss = torch.stack(list(task.loss(expected, batch, task.counts(batch)).values())).sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
    groups = [
        {"params": [p for p in expected.parameters() if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in expected.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=0.01 / 2).step()  # the first of two steps of warm-up
    assert sum(value for name, value in losses(tmp_path)[0].items() if name != "step") == pytest.approx(loss.item())
    for (name, value), other in zip(net.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-5, msg=name)
    average = load_file(tmp_path / "checkpoints" / "last" / "average.safetensors")
    torch.manual_seed(0)
    for name, value in Net().named_parameters():  # the first update keeps (1 + 0) / (10 + 0) of the start
        torch.testing.assert_close(average[name], 0.1 * value + 0.9 * dict(net.named_parameters())[name])


def test_parts_are_clipped_on_their_own(tmp_path: Path) -> None:
    """One step: the stem's gradient has the largest allowed norm, and so has all the rest together."""
    _, net = train(Job(str(tmp_path), run={"steps": 1, "clip": 0.1, "clip_apart": ("stem.*",)}))
    parts = {True: 0.0, False: 0.0}
    for name, value in net.named_parameters():
        assert value.grad is not None
        parts[name.startswith("stem.")] += value.grad.norm().item() ** 2
    assert parts == {True: pytest.approx(0.01, rel=1e-3), False: pytest.approx(0.01, rel=1e-3)}
    with pytest.raises(InputError, match=r"run\.clip_apart"):
        train(Job(str(tmp_path / "typo"), run={"steps": 1, "clip_apart": ("steam.*",)}))


@dataclass(frozen=True)
class Doubling(BrightPixels):
    """After each step the model changes by a rule of the task."""

    def after_step(self, model: nn.Module, step: int) -> None:
        with torch.no_grad():
            model.size.bias.fill_(step + 1.0)


def test_a_task_may_change_the_model_after_each_step(tmp_path: Path) -> None:
    config = RunConfig(steps=3, precision="fp32", threads=1, ema=None)
    net = Net()
    fit(net, Doubling(), OptimConfig(0.01), config, tmp_path)
    assert net.size.bias.item() == 3.0
    stored = load_file(tmp_path / "checkpoints" / "last" / "model.safetensors")
    assert stored["size.bias"].item() == 3.0


@pytest.mark.parametrize("accumulate", [2, 4, 9])
def test_accumulation_changes_nothing(tmp_path: Path, accumulate: int) -> None:
    train(Job(str(tmp_path / "one")))
    train(Job(str(tmp_path / "many"), run={"accumulate": accumulate}))
    for one, many in zip(losses(tmp_path / "one"), losses(tmp_path / "many"), strict=True):
        assert one == pytest.approx(many, abs=1e-5)
    close_files(tmp_path / "one", tmp_path / "many")


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    train(Job(str(tmp_path / "kept")))
    _, net = train(Job(str(tmp_path / "again"), run={"recompute": ("blocks.*",)}))
    assert "forward" in vars(net.blocks[0]), "the blocks are wrapped"
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


@pytest.mark.parametrize(
    ("images", "ranks", "parts"), [(8, 1, 1), (8, 2, 2), (5, 2, 4), (1, 3, 2), (7, 3, 2), (2, 1, 9)]
)
def test_shares_cover_every_picture_once(images: int, ranks: int, parts: int) -> None:
    each = [shares(images, ranks, rank, parts) for rank in range(ranks)]
    assert sorted(i for ranges in each for part in ranges for i in part) == list(range(images))
    assert len({len(ranges) for ranges in each}) == 1 and 1 <= len(each[0]) <= parts
    sizes = [len(part) for ranges in each for part in ranges]
    assert max(sizes) - min(sizes) <= 1


def start_process(job: Job) -> subprocess.Popen[str]:
    command = [sys.executable, *as_arguments(job)]
    return subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not (folder / "log.jsonl").exists() or (folder / "log.jsonl").read_text().count("\n") < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.002)


LONG = {"steps": 400, "checkpoint_every": 3, "validate_every": 50, "ema": 0.9}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(Job(str(folder), run=LONG, dropout=0.3))
    return folder


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_identically(uninterrupted: Path, tmp_path: Path) -> None:
    """kill -9 three times; dropout is on, so that randomness has to come back too."""
    job = Job(str(tmp_path / "run"), run=LONG, dropout=0.3)
    chance = random.Random()
    for kill in range(3):
        process = start_process(job)
        wait_for_step(tmp_path / "run", 10 + 100 * kill, process)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        job = replace(job, resume=True)
    torch.manual_seed(99)  # neither the generator nor the first weights matter
    result, _ = train(replace(job, weights_seed=5))
    assert losses(tmp_path / "run") == losses(uninterrupted)
    same_files(tmp_path / "run", uninterrupted)
    whole = json.loads((uninterrupted / "checkpoints" / "last" / "state.json").read_text())
    assert json.loads((result.last / "state.json").read_text()) == whole
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best", "last"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_the_step_and_says_how_to_continue(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals
) -> None:
    job = Job(str(tmp_path), run=LONG | {"checkpoint_every": 1000}, dropout=0.3)
    process = start_process(job)
    wait_for_step(tmp_path, 20, process)
    process.send_signal(number)
    said = process.communicate(timeout=300)[0].strip().splitlines()[-1]
    assert process.returncode == 1 and said.startswith("Interrupted") and "--resume" in said
    stopped = checkpoint.read_state(tmp_path / "checkpoints" / "last")["step"]
    assert 20 <= stopped < 400 and f"after step {stopped}," in said
    train(replace(job, resume=True))
    assert losses(tmp_path) == losses(uninterrupted)
    same_files(tmp_path, uninterrupted)


def test_a_second_signal_handler_is_not_left_behind(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(Job(str(tmp_path), run={"steps": 1}))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    job = Job(str(tmp_path))
    first, _ = train(job)
    rows = losses(tmp_path)
    assert train(replace(job, resume=True))[0] == first and losses(tmp_path) == rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": {"seed": 3}}, "run.seed is 3, the run began with 0"),
        ({"run": {"steps": 5}}, "run.steps is 5"),
        ({"run": {"precision": "bf16"}}, "run.precision"),
        ({"run": {"ema": None}}, "run.ema"),
        ({"lr": 0.5}, "optim.lr is 0.5"),
        ({"freeze": ("stem.*",)}, "optim.freeze"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path: Path, change: dict, words: str) -> None:
    train(Job(str(tmp_path)))
    with pytest.raises(InputError, match="other settings") as refused:
        train(replace(Job(str(tmp_path), resume=True), **change))
    assert words in str(refused.value)


def test_settings_that_decide_nothing_may_change(tmp_path: Path) -> None:
    job = Job(str(tmp_path), run={"steps": 6}, task={"broken_step": 4})
    with pytest.raises(TrainingStopped):
        train(job)
    other = {"accumulate": 2, "checkpoint_every": 1, "validate_every": 3, "prefetch": 0}
    result, _ = train(replace(job, resume=True, task={}, run={"steps": 6, **other}))
    assert result.step == 6


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    """It takes up the rates of the longer run where that would be; a shorter one is refused (above)."""
    train(Job(str(tmp_path / "run"), run={"steps": 6}))
    train(Job(str(tmp_path / "run"), run={"steps": 9}, resume=True))
    train(Job(str(tmp_path / "whole"), run={"steps": 9}))
    longer, whole = logged(tmp_path / "run"), logged(tmp_path / "whole")
    assert [row["step"] for row in longer] == list(range(1, 10))
    rates, wanted = ([row["lr"] for row in rows] for rows in (longer, whole))
    assert rates[6:] == wanted[6:] and rates[3:6] != wanted[3:6]
    assert train(Job(str(tmp_path / "run"), run={"steps": 9}, resume=True))[0].step == 9


def test_starting_anew_over_a_run_is_refused_and_resuming_nothing_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run to continue.*--resume"):
        train(Job(str(tmp_path), resume=True))
    train(Job(str(tmp_path)))
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"holds a run already\. Continue it with --resume, or choose another folder"):
        train(Job(str(tmp_path)))
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_another_model_cannot_resume(tmp_path: Path) -> None:
    train(Job(str(tmp_path)))
    with pytest.raises(InputError, match="another model"):
        train(Job(str(tmp_path), resume=True, norm=True))


@pytest.mark.parametrize("broken", [0, 5])
def test_nonsense_stops_before_it_reaches_the_weights(tmp_path: Path, broken: int) -> None:
    with pytest.raises(TrainingStopped, match=rf"loss is not finite in step {broken} \(bce = nan.*lower learning rate"):
        train(Job(str(tmp_path), run={"steps": 8}, task={"broken_step": broken}))
    last = tmp_path / "checkpoints" / "last"
    assert checkpoint.read_state(last)["step"] == broken // 2 * 2
    assert [path.name for path in last.parent.iterdir()] == ["last"]
    assert all(value.isfinite().all() for part in FILES for value in checkpoint.read(last, part).values())


class Cliff(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@dataclass(frozen=True)
class InfiniteSlope:
    """A finite loss whose gradient is not."""

    def images(self, step: int) -> int:
        return 1

    def batch(self, step: int, indices: range) -> Tensor:
        return torch.zeros(1)

    def counts(self, batch: Tensor) -> Tensor:
        return torch.ones(1)

    def loss(self, model: nn.Module, batch: Tensor, totals: Tensor) -> dict[str, Tensor]:
        assert isinstance(model, Cliff)
        return {"root": model.weight.abs().sqrt().sum()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {}


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="gradient is not finite"):
        fit(Cliff(), InfiniteSlope(), OptimConfig(0.1), RunConfig(3), tmp_path)


def test_a_full_disk_stops_with_one_line_and_the_run_can_go_on(tmp_path: Path) -> None:
    """For real: the process may write files of the size of a checkpoint at step 0, when AdamW has no moments yet, but
    not of one with them."""
    job = Job(str(tmp_path), run={"steps": 4}, dropout=0.3)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (14_000, 14_000))"
    script, fields = as_arguments(job)
    code = f"{limit}\nimport runpy, sys\nsys.argv = ['', {fields!r}]\nrunpy.run_path({script!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "cannot be written" in said and "--resume" in said, done.stderr
    assert said.startswith("InputError") and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last"]
    assert checkpoint.read_state(tmp_path / "checkpoints" / "last")["step"] == 0
    assert train(replace(job, resume=True))[0].step == 4


@dataclass(frozen=True)
class OneBadFile(BrightPixels):
    def batch(self, step: int, indices: range) -> Pictures:
        if step == 3:
            raise InputError("a.png", "is damaged", "Remove it.")
        return super().batch(step, indices)


def test_an_error_of_the_reading_thread_arrives_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png: is damaged\. Remove it"):
        fit(Net(), OneBadFile(), OptimConfig(0.01), RunConfig(9, prefetch=3, precision="fp32"), tmp_path)


@dataclass(frozen=True)
class Slow(BrightPixels):
    def batch(self, step: int, indices: range) -> Pictures:
        time.sleep(0.05)
        return super().batch(step, indices)

    def loss(self, model: nn.Module, batch: Pictures, totals: Tensor) -> dict[str, Tensor]:
        time.sleep(0.06)
        return super().loss(model, batch, totals)


def test_batches_are_drawn_while_the_model_works(tmp_path: Path) -> None:
    """Drawing takes nearly as long as the step: one after the other the wait would be 45 % of the time."""
    waits = {}
    for prefetch in (0, 2):
        folder = tmp_path / str(prefetch)
        run = RunConfig(8, prefetch=prefetch, precision="fp32", log_every=1)
        fit(Net(), Slow(), OptimConfig(0.01), run, folder)
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        waits[prefetch] = statistics.median(row["waiting"] for row in rows[2:8])
    assert waits[0] > 0.35 and waits[2] < 0.15


def test_batches_are_drawn_by_one_thread_and_the_model_keeps_its_own(tmp_path: Path) -> None:
    drawing, others = [], []

    @dataclass(frozen=True)
    class Counting(BrightPixels):
        def batch(self, step: int, indices: range) -> Pictures:
            if threading.current_thread() is not threading.main_thread():  # which validates
                drawing.append(torch.get_num_threads())
            return super().batch(step, indices)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        fit(Net(), Counting(), OptimConfig(0.01), RunConfig(2, precision="fp32"), tmp_path)
        later = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert set(drawing) == {1} and torch.get_num_threads() == 2 and others == [2]
    finally:
        torch.set_num_threads(before)


class Attending(nn.Module):
    def forward(self, query: Tensor, mask: Tensor | None = None) -> Tensor:
        seen = F.scaled_dot_product_attention(query.bfloat16(), query.bfloat16(), query.bfloat16(), attn_mask=mask)
        assert seen.dtype == torch.bfloat16
        return seen


@pytest.mark.parametrize(("keys", "exact"), [(40, True), (SHORT + 8, False)])
def test_short_attention_in_half_precision_is_computed_in_float32(keys: int, exact: bool) -> None:
    """Exact but for the rounding of what comes in and goes out; the mask counts, and outside all is as it was."""
    model, query = Attending(), torch.randn(2, 3, keys, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.zeros(2, 1, keys, keys).masked_fill(torch.arange(keys) > keys // 2, -math.inf).bfloat16()
    rounded = query.detach().bfloat16().float()
    expected = F.scaled_dot_product_attention(rounded, rounded, rounded, attn_mask=mask.float()).bfloat16().float()
    with forward_in_bf16(model, torch.device("cpu"), True):
        inside = model(query, mask)
    (slope,) = torch.autograd.grad(inside.square().sum(), query)
    assert torch.equal(inside, expected) == exact and torch.isfinite(slope).all() and slope.abs().sum() > 0
    torch.testing.assert_close(inside, expected, atol=2e-2, rtol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model(query, mask).float(), expected)


def test_frozen_parts_and_unused_ones_keep_their_values(tmp_path: Path) -> None:
    """Weight decay included: a head that no picture asks for learns nothing and forgets nothing."""

    class Spare(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(4, 4)

    net = Spare()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit(net, BrightPixels(), OptimConfig(0.1, freeze=("stem.*",)), RunConfig(3, precision="fp32"), tmp_path)
    moved = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"blocks", "mask", "size"}
    kept = load_file(tmp_path / "checkpoints" / "last" / "optimizer.safetensors")
    assert {name.split(".")[0] for name in kept} == moved


def test_half_precision_is_of_the_model_alone(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    @dataclass(frozen=True)
    class Watching(BrightPixels):
        def loss(self, model: nn.Module, batch: Pictures, totals: Tensor) -> dict[str, Tensor]:
            assert isinstance(model, Net)
            hook = model.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
            seen.extend((model(batch.pictures, False)[0].dtype, (batch.pictures @ batch.pictures).dtype))
            hook.remove()
            return super().loss(model, batch, totals)

    fit(Net(), Watching(), OptimConfig(0.01), RunConfig(1, precision="bf16"), tmp_path)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"accumulate": 0}, {"precision": "fp8"}, {"ema": 1.5}, {"prefetch": -1}]
)
def test_settings_out_of_range_are_named(wrong: dict) -> None:
    with pytest.raises(InputError, match=rf"run\.{next(iter(wrong))}"):
        RunConfig(**{"steps": 1} | wrong)


def test_a_strategy_without_processes_is_refused(tmp_path: Path) -> None:
    assert "WORLD_SIZE" not in os.environ
    with pytest.raises(InputError, match="torchrun"):
        train(Job(str(tmp_path), strategy="fsdp2"))


def test_the_loop_itself_costs_little(tmp_path: Path) -> None:
    """The quickest of many steps of a model of next to nothing, so that a busy machine does not matter."""
    run = RunConfig(150, precision="fp32", log_every=1, checkpoint_every=1000)
    fit(Net(), BrightPixels(), OptimConfig(0.01), run, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert min(row["seconds"] for row in rows if row["kind"] == "train") < 0.02

"""Checkpoints are whole or absent, hold what was put in, and say which setting differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lexitome.errors import InputError
from lexitome.training import checkpoint

MODEL = {"weight": torch.arange(6.0).reshape(2, 3)}


def put(folder: Path, step: int, name: str = "last") -> None:
    checkpoint.write(folder, name, [("model", {"weight": MODEL["weight"] + step})], {"step": step})


def step_of(folder: Path) -> int | None:
    """Step of the checkpoint that a reader finds, after looking at all of it."""
    path = checkpoint.locate(folder, "last")
    if path is None:
        return None
    step = checkpoint.read_state(path)["step"]
    assert torch.equal(checkpoint.read(path, "model")["weight"], MODEL["weight"] + step)
    return step


def test_a_checkpoint_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step)
        assert step_of(tmp_path) == step
        assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert {path.name for path in (tmp_path / "last").iterdir()} == {"model.safetensors", "state.json"}


class Killed(BaseException):
    """As sudden as a signal: nothing of ours catches it, though `finally` runs, hence the disabled `rmtree`."""


def writes_killed_at_each_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int | None]:
    """Step found after dying before the 1st, 2nd, 3rd ... call that changes the disk, until a write gets through."""
    for fatal in range(1, 100):
        put(folder, 1)
        calls = 0

        def dying(real):  # type: ignore[no-untyped-def]
            def call(*args, **kwargs):  # type: ignore[no-untyped-def]
                nonlocal calls
                calls += 1
                if calls >= fatal:  # noqa: B023  a dead process does nothing more, `finally` included
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", dying(os.rename))
            patch.setattr(os, "fsync", dying(os.fsync))
            patch.setattr(checkpoint.shutil, "rmtree", dying(checkpoint.shutil.rmtree))
            patch.setattr(checkpoint, "save_file", dying(checkpoint.save_file))
            patch.setattr(Path, "write_text", dying(Path.write_text))
            try:
                put(folder, 2)
            except Killed:
                pass
            else:
                return
        yield step_of(folder)


def test_death_at_any_moment_leaves_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for step in writes_killed_at_each_call(tmp_path, monkeypatch):
        found.append(step)
        checkpoint.tidy(tmp_path, "last")
        assert step_of(tmp_path) == step, "tidying changed what is found"
        assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert set(found) == {1, 2} and found == sorted(found) and len(found) > 8


def test_a_full_disk_is_one_clear_line_and_the_old_one_stays(tmp_path: Path) -> None:
    """For real: the process may write files of 100 kB only."""
    put(tmp_path, 1)
    code = (
        "import resource, sys, torch; from pathlib import Path; from lexitome.training import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "checkpoint.write(Path(sys.argv[1]), 'last', [('model', {'w': torch.zeros(10**6)})], {'step': 2})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    last_line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "InputError" in last_line and "cannot be written" in last_line
    assert "--resume" in last_line and step_of(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_tied_and_transposed_tensors_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    model[1].weight = model[0].weight
    parts = [("model", checkpoint.whole(checkpoint.model_tensors(model)))]
    checkpoint.write(tmp_path, "last", parts, {"step": 0})
    again = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3))
    checkpoint.load_weights(again, tmp_path / "last")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_another_model_is_named(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, "last", [("model", nn.Linear(2, 2).state_dict())], {"step": 0})
    with pytest.raises(InputError, match=r"another model.*weight"):
        checkpoint.load_weights(nn.Linear(3, 2), tmp_path / "last")
    with pytest.raises(InputError, match=r"another model: 4 tensors"):
        checkpoint.load_weights(nn.Sequential(nn.Linear(2, 2)), tmp_path / "last")


@pytest.mark.parametrize(("averaged", "expected"), [(True, 2.0), (False, 1.0)])
def test_averaged_weights_are_preferred(tmp_path: Path, averaged: bool, expected: float) -> None:
    ones = {name: torch.ones_like(value) for name, value in nn.Linear(2, 2).state_dict().items()}
    twos = {name: 2 * value for name, value in ones.items()}
    checkpoint.write(tmp_path, "best", [("model", ones), ("average", twos)], {"step": 0})
    model = nn.Linear(2, 2)
    checkpoint.load_weights(model, tmp_path / "best", averaged=averaged)
    assert model.weight.unique().tolist() == [expected]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_optimizer_continues_exactly(tmp_path: Path, memory_format: torch.memory_format) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU()).to(memory_format=memory_format)
        groups = [{"params": [model[1].weight], "lr": 0.1}, {"params": list(model[0].parameters())}]
        return model, torch.optim.AdamW(groups, lr=0.01)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad()
            picture = torch.randn(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
            model(picture).square().sum().backward()
            optimizer.step()

    model, optimizer = start()
    steps(model, optimizer, range(3))
    parts = {"model": checkpoint.model_tensors(model), "optimizer": checkpoint.optimizer_tensors(model, optimizer)}
    checkpoint.write(tmp_path, "last", [(p, checkpoint.whole(t)) for p, t in parts.items()], {"step": 3})
    steps(model, optimizer, range(3, 6))

    other, again = start()
    last = tmp_path / "last"
    checkpoint.load_weights(other, last)
    checkpoint.load_optimizer(other, again, checkpoint.read(last, "optimizer"), last)
    moment = again.state[other[0].weight]["exp_avg"]
    assert moment.is_contiguous(memory_format=memory_format)
    steps(other, again, range(3, 6))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_optimizer_state_of_what_is_frozen_now_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([model.weight])
    with pytest.raises(InputError, match="bias"):
        checkpoint.load_optimizer(model, optimizer, {"bias.exp_avg": torch.zeros(2)}, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99, "step": 1}', '{"step": 1}'])
def test_damaged_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(InputError, match="checkpoint"):
        checkpoint.read_state(tmp_path)


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    put(tmp_path, 1)
    file = tmp_path / "last" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        checkpoint.read(tmp_path / "last", "model")


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"run": {"seed": 0, "steps": 9}}, {"run": {"seed": 1, "steps": 9}}, "run.seed is 1, the run began with 0"),
        ({"optim": {"groups": [["a", 1.0]]}}, {"optim": {"groups": []}}, "optim.groups is [], "),
        ({"recipe": {"data": "x"}}, {"recipe": {}}, "recipe"),
        ({"ema": None, "lr": 1}, {"lr": 1}, "ema"),
        ({"run": {"seed": 0}}, {"run": {"seed": 0, "of a later version": 1}}, None),
    ],
)
def test_the_differing_field_is_named(before: dict, now: dict, words: str | None) -> None:
    found = checkpoint.first_difference(json.loads(json.dumps(before)), now)
    assert found is None if words is None else found is not None and words in found

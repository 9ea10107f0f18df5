"""The training loop of every model: `fit` runs a task to its end, alone or with others, and survives interruption.

A step: the pictures `range(task.images(step))` are cut into ranks x accumulate parts of nearly equal size; every rank
draws its parts ahead in a thread. The normalisers of the loss (`task.counts`) are summed over all parts first, so the
sum of the parts' losses, and of their gradients, is that of one process with one big batch. Then: clip, AdamW,
learning rate, moving average. Whatever is random is a function of (seed, step): batches by contract, dropout because
torch's generator is seeded anew in every step. A resumed run therefore sees what it would have seen.
"""

from __future__ import annotations

import errno
import json
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from lexitome.data.beside import beside
from lexitome.errors import InputError, Interrupted
from lexitome.training import checkpoint
from lexitome.training.optim import (
    Average,
    OptimConfig,
    apply_freeze,
    build_optimizer,
    checkpoint_activations,
    selected,
    set_rates,
)
from lexitome.training.parallel import Strategy, Team, assemble, forward_in_bf16
from lexitome.training.progress import Progress

B = TypeVar("B")
Precision = Literal["bf16", "fp32"]


class Task(Protocol[B]):
    """What is trained. A batch holds its tensors in dataclasses, tuples, lists or dicts, or has `.to(device)`."""

    def images(self, step: int) -> int:
        """Number of pictures of a step, over all ranks and parts; at least 1."""

    def batch(self, step: int, indices: range) -> B:
        """Pictures `indices` of a step, on the CPU: a pure function, whoever asks for which part. Runs in a thread."""

    def counts(self, batch: B) -> Tensor:
        """(k,) float: the normalisers of the loss in this part, such as queries, present queries, boxes."""

    def loss(self, model: nn.Module, batch: B, totals: Tensor) -> dict[str, Tensor]:
        """Weighted terms, each a sum over this part divided by its entry of `totals`: the sum of `counts` over all
        parts, which may be 0. A term may be missing where it would be 0."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model in evaluation mode, without gradients; the highest "dice" decides which is the best.
        Every rank runs all of it, since sliced models need all ranks; the numbers of rank 0 count."""


@runtime_checkable
class Following(Protocol):
    """A task that changes the model once more after each step, such as a teacher that follows its student."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """After the optimiser's step `step`, counted from 0, on every rank; the model may be sliced. What it changes
        has to be in the state of the model, or a resumed run would not have it."""


@dataclass(frozen=True)
class RunConfig:
    """How long, how exactly and how often.

    Attributes:
        steps: optimiser steps.
        accumulate: parts into which each rank cuts its share of a step, to save memory; the result is the same.
        precision: of the model's `forward`; weights, loss and optimiser are float32 always.
        clip: largest norm of the gradient; 0 = no clipping.
        clip_apart: globs of parts whose gradients are clipped on their own; what none names is clipped together.
        ema: decay of the averaged weights, which are validated and exported; None = no average.
        seed: of dropout; batches have the task's.
        checkpoint_every, validate_every, log_every: steps; validate_every 0 = at the end only.
        threads: of torch, each rank; None leaves them as they are.
        prefetch: steps drawn ahead; 0 draws only when needed.
        recompute: globs of modules whose activations are computed again in the backward pass instead of kept (see
            `optim.checkpoint_activations`): less memory, about a third more time, the same result.
    """

    steps: int
    accumulate: int = 1
    precision: Precision = "bf16"
    clip: float = 1.0
    clip_apart: tuple[str, ...] = ()
    ema: float | None = 0.998
    seed: int = 0
    checkpoint_every: int = 200
    validate_every: int = 1000
    log_every: int = 20
    threads: int | None = None
    prefetch: int = 2
    recompute: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        allowed = {
            "steps": self.steps > 0,
            "accumulate": self.accumulate > 0,
            "precision": self.precision in ("bf16", "fp32"),
            "clip": self.clip >= 0,
            "ema": self.ema is None or 0 <= self.ema < 1,
            "seed": self.seed >= 0,
            "checkpoint_every": self.checkpoint_every > 0,
            "validate_every": self.validate_every >= 0,
            "log_every": self.log_every > 0,
            "threads": self.threads is None or self.threads > 0,
            "prefetch": self.prefetch >= 0,
        }
        for name, fine in allowed.items():
            if not fine:
                cause = f"{getattr(self, name)!r} is out of range"
                raise InputError(f"run.{name}", cause, "See the attributes of RunConfig.")


DECIDES_NOTHING = frozenset(
    {"accumulate", "checkpoint_every", "validate_every", "log_every", "threads", "prefetch", "recompute"}
)  # fmt: skip
"""Fields of RunConfig that may change when a run is resumed: they do not change what is learned."""


DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class TrainingStopped(InputError):
    """Training cannot go on; the checkpoint that the message names is intact."""


@dataclass(frozen=True)
class FitResult:
    """`last` and `best` are folders of checkpoints; `best` is None if no validation gave a "dice"."""

    step: int
    metrics: dict[str, float]
    best_metric: float | None
    last: Path
    best: Path | None


@dataclass
class State:
    """What a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    step: int = 0
    best: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    saved: int = 0  # step of the checkpoint `last`

    def tensors(self) -> dict[str, checkpoint.Tensors]:
        parts = {"model": checkpoint.model_tensors(self.model)}
        if self.average:
            parts["average"] = self.average.state_dict()
        return {**parts, "optimizer": checkpoint.optimizer_tensors(self.model, self.optimizer)}

    def save(self, team: Team, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        """Every rank calls this and gives its slices, one part after the other; rank 0 writes.

        Raises:
            InputError: it cannot be written; on every rank.
        """
        record = {"step": self.step, "best": self.best, "metrics": self.metrics, "config": config}
        versions = {package: version(package) for package in ("lexitome", "torch")}
        keep = team.rank == 0
        parts = ((part, checkpoint.whole(tensors, keep=keep)) for part, tensors in self.tensors().items())

        def write() -> None:
            try:
                checkpoint.write(folder, name, parts, {**record, "versions": versions})
            finally:
                deque(parts, maxlen=0)  # after an error too, the others still give what is left

        if not keep:
            deque(parts, maxlen=0)
        team.on_main(write)
        if name == "last":
            self.saved = self.step

    def restore(self, path: Path) -> None:
        record = checkpoint.read_state(path)
        for part, tensors in self.tensors().items():
            stored = checkpoint.read(path, part)
            if part == "optimizer":
                checkpoint.load_optimizer(self.model, self.optimizer, stored, path)
            else:
                checkpoint.copy_into(tensors, stored, path)
        self.step, self.best, self.metrics = record["step"], record["best"], record["metrics"]
        self.saved = self.step


@dataclass(frozen=True)
class Setting:
    """What stays the same through a run. `config` is all that decides its result, as JSON reads it."""

    team: Team
    task: Task[Any]
    optim: OptimConfig
    run: RunConfig
    checkpoints: Path
    config: dict[str, Any]


class Part(NamedTuple):
    """A share of a step's pictures."""

    batch: Any
    weight: float  # 0 for a rank that has no pictures left


def fit(
    model: nn.Module,
    task: Task[Any],
    optim: OptimConfig,
    run: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    strategy: Strategy | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train `model` in place and leave checkpoints in ``folder/checkpoints/last`` and ``best``.

    Args:
        resume: continue the run that `folder` holds; False wants a folder without one.
        strategy: None takes what the launcher of this process says.
        recipe: what else decides the result (data, model), as JSON; resuming compares it too.

    Raises:
        Interrupted: by a signal, all saved.
        TrainingStopped: the loss is not finite; the last checkpoint is intact.
        InputError: a setting does not fit, the folder holds another run, or the disk is full.
    """
    team = assemble(strategy)
    if run.threads:
        torch.set_num_threads(run.threads)
    config = json.loads(json.dumps({"run": _deciding(run), "optim": asdict(optim), "recipe": recipe or {}}))
    setting = Setting(team, task, optim, run, folder / "checkpoints", config)
    state = _begin(model, setting, resume)
    logged = Progress(folder, run.steps, run.log_every, start_step=state.step) if team.rank == 0 else nullcontext()
    half = run.precision == "bf16"
    try:
        with forward_in_bf16(model, team.device, half), StopRequest(team.size) as stop, logged as log:
            _train(state, setting, stop, log)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InputError(folder, f"cannot be written ({error.strerror})", checkpoint.FREE_SPACE) from error
    last, best = (checkpoint.locate(setting.checkpoints, name) for name in ("last", "best"))
    assert last is not None
    return FitResult(state.step, state.metrics, state.best, last, best)


def _deciding(run: RunConfig) -> dict[str, Any]:
    return {f.name: getattr(run, f.name) for f in fields(run) if f.name not in DECIDES_NOTHING}


def _begin(model: nn.Module, setting: Setting, resume: bool) -> State:
    """State at step 0, already saved so that a full disk shows at once, or that of the folder's checkpoint."""
    team, folder = setting.team, setting.checkpoints
    team.on_main(lambda: _look_at(setting, resume))
    apply_freeze(model, setting.optim.freeze)
    checkpoint_activations(model, setting.run.recompute)
    selected(setting.run.clip_apart, [name for name, _ in model.named_parameters()], "run.clip_apart")
    team.place(model)
    model.train()
    optimizer = build_optimizer(model, setting.optim)
    state = State(model, optimizer, None if setting.run.ema is None else Average(model, setting.run.ema))
    if resume:
        state.restore(folder / "last")
    else:
        state.save(team, folder, "last", setting.config)
    return state


def _look_at(setting: Setting, resume: bool) -> None:
    """Compare what the folder holds with what is wanted."""
    folder = setting.checkpoints
    for name in ("last", "best"):
        checkpoint.tidy(folder, name)
    found = checkpoint.locate(folder, "last")
    if found and not resume:
        raise InputError(folder.parent, "holds a run already", "Continue it with --resume, or choose another folder.")
    if resume and not found:
        raise InputError(folder.parent, "holds no run to continue", "Leave --resume out, or name the run's folder.")
    if found:
        before = checkpoint.read_state(found)["config"]
        if before["run"]["steps"] < setting.run.steps:  # made longer: its rates are now those of the longer
            before["run"]["steps"] = setting.run.steps
        difference = checkpoint.first_difference(before, setting.config)
        if difference:
            remedy = "Resume with the settings of the run, or choose another folder."
            raise InputError(folder.parent, f"holds a run with other settings: {difference}", remedy)


def _train(state: State, setting: Setting, stop: StopRequest, log: Progress | None) -> None:
    """From `state.step` to the end."""
    run, team, folder = setting.run, setting.team, setting.checkpoints
    objective = team.objective(state.model, setting.task.loss)
    with parts_ahead(setting, state.step) as upcoming:
        while state.step < run.steps:
            began = time.perf_counter()
            parts = next(upcoming)
            waited = time.perf_counter() - began
            factor = set_rates(state.optimizer, state.step, run.steps, setting.optim)
            terms, stopping = _step(state, setting, objective, parts, stop)
            seconds = time.perf_counter() - began
            if log:
                images = setting.task.images(state.step - 1)
                log.step(state.step, images, terms, seconds, waited, setting.optim.lr * factor)
            if state.step == run.steps or (run.validate_every and state.step % run.validate_every == 0):
                _validate(state, setting, log)
            if state.step == run.steps or state.step % run.checkpoint_every == 0 or stopping:
                state.save(team, folder, "last", setting.config)
            if stopping and state.step < run.steps:
                remedy = "Continue with --resume."
                cause = f"stopped on request after step {state.step}, all saved"
                raise Interrupted(folder.parent, cause, remedy, stop.number)


def _step(
    state: State, setting: Setting, objective: nn.Module, parts: list[Part], stop: StopRequest
) -> tuple[dict[str, float], bool]:
    """One optimiser step; its loss terms and whether any rank was asked to stop."""
    team, run = setting.team, setting.run
    generator = np.random.SeedSequence((run.seed, state.step, team.rank))
    torch.manual_seed(int(generator.generate_state(1)[0]))
    counts = torch.stack([setting.task.counts(part.batch) * part.weight for part in parts])
    totals = team.total(counts.sum(0).to(team.device))
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts, start=1):
        batch = moved(part.batch, team.device)
        with nullcontext() if number == len(parts) else team.accelerator.no_sync(objective):
            terms = {name: term * part.weight for name, term in objective(batch, totals).items()}
            # Gradients are averaged over ranks where a sum is wanted.
            (torch.stack(list(terms.values())).sum() * team.size).backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach().float()
    values, stopping = team.gathered({name: value.item() for name, value in sums.items()}, stop.asked)
    _refuse_nonsense(values, "loss", state, setting)
    team.settle_gradients(state.optimizer)
    _refuse_nonsense(_clip(state.optimizer, run, team), "gradient", state, setting)
    state.optimizer.step()
    team.average_statistics(state.model)
    if isinstance(setting.task, Following):
        setting.task.after_step(state.model, state.step)
    if state.average:
        state.average.update(state.model, state.step)
    state.step += 1
    return values, stopping


def moved(batch: Any, device: torch.device) -> Any:
    """The batch of a task with its tensors on a device."""
    if is_dataclass(batch) and not isinstance(batch, type) and not hasattr(batch, "to"):
        return replace(batch, **{f.name: moved(getattr(batch, f.name), device) for f in fields(batch)})
    return send_to_device(batch, device)


def _clip(optimizer: torch.optim.Optimizer, run: RunConfig, team: Team) -> dict[str, float]:
    """Norms of the gradients of all parts before clipping."""
    parts: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            part = next((glob for glob in run.clip_apart if fnmatchcase(name, glob)), "")
            parts.setdefault(f"norm {part}".strip(), []).append(parameter)
    norms = {}
    for part, parameters in parts.items():
        norm = team.accelerator.clip_grad_norm_(parameters, run.clip or math.inf)
        norms[part] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    return norms


def _refuse_nonsense(values: dict[str, float], what: str, state: State, setting: Setting) -> None:
    """Raises TrainingStopped on every rank alike, before the weights are touched."""
    odd = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if odd:
        cause = f"the {what} is not finite in step {state.step} ({', '.join(odd)})"
        cause += f"; the checkpoint after {state.saved} steps is intact"
        remedy = "Train in another folder with a lower learning rate, a longer warm-up or run.precision=fp32."
        raise TrainingStopped(setting.checkpoints.parent, cause, remedy)


def _validate(state: State, setting: Setting, log: Progress | None) -> None:
    """Validate the averaged weights and keep them as `best` if their "dice" is the highest yet."""
    state.model.eval()
    with state.average.swapped(state.model) if state.average else nullcontext(), torch.no_grad():
        metrics = setting.task.validate(state.model)
    state.model.train()
    state.metrics = setting.team.agreed({name: float(value) for name, value in metrics.items()})
    if log:
        log.validation(state.step, state.metrics)
    dice = state.metrics.get("dice", math.nan)
    if math.isfinite(dice) and (state.best is None or dice > state.best):
        state.best = dice
        state.save(setting.team, setting.checkpoints, "best", setting.config)


def shares(images: int, ranks: int, rank: int, parts: int) -> list[range]:
    """The pictures of each part of a rank: at most `parts` ranges, as many on every rank; they differ by at most 1 in
    length, so that some are empty if there are few pictures."""
    parts = min(parts, math.ceil(images / ranks))
    slots = ranks * parts
    edges = [images * slot // slots for slot in range(slots + 1)]
    return [range(edges[part * ranks + rank], edges[part * ranks + rank + 1]) for part in range(parts)]


@contextmanager
def parts_ahead(setting: Setting, first: int) -> Iterator[Iterator[list[Part]]]:
    """This rank's parts of the steps from `first` on, drawn by a thread while earlier steps train."""
    task, run, team = setting.task, setting.run, setting.team

    def draw(step: int) -> list[Part]:
        # All ranks have to go through the model together: one without pictures takes some, with weight 0.
        ranges = shares(task.images(step), team.size, team.rank, run.accumulate)
        return [Part(task.batch(step, r or range(1)), float(bool(r))) for r in ranges]

    def stream(pool: ThreadPoolExecutor) -> Iterator[list[Part]]:
        queue: deque[Future[list[Part]]] = deque()
        following = first
        for _ in range(first, run.steps):
            while following < run.steps and len(queue) <= run.prefetch:
                queue.append(pool.submit(draw, following))
                following += 1
            yield queue.popleft().result()

    with beside() as pool:
        yield stream(pool)


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a wish to stop after the step; a second Ctrl-C stops a lone process at
    once. (`torchrun` repeats the signals that the terminal has sent to its children already.)"""

    def __init__(self, ranks: int) -> None:
        self.asked = False
        self.number: int = signal.SIGTERM  # of the signal; another rank may have been the one that got it
        self._ranks = ranks
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked and self._ranks == 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self.number = True, number

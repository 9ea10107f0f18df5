"""What a training run shows and leaves behind: `log.jsonl`, TensorBoard events, a live view, `progress.png`.

`log.jsonl` is the record: one JSON object a line, of kind "train" (means since the line before) or "validation". All
else is made from it or beside it, so a continued run draws its whole past. Used on the first of several processes.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lexitome.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG, PICTURE, EVENTS = "log.jsonl", "progress.png", "tensorboard"
BEST_OF = "dice"
"""The validation metric whose largest value is the best."""
RECENT = 100
"""Steps whose mean duration predicts the time left."""

Row = dict[str, Any]


def resident_bytes() -> int | None:
    """Memory that this process holds now, where the system tells (Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int | None:
    """The most memory that this process has held (Linux and macOS)."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_log(path: Path) -> list[Row]:
    """Rows of a `log.jsonl`; none if there is no file. A last line that an interruption cut short is left out.

    Raises:
        InputError: another line is not a row of a log.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["kind"], row["step"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise InputError(path, f"line {number} is not a row of a training log", "Move the file away.") from None
        rows.append(row)
    return rows


@dataclass
class _Interval:
    """Sums since the last line of the log."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    last: int = 0
    lr: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)

    def add(
        self, step: int, images: int, terms: Mapping[str, float], seconds: float, waiting: float, lr: float
    ) -> None:
        self.last, self.lr = step, lr
        self.steps += 1
        self.images += images
        self.seconds += seconds
        self.waiting += waiting
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value

    def row(self) -> Row:
        terms = {name: value / self.steps for name, value in self.terms.items()}
        seconds = max(self.seconds, 1e-9)
        return {
            "kind": "train", "step": self.last, "loss": sum(terms.values()), "terms": terms, "lr": self.lr,
            "seconds": self.seconds / self.steps, "waiting": self.waiting / seconds,
            "images_per_second": self.images / seconds, "resident": resident_bytes(), "peak": peak_bytes(),
        }  # fmt: skip


class Progress:
    """Context manager that keeps the record of a run in `folder` and shows it.

    On a terminal (or with `live=True`) a view that renews itself, otherwise plain lines. Steps count from 1: step n is
    reported when n steps are done.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        log_every: int = 20,
        *,
        live: bool | None = None,
        tensorboard: bool = True,
        start_step: int = 0,
        console: Console | None = None,
    ) -> None:
        """`start_step`: steps already done, by the checkpoint this run continues from; later rows of an existing log
        are cut, since they will be written again. `live` None: decided by whether `console` is a terminal."""
        self.folder = folder
        self.steps = steps
        self.log_every = log_every
        self._console = console or Console()
        self._live = self._console.is_terminal if live is None else live
        self._tensorboard = tensorboard
        self._start_step = start_step
        self._interval = _Interval()
        self._state = _State(folder.absolute().name, steps, start_step)
        self._undrawn = False
        self._said_no_picture = False

    def __enter__(self) -> Progress:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / LOG
        rows = [row for row in read_log(log) if row["step"] <= self._start_step]
        for row in rows:
            self._state.take(row)
        _write_atomically(log, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._log = log.open("a", encoding="utf-8")
        self._events = self._open_events() if self._tensorboard else None
        self._view = Live(self._state, console=self._console, refresh_per_second=4) if self._live else None
        if self._view:
            self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:  # runs all of these, the last first, even if one fails
            closing.callback(self._draw)
            closing.callback(self._log.close)
            if self._events is not None:
                closing.callback(self._events.close)
            if self._view:
                closing.callback(self._view.stop)
            if self._interval.steps:
                self._end_interval()

    def step(
        self,
        step: int,
        images: int,
        terms: Mapping[str, float],
        seconds_total: float,
        seconds_waiting_for_data: float,
        lr: float,
    ) -> None:
        """Report that `step` steps are done.

        Args:
            images: seen in this step, by all processes.
            terms: weighted terms of the loss, which is their sum.
            seconds_total: of the step; `seconds_waiting_for_data` is part of it.
            lr: the base learning rate of the step.
        """
        self._interval.add(step, images, terms, seconds_total, seconds_waiting_for_data, lr)
        self._state.tick(step, seconds_total)
        if step % self.log_every == 0 or step == self.steps:
            self._end_interval()

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report a validation after `step` steps and draw the picture anew."""
        self._record({"kind": "validation", "step": step, "metrics": dict(metrics)})
        self._draw()

    def _end_interval(self) -> None:
        row, self._interval = self._interval.row(), _Interval()
        self._record(row)

    def _record(self, row: Row) -> None:
        row = _without_nan(row)
        self._undrawn = True
        self._log.write(json.dumps(row) + "\n")
        self._log.flush()
        self._state.take(row)
        if self._events is not None:
            for name, value in _scalars(row):
                self._events.add_scalar(name, value, row["step"])
        if self._view is None:
            self._console.print(self._state.line(row), markup=False, highlight=False, soft_wrap=True)

    def _open_events(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._console.print("TensorBoard is not installed (pip install tensorboard): no event files", markup=False)
            return None
        # purge_step hides what an earlier run of this folder wrote for steps that come again.
        # A queue longer than the scalars of a row, or the loop would wait for the disk.
        return SummaryWriter(str(self.folder / EVENTS), purge_step=self._start_step + 1, max_queue=500, flush_secs=30)

    def _draw(self) -> None:
        if not self._undrawn:
            return
        self._undrawn = False
        try:
            draw_progress(self.folder / LOG, self.folder / PICTURE)
        except ImportError:
            if not self._said_no_picture:
                self._console.print(f"matplotlib is not installed (pip install matplotlib): no {PICTURE}", markup=False)
            self._said_no_picture = True


@dataclass
class _State:
    """What is shown: the last rows, the best validation, the speed of late. Rendered by rich as the live view."""

    name: str
    steps: int
    step: int
    train: Row | None = None
    last: Row | None = None
    best: Row | None = None
    began: float = field(default_factory=time.monotonic)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def tick(self, step: int, seconds: float) -> None:
        self.step = step
        self.recent.append(seconds)

    def take(self, row: Row) -> None:
        if row["kind"] == "train":
            self.train = row
            return
        self.last = row
        value = row["metrics"].get(BEST_OF)
        if value is not None and (self.best is None or value > self.best["metrics"][BEST_OF]):
            self.best = row

    @property
    def left(self) -> str:
        recent = list(self.recent)
        return _duration((self.steps - self.step) * sum(recent) / len(recent)) if recent else "-"

    def line(self, row: Row) -> str:
        """One row as plain text."""
        head = f"step {row['step']}/{self.steps}"
        if row["kind"] == "validation":
            return f"{head} validation {_numbers(row['metrics'])}{' (best so far)' if row is self.best else ''}"
        return (
            f"{head} loss {_number(row['loss'])} ({_numbers(row['terms'])}) lr {row['lr']:.2e} "
            f"{_speed(row)} {_memory(row)}, {self.left} left"
        )

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 3))
        table.add_column(style="bold")
        if self.train:
            table.add_row("loss", Text(f"{_number(self.train['loss'])}   ({_numbers(self.train['terms'])})"))
        if self.last:
            table.add_row("validation", Text(f"{_numbers(self.last['metrics'])}   at step {self.last['step']:,}"))
        if self.best:
            value, step = self.best["metrics"][BEST_OF], self.best["step"]
            table.add_row(f"best {BEST_OF}", Text(f"{_number(value)}   at step {step:,}", style="green"))
        if self.train:
            table.add_row("speed", Text(_speed(self.train)))
            table.add_row("memory", Text(_memory(self.train)))
            table.add_row("learning rate", Text(f"{self.train['lr']:.2e}"))
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        spent = _duration(time.monotonic() - self.began)
        share = f"{self.step:,} / {self.steps:,}  {self.step / max(1, self.steps):.0%}"
        bar.add_row(ProgressBar(self.steps, self.step), share, f"{spent} spent, {self.left} left")
        return Panel(Group(bar, Text(), table), title=f"training {self.name}", title_align="left")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) >= 1000 else f"{value:.4f}"


def _numbers(values: Mapping[str, float | None]) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in values.items())


def _speed(row: Row) -> str:
    speed = f"{row['images_per_second']:.1f} images/s, {row['seconds']:.2f} s/step"
    return f"{speed}, {row['waiting']:.0%} waiting for data"


def _memory(row: Row) -> str:
    known = [f"{row[key] / 1e9:.2f} GB {key}" for key in ("resident", "peak") if row[key] is not None]
    return ", ".join(known) or "memory unknown"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; null says the same."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(row: Row) -> list[tuple[str, float]]:
    """(TensorBoard tag, value) of a row."""
    if row["kind"] == "validation":
        found = {f"validation/{name}": value for name, value in row["metrics"].items()}
    else:
        found = {f"loss/{name}": value for name, value in row["terms"].items()} | {
            "loss": row["loss"], "learning_rate": row["lr"], "speed/images_per_second": row["images_per_second"],
            "speed/seconds_per_step": row["seconds"], "speed/share_waiting_for_data": row["waiting"],
            "memory/resident_gb": row["resident"] and row["resident"] / 1e9,
            "memory/peak_gb": row["peak"] and row["peak"] / 1e9,
        }  # fmt: skip
    return [(name, value) for name, value in found.items() if value is not None]


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


# --- progress.png ---

BLUE, GREEN, ORANGE = "#1f5fa8", "#2e8b57", "#d9822b"


def draw_progress(log: Path, picture: Path) -> None:
    """Three panels over the steps of a `log.jsonl`: loss and validation, seconds a step, learning rate. Nothing is
    drawn of an empty log.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from io import BytesIO

    from matplotlib.figure import Figure

    rows = read_log(log)
    if not rows:
        return
    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    figure = Figure(figsize=(11, 11), dpi=110, layout="constrained")  # no pyplot: no window, no global state
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
    twin = top.twinx()
    _draw_loss(top, train)
    _draw_validation(twin, validation)
    curves = [axes.get_legend_handles_labels() for axes in (top, twin)]
    handles, labels = ([*curves[0][k], *curves[1][k]] for k in (0, 1))
    twin.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4, borderaxespad=0.2)
    _draw_time(middle, middle.twinx(), train)
    steps = [row["step"] for row in train]
    bottom.plot(steps, [row["lr"] for row in train], color=BLUE, lw=1.8)
    bottom.set(ylabel="learning rate", xlabel="step")
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    bottom.set_ylim(bottom=0)
    for axes in (top, middle, bottom):
        axes.grid(color="0.92")
        axes.margins(x=0.01)
        axes.spines["top"].set_visible(False)
    top.set_title(log.parent.absolute().name, loc="left", fontweight="bold")
    stream = BytesIO()
    figure.savefig(stream, format="png")
    _write_atomically(picture, stream.getvalue())


def moving_average(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and up to `reach` neighbours on either side, as many left as right; NaN is passed over."""
    means = []
    for i in range(len(values)):
        side = min(reach, i, len(values) - 1 - i)
        near = [value for value in values[i - side : i + side + 1] if math.isfinite(value)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def _floats(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _range(values: list[float]) -> tuple[float, float]:
    """Lowest value, and highest but for one in a hundred: a few outliers must not flatten the rest."""
    known = sorted(value for value in values if math.isfinite(value)) or [0.0]
    return known[0], known[int(0.99 * (len(known) - 1))]


def _draw_loss(axes: Axes, train: list[Row]) -> None:
    steps, loss = [row["step"] for row in train], _floats([row["loss"] for row in train])
    smooth = moving_average(loss, max(2, len(loss) // 40))
    axes.plot(steps, loss, color=BLUE, lw=0.8, alpha=0.35, label="training loss")
    axes.plot(steps, smooth, color=BLUE, lw=2, label="moving average")
    axes.set_ylabel("loss", color=BLUE)
    low, high = _range(loss)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1
    axes.set_ylim(low - margin, high + margin)


def _draw_validation(axes: Axes, validation: list[Row]) -> None:
    points = [(row["step"], row["metrics"].get(BEST_OF)) for row in validation]
    known = [(step, value) for step, value in points if value is not None]
    axes.set_ylabel("validation Dice", color=GREEN)
    axes.set_ylim(0, 1)
    axes.spines["top"].set_visible(False)
    if not known:
        return
    axes.plot(*zip(*known, strict=True), color=GREEN, lw=2, marker="o", ms=4, label="validation Dice")
    step, value = max(known, key=lambda point: point[1])
    axes.plot(step, value, "*", color=ORANGE, ms=16, mec="white", label=f"best {value:.4f} at step {step:,}")


def _draw_time(axes: Axes, twin: Axes, train: list[Row]) -> None:
    steps = [row["step"] for row in train]
    seconds = _floats([row["seconds"] for row in train])
    axes.plot(steps, seconds, color=BLUE, lw=1.4)
    axes.set_ylabel("seconds per step", color=BLUE)
    axes.set_ylim(0, 1.2 * _range(seconds)[1] or 1)
    twin.fill_between(steps, [100 * row["waiting"] for row in train], color=ORANGE, alpha=0.35, lw=0)
    twin.set_ylabel("waiting for data (%)", color=ORANGE)
    twin.set_ylim(0, 100)
    twin.spines["top"].set_visible(False)

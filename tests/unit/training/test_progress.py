"""The record of a run: rows, resuming, what a terminal and a file show, TensorBoard, the picture, and what it costs."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lexitome.errors import InputError
from lexitome.training import progress
from lexitome.training.progress import Progress, draw_progress, moving_average, peak_bytes, read_log, resident_bytes


def quiet(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=110, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(folder: Path, first: int, last: int, *, steps: int = 40, console: Console | None = None, **options) -> None:
    """Steps `first` + 1 to `last` of a run whose loss is 1 / step, with a validation every 10 steps."""
    options = {"live": False, "tensorboard": False} | options
    with Progress(folder, steps, 4, start_step=first, console=console or quiet(), **options) as report:
        for step in range(first + 1, last + 1):
            report.step(step, 8, {"bce": 0.25 / step, "dice": 0.75 / step}, 0.5, 0.1, 1e-3 * step)
            if step % 10 == 0:
                report.validation(step, {"dice": 0.5 + 0.01 * (30 - abs(step - 30)), "presence": 0.9})


def of_kind(folder: Path, kind: str) -> list[dict]:
    return [row for row in read_log(folder / "log.jsonl") if row["kind"] == kind]


def test_rows_are_means_since_the_row_before(tmp_path: Path) -> None:
    run(tmp_path, 0, 40)
    rows = of_kind(tmp_path, "train")
    assert [row["step"] for row in rows] == list(range(4, 41, 4))
    second = rows[1]
    assert second["loss"] == pytest.approx((1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4)
    assert second["terms"]["bce"] == pytest.approx(second["loss"] / 4)
    assert second["seconds"] == pytest.approx(0.5)
    assert second["waiting"] == pytest.approx(0.2)
    assert second["images_per_second"] == pytest.approx(16)
    assert second["lr"] == pytest.approx(8e-3)
    assert 10**7 < second["resident"] <= 1.1 * second["peak"] < 10**12
    assert [row["metrics"]["presence"] for row in of_kind(tmp_path, "validation")] == [0.9] * 4


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path: Path) -> None:
    run(tmp_path / "whole", 0, 40)
    run(tmp_path / "cut", 0, 29)  # the checkpoint to continue from was written after step 24
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')  # killed while it wrote
    run(tmp_path / "cut", 24, 40)
    forget = {"resident", "peak"}
    whole, cut = (
        [{k: v for k, v in row.items() if k not in forget} for row in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "cut")
    )
    assert whole == cut
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["log.jsonl", "progress.png"]


def test_steps_of_an_unfinished_interval_are_logged_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(tmp_path, 100, 10, live=False, console=quiet()) as report:
        for step in range(1, 14):
            report.step(step, 1, {"loss": float(step)}, 0.1, 0.0, 1e-3)
        raise KeyboardInterrupt
    assert [(row["step"], row["loss"]) for row in of_kind(tmp_path, "train")] == [(10, 5.5), (13, 12.0)]


def test_starting_anew_in_a_used_folder_starts_an_empty_log(tmp_path: Path) -> None:
    run(tmp_path, 0, 40)
    run(tmp_path, 0, 4)
    assert len(read_log(tmp_path / "log.jsonl")) == 1


@pytest.mark.parametrize("line", ["not json", "[1, 2]", '{"step": 3}', "7"])
def test_a_foreign_line_is_refused(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f'{line}\n{{"kind": "validation", "step": 1, "metrics": {{}}}}\n')
    with pytest.raises(InputError, match="line 1 is not a row"):
        read_log(log)
    assert read_log(tmp_path / "absent.jsonl") == []


def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    console = quiet()
    run(tmp_path, 0, 40, console=console, live=None)
    lines = shown(console).splitlines()
    assert len(lines) == 10 + 4
    assert lines[0].startswith("step 4/40 loss 0.5208 (bce 0.1302  dice 0.3906) lr 4.00e-03 16.0 images/s, 0.50 s/step")
    assert "20% waiting for data" in lines[0] and "GB peak" in lines[0] and lines[0].endswith("0:00:18 left")
    validations = [line for line in lines if "validation" in line]
    assert validations[2] == "step 30/40 validation dice 0.8000  presence 0.9000 (best so far)"
    assert validations[3] == "step 40/40 validation dice 0.7000  presence 0.9000"


def test_the_live_view_shows_where_the_run_stands(tmp_path: Path) -> None:
    console = quiet(terminal=True)
    run(tmp_path, 0, 30, console=console, live=None)
    run(tmp_path, 30, 40, console=console, live=None)  # the best of before the interruption is remembered
    last = shown(console).rpartition("training test_the_live_view")[2]
    for words in ("40 / 40", "100%", "0:00:00 left", "dice 0.7000", "at step 40", "0.8000   at step 30",
                  "16.0 images/s", "20% waiting for data", "GB resident", "GB peak", "4.00e-02"):  # fmt: skip
        assert words in last, words
    assert "step 4/40" not in shown(console)


def test_metrics_that_are_not_numbers_are_no_best(tmp_path: Path) -> None:
    console = quiet()
    with Progress(tmp_path, 4, 2, live=False, tensorboard=False, console=console) as report:
        report.step(1, 1, {"loss": math.nan}, 0.1, 0.0, 1e-3)
        report.step(2, 1, {"loss": 1.0}, 0.1, 0.0, 1e-3)
        report.validation(2, {"dice": math.nan})
        report.validation(3, {"dice": 0.1})
        report.validation(4, {"presence": 0.5})
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] is None and rows[1]["metrics"] == {"dice": None}
    assert shown(console).count("best so far") == 1
    assert "dice 0.1000 (best so far)" in shown(console)


def test_tensorboard_has_every_step_once_after_resuming(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, 0, 29, tensorboard=True)
    time.sleep(1.1)  # the names of event files count in seconds, and their order is that of the names
    run(tmp_path, 20, 40, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/bce")] == list(range(4, 41, 4))
    assert [event.step for event in events.Scalars("validation/dice")] == [10, 20, 30, 40]
    assert events.Scalars("loss")[0].value == pytest.approx(25 / 48)
    assert events.Scalars("learning_rate")[-1].value == pytest.approx(4e-2)


def test_missing_packages_are_mentioned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    console = quiet()
    run(tmp_path, 0, 40, console=console, tensorboard=True)
    assert shown(console).count("TensorBoard is not installed") == 1
    assert shown(console).count("matplotlib is not installed") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, lexitome.training.progress; print({'torch', 'matplotlib', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_the_picture_is_drawn_after_each_validation_from_the_whole_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure_module.Figure.savefig

    def keep(figure, *args, **options) -> None:
        drawn.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(figure_module.Figure, "savefig", keep)
    run(tmp_path, 0, 24)
    assert len(drawn) == 3  # two validations and the end
    run(tmp_path, 24, 40)
    assert len(drawn) == 5  # the end had nothing new
    top, middle, bottom, dice, waiting = drawn[-1].axes
    raw, smooth = top.lines
    assert list(raw.get_xdata()) == list(range(4, 41, 4))
    assert np.isfinite(smooth.get_ydata()).all()
    curve, star = dice.lines
    assert list(curve.get_xdata()) == [10, 20, 30, 40]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (30, pytest.approx(0.8))
    assert middle.lines[0].get_ydata() == pytest.approx([0.5] * 10)
    assert waiting.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(20)
    assert bottom.lines[0].get_ydata()[-1] == pytest.approx(4e-2)
    with Image.open(tmp_path / "progress.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "progress.png"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"kind": "validation", "step": 1, "metrics": {"dice": None}}],
        [{"kind": "validation", "step": 1, "metrics": {"dice": 0.5}}],
        [{"kind": "train", "step": 1, "loss": None, "lr": 0.0, "seconds": 1.0, "waiting": 0.0}],
    ],
)
def test_a_picture_of_little(tmp_path: Path, rows: list[dict]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_progress(tmp_path / "log.jsonl", tmp_path / "progress.png")
    assert (tmp_path / "progress.png").stat().st_size > 1000


def test_the_moving_average_keeps_straight_lines_and_skips_gaps() -> None:
    line = [3.0 - 0.5 * i for i in range(20)]
    assert moving_average(line, 4) == pytest.approx(line)
    assert moving_average([1.0, math.nan, 3.0], 1)[1] == 2.0
    assert math.isnan(moving_average([math.nan], 3)[0])
    noise = np.random.default_rng(0).normal(size=400)
    assert np.std(moving_average(noise.tolist(), 10)[10:-10]) < 0.35


def test_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():  # where the system says it in another place, in other units
        shown = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        assert resident_bytes() == pytest.approx(1024 * shown, rel=0.05)
    monkeypatch.setattr(progress.sys, "platform", "linux")
    linux = peak_bytes() or 0
    assert linux >= 1024 * kilobytes
    monkeypatch.setattr(progress.sys, "platform", "darwin")
    assert peak_bytes() == linux // 1024


@pytest.mark.parametrize("live", [False, True])
def test_a_report_costs_less_than_a_millisecond(tmp_path: Path, live: bool) -> None:
    """Of the loop's own time, rows of the log included; mean over 1000 steps, best of two."""
    means = []
    for attempt in range(2):
        with Progress(tmp_path / str(attempt), 1000, 20, live=live, console=quiet(live)) as report:
            began = time.thread_time()
            for step in range(1, 1001):
                report.step(step, 8, {"bce": 0.1, "dice": 0.2, "presence": 0.3}, 0.5, 0.1, 1e-3)
            means.append((time.thread_time() - began) / 1000)
    assert min(means) < 1e-3
